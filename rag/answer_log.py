"""Served answers, kept for the nightly report: SQLite by default, any SQLAlchemy URL otherwise."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

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
from sqlalchemy.exc import SQLAlchemyError

from knowledge_base.errors import StorageError
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


class AnswerLog:
    """Appends answers and reads recent ones back."""

    def __init__(self, url: str) -> None:
        self._engine: Engine = create_engine(url)
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


@contextmanager
def _storage_errors() -> Iterator[None]:
    try:
        yield
    except SQLAlchemyError as error:
        raise StorageError(
            f"The answer log cannot be used: {type(error).__name__}.",
            hint="Check its database; answers are served without it.",
        ) from error
