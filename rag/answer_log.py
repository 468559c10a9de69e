"""Served answers, kept for the nightly report: SQLite by default, any SQLAlchemy URL otherwise."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from pydantic import ValidationError
from sqlalchemy import (
    Boolean,
    Column,
    DateTime,
    Engine,
    MetaData,
    String,
    Table,
    Text,
    create_engine,
    event,
    insert,
    select,
)
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError

from knowledge_base.errors import SettingsError, StorageError
from rag.answer import Answer

_METADATA = MetaData()
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

# What to install for a module that is missing, where the two have different names.
_DISTRIBUTIONS = {"psycopg": "'psycopg[binary]'", "psycopg2": "psycopg2-binary", "MySQLdb": "mysqlclient"}


class AnswerLog:
    """Appends answers and reads recent ones back.

    Raises:
        SettingsError: The URL is none, or the driver it needs is not installed.
        StorageError: The database cannot be reached or written.
    """

    def __init__(self, url: str) -> None:
        self._engine = _open(url)
        if url.startswith("sqlite"):
            event.listen(self._engine, "connect", _wait_for_other_writers)
        with _storage_errors():
            _METADATA.create_all(self._engine)

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

    def close(self) -> None:
        """Close the database."""
        self._engine.dispose()


def _wait_for_other_writers(connection: object, _: object) -> None:
    cursor = connection.cursor()  # type: ignore[attr-defined]
    cursor.execute("pragma busy_timeout = 5000")
    cursor.execute("pragma journal_mode = wal")
    cursor.close()


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
