"""Which spans of a passage may be quoted as an answer, and how a quote is shown."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise, zip_longest
from pathlib import PurePosixPath

from knowledge_base.orders import is_order
from knowledge_base.sentences import Unit, split_units
from rag.answer import Context

_MIN_WORDS = 4
_MAX_CHARACTERS = 600
_PART, _LEAD_IN, _LONGEST = 300, 80, 3000
_MAX_OBJECT = 300
_POINTER_WEIGHT = 0.1

_WORDS = re.compile(r"[^\W\d_]{2,}")
_TERMS = re.compile(r"[^\W_]+")
_MARKUP = re.compile(r"</?[a-zA-Z][^>]*>|```")
_BELOW_HEADER = re.compile(r"[ \t|:-]*-[ \t|:-]*")
_LINK = re.compile(r"!?\[([^\]]*)\](?:\([^)]*\)|\[[^\]]*\])")
# Comments and shortcodes: what a reader of the page does not see. A comment may go on in the next passage.
_HIDDEN = re.compile(r"<!--.*?(?:-->|\Z)|\{\{[%<].*?[%>]\}\}", re.DOTALL)
_NO_WORDS = re.compile(rf"{_HIDDEN.pattern}|!\[[^\]]*\]\([^)]*\)", re.DOTALL)
_ADDRESS = re.compile(r"^\[[^\]]+\]:\s.*|<?https?://\S+", re.MULTILINE)
# Not in a comment, an image, a link or brackets, nor in a date.
_PAUSE = re.compile(
    rf"{_NO_WORDS.pattern}|{_LINK.pattern}|\([^()]*\)|(?P<pause>[;,][ \t\n]+(?![\d ]))", re.DOTALL
)
_LABEL = re.compile(r"(\*\*|__)[^*]+\1[:.]?")
_LEAD = re.compile(r"[ \t]*(?:[-*+]|\d{1,9}[.)])[ \t]+(?:\[[ xX]\][ \t]+)?")
_QUOTE_MARK = re.compile(r"^[ \t]*>[ \t]?", re.MULTILINE)
_FRONT_MATTER = re.compile(r"\A---[ \t]*\n.*?\n---[ \t]*(?:\n|\Z)", re.DOTALL)
_POINTS = re.compile(
    r"(?:(?:for|to|if)\b[^.]*?,\s*)?(?:please\s+|also\s+|you can\s+)*"
    r"(?:see|refer to|read|visit|check out|consult|head (?:over )?to|take a look at|"
    r"learn (?:more|how|about))\b",
    re.IGNORECASE,
)
_ELSEWHERE = re.compile(
    r"\b(?:guides?|docs|documentation|sections?|pages?|articles?|tutorials?|references?|here|below|above|"
    r"chapters?|manuals?|how-?tos?|quickstarts?|samples?|examples?|overview|more)\b",
    re.IGNORECASE,
)
_OBJECT = re.compile(r'(?:"[^"\n]*"\s*:\s*)?\{[^{}]*\}')
_PAIR = re.compile(r'"[^"\n]*"\s*:\s*(?:"(?:[^"\\\n]|\\.)*"|[^\s,{}\[\]"]+)')

_TABLES = {".csv", ".tsv", ".xlsx", ".xls"}
_JSON = {".json", ".jsonl", ".ndjson"}
# Where a line that begins with "# " is a comment, and may well say what is asked for.
_COMMENTED = {
    ".py",
    ".sh",
    ".bash",
    ".yaml",
    ".yml",
    ".toml",
    ".ini",
    ".cfg",
    ".conf",
    ".rb",
    ".r",
    ".tf",
    ".pl",
}


@dataclass(frozen=True)
class Quotable:
    """A span of a passage's text that may stand as an answer.

    `searched` is what it is found by: its words; for a row of a table those of its header, too, and for a
    part of a long sentence those that it begins with.
    `weight` is less than 1 for what only says where to look; `marks` show where a sentence was cut.
    """

    start: int
    end: int
    searched: str
    weight: float = 1.0
    marks: tuple[str, str] = ("", "")


def quotables(context: Context) -> Iterator[Quotable]:
    """What may be quoted of a passage: sentences and list items, rows of a table, objects of JSON."""
    suffix = PurePosixPath(context.path).suffix.lower()
    if suffix in _TABLES:
        return _rows(context)
    if suffix in _JSON:
        return _objects(context.text)
    return _sentences(context, comments=suffix in _COMMENTED)


def shown(quote: str) -> str:
    """A quote as it stands in an answer: on one line, without bullets, links, emphasis and outer bars."""
    text = _NO_WORDS.sub("", _QUOTE_MARK.sub("", quote))
    text = _LINK.sub(r"\1", _LEAD.sub("", text, count=1) if _LEAD.match(text) else text)
    text = re.sub(r"(?<! ) *\t[\t ]*", " | ", text.strip().replace("**", ""))
    return " ".join(text.split()).removeprefix("| ").removesuffix(" |")


def _sentences(context: Context, *, comments: bool) -> Iterator[Quotable]:
    front = _FRONT_MATTER.match(context.text) if context.start == 0 else None
    units = list(_seen(context.text))
    for unit, after in zip_longest(units, units[1:]):
        text = context.text[unit.start : unit.end]
        header = after is not None and _BELOW_HEADER.fullmatch(context.text, after.start, after.end)
        if (front and unit.start < front.end()) or (unit.kind == "row" and header):
            continue
        if not _states(unit, text, context, comments=comments):
            continue
        words = shown(text)
        weight = _POINTER_WEIGHT if _points(text, words) else 1.0
        if len(text) <= _MAX_CHARACTERS:
            yield Quotable(unit.start, unit.end, words, weight)
        elif unit.kind != "row":
            yield from _parts(context.text, unit, words, weight)


def _parts(text: str, unit: Unit, words: str, weight: float) -> Iterator[Quotable]:
    """Parts of a unit that is too long to quote, each from one comma or semicolon to another."""
    found = _PAUSE.finditer(text, unit.start, unit.end)
    edges = [unit.start, *(one.end() for one in found if one["pause"]), unit.end]
    spans = list(pairwise(edges))
    # What is cut from an order does not look like one any more.
    if any(is_order(text[start:end]) for start, end in [(unit.start, unit.end), *spans]):
        return
    parts: list[tuple[int, int]] = []
    for start, end in spans:
        if parts and (end - parts[-1][0] <= _PART or not _says_something(text[slice(*parts[-1])])):
            parts[-1] = parts[-1][0], end
        else:
            parts.append((start, end))
    if len(parts) > 1 and not _says_something(text[slice(*parts[-1])]):
        parts[-2:] = [(parts[-2][0], unit.end)]
    for start, end in parts:
        said = text[start:end].rstrip(" \t\n,;")
        if len(said) <= _MAX_CHARACTERS and _says_something(said):
            first = start == unit.start
            found_by = shown(said) if first else f"{_beginning(words)} … {shown(said)}"
            marks = "" if first else "… ", "" if end == unit.end else " …"
            yield Quotable(start, start + len(said), found_by, weight, marks)


def _beginning(words: str) -> str:
    """The first words of a long sentence, which say what its later parts are about."""
    return words[:_LEAD_IN].rpartition(" ")[0]


def _seen(text: str) -> Iterator[Unit]:
    """Units without what a reader does not see at their beginning and end; none of that alone."""
    hidden = [found.span() for found in _HIDDEN.finditer(text)]
    for unit in split_units(text):
        start, end = unit.start, unit.end
        for first, last in hidden:
            if first <= start < last:
                start = min(end, last)
                start += len(text[start:end]) - len(text[start:end].lstrip())
        for first, last in reversed(hidden):
            if first < end <= last:
                end = max(start, first)
                end = start + len(text[start:end].rstrip())
        if start < end:
            yield Unit(start, end, unit.kind)


def _states(unit: Unit, text: str, context: Context, *, comments: bool) -> bool:
    """Whether a unit can say something: headings, code, questions and bare links cannot."""
    if unit.kind == "code" or (unit.kind == "heading" and not comments) or text in context.heading:
        return False
    if len(text) > _LONGEST or text.endswith("?") or _MARKUP.search(text):
        return False
    return _says_something(text)


def _says_something(text: str) -> bool:
    """Whether there are words besides links, addresses and labels."""
    plain = _ADDRESS.sub(" ", _LINK.sub(" ", _NO_WORDS.sub(" ", text)))
    return (
        len(_WORDS.findall(text)) >= _MIN_WORDS
        and len(_TERMS.findall(plain)) >= 2
        and not _LABEL.fullmatch(_LEAD.sub("", plain, count=1).strip())
    )


def _points(text: str, words: str) -> bool:
    """Whether a sentence only says where to look, or announces what comes after it."""
    if words.endswith(":"):
        return True
    return bool(_POINTS.match(words) and (_LINK.search(text) or _ELSEWHERE.search(words)))


def _rows(context: Context) -> Iterator[Quotable]:
    """Rows, each found by its own words and those of the header, where the passage begins with it."""
    header = ""
    begins = context.start == 0
    for start, line in _lines(context.text):
        if line in context.heading:
            begins = True  # the name of a sheet, and the header after it
        elif begins:
            header, begins = line, False
        elif len(_TERMS.findall(line)) >= 2 and len(line) <= _MAX_CHARACTERS:
            yield Quotable(start, start + len(line), f"{header} {line}".strip())


def _lines(text: str) -> Iterator[tuple[int, str]]:
    offset = 0
    for line in text.split("\n"):
        if bare := line.strip():
            yield offset + line.index(bare), bare
        offset += len(line) + 1


def _objects(text: str) -> Iterator[Quotable]:
    """The innermost objects with their names; of a long one, and outside of them, single values."""
    offset = 0
    for found in _OBJECT.finditer(text):
        yield from _pairs(text, offset, found.start())
        if found.end() - found.start() > _MAX_OBJECT:
            yield from _pairs(text, found.start(), found.end())
        elif len(_TERMS.findall(found[0])) >= 2:
            yield Quotable(found.start(), found.end(), found[0])
        offset = found.end()
    yield from _pairs(text, offset, len(text))


def _pairs(text: str, start: int, end: int) -> Iterator[Quotable]:
    for pair in _PAIR.finditer(text, start, end):
        if len(pair[0]) <= _MAX_CHARACTERS and len(_TERMS.findall(pair[0])) >= 2:
            yield Quotable(pair.start(), pair.end(), pair[0])
