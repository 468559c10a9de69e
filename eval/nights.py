"""Earlier nights and the reference they are compared with, kept in the version store.

They lie on the branch of the evaluations:

    reports/<date>.json          the report of a night, as report.json
    reports/references.json      what was accepted as the new normal, when, by whom and why
"""

import getpass
import json
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

from pydantic import ValidationError

from eval.evaluations import Evaluations
from knowledge_base.errors import NotFoundError, UsageError
from knowledge_base.home import EVALUATIONS, KnowledgeBase
from knowledge_base.values import Frozen

SCHEMA_VERSION = 2
"""Of report.json."""
_PREFIX = "reports/"
_REFERENCES = f"{_PREFIX}references.json"
REFERENCE_DAYS = 28
LEARNED = 500
"""Questions that a reference without an end is filled up to."""
REMEMBERED = 60
"""Nights that trends look back on."""


class Reference(Frozen):
    """What is normal: a release, and the questions of a span of days; it holds for nights after `accepted`.

    Days are UTC, `until` included. Without `until` the first 500 questions from `since` on are meant. Only
    the days are kept: the questions themselves stay in the answer log, which may have to forget them.
    """

    release: str
    since: date
    until: date | None = None
    accepted: date
    by: str = ""
    reason: str = ""


class Nights:
    """The history of reports of one knowledge base."""

    def __init__(self, knowledge_base: KnowledgeBase) -> None:
        self._knowledge_base = knowledge_base
        self._repository = knowledge_base.repository

    def before(self, day: date, number: int = REMEMBERED) -> list[dict[str, Any]]:
        """Reports of up to `number` nights before `day`, oldest first."""
        try:
            found = self._repository.list_objects(self._repository.resolve(EVALUATIONS), prefix=_PREFIX)
            names = sorted(item.path for item in found if item.path != _REFERENCES)
        except NotFoundError:
            return []
        earlier = [name for name in names if name < f"{_PREFIX}{day.isoformat()}"][-number:]
        return [json.loads(self._repository.get_object(EVALUATIONS, name)) for name in earlier]

    def of(self, day: date) -> dict[str, Any] | None:
        """The report of a night, if there is one."""
        try:
            found: dict[str, Any] = json.loads(
                self._repository.get_object(EVALUATIONS, f"{_PREFIX}{day.isoformat()}.json")
            )
        except (NotFoundError, ValueError):
            return None
        return found

    def references(self) -> list[Reference]:
        """Everything that was ever accepted, oldest first."""
        try:
            rows = json.loads(self._repository.get_object(EVALUATIONS, _REFERENCES))
            return [Reference.model_validate(row) for row in rows]
        except (NotFoundError, ValidationError, ValueError):
            return []

    def reference(self, day: date) -> Reference | None:
        """What the report of `day` compares with: accepted on an earlier night, or with the first report."""
        found = self.references()
        return next((one for one in reversed(found) if one.accepted < day), found[0] if found else None)

    def begin(self, day: date, release: str) -> Reference:
        """The reference of a first report: its own release, and the questions up to the night before."""
        first = Reference(
            release=release,
            since=day - timedelta(days=REFERENCE_DAYS),
            accepted=day,
            reason="the first report",
        )
        self._keep({_REFERENCES: _lines([first])}, "First reference")
        return first

    def accept(self, release: str, day: date, reason: str, days: int = REFERENCE_DAYS) -> Reference:
        """Make `release`, and the questions of the `days` up to `day`, the normal from the next night on.

        Raises:
            UsageError: No reason is given.
            StorageError: The disk refused.
        """
        if not reason.strip():
            raise UsageError("--reason is empty.", hint="Say why this is normal now; the log keeps it.")
        made = Reference(
            release=self._repository.resolve(release),
            since=day - timedelta(days=days - 1),
            until=day,
            accepted=day,
            by=_user(),
            reason=reason.strip(),
        )
        self._keep({_REFERENCES: _lines([*self.references(), made])}, f"Accept {made.release[:12]}")
        return made

    def keep(self, day: date, report: bytes) -> None:
        """Store a night's report; one of the same date is replaced. Raises StorageError."""
        self._keep({f"{_PREFIX}{day.isoformat()}.json": report}, f"Report of {day.isoformat()}")

    def _keep(self, files: Mapping[str, bytes], message: str) -> None:
        Evaluations(self._repository).write(files, message)


def moment(day: date) -> datetime:
    """The beginning of a day, UTC."""
    return datetime.combine(day, time(), UTC)


def _lines(references: list[Reference]) -> bytes:
    rows = [one.model_dump(mode="json") for one in references]
    return (json.dumps(rows, indent=2, ensure_ascii=False) + "\n").encode()


def _user() -> str:
    with suppress(OSError, KeyError):
        return getpass.getuser()
    return ""
