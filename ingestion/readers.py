"""Bytes of a document to its text, by content first and by name second.

Office, PDF, EPUB and RTF files go through LlamaIndex's readers; Markdown, HTML, source code and every
other text keep (nearly) their own characters, so that a citation's span means something to a person.
"""

import contextlib
import io
import logging
import re
import signal
import threading
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import TypeVar

from ingestion.readers_office import read_docx, read_epub, read_pdf, read_pptx, read_rtf, read_table
from ingestion.readers_outline import Extracted
from ingestion.readers_text import read_html, read_json, read_mail, read_markdown, read_text
from knowledge_base.access import declared_groups
from knowledge_base.documents import Document, sha256_hex
from knowledge_base.errors import DocumentError

MAX_UNPACKED_BYTES = 500_000_000
_HEAD_BYTES = 20_000
_MARKDOWN = {".md", ".markdown", ".mdx", ".qmd", ".rmd"}
_HTML = {".html", ".htm", ".xhtml"}
_MAIL = {".eml", ".mht", ".mhtml"}
_JSON = {".json", ".geojson", ".ipynb"}
_HTML_START = (b"<!doctype html", b"<html")
_INVISIBLE = re.compile(r"[\s\u200b-\u200f\u2060\ufeff]*")
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


_T = TypeVar("_T")


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
    read = contained(lambda: reader_for(path, content), timeout_seconds)
    extracted = contained(lambda: read(path, content), timeout_seconds)
    if _INVISIBLE.fullmatch(extracted.text):
        raise DocumentError(_no_text(read))
    return extracted


def read_document(path: str, content: bytes) -> Document:
    """A document with its text and outline. Raises DocumentError."""
    found = extract(path, content)
    allow = declared_groups(content[:_HEAD_BYTES].decode("utf-8", "replace").replace("\r", "\n"))
    if allow is None:  # in another encoding, or further on; of a web page the head is no part of the text
        allow = declared_groups(found.text)
    return Document(path, sha256_hex(content), len(content), found.title, found.text, found.sections, allow)


def contained(work: Callable[[], _T], timeout_seconds: float = 60) -> _T:
    """Do something with a foreign file: in silence, in time, and with DocumentError as the only error."""
    try:
        with _silence(), _time_limit(timeout_seconds):
            return work()
    except DocumentError:
        raise
    except _TooLong as error:
        raise DocumentError(f"took longer than {timeout_seconds:g} seconds to read") from error
    except Exception as error:  # parsers of foreign files raise anything at all
        raise DocumentError(_reason(error)) from error


def _no_text(read: "_Read") -> str:
    if read is read_pdf:
        return "no text found in it (a scan? run OCR first)"
    if read in (read_text, read_markdown, read_json):
        return "no text found in it"
    # Attachments, charts, comments, pictures and scripts are not read: it may hold words all the same.
    return "no text found in the parts of it that are read"


def _reason(error: BaseException) -> str:
    # LlamaIndex's PDF reader tries three times, and then says only that it did.
    attempt = getattr(error, "last_attempt", None)
    error = (attempt.exception() if attempt is not None else None) or error
    detail = " ".join(str(error).split())[:160]
    if re.search(r"(?i:password|crypt)|\bAES\b", f"{type(error).__name__} {detail}"):
        return "encrypted: save it without a password"
    return f"damaged or not what its name says ({type(error).__name__}{': ' + detail if detail else ''})"


_Read = Callable[[str, bytes], Extracted]


def reader_for(path: str, content: bytes) -> _Read:
    """The reader for a document: what the bytes are counts for more than what the name says."""
    suffix = PurePosixPath(path).suffix.lower()
    start = content[:1024].lstrip()
    if b"%PDF-" in content[:1024]:
        return read_pdf
    if start.startswith(b"{\\rtf"):
        return read_rtf
    if content.startswith(_OLE):
        return _ole(content, suffix)
    if content.startswith(_ZIP):
        return _zipped(content, suffix)
    for magic, reason in _MAGIC:
        if content.startswith(magic):
            raise DocumentError(f"not supported: {reason}")
    if suffix in _MARKDOWN:
        return read_markdown
    if suffix in _HTML or start[:15].lower().startswith(_HTML_START):
        return read_html
    if suffix in _UNSUPPORTED:
        raise DocumentError(f"not supported: {_UNSUPPORTED[suffix]}")
    if suffix in _JSON:
        return read_json
    return read_mail if suffix in _MAIL else read_text


def _ole(content: bytes, suffix: str) -> _Read:
    found = [kind for name, kind in _OLE_STREAMS if name.encode("utf-16-le") in content]
    kind = suffix if suffix in found else next(iter(found), suffix)
    if kind == ".xls":
        return read_table
    if kind in (".locked", ".docx", ".xlsx", ".pptx"):
        raise DocumentError("encrypted: save it without a password")
    raise DocumentError(
        f"not supported: {_UNSUPPORTED.get(kind, 'an old Office file: save it in the new format')}"
    )


def _zipped(content: bytes, suffix: str) -> _Read:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = archive.infolist()
    except zipfile.BadZipFile as error:
        raise DocumentError("damaged: the file is cut short or not a real archive") from error
    unpacked = sum(entry.file_size for entry in entries)
    if unpacked > min(MAX_UNPACKED_BYTES, max(MAX_UNPACKED_BYTES // 10, MAX_UNPACKED_RATIO * len(content))):
        raise DocumentError(f"unpacks to {unpacked // 1_000_000} MB: not read")
    names = {entry.filename for entry in entries}
    if "xl/workbook.bin" in names:
        raise DocumentError("not supported: a binary workbook: save it as .xlsx")
    readers: tuple[tuple[str, str, _Read], ...] = (
        ("[Content_Types].xml", "word/", read_docx),
        ("[Content_Types].xml", "ppt/", read_pptx),
        ("[Content_Types].xml", "xl/", read_table),
        ("META-INF/container.xml", "", read_epub),
    )
    for marker, folder, reader in readers:
        if marker in names and any(name.startswith(folder) for name in names):
            return reader
    raise DocumentError(f"not supported: {_UNSUPPORTED.get(suffix, _UNSUPPORTED['.zip'])}")


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
