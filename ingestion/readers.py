"""Bytes of a document to its text, by content first and by name second.

Office, PDF, EPUB and RTF files go through LlamaIndex's readers; Markdown, HTML, source code and every
other text keep (nearly) their own characters, so that a citation's span means something to a person.
"""

import contextlib
import io
import logging
import re
import signal
import tempfile
import threading
import unicodedata
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from knowledge_base.documents import Section
from knowledge_base.errors import DocumentError

MAX_UNPACKED_BYTES = 500_000_000
_MARKDOWN = {".md", ".markdown", ".mdx", ".qmd", ".rmd"}
_HTML = {".html", ".htm", ".xhtml"}
_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_ZIP = b"PK\x03\x04"
_UNSUPPORTED = {
    ".doc": "an old Word file: save it as .docx",
    ".ppt": "an old PowerPoint file: save it as .pptx",
    ".msg": "an Outlook message: save it as text or PDF",
    ".odt": "an OpenDocument text: save it as .docx",
    ".odp": "an OpenDocument presentation: save it as .pptx",
    ".ods": "an OpenDocument spreadsheet: save it as .xlsx",
    ".zip": "an archive: unpack it and ingest the folder",
    ".gz": "an archive: unpack it and ingest the folder",
    ".mht": "a web archive: save it as .html",
    ".mhtml": "a web archive: save it as .html",
}
_MAGIC = (
    (b"\x1f\x8b", "an archive: unpack it and ingest the folder"),
    (b"\x89PNG", "a picture: it has no text to read"),
    (b"\xff\xd8\xff", "a picture: it has no text to read"),
    (b"GIF8", "a picture: it has no text to read"),
    (b"\x7fELF", "a program: it has no text to read"),
)
_HEADING = re.compile(r"^ {0,3}(#{1,6})[ \t]+(.*?)(?:[ \t]+#+)?[ \t]*$")
_UNDERLINE = re.compile(r"^ {0,3}(=+|-+)[ \t]*$")
_FENCE = re.compile(r"^ {0,3}(```+|~~~+)")
_FRONT_MATTER = re.compile(r"\A---[ \t]*\n(.*?\n)(?:---|\.\.\.)[ \t]*\n", re.DOTALL)
_TITLE = re.compile(r"^title:[ \t]*(.+?)[ \t]*$", re.MULTILINE)


@dataclass(frozen=True)
class Extracted:
    """The text of a document in Unicode normal form C, and where its sections and pages lie."""

    title: str
    text: str
    sections: tuple[Section, ...] = ()


def extract(path: str, content: bytes, *, timeout_seconds: int = 60) -> Extracted:
    """Text of a document.

    Raises:
        DocumentError: It is empty, encrypted, damaged, of no known format, or takes too long; the
            message is the reason, in one line.
    """
    if not content.strip(b"\0 \t\r\n"):
        raise DocumentError("empty")
    read = _reader(PurePosixPath(path).suffix.lower(), content)
    try:
        with _silence(), _time_limit(timeout_seconds):
            extracted = read(path, content)
    except DocumentError:
        raise
    except (Exception, RecursionError) as error:  # noqa: BLE001 - parsers of foreign files raise anything at all
        raise DocumentError(_reason(error)) from error
    if not extracted.text.strip():
        raise DocumentError("no text found in it (a scan needs OCR first)")
    return extracted


def _reason(error: BaseException) -> str:
    detail = " ".join(str(error).split())[:160]
    if (
        "password" in detail.lower()
        or "decrypt" in detail.lower()
        or "FileNotDecrypted" in type(error).__name__
    ):
        return "encrypted: save it without a password"
    return f"damaged or not what its name says ({type(error).__name__}{': ' + detail if detail else ''})"


_Read = Callable[[str, bytes], Extracted]


def _reader(suffix: str, content: bytes) -> _Read:
    """The reader for a document: what the bytes are counts for more than what the name says."""
    start = content[:1024].lstrip()
    if b"%PDF-" in content[:1024]:
        return _read_pdf
    if start.startswith(b"{\\rtf"):
        return _read_rtf
    if content.startswith(_OLE):
        return _ole(suffix)
    if content.startswith(_ZIP):
        return _zipped(content, suffix)
    for magic, reason in _MAGIC:
        if content.startswith(magic):
            raise DocumentError(f"not supported: {reason}")
    if suffix in _UNSUPPORTED:
        raise DocumentError(f"not supported: {_UNSUPPORTED[suffix]}")
    if suffix in _MARKDOWN:
        return _read_markdown
    if suffix in _HTML or start[:15].lower().startswith((b"<!doctype html", b"<html")):
        return _read_html
    return _read_text


def _ole(suffix: str) -> _Read:
    if suffix == ".xls":
        return _read_table
    if suffix in (".docx", ".xlsx", ".pptx"):
        raise DocumentError("encrypted: save it without a password")
    raise DocumentError(
        f"not supported: {_UNSUPPORTED.get(suffix, 'an old Office file: save it in the new format')}"
    )


def _zipped(content: bytes, suffix: str) -> _Read:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError) as error:
        raise DocumentError("damaged: the file is cut short or not a real archive") from error
    if sum(entry.file_size for entry in entries) > MAX_UNPACKED_BYTES:
        raise DocumentError(f"unpacks to more than {MAX_UNPACKED_BYTES // 1_000_000} MB")
    names = {entry.filename for entry in entries}
    readers: tuple[tuple[str, _Read], ...] = (
        ("word/", _read_docx),
        ("ppt/", _read_pptx),
        ("xl/", _read_table),
        ("META-INF/container.xml", _read_epub),
    )
    for start, reader in readers:
        if any(name.startswith(start) for name in names):
            return reader
    raise DocumentError(f"not supported: {_UNSUPPORTED.get(suffix, _UNSUPPORTED['.zip'])}")


# -- text --------------------------------------------------------------------------------------


def _decode(content: bytes) -> str:
    """Text in whatever encoding it is in; nothing is dropped. Raises DocumentError for binary data."""
    for mark, encoding in (
        (b"\xff\xfe\0\0", "utf-32"),
        (b"\0\0\xfe\xff", "utf-32"),
        (b"\xff\xfe", "utf-16"),
        (b"\xfe\xff", "utf-16"),
    ):
        if content.startswith(mark):
            return content.decode(encoding)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = _guess(content)
    controls = sum(ord(c) < 32 and c not in "\t\n\r\f\v\b\x1b" for c in text[:100_000])
    if controls > max(8, 0.01 * len(text[:100_000])):
        raise DocumentError("not supported: binary data of an unknown format")
    return text


def _guess(content: bytes) -> str:
    from charset_normalizer import from_bytes

    best = from_bytes(content[:1_000_000]).best()
    if best is None:
        raise DocumentError("not supported: binary data of an unknown format")
    try:
        return content.decode(best.encoding)
    except UnicodeDecodeError as error:
        raise DocumentError(f"the text is neither UTF-8 nor all {best.encoding}: save it as UTF-8") from error


def _clean(text: str) -> str:
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "")
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return unicodedata.normalize("NFC", text)


def _stem(path: str) -> str:
    return PurePosixPath(path).stem


def _read_text(path: str, content: bytes) -> Extracted:
    return Extracted(PurePosixPath(path).name, _clean(_decode(content)))


def _read_markdown(path: str, content: bytes) -> Extracted:
    return _markdown(path, _clean(_decode(content)))


def _markdown(path: str, text: str) -> Extracted:
    """Sections by headings, outside of fenced code; the title from front matter or the first heading."""
    front = _FRONT_MATTER.match(text)
    titled = _TITLE.search(front[1]) if front else None
    sections: list[Section] = []
    trail: list[tuple[int, str]] = []
    start, offset = 0, front.end() if front else 0
    for at, level, heading in _headings(text, offset):
        if at > start:
            sections.append(Section(start, at, tuple(name for _, name in trail)))
        trail = [(depth, name) for depth, name in trail if depth < level] + [(level, heading)]
        start = at
    sections.append(Section(start, len(text), tuple(name for _, name in trail)))
    first = next((section.heading[0] for section in sections if section.heading), "")
    title = titled[1].strip("\"'") if titled else first
    return Extracted(title or _stem(path), text, tuple(sections))


def _headings(text: str, offset: int) -> Iterator[tuple[int, int, str]]:
    """(offset, level, words) of every heading from `offset` on."""
    fence = ""
    previous, previous_at = "", offset
    for line in text[offset:].splitlines(keepends=True):
        bare = line.rstrip("\n")
        mark = _FENCE.match(bare)
        if mark and (not fence or (bare.strip().startswith(fence) and not bare.strip().strip(fence[0]))):
            fence = "" if fence else mark[1]
        elif not fence:
            if heading := _HEADING.match(bare):
                yield offset, len(heading[1]), heading[2].strip()
                bare = ""
            elif (
                previous.strip()
                and (under := _UNDERLINE.match(bare))
                and not previous.lstrip().startswith(("-", "|", ">"))
            ):
                yield previous_at, 1 if under[1][0] == "=" else 2, previous.strip()
                bare = ""
        previous, previous_at = bare if not mark else "", offset
        offset += len(line)


def _read_html(path: str, content: bytes) -> Extracted:
    from bs4 import BeautifulSoup

    page = BeautifulSoup(content, "html.parser")
    for noise in page(["script", "style", "noscript", "template", "nav"]):
        noise.decompose()
    title = page.title.get_text(" ", strip=True) if page.title else ""
    read = _markdown(path, _clean(_from_html(str(page.body or page))))
    return Extracted(title or read.title, read.text, read.sections)


def _from_html(html: str) -> str:
    import html2text

    converter = html2text.HTML2Text(bodywidth=0)
    converter.ignore_images = True
    converter.ignore_links = True
    converter.ignore_emphasis = True
    text: str = converter.handle(html)
    return text.strip() + "\n"


# -- office and print --------------------------------------------------------------------------


def _pages(reader: Any, content: bytes, suffix: str) -> list[str]:
    """Texts that a LlamaIndex reader finds in a file; it wants one on disk."""
    with tempfile.TemporaryDirectory(prefix="plumbline-") as folder:
        file = Path(folder) / f"document{suffix}"
        file.write_bytes(content)
        return [_clean(document.text) for document in reader.load_data(file)]


def _paged(path: str, pages: list[str]) -> Extracted:
    sections, text = [], ""
    for number, page in enumerate(pages, 1):
        start = len(text)
        text += page.rstrip() + "\n\n"
        sections.append(Section(start, len(text), page=number))
    return Extracted(_stem(path), text, tuple(sections))


def _read_pdf(path: str, content: bytes) -> Extracted:
    from llama_index.readers.file import PDFReader

    return _paged(path, _pages(PDFReader(return_full_document=False), content, ".pdf"))


def _read_docx(path: str, content: bytes) -> Extracted:
    from llama_index.readers.file import DocxReader

    return Extracted(_stem(path), "\n\n".join(_pages(DocxReader(), content, ".docx")))


def _read_pptx(path: str, content: bytes) -> Extracted:
    """Slides as pages. python-pptx itself: LlamaIndex's reader adds a report on each slide to its text."""
    from pptx import Presentation

    slides = []
    for slide in Presentation(io.BytesIO(content)).slides:
        parts = [part for shape in slide.shapes for part in _shape_texts(shape)]
        if slide.has_notes_slide and slide.notes_slide.notes_text_frame is not None:
            parts.append(slide.notes_slide.notes_text_frame.text)
        slides.append(_clean("\n".join(part for part in parts if part.strip())))
    return _paged(path, slides)


def _shape_texts(shape: Any) -> Iterator[str]:
    if hasattr(shape, "shapes"):
        for inner in shape.shapes:
            yield from _shape_texts(inner)
    elif shape.has_text_frame:
        yield shape.text_frame.text
    elif getattr(shape, "has_table", False) and shape.has_table:
        for row in shape.table.rows:
            yield " | ".join(cell.text for cell in row.cells)


def _read_table(path: str, content: bytes) -> Extracted:
    """Each sheet as a page of tab-separated rows, the header row first. pandas itself, for the sheet names."""
    import pandas

    sheets = pandas.read_excel(io.BytesIO(content), sheet_name=None, header=None, dtype=str)
    pages = []
    for name, sheet in sheets.items():
        rows = ("\t".join(row).rstrip() for row in sheet.fillna("").to_numpy(dtype=str))
        body = "\n".join(row for row in rows if row)
        pages.append(_clean(f"{name}\n{body}") if body else "")
    return _paged(path, pages)


def _read_epub(path: str, content: bytes) -> Extracted:
    from llama_index.readers.file import EpubReader

    return _markdown(path, "\n\n".join(_pages(EpubReader(), content, ".epub")))


def _read_rtf(path: str, content: bytes) -> Extracted:
    from striprtf.striprtf import rtf_to_text

    # striprtf itself: LlamaIndex's reader opens the file in the locale's encoding.
    return Extracted(_stem(path), _clean(rtf_to_text(content.decode("latin-1"), errors="replace")))


# -- containment -------------------------------------------------------------------------------


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep what parsers print, warn and log off the screen: what matters of it is the reason we give."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def _time_limit(seconds: int) -> Iterator[None]:
    """Stop a parser that loops; only the main thread of a POSIX system can be interrupted."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGALRM"):
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise DocumentError(f"took longer than {seconds} seconds to read")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
