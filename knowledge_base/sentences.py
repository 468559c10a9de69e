"""Where sentences begin and end: one rule for splitting, answering and judging."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Kind = Literal["prose", "item", "quote", "heading", "row", "code"]

_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=[\"'(\[]*[A-Z0-9])")
_HEADING = re.compile(r" {0,3}#{1,6}(?:[ \t]|$)|[ \t]*>[ \t]*\[!\w+\][ \t]*$")
_UNDERLINE = re.compile(r" {0,3}(?:=+|-+)[ \t]*$")
_FENCE = re.compile(r"[ \t]*(`{3,}(?=[^`]*$)|~{3,})[ \t]*(\S*)")
# With a bar at its beginning or, outside of code, between spaces.
_ROW = re.compile(r"[ \t]*(?::?-{2,}:?[ \t]*)?\||(?:[^`\n]|`[^`\n]*`)*?[ \t]\|[ \t]")
_ITEM = re.compile(r"[ \t]*(?:[-*+]|(\d{1,9})[.)])[ \t]+")
_QUOTE = re.compile(r"[ \t]*>")
# A list item says one thing, often in two sentences; a longer one is a text with a bullet before it.
_WHOLE_ITEM = 300


@dataclass(frozen=True)
class Unit:
    """A span of a text that is read as one: a sentence, or a line that is none."""

    start: int
    end: int
    kind: Kind


def split_sentences(text: str) -> list[tuple[int, int]]:
    """Spans of the units of `text`, in order and without outer white space."""
    return [(unit.start, unit.end) for unit in split_units(text)]


def split_units(text: str) -> list[Unit]:
    """Sentences; and headings, rows of tables, list items and lines of code, each a unit of its own.

    Every visible character is in exactly one unit.
    """
    return [unit for block in _blocks(text) for unit in _sentences(text, block)]


def _blocks(text: str) -> list[Unit]:
    """Paragraphs, quotations and list items, which may have several lines; all else line by line."""
    blocks: list[Unit] = []
    under_way = False
    offset = 0
    for line, is_code in _lines(text):
        end = offset + len(line)
        last = blocks[-1] if under_way else None
        if is_code:
            blocks.append(Unit(offset, end, "code"))
            under_way = False
        elif not line.strip():
            under_way = False
        elif last and _continues(line, last.kind):
            blocks[-1] = Unit(last.start, end, last.kind)
        elif last and last.kind == "prose" and _is_title(text[last.start : last.end], line):
            blocks[-1] = Unit(last.start, end, "heading")
            under_way = False
        else:
            kind = _kind(line)
            blocks.append(Unit(offset, end, kind))
            under_way = kind in ("prose", "item", "quote")
        offset = end + 1
    return blocks


def _kind(line: str) -> Kind:
    if _HEADING.match(line) or _UNDERLINE.match(line):
        return "heading"
    if _ROW.match(line):
        return "row"
    if _ITEM.match(line):
        return "item"
    return "quote" if _QUOTE.match(line) else "prose"


def _continues(line: str, kind: Kind) -> bool:
    """Whether a line goes on with the paragraph, quotation or list item before it."""
    if found := _ITEM.match(line):
        # A paragraph is interrupted by the first number of a list, not by a year that begins a line.
        return kind == "prose" and found[1] is not None and found[1] != "1"
    here = _kind(line)
    return here == "prose" or here == kind == "quote"


def _is_title(before: str, line: str) -> bool:
    """Whether a line underlines the one before it, and so makes a heading of it."""
    return bool(_UNDERLINE.match(line)) and "\n" not in before and not before.rstrip().endswith(".")


def _lines(text: str) -> Iterator[tuple[str, bool]]:
    """Each line, and whether it is code or the fence around it."""
    lines = text.split("\n")
    marks = [(number, mark) for number, line in enumerate(lines) if (mark := _FENCE.match(line))]
    fence = marks[0][1][1] if marks and _begins_in_code(lines, marks) else ""
    known = dict(marks)
    for number, line in enumerate(lines):
        mark = known.get(number)
        yield line, bool(fence or mark)
        if mark and not fence:
            fence = mark[1]
        elif mark and mark[1].startswith(fence) and not mark[2]:
            fence = ""


def _begins_in_code(lines: list[str], marks: list[tuple[int, re.Match[str]]]) -> bool:
    """Whether a text was cut out of a document in the middle of a block of code."""
    number, first = marks[0]
    if first[2]:
        return False  # a language is named where code begins
    if len(marks) > 1 and marks[1][1][2]:
        return True
    return len(marks) % 2 == 1 and not "".join(lines[number + 1 : number + 2]).strip()


def _sentences(text: str, block: Unit) -> Iterator[Unit]:
    """The sentences of a block without white space around them; of what has none, the block."""
    edges = [block.start, *_sentence_starts(text, block), block.end]
    for start, end in zip(edges, edges[1:], strict=False):
        piece = text[start:end]
        if stripped := piece.strip():
            lead = len(piece) - len(piece.lstrip())
            yield Unit(start + lead, start + lead + len(stripped), block.kind)


def _sentence_starts(text: str, block: Unit) -> list[int]:
    whole = block.kind == "item" and block.end - block.start <= _WHOLE_ITEM
    if whole or block.kind in ("heading", "row", "code"):
        return []
    # The full stop of "1. Open it" ends no sentence.
    marker = _ITEM.match(text, block.start, block.end)
    first = marker.end() if marker else block.start
    return [match.end() for match in _SENTENCE_END.finditer(text, first, block.end)]
