"""What a reader hands on: the text of a document, and where its headings and pages are."""

import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

from knowledge_base.documents import Section

_HEADING = re.compile(r" {0,3}(#{1,6})[ \t]+(.{1,500})$")
_HEADING_END = re.compile(r"(?:[ \t]+#+|^#+|[ \t]*\{#[^{}]*\})$")
_UNDERLINE = re.compile(r"^ {0,3}(=+|-+)[ \t]*$")
_NOT_TITLE = re.compile(r"\s*(?:[-*+>|]|\d+[.)])(?:\s|$)|\s*\||    ")
_FENCE = re.compile(r"^ {0,3}(```+(?=[^`]*$)|~~~+)")
_FRONT_MATTER = re.compile(r"\A---[ \t]*\n(.*?\n)(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL)
_TITLE = re.compile(r"^title:[ \t]*(.+?)[ \t]*$", re.MULTILINE)


@dataclass(frozen=True)
class Extracted:
    """The text of a document in Unicode normal form C, and where its sections and pages lie."""

    title: str
    text: str
    sections: tuple[Section, ...] = ()


def clean(text: str) -> str:
    """Text in normal form C, its lines ended by a line feed alone, without what UTF-8 cannot hold."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "")
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return unicodedata.normalize("NFC", text)


def stem(path: str) -> str:
    """The name of a file without folder and suffix."""
    return PurePosixPath(path).stem


def markdown(path: str, text: str) -> Extracted:
    """Sections by headings, outside of fenced code; the title from front matter or the first heading."""
    front = _FRONT_MATTER.match(text)
    titled = _TITLE.search(front[1]) if front else None
    title = titled[1].strip("\"'") if titled else ""
    return outlined(path, text, _headings(text, front.end() if front else 0), title)


def outlined(path: str, text: str, headings: Iterable[tuple[int, int, str]], title: str = "") -> Extracted:
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
    return Extracted(title or first or stem(path), text, tuple(sections))


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
