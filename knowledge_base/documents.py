"""Documents and chunks: frozen values named by the hash of their content."""

import hashlib
from dataclasses import dataclass
from functools import cached_property


def sha256_hex(content: bytes) -> str:
    """SHA-256 of `content` as 64 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


@dataclass(frozen=True)
class Section:
    """Where a stretch of a document's text stands: under which headings, on which page.

    `start` and `end` are character offsets into the document's text; sections are in order and do
    not overlap. `heading` is the path of headings, outermost first; `page` counts from 1.
    """

    start: int
    end: int
    heading: tuple[str, ...] = ()
    page: int | None = None


@dataclass(frozen=True)
class Document:
    """One source document as the knowledge base sees it.

    `path` is its place below `documents/`, `sha256` the hash of its source bytes, and `text` the
    text that was extracted from them, in Unicode normal form C. Spans count characters of `text`.
    `allow` are the groups that it names as its readers; None: it says nothing of that.
    """

    path: str
    sha256: str
    size_bytes: int
    title: str
    text: str
    sections: tuple[Section, ...] = ()
    allow: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Chunk:
    """A span of one document: `text == document.text[start:end]`."""

    path: str
    start: int
    end: int
    text: str
    heading: tuple[str, ...] = ()
    page: int | None = None

    @cached_property
    def text_hash(self) -> str:
        """SHA-256 of the text: chunks that share it share one vector."""
        return sha256_hex(self.text.encode())

    @cached_property
    def id(self) -> str:
        """Names this span of this document: 32 hexadecimal digits."""
        return chunk_id(self.path, self.start, self.end, self.text_hash)


def chunk_id(path: str, start: int, end: int, text_hash: str) -> str:
    """Name of a span of a document: 32 hexadecimal digits."""
    return sha256_hex(f"{path}\0{start}\0{end}\0{text_hash}".encode())[:32]
