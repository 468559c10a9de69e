"""Ref expressions, as both version stores read them: `main~2`, `v1.0^2`, `main@{2026-11-01}`."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime

from knowledge_base.errors import NotFoundError

_EXPRESSION = re.compile(r"([-.\w]{1,100})(@\{[^{}]{1,40}\})?((?:[~^][0-9]{0,6}){0,20})", re.ASCII)


@dataclass(frozen=True)
class RefExpression:
    """A name; where its branch was at `until` (seconds since 1970); then steps back, in order."""

    name: str
    until: float | None
    steps: tuple[tuple[str, int], ...]
    """("~", generations by first parent) or ("^", number of the parent, 0 for the commit itself)."""


def parse_ref(ref: str) -> RefExpression:
    """Take a ref expression apart. Raises NotFoundError when it is none."""
    matched = _EXPRESSION.fullmatch(ref)
    if matched is None:
        raise unknown_ref(ref)
    until = _end_of(matched[2][2:-1], ref) if matched[2] else None
    steps = re.findall(r"([~^])([0-9]*)", matched[3])
    return RefExpression(matched[1], until, tuple((step, int(digits or 1)) for step, digits in steps))


def _end_of(date: str, ref: str) -> float:
    try:
        moment = datetime.fromisoformat(date)
    except ValueError as error:
        raise NotFoundError(
            "ref", ref, hint="Write a date as main@{2026-11-01} or main@{2026-11-01T09:30}."
        ) from error
    if "T" not in date and " " not in date:
        moment = moment.replace(hour=23, minute=59, second=59)  # a day means how it ended
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def unknown_ref(ref: str) -> NotFoundError:
    """What to raise when nothing has that name."""
    return NotFoundError("ref", ref, hint="`rag log` lists the releases; branches and tags work too.")


def too_far_back(ref: str) -> NotFoundError:
    """What to raise when the history does not reach so far."""
    return NotFoundError("ref", ref, hint="The history is not that long.")
