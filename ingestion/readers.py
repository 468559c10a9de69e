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
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path, PurePosixPath
from typing import Any

from knowledge_base.documents import Section
from knowledge_base.errors import DocumentError

MAX_UNPACKED_BYTES = 500_000_000
_MARKDOWN = {".md", ".markdown", ".mdx", ".qmd", ".rmd"}
_HTML = {".html", ".htm", ".xhtml"}
_MAIL = {".eml", ".mht", ".mhtml"}
_HTML_START = (b"<!doctype html", b"<html")
_INVISIBLE = re.compile(r"[\s\u200b-\u200f\u2060\ufeff]*")
_CONTROL = re.compile(r"[\x00-\x07\x0e-\x1a\x1c-\x1f]")
_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_ZIP = b"PK\x03\x04"
MAX_UNPACKED_RATIO = 100
_UNSUPPORTED = {
    ".doc": "an old Word file: save it as .docx",
    ".ppt": "an old PowerPoint file: save it as .pptx",
    ".msg": "an Outlook message: save it as text or PDF",
    ".odt": "an OpenDocument text: save it as .docx",
    ".odp": "an OpenDocument presentation: save it as .pptx",
    ".ods": "an OpenDocument spreadsheet: save it as .xlsx",
    ".zip": "an archive: unpack it and ingest the folder",
    ".gz": "an archive: unpack it and ingest the folder",
}
# Names of the streams in an OLE file, which tell what it really is.
_OLE_STREAMS = (
    ("EncryptedPackage", ".locked"),
    ("WordDocument", ".doc"),
    ("PowerPoint Document", ".ppt"),
    ("__substg1.0_", ".msg"),
    ("Workbook", ".xls"),
    ("Book", ".xls"),
)
_MAGIC = (
    (b"\x1f\x8b", "an archive: unpack it and ingest the folder"),
    (b"\x89PNG", "a picture: it has no text to read"),
    (b"\xff\xd8\xff", "a picture: it has no text to read"),
    (b"GIF8", "a picture: it has no text to read"),
    (b"\x7fELF", "a program: it has no text to read"),
)
_MARKS = (
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe\0\0", "utf-32"),
    (b"\0\0\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
_DECLARED = re.compile(
    rb"""\A\s*<\?xml[^>]*\sencoding=["']([\w.-]+)|<meta[^>]*charset=["']?([\w.-]+)""", re.I
)
_HEADING = re.compile(r" {0,3}(#{1,6})[ \t]+(.{1,500})$")
_HEADING_END = re.compile(r"(?:[ \t]+#+|^#+|[ \t]*\{#[^{}]*\})$")
_UNDERLINE = re.compile(r"^ {0,3}(=+|-+)[ \t]*$")
_NOT_TITLE = re.compile(r"\s*(?:[-*+>|]|\d+[.)])(?:\s|$)|\s*\||    ")
_FENCE = re.compile(r"^ {0,3}(```+(?=[^`]*$)|~~~+)")
_FRONT_MATTER = re.compile(r"\A---[ \t]*\n(.*?\n)(?:---|\.\.\.)[ \t]*\n", re.DOTALL)
_TITLE = re.compile(r"^title:[ \t]*(.+?)[ \t]*$", re.MULTILINE)


@dataclass(frozen=True)
class Extracted:
    """The text of a document in Unicode normal form C, and where its sections and pages lie."""

    title: str
    text: str
    sections: tuple[Section, ...] = ()


class _TooLong(BaseException):
    """The time limit has passed; no Exception, because parsers catch those and try again."""


def extract(path: str, content: bytes, *, timeout_seconds: float = 60) -> Extracted:
    """Text of a document. Only the main thread of a POSIX system can keep the time limit.

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
    except _TooLong as error:
        raise DocumentError(f"took longer than {timeout_seconds:g} seconds to read") from error
    except Exception as error:  # parsers of foreign files raise anything at all
        raise DocumentError(_reason(error)) from error
    if _INVISIBLE.fullmatch(extracted.text):
        raise DocumentError("no text found in it" + (" (a scan? run OCR first)" if read is _read_pdf else ""))
    return extracted


def _reason(error: BaseException) -> str:
    # LlamaIndex's PDF reader tries three times, and then says only that it did.
    attempt = getattr(error, "last_attempt", None)
    error = (attempt.exception() if attempt is not None else None) or error
    detail = " ".join(str(error).split())[:160]
    if re.search(r"(?i:password|crypt)|\bAES\b", f"{type(error).__name__} {detail}"):
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
        return _ole(content, suffix)
    if content.startswith(_ZIP):
        return _zipped(content, suffix)
    for magic, reason in _MAGIC:
        if content.startswith(magic):
            raise DocumentError(f"not supported: {reason}")
    if suffix in _MARKDOWN:
        return _read_markdown
    if suffix in _HTML or start[:15].lower().startswith(_HTML_START):
        return _read_html
    if suffix in _UNSUPPORTED:
        raise DocumentError(f"not supported: {_UNSUPPORTED[suffix]}")
    return _read_mail if suffix in _MAIL else _read_text


def _ole(content: bytes, suffix: str) -> _Read:
    found = [kind for name, kind in _OLE_STREAMS if name.encode("utf-16-le") in content]
    kind = suffix if suffix in found else next(iter(found), suffix)
    if kind == ".xls":
        return _read_table
    if kind in (".locked", ".docx", ".xlsx", ".pptx"):
        raise DocumentError("encrypted: save it without a password")
    raise DocumentError(
        f"not supported: {_UNSUPPORTED.get(kind, 'an old Office file: save it in the new format')}"
    )


def _zipped(content: bytes, suffix: str) -> _Read:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError) as error:
        raise DocumentError("damaged: the file is cut short or not a real archive") from error
    unpacked = sum(entry.file_size for entry in entries)
    if unpacked > min(MAX_UNPACKED_BYTES, max(MAX_UNPACKED_BYTES // 10, MAX_UNPACKED_RATIO * len(content))):
        raise DocumentError(f"unpacks to {unpacked // 1_000_000} MB: not read")
    names = {entry.filename for entry in entries}
    if "xl/workbook.bin" in names:
        raise DocumentError("not supported: a binary workbook: save it as .xlsx")
    readers: tuple[tuple[str, str, _Read], ...] = (
        ("[Content_Types].xml", "word/", _read_docx),
        ("[Content_Types].xml", "ppt/", _read_pptx),
        ("[Content_Types].xml", "xl/", _read_table),
        ("META-INF/container.xml", "", _read_epub),
    )
    for marker, folder, reader in readers:
        if marker in names and any(name.startswith(folder) for name in names):
            return reader
    raise DocumentError(f"not supported: {_UNSUPPORTED.get(suffix, _UNSUPPORTED['.zip'])}")


# -- text --------------------------------------------------------------------------------------


def _decode(content: bytes, declared: str | None = None) -> str:
    """Text in whatever encoding it is in; nothing is dropped. Raises DocumentError for binary data."""
    for mark, encoding in _MARKS:
        if content.startswith(mark):
            return content.decode(encoding)
    for candidate in (_wide(content), "utf-8-sig", declared):
        try:
            text = content.decode(candidate) if candidate else ""
        except (UnicodeDecodeError, LookupError):
            continue
        if text:
            break
    else:
        text = _guess(content)
    if len(_CONTROL.findall(text)) > max(8, 0.01 * len(text)):
        raise DocumentError("not supported: binary data of an unknown format")
    return text


def _wide(content: bytes) -> str | None:
    """UTF-16 without a mark: half of its bytes are zero in most scripts' punctuation and in Latin text."""
    even, odd = content[:4000:2].count(0), content[1:4000:2].count(0)
    if max(even, odd) < 0.3 * len(content[:4000:2]) or min(even, odd) > 0.01 * max(even, odd):
        return None
    return "utf-16-le" if odd > even else "utf-16-be"


def _guess(content: bytes) -> str:
    patched = content.decode("utf-8", "replace")
    if len(re.findall(r"[^\x00-\x7f\ufffd]", patched)) > 10 * patched.count("\ufffd"):
        # UTF-8 with a few bad bytes: marking those harms less than reading it all in another encoding.
        return patched
    from charset_normalizer import from_bytes

    matches = from_bytes(content[:1_000_000])
    best = matches.best()
    if best is None:
        raise DocumentError("not supported: binary data of an unknown format")
    # On short Western text many encodings are equally likely; far the most common one comes first.
    likely = (m for m in matches if m.chaos <= best.chaos + 0.05 and m.coherence >= best.coherence - 0.15)
    western = any("cp1252" in (match.encoding, *match.could_be_from_charset) for match in likely)
    encoding = "cp1252" if western else best.encoding
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise DocumentError(f"the text is neither UTF-8 nor all {encoding}: save it as UTF-8") from error


def _clean(text: str) -> str:
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "")
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return unicodedata.normalize("NFC", text)


def _stem(path: str) -> str:
    return PurePosixPath(path).stem


def _read_text(path: str, content: bytes) -> Extracted:
    return Extracted(PurePosixPath(path).name, _clean(_decode(content, _declared(content))))


def _declared(content: bytes) -> str | None:
    found = _DECLARED.search(content[:4096])
    return (found[1] or found[2]).decode() if found else None


def _read_markdown(path: str, content: bytes) -> Extracted:
    return _markdown(path, _clean(_decode(content)))


def _markdown(path: str, text: str) -> Extracted:
    """Sections by headings, outside of fenced code; the title from front matter or the first heading."""
    front = _FRONT_MATTER.match(text)
    titled = _TITLE.search(front[1]) if front else None
    title = titled[1].strip("\"'") if titled else ""
    return _outlined(path, text, _headings(text, front.end() if front else 0), title)


def _outlined(path: str, text: str, headings: Iterable[tuple[int, int, str]], title: str = "") -> Extracted:
    """A text whose headings are known by (offset, level, words): one section from each to the next."""
    sections: list[Section] = []
    trail: list[tuple[int, str]] = []
    start = 0
    for at, level, heading in headings:
        if at > start:
            sections.append(Section(start, at, tuple(name for _, name in trail)))
        trail = [(depth, name) for depth, name in trail if depth < level] + [(level, heading)]
        start = at
    sections.append(Section(start, len(text), tuple(name for _, name in trail)))
    first = next((section.heading[0] for section in sections if section.heading), "")
    return Extracted(title or first or _stem(path), text, tuple(sections))


def _headings(text: str, offset: int) -> Iterator[tuple[int, int, str]]:
    """(offset, level, words) of every heading from `offset` on."""
    fence = ""
    previous, previous_at = "", offset
    for line in text[offset:].split("\n"):
        bare = line
        mark = _FENCE.match(bare)
        if mark and (not fence or (bare.strip().startswith(fence) and not bare.strip().strip(fence[0]))):
            fence = "" if fence else mark[1]
        elif not fence:
            heading = _HEADING.match(bare)
            if heading and (words := _HEADING_END.sub("", heading[2].rstrip()).strip()):
                yield offset, len(heading[1]), words
                bare = ""
            elif previous.strip() and (under := _UNDERLINE.match(bare)) and not _NOT_TITLE.match(previous):
                yield previous_at, 1 if under[1][0] == "=" else 2, previous.strip()
                bare = ""
        previous, previous_at = bare if not mark else "", offset
        offset += len(line) + 1


def _read_html(path: str, content: bytes) -> Extracted:
    return _html(path, _decode(content, _declared(content)))


def _html(path: str, html: str) -> Extracted:
    """A web page as Markdown, without what is not read: scripts, styles, navigation."""
    from bs4 import BeautifulSoup

    for parser in ("html.parser", "lxml"):
        page = BeautifulSoup(html.replace("\0", ""), parser)
        for noise in page(["script", "style", "noscript", "template", "nav"]):
            noise.decompose()
        body = page.body or page
        if body.get_text(strip=True):
            # A script whose end is misspelt hides all the rest from the first parser.
            break
    title = " ".join(page.title.get_text(" ").split()) if page.title else ""
    read = _markdown(path, _clean(_from_html(str(body))))
    return Extracted(_clean(title) or read.title, read.text, read.sections)


def _from_html(html: str) -> str:
    import html2text

    class Converter(html2text.HTML2Text):
        def handle_data(self, data: str, entity_char: bool = False) -> None:
            # True: no backslashes before dots and dashes; the text is searched and quoted, not rendered.
            super().handle_data(data, True)

    converter = Converter(bodywidth=0)
    converter.ignore_images = True
    converter.ignore_links = True
    converter.ignore_emphasis = True
    text: str = converter.handle(html)
    return text.strip() + "\n"


def _read_mail(path: str, content: bytes) -> Extracted:
    """The headers people read, then the body as text; attachments are left out."""
    from email import message_from_bytes, policy

    mail = message_from_bytes(content, policy=policy.default)
    head = "".join(f"{name}: {mail[name]}\n" for name in ("Subject", "From", "To", "Date") if mail[name])
    part = mail.get_body(("plain", "html"))
    payload = part.get_payload(decode=True) if part is not None else None
    body = _decode(payload, part.get_content_charset()) if part and isinstance(payload, bytes) else ""
    if part and part.get_content_subtype() == "html":
        body = _html(path, body).text
    return Extracted(_clean(str(mail["Subject"] or "")) or _stem(path), _clean(f"{head}\n{body}"))


# -- office and print --------------------------------------------------------------------------


def _pages(reader: Any, content: bytes, suffix: str) -> list[str]:
    """Texts that a LlamaIndex reader finds in a file; it wants one on disk."""
    with tempfile.TemporaryDirectory(prefix="plumbline-") as folder:
        file = Path(folder) / f"document{suffix}"
        file.write_bytes(content)
        return [_clean(document.text) for document in reader.load_data(file)]


def _paged(path: str, pages: list[str], names: Sequence[str] = ()) -> Extracted:
    sections, parts, length = [], [], 0
    for number, (page, name) in enumerate(zip_longest(pages, names, fillvalue=""), 1):
        parts.append(page.rstrip() + "\n\n")
        sections.append(Section(length, length + len(parts[-1]), (name,) if name else (), number))
        length += len(parts[-1])
    return Extracted(_stem(path), "".join(parts), tuple(sections))


def _read_pdf(path: str, content: bytes) -> Extracted:
    from llama_index.readers.file import PDFReader

    return _paged(path, _pages(PDFReader(return_full_document=False), content, ".pdf"))


def _read_docx(path: str, content: bytes) -> Extracted:
    from llama_index.readers.file import DocxReader

    text = re.sub(r"\n{3,}", "\n\n", "\n\n".join(_pages(DocxReader(), content, ".docx")))
    return _outlined(path, text, _docx_headings(text, content))


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
        words = _clean("".join(run.text or "" for run in paragraph.iter(f"{word}t"))).strip()
        if level and words and (at := f"\n{text}\n".find(f"\n{words}\n", position)) >= 0:
            yield at, level, words
            position = at + len(words)


def _read_pptx(path: str, content: bytes) -> Extracted:
    """Slides as pages. python-pptx itself: LlamaIndex's reader adds a report on each slide to its text."""
    from pptx import Presentation

    slides, names = [], []
    for slide in Presentation(io.BytesIO(content)).slides:
        parts = [part for shape in slide.shapes for part in _shape_texts(shape)]
        if slide.has_notes_slide and slide.notes_slide.notes_text_frame is not None:
            parts.append(slide.notes_slide.notes_text_frame.text)
        slides.append(_clean("\n".join(part for part in parts if part.strip())))
        title = slide.shapes.title
        names.append(_clean(" ".join(title.text_frame.text.split())) if title is not None else "")
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


def _read_table(path: str, content: bytes) -> Extracted:
    """Each sheet as a page of tab-separated rows. pandas itself: LlamaIndex drops the sheet names."""
    import pandas

    sheets = pandas.read_excel(io.BytesIO(content), sheet_name=None, header=None, dtype=str)
    pages = []
    for name, sheet in sheets.items():
        rows = ("\t".join(row).rstrip() for row in sheet.fillna("").to_numpy(dtype=str))
        body = "\n".join(row for row in rows if row)
        pages.append(_clean(f"{name}\n{body}") if body else "")
    return _paged(path, pages, [_clean(str(name)) for name in sheets])


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
    sink = io.StringIO()
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Stop a parser that loops; only the main thread of a POSIX system can be interrupted."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGALRM"):
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise _TooLong

    before = signal.signal(signal.SIGALRM, stop)
    # Again every five seconds: a parser with a bare `except` swallows the first.
    timer = signal.setitimer(signal.ITIMER_REAL, seconds, 5)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, *timer)
