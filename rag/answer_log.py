"""Served answers and what readers say of them: SQLite by default, any SQLAlchemy URL otherwise.

What people wrote, and what they were answered from, is kept without personal data unless told otherwise: it
is taken out before anything is written. Spans and hashes stay, so a citation still leads to the document.
"""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, NamedTuple

from pydantic import Field
from sqlalchemy import (
    Boolean,
    Column,
    ColumnElement,
    Connection,
    DateTime,
    ForeignKey,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    delete,
    insert,
    select,
    text,
)

from knowledge_base.configuration import LogSettings
from knowledge_base.errors import NotFoundError
from knowledge_base.values import Frozen
from rag.answer import Answer
from rag.database import in_utc, make_table, open_database, storage_errors
from rag.privacy import redact_record


def _answers(*later: Column[str]) -> Table:
    """The table as the first step makes it, with what later steps add."""
    return Table(
        "answers",
        MetaData(),
        Column("id", String(32), primary_key=True),
        Column("asked_at", DateTime(timezone=True), index=True, nullable=False),
        Column("ref", String(200), nullable=False),
        Column("release_commit", String(64), index=True, nullable=False),
        Column("abstained", Boolean, nullable=False),
        Column("record", Text, nullable=False),
        *later,
    )


_ANSWERS_AT_FIRST = _answers()
_ANSWERS = _answers(Column("kb", String(200), nullable=False))
_FEEDBACK = Table(
    "feedback",
    _ANSWERS.metadata,
    Column("id", Integer, primary_key=True),
    Column("answer_id", String(32), ForeignKey("answers.id", ondelete="CASCADE"), index=True, nullable=False),
    Column("given_at", DateTime(timezone=True), nullable=False),
    Column("rating", String(4), nullable=False),
    Column("record", Text, nullable=False),
)
_BATCH = 500
_EXPIRE_EVERY = timedelta(hours=1)


NO_ANSWER = "It may have been asked elsewhere, or expired."
"""What to say of an id that is not in the log."""


class Feedback(Frozen):
    """What a reader says of an answer: up or down, and if they like why, what is right, what helped."""

    rating: Literal["up", "down"]
    comment: str = Field(default="", max_length=4000)
    correction: str = Field(default="", max_length=8000)
    citation: int | None = Field(default=None, ge=1, description="The marker that helped, or misled.")


class Entry(NamedTuple):
    """A logged answer: when it was asked, and what was said of it, oldest first."""

    asked_at: datetime
    answer: Answer
    feedback: tuple[Feedback, ...]


class Served(NamedTuple):
    """A logged answer: when it was asked, and whether a reader was against it."""

    asked_at: datetime
    answer: Answer
    down: bool = False


class AnswerLog:
    """Keeps the answers of one knowledge base and what was said of them, as `settings` say.

    A database that serves several keeps them apart by `kb`; one in a knowledge base's own folder needs no
    name. Answers logged before there were names are taken to be of the one that opens the database first.

    Raises:
        SettingsError: The URL is none, or the driver it needs is not installed.
        StorageError: The database cannot be reached or written.
    """

    def __init__(self, url: str, kb: str = "", settings: LogSettings | None = None) -> None:
        self._kb = kb
        self._settings = settings or LogSettings()
        self._expired_at: datetime | None = None
        self._mine = _ANSWERS.c.kb == kb
        steps = {
            "001-answers": lambda connection: make_table(connection, _ANSWERS_AT_FIRST),
            "002-feedback": lambda connection: make_table(connection, _FEEDBACK),
            "003-answers-kb": lambda connection: _tell_apart(connection, kb),
        }
        self.url = url
        self._engine = open_database(url, steps, durable=False)

    def append(self, answer: Answer, asked_at: datetime | None = None) -> None:
        """Record a served answer, asked now or at a given time; once in an hour drop those too old.

        Raises:
            StorageError: The database refused.
        """
        now = datetime.now(UTC)
        row = {
            "id": answer.id,
            "kb": self._kb,
            "asked_at": asked_at or now,
            "ref": answer.release.ref,
            "release_commit": answer.release.commit,
            "abstained": answer.abstained,
            "record": self._written(answer.as_json()),
        }
        with storage_errors(), self._engine.begin() as connection:
            connection.execute(insert(_ANSWERS), row)
        if self._settings.keep_days and (self._expired_at is None or now - self._expired_at > _EXPIRE_EVERY):
            self._expired_at = now
            self.forget(now - timedelta(days=self._settings.keep_days))

    def _written(self, record: dict[str, Any]) -> str:
        return json.dumps(redact_record(record) if self._settings.redact else record, ensure_ascii=False)

    def recent(self, limit: int) -> list[Answer]:
        """Up to `limit` answers, newest first. Raises StorageError."""
        newest_first = select(_ANSWERS.c.record).order_by(_ANSWERS.c.asked_at.desc(), _ANSWERS.c.id)
        query = newest_first.where(self._mine).limit(limit)
        with storage_errors(), self._engine.connect() as connection:
            return [Answer.model_validate_json(record) for (record,) in connection.execute(query)]

    def between(self, start: datetime, end: datetime) -> list[Served]:
        """What was asked from `start` until before `end`, oldest first, and said of it before `end`.

        Raises StorageError.
        """
        against = select(_FEEDBACK.c.answer_id).where(
            _FEEDBACK.c.rating == "down", _FEEDBACK.c.given_at < end
        )
        query = (
            select(_ANSWERS.c.asked_at, _ANSWERS.c.record, _ANSWERS.c.id.in_(against))
            .where(self._mine, _ANSWERS.c.asked_at >= start, _ANSWERS.c.asked_at < end)
            .order_by(_ANSWERS.c.asked_at, _ANSWERS.c.id)
        )
        with storage_errors(), self._engine.connect() as connection:
            return [
                Served(in_utc(asked), Answer.model_validate_json(record), bool(down))
                for asked, record, down in connection.execute(query)
            ]

    def answer(self, id: str) -> Answer:
        """One answer. Raises NotFoundError, StorageError."""
        query = select(_ANSWERS.c.record).where(self._mine, _ANSWERS.c.id == id)
        with storage_errors(), self._engine.connect() as connection:
            record = connection.execute(query).scalar_one_or_none()
        if record is None:
            raise NotFoundError("answer", id, hint=NO_ANSWER)
        with storage_errors():
            return Answer.model_validate_json(record)

    def rate(self, id: str, feedback: Feedback) -> None:
        """Keep what a reader says of an answer. Raises NotFoundError, StorageError."""
        answer = self.answer(id)
        if feedback.citation is not None and feedback.citation > len(answer.citations):
            hint = f"The answer has {len(answer.citations)} citation(s): name the marker of one of them."
            raise NotFoundError("citation", str(feedback.citation), hint=hint)
        row = {
            "answer_id": id,
            "given_at": datetime.now(UTC),
            "rating": feedback.rating,
            "record": self._written(feedback.model_dump(mode="json")),
        }
        with storage_errors(), self._engine.begin() as connection:
            connection.execute(insert(_FEEDBACK), row)

    def feedback(self, limit: int) -> list[tuple[Answer, Feedback]]:
        """Up to `limit` pieces of feedback with their answers, newest first. Raises StorageError."""
        query = (
            select(_ANSWERS.c.record, _FEEDBACK.c.record)
            .join(_FEEDBACK, _FEEDBACK.c.answer_id == _ANSWERS.c.id)
            .where(self._mine)
            .order_by(_FEEDBACK.c.given_at.desc(), _FEEDBACK.c.id.desc())
            .limit(limit)
        )
        with storage_errors(), self._engine.connect() as connection:
            return [
                (Answer.model_validate_json(answer), Feedback.model_validate_json(said))
                for answer, said in connection.execute(query)
            ]

    def entries(self) -> Iterator[Entry]:
        """Everything, oldest first, a few hundred in memory at a time. Raises StorageError."""
        oldest_first = select(_ANSWERS.c.asked_at, _ANSWERS.c.record).where(self._mine)
        query = oldest_first.order_by(_ANSWERS.c.asked_at, _ANSWERS.c.id)
        with storage_errors(), self._engine.connect() as connection:
            for rows in connection.execute(query.execution_options(yield_per=_BATCH)).partitions():
                answers = [Answer.model_validate_json(record) for _, record in rows]
                said = self._said_of([answer.id for answer in answers])
                for (asked_at, _), answer in zip(rows, answers, strict=True):
                    yield Entry(in_utc(asked_at), answer, tuple(said.get(answer.id, ())))

    def _said_of(self, ids: list[str]) -> dict[str, list[Feedback]]:
        query = select(_FEEDBACK.c.answer_id, _FEEDBACK.c.record).where(_FEEDBACK.c.answer_id.in_(ids))
        found: dict[str, list[Feedback]] = {}
        with self._engine.connect() as connection:
            for answer_id, record in connection.execute(query.order_by(_FEEDBACK.c.id)):
                found.setdefault(answer_id, []).append(Feedback.model_validate_json(record))
        return found

    def forget(self, before: datetime) -> int:
        """Delete answers asked before a moment and their feedback; returns how many. Raises StorageError."""
        return self._forget(_ANSWERS.c.asked_at < before)

    def forget_mentioning(self, words: str) -> int:
        """Delete the answers in which `words` stand, in feedback on them too, whatever their case.

        Returns how many. Raises StorageError.
        """
        written = json.dumps(words, ensure_ascii=False)[1:-1]
        told = select(_FEEDBACK.c.answer_id).where(_FEEDBACK.c.record.icontains(written, autoescape=True))
        return self._forget(_ANSWERS.c.record.icontains(written, autoescape=True) | _ANSWERS.c.id.in_(told))

    def _forget(self, which: ColumnElement[bool]) -> int:
        with storage_errors():
            with self._engine.begin() as connection:
                ids = connection.execute(select(_ANSWERS.c.id).where(self._mine, which)).scalars().all()
                for first in range(0, len(ids), _BATCH):
                    some = ids[first : first + _BATCH]
                    connection.execute(delete(_FEEDBACK).where(_FEEDBACK.c.answer_id.in_(some)))
                    connection.execute(delete(_ANSWERS).where(_ANSWERS.c.id.in_(some)))
            if ids and self._engine.dialect.name == "sqlite":
                # Deleted pages are overwritten; what the write-ahead log still holds of them goes too.
                with self._engine.connect() as connection:
                    connection.execute(text("pragma wal_checkpoint(truncate)"))
        return len(ids)

    def close(self) -> None:
        """Close the database."""
        self._engine.dispose()


def _tell_apart(connection: Connection, kb: str) -> None:
    """Add the name of the knowledge base, to answers that were logged without one too."""
    connection.execute(text("alter table answers add column kb varchar(200) not null default ''"))
    connection.execute(text("update answers set kb = :kb"), {"kb": kb})
    connection.execute(text("drop index ix_answers_asked_at"))
    connection.execute(text("create index ix_answers_kb_asked_at on answers (kb, asked_at)"))
