"""A model's reply, sentence by sentence: what it cites, whether that supports it, and exactly where.

A sentence keeps the citations that support it. One that cites nothing, or the wrong passage, is given those
passages that do support it. What no passage supports is for the caller to mend, to mark or to drop.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from knowledge_base.sentences import Unit, split_units
from rag.answer import Context
from rag.support import SUPPORT_THRESHOLD, claims, support

_NUMBERS = r"\d+(?:\s*(?:[,;]|-|\u2013)\s*\d+)*"
_MARKER = re.compile(rf"[ \t]*[\[\u3010]\s*(?:passages?\s+)?({_NUMBERS})\s*[\]\u3011]", re.IGNORECASE)
_MARKER_OR_CODE = re.compile(rf"(`[^`\n]*`)|{_MARKER.pattern}", re.IGNORECASE)
_AFTER_STOP = re.compile(rf"([.!?][\"'\u201d)]*)((?:{_MARKER.pattern})+)", re.IGNORECASE)
_RANGE = re.compile(r"(\d+)(?:\s*[-\u2013]\s*(\d+))?")
_WIDEST_RANGE = 20
_WORD = re.compile(r"[^\W_]{2,}|\d")
_LONGEST_QUOTE = 3  # sentences
_NEARLY = 0.05


@dataclass(frozen=True)
class Statement:
    """One sentence, list item or block of code of a reply, with the white space before it.

    `cited` are passage numbers from 1. What makes no claim (a heading, a lead-in) needs no support.
    """

    lead: str
    text: str
    cited: tuple[int, ...]
    makes_claim: bool


@dataclass(frozen=True)
class Support:
    """Where one passage supports a statement: characters of the document, and how strongly (0 to 1)."""

    context: Context
    start: int
    end: int
    score: float

    @property
    def quote(self) -> str:
        """The supporting text, as it stands in the document."""
        return self.context.text[self.start - self.context.start : self.end - self.context.start]


@dataclass(frozen=True)
class Checked:
    """A statement with what supports it, best first; `score` is that of the best passage."""

    statement: Statement
    supports: tuple[Support, ...]
    score: float


def read_statements(reply: str) -> list[Statement]:
    """The statements of a reply in order; a marker belongs to the sentence before it."""
    text = _AFTER_STOP.sub(r"\2\1", reply)
    found: list[Statement] = []
    end = 0
    for unit in _merged(text):
        piece = text[unit.start : unit.end]
        lead, end = text[end : unit.start], unit.end
        code = unit.kind == "code"
        cited = () if code else _cited(piece)
        words = piece if code else _MARKER_OR_CODE.sub(lambda m: m[1] or "", piece)
        if found and not claims(words):
            # Markers on a line of their own, or before the next sentence.
            found[-1] = replace(found[-1], cited=tuple(dict.fromkeys(found[-1].cited + cited)))
            continue
        leading = () if code else _cited_before(piece)
        if leading and found:
            found[-1] = replace(found[-1], cited=tuple(dict.fromkeys(found[-1].cited + leading)))
            cited = cited[len(leading) :]
        makes_claim = unit.kind != "heading" and (bool(cited) or not words.rstrip(" *_").endswith(":"))
        found.append(Statement(lead, words.strip() if not code else words, cited, makes_claim))
    return found


def check(statement: Statement, contexts: Sequence[Context]) -> Checked:
    """Hold a statement against the passages it cites, and against the others when these do not support it."""
    cited = [contexts[number - 1] for number in statement.cited if 1 <= number <= len(contexts)]
    checked = _checked(statement, cited)
    if checked.score < SUPPORT_THRESHOLD:
        others = _checked(statement, [context for context in contexts if context not in cited])
        if others.score >= SUPPORT_THRESHOLD:
            return others
    return checked


def is_supported(checked: Checked) -> bool:
    """Whether a statement may stand as it is."""
    return not checked.statement.makes_claim or checked.score >= SUPPORT_THRESHOLD


def trust(statement: Statement, contexts: Sequence[Context]) -> Checked:
    """The citations of a statement as the model gave them, narrowed but not judged (`grounding = "off"`)."""
    cited = [contexts[number - 1] for number in statement.cited if 1 <= number <= len(contexts)]
    return Checked(statement, tuple(_narrowed(statement.text, context) for context in cited), 0.0)


def _checked(statement: Statement, contexts: Sequence[Context]) -> Checked:
    if not contexts:
        return Checked(statement, (), 0.0)
    scores = [support([statement.text], [context.text])[0] for context in contexts]
    together = support([statement.text], [context.text for context in contexts])[0]
    best = max([*scores, together])
    order = sorted(range(len(contexts)), key=lambda i: (-scores[i], i))
    enough = [i for i in order if scores[i] >= SUPPORT_THRESHOLD]
    kept = enough or (order if together >= SUPPORT_THRESHOLD else order[:1])
    narrowed = tuple(
        replace(_narrowed(statement.text, contexts[i]), score=round(scores[i], 4)) for i in kept[:3]
    )
    return Checked(statement, narrowed, round(best, 4))


def _narrowed(claim: str, context: Context) -> Support:
    """The shortest run of sentences that holds nearly all of the claim's words that the passage holds."""
    words = set(_WORD.findall(claim.lower()))
    units = [unit for unit in split_units(context.text) if unit.kind != "heading"]
    runs = [
        (units[first].start, units[last].end)
        for first in range(len(units))
        for last in range(first, min(first + _LONGEST_QUOTE, len(units)))
    ] or [(0, len(context.text))]
    shares = [
        len(words & set(_WORD.findall(context.text[a:b].lower()))) / max(1, len(words)) for a, b in runs
    ]
    good = [run for run, share in zip(runs, shares, strict=True) if share >= max(shares) - _NEARLY]
    start, end = min(good, key=lambda run: (run[1] - run[0], run[0]))
    return Support(context, context.start + start, context.start + end, 0.0)


def _merged(text: str) -> Iterator[Unit]:
    """Units, with the lines of a block of code in one."""
    block: Unit | None = None
    for unit in split_units(text):
        if unit.kind == "code":
            block = Unit(block.start if block else unit.start, unit.end, "code")
            continue
        if block:
            yield block
            block = None
        yield unit
    if block:
        yield block


def _cited(piece: str) -> tuple[int, ...]:
    return tuple(
        dict.fromkeys(n for found in _MARKER_OR_CODE.finditer(piece) for n in _expand(found[2] or ""))
    )


def _cited_before(piece: str) -> tuple[int, ...]:
    """Markers that a sentence begins with: they are of the sentence before it."""
    numbers: list[int] = []
    end = 0
    while found := _MARKER.match(piece, end):
        numbers += _expand(found[1])
        end = found.end()
    return tuple(dict.fromkeys(numbers))


def _expand(numbers: str) -> list[int]:
    found: list[int] = []
    for first, last in _RANGE.findall(numbers):
        begin, end = int(first), int(last or first)
        found += range(begin, min(end, begin + _WIDEST_RANGE) + 1)
    return found
