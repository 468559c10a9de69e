"""Two texts compared line by line, in parts that are compared in a moment however long the texts are."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Literal

LINES = 4000
"""How many lines of each text are compared at a time: the time for it grows with their square."""
_AROUND = 3

Tone = Literal["added", "removed", "same", "where"]
_Code = tuple[str, int, int, int, int]


@dataclass(frozen=True)
class Part:
    """The differing lines of a part of two texts, with some around them, each with what became of it.

    `start`, `end` and `total` count lines of the old text and of the new one.
    """

    lines: tuple[tuple[Tone, str], ...]
    start: tuple[int, int]
    end: tuple[int, int]
    total: tuple[int, int]

    @property
    def more(self) -> bool:
        """Whether there is text behind this part."""
        return self.end != self.total

    @property
    def whole(self) -> bool:
        """Whether it is all of both texts."""
        return self.start == (0, 0) and not self.more


def compare(old: str, new: str, start: tuple[int, int] = (0, 0), size: int = LINES) -> Part:
    """The part of two texts that begins at those lines, `size` lines of each at most.

    It ends behind the last lines that the two have in common, so that what follows is compared from there
    and an insertion does not make all lines behind it look different.
    """
    before, after = old.split("\n"), new.split("\n")
    total = (len(before), len(after))
    start = (min(start[0], total[0]), min(start[1], total[1]))
    first, second = before[start[0] : start[0] + size], after[start[1] : start[1] + size]
    end = (start[0] + len(first), start[1] + len(second))
    codes: list[_Code] = list(SequenceMatcher(None, first, second).get_opcodes())
    # One that has little in common with the other is shown as it is: the parts would become too many.
    if end != total and codes[-1][0] != "equal" and max(codes[-1][1], codes[-1][3]) > size // 2:
        _, i, _, j, _ = codes.pop()
        end = (start[0] + i, start[1] + j)
    return Part(tuple(_told(codes, first, second, start[0])), start, end, total)


def _told(
    codes: Sequence[_Code], first: Sequence[str], second: Sequence[str], start: int
) -> Iterator[tuple[Tone, str]]:
    """What differs, with some around it, and behind each gap at which old line it goes on."""
    for number, (verb, i1, i2, j1, j2) in enumerate(codes):
        if verb != "equal":
            yield from (("removed", f"-{line}") for line in first[i1:i2])
            yield from (("added", f"+{line}") for line in second[j1:j2])
            continue
        head = min(i2, i1 + _AROUND) if number else i1
        tail = max(head, i2 - _AROUND) if number < len(codes) - 1 else i2
        yield from (("same", f" {line}") for line in first[i1:head])
        if head < tail < i2:
            yield "where", f"line {start + tail + 1:,}"
        yield from (("same", f" {line}") for line in first[tail:i2])
