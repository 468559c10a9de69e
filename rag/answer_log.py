"""Served answers and what readers say of them: SQLite by default, any SQLAlchemy URL otherwise."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Literal

from pydantic import Field, ValidationError
from sqlalchemy import (
    Boolean,
    Column,
    Connection,
    DateTime,
    Engine,
    ForeignKey,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    create_engine,
    delete,
    event,
    insert,
    select,
)
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.schema import CreateIndex, CreateTable

from knowledge_base.errors import NotFoundError, SettingsError, StorageError, UsageError
from knowledge_base.release import Frozen
from rag.answer import Answer

_METADATA = MetaData()
_MIGRATIONS = Table("migrations", _METADATA, Column("name", String(64), primary_key=True))
_ANSWERS = Table(
    "answers",
    _METADATA,
    Column("id", String(32), primary_key=True),
    Column("asked_at", DateTime(timezone=True), index=True, nullable=False),
    Column("ref", String(200), nullable=False),
    Column("release_commit", String(64), index=True, nullable=False),
    Column("abstained", Boolean, nullable=False),
    Column("record", Text, nullable=False),
)
_FEEDBACK = Table(
    "feedback",
    _METADATA,
    Column("id", Integer, primary_key=True),
    Column("answer_id", String(32), ForeignKey("answers.id", ondelete="CASCADE"), index=True, nullable=False),
    Column("given_at", DateTime(timezone=True), nullable=False),
    Column("rating", String(4), nullable=False),
    Column("record", Text, nullable=False),
)
# What each step makes; a database records the steps it has taken, and takes the others when it is opened.
_STEPS = {"001-answers": (_ANSWERS,), "002-feedback": (_FEEDBACK,)}

# What to install for a module that is missing, where the two have different names.
_DISTRIBUTIONS = {"psycopg": "'psycopg[binary]'", "psycopg2": "psycopg2-binary", "MySQLdb": "mysqlclient"}


class Feedback(Frozen):
    """What a reader says of an answer: up or down, and if they like why, what is right, what helped."""

    rating: Literal["up", "down"]
    comment: str = Field(default="", max_length=4000)
    correction: str = Field(default="", max_length=8000)
    citation: int | None = Field(default=None, ge=1, description="The marker that helped, or misled.")


class AnswerLog:
    """Keeps answers and what was said of them.

    Raises:
        SettingsError: The URL is none, or the driver it needs is not installed.
        StorageError: The database cannot be reached or written.
    """

    def __init__(self, url: str) -> None:
        self._engine = _open(url)
        if url.startswith("sqlite"):
            event.listen(self._engine, "connect", _wait_for_other_writers)
        with _storage_errors():
            _migrate(self._engine)

    def append(self, answer: Answer) -> None:
        """Record a served answer. Raises StorageError."""
        row = {
            "id": answer.id,
            "asked_at": datetime.now(UTC),
            "ref": answer.release.ref,
            "release_commit": answer.release.commit,
            "abstained": answer.abstained,
            "record": json.dumps(answer.as_json(), ensure_ascii=False),
        }
        with _storage_errors(), self._engine.begin() as connection:
            connection.execute(insert(_ANSWERS), row)

    def recent(self, limit: int) -> list[Answer]:
        """Up to `limit` answers, newest first. Raises StorageError."""
        query = select(_ANSWERS.c.record).order_by(_ANSWERS.c.asked_at.desc(), _ANSWERS.c.id).limit(limit)
        with _storage_errors(), self._engine.connect() as connection:
            return [Answer.model_validate_json(record) for (record,) in connection.execute(query)]

    def answer(self, id: str) -> Answer:
        """One answer. Raises NotFoundError, StorageError."""
        query = select(_ANSWERS.c.record).where(_ANSWERS.c.id == id)
        with _storage_errors(), self._engine.connect() as connection:
            record = connection.execute(query).scalar_one_or_none()
        if record is None:
            raise NotFoundError("answer", id, hint="It may have been asked elsewhere, or expired.")
        with _storage_errors():
            return Answer.model_validate_json(record)

    def rate(self, id: str, feedback: Feedback) -> None:
        """Keep what a reader says of an answer. Raises NotFoundError, UsageError, StorageError."""
        answer = self.answer(id)
        if feedback.citation is not None and feedback.citation > len(answer.citations):
            raise UsageError(
                f"The answer has {len(answer.citations)} citation(s), not {feedback.citation}.",
                hint="Name the marker of one of them.",
            )
        row = {
            "answer_id": id,
            "given_at": datetime.now(UTC),
            "rating": feedback.rating,
            "record": feedback.model_dump_json(),
        }
        with _storage_errors(), self._engine.begin() as connection:
            connection.execute(insert(_FEEDBACK), row)

    def feedback(self, limit: int) -> list[tuple[Answer, Feedback]]:
        """Up to `limit` pieces of feedback with their answers, newest first. Raises StorageError."""
        query = (
            select(_ANSWERS.c.record, _FEEDBACK.c.record)
            .join(_FEEDBACK, _FEEDBACK.c.answer_id == _ANSWERS.c.id)
            .order_by(_FEEDBACK.c.given_at.desc(), _FEEDBACK.c.id.desc())
            .limit(limit)
        )
        with _storage_errors(), self._engine.connect() as connection:
            return [
                (Answer.model_validate_json(answer), Feedback.model_validate_json(said))
                for answer, said in connection.execute(query)
            ]

    def forget(self, before: datetime) -> int:
        """Delete answers asked before a moment and their feedback; returns how many. Raises StorageError."""
        old = select(_ANSWERS.c.id).where(_ANSWERS.c.asked_at < before)
        with _storage_errors(), self._engine.begin() as connection:
            connection.execute(delete(_FEEDBACK).where(_FEEDBACK.c.answer_id.in_(old)))
            return connection.execute(delete(_ANSWERS).where(_ANSWERS.c.asked_at < before)).rowcount

    def close(self) -> None:
        """Close the database."""
        self._engine.dispose()


def _wait_for_other_writers(connection: object, _: object) -> None:
    cursor = connection.cursor()  # type: ignore[attr-defined]
    cursor.execute("pragma busy_timeout = 5000")
    cursor.execute("pragma journal_mode = wal")
    cursor.close()


def _migrate(engine: Engine) -> None:
    """Take the steps that a database has not taken yet; processes that start together may all try."""
    with engine.begin() as connection:
        _make(connection, _MIGRATIONS)
        taken = set(connection.execute(select(_MIGRATIONS.c.name)).scalars())
    for name, tables in _STEPS.items():
        if name in taken:
            continue
        try:
            with engine.begin() as connection:
                for table in tables:
                    _make(connection, table)
                connection.execute(insert(_MIGRATIONS), {"name": name})
        except IntegrityError:
            pass  # another process took it at the same moment


def _make(connection: Connection, table: Table) -> None:
    connection.execute(CreateTable(table, if_not_exists=True))
    for index in table.indexes:
        connection.execute(CreateIndex(index, if_not_exists=True))


def _open(url: str) -> Engine:
    try:
        return create_engine(url)
    except ImportError as error:
        driver = error.name or "its driver"
        raise SettingsError(
            f"PLUMBLINE_ANSWER_LOG: this database needs {driver}, which is not installed.",
            hint=f"Run: pip install {_DISTRIBUTIONS.get(driver, driver)}, or name another driver, "
            "as in postgresql+psycopg://.",
        ) from error
    except (ArgumentError, ValueError) as error:
        # No part of the URL is repeated: it may hold a password.
        reason = _reason(error) if isinstance(error, ArgumentError) else "its port is not a number"
        raise SettingsError(
            f"PLUMBLINE_ANSWER_LOG is not a database URL: {reason}.",
            hint="For example sqlite:////var/lib/plumbline/answers.sqlite, or "
            "postgresql+psycopg://user@host/name.",
        ) from error


@contextmanager
def _storage_errors() -> Iterator[None]:
    try:
        yield
    except (SQLAlchemyError, ValidationError) as error:
        raise StorageError(
            f"The answer log cannot be used: {_reason(error)}.",
            hint="Check its database; answers are served without it.",
        ) from error


def _reason(error: Exception) -> str:
    """The database's own words, in one line, without SQLAlchemy's statement and links."""
    told = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    words = str(told).split("(Background on this error")[0]
    return " ".join(words.split())[:300].rstrip(".") or type(error).__name__
