"""Readers of office documents, PDF, EPUB and RTF, most of them LlamaIndex's."""

import io
import re
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from ingestion.readers_outline import Extracted, clean, markdown, outlined, stem
from knowledge_base.documents import Section


def _pages(reader: Any, content: bytes, suffix: str) -> list[str]:
    """Texts that a LlamaIndex reader finds in a file; it wants one on disk."""
    with tempfile.TemporaryDirectory(prefix="plumbline-") as folder:
        file = Path(folder) / f"document{suffix}"
        file.write_bytes(content)
        return [clean(document.text) for document in reader.load_data(file)]


def _paged(path: str, pages: list[str], names: Sequence[str] = ()) -> Extracted:
    sections, parts, length = [], [], 0
    for number, (page, name) in enumerate(zip_longest(pages, names, fillvalue=""), 1):
        parts.append(page.rstrip() + "\n\n")
        sections.append(Section(length, length + len(parts[-1]), (name,) if name else (), number))
        length += len(parts[-1])
    return Extracted(stem(path), "".join(parts), tuple(sections))


def read_pdf(path: str, content: bytes) -> Extracted:
    """PDF page by page."""
    from llama_index.readers.file import PDFReader

    return _paged(path, _pages(PDFReader(return_full_document=False), content, ".pdf"))


def read_docx(path: str, content: bytes) -> Extracted:
    """Word, in sections by the styles of its headings."""
    from llama_index.readers.file import DocxReader

    text = re.sub(r"\n{3,}", "\n\n", "\n\n".join(_pages(DocxReader(), content, ".docx")))
    return outlined(path, text, _docx_headings(text, content))


def _docx_headings(text: str, content: bytes) -> Iterator[tuple[int, int, str]]:
    """Headings by their style, where the reader's plain text has them as lines of their own."""
    from xml.etree import ElementTree

    word = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        body = ElementTree.fromstring(archive.read("word/document.xml"))
        known = "word/styles.xml" in archive.namelist()
        styles = ElementTree.fromstring(archive.read("word/styles.xml")) if known else body
    levels = {}
    for style in styles.iter(f"{word}style"):
        name = style.find(f"{word}name")
        if name is not None and (found := re.fullmatch(r"(?i)heading (\d)", name.get(f"{word}val", ""))):
            levels[style.get(f"{word}styleId")] = int(found[1])
    position = 0
    for paragraph in body.iter(f"{word}p"):
        style_of = paragraph.find(f"{word}pPr/{word}pStyle")
        level = levels.get(style_of.get(f"{word}val")) if style_of is not None else None
        words = clean("".join(run.text or "" for run in paragraph.iter(f"{word}t"))).strip()
        if level and words and (at := f"\n{text}\n".find(f"\n{words}\n", position)) >= 0:
            yield at, level, words
            position = at + len(words)


def read_pptx(path: str, content: bytes) -> Extracted:
    """Slides as pages. python-pptx itself: LlamaIndex's reader adds a report on each slide to its text."""
    from pptx import Presentation

    slides, names = [], []
    for slide in Presentation(io.BytesIO(content)).slides:
        parts = [part for shape in slide.shapes for part in _shape_texts(shape)]
        if slide.has_notes_slide and slide.notes_slide.notes_text_frame is not None:
            parts.append(slide.notes_slide.notes_text_frame.text)
        slides.append(clean("\n".join(part for part in parts if part.strip())))
        title = slide.shapes.title
        names.append(clean(" ".join(title.text_frame.text.split())) if title is not None else "")
    return _paged(path, slides, names)


def _shape_texts(shape: Any) -> Iterator[str]:
    if hasattr(shape, "shapes"):
        for inner in shape.shapes:
            yield from _shape_texts(inner)
    elif shape.has_text_frame:
        yield shape.text_frame.text
    elif getattr(shape, "has_table", False) and shape.has_table:
        for row in shape.table.rows:
            yield " | ".join(cell.text for cell in row.cells)


def read_table(path: str, content: bytes) -> Extracted:
    """Each sheet as a page of tab-separated rows. pandas itself: LlamaIndex drops the sheet names."""
    import pandas

    sheets = pandas.read_excel(io.BytesIO(content), sheet_name=None, header=None, dtype=str)
    pages = []
    for name, sheet in sheets.items():
        rows = ("\t".join(row).rstrip() for row in sheet.fillna("").to_numpy(dtype=str))
        body = "\n".join(row for row in rows if row)
        pages.append(clean(f"{name}\n{body}") if body else "")
    return _paged(path, pages, [clean(str(name)) for name in sheets])


def read_epub(path: str, content: bytes) -> Extracted:
    """A book as Markdown."""
    from llama_index.readers.file import EpubReader

    return markdown(path, "\n\n".join(_pages(EpubReader(), content, ".epub")))


# A backslash and a star say that a group may be skipped, and must stand first in it. Elsewhere they mean
# nothing, but striprtf skips from there to the end of the group.
_STRAY_MARK = re.compile(r"(?<=[a-z0-9])[ ]?\\\*\\[a-z]+-?\d*[ ]?")
_RUNNING = re.compile(r"\{\s*\\(?:header|footer)[lrf]?(?![a-z])")


def read_rtf(path: str, content: bytes) -> Extracted:
    """Rich text; headers and footers only where there is nothing else."""
    from striprtf.striprtf import rtf_to_text

    # striprtf itself: LlamaIndex's reader opens the file in the locale's encoding.
    source = _STRAY_MARK.sub(" ", content.decode("latin-1"))
    text = clean(rtf_to_text(source, errors="replace"))
    if not text.strip():
        text = clean(rtf_to_text(_RUNNING.sub("{", source), errors="replace"))
    return Extracted(stem(path), text)
