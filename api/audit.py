"""Who did what, and when: one row for every change that was asked for over HTTP, and for every key."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel
from sqlalchemy import (
    Column,
    DateTime,
    Engine,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    insert,
    select,
    update,
)

from rag.database import in_utc, storage_errors

AUDIT = Table(
    "audit",
    MetaData(),
    Column("id", Integer, primary_key=True),
    Column("at", DateTime(timezone=True), nullable=False, index=True),
    Column("key_id", String(16), nullable=False),
    Column("name", String(100), nullable=False),
    Column("action", String(100), nullable=False),
    Column("kb", String(200), nullable=False),
    Column("outcome", String(200), nullable=False),
    Column("about", Text, nullable=False),
)
STARTED = "started"
"""The outcome of what is under way, or of what a killed server did not finish."""


class Entry(BaseModel):
    """One thing that somebody did; `key_id` is empty for whoever was on the machine itself."""

    id: int
    at: datetime
    key_id: str
    name: str
    action: str
    kb: str
    outcome: str
    about: dict[str, Any]


class Audit:
    """The audit log in a database. Rows are never changed but for their outcome."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def begin(self, key_id: str, name: str, action: str, kb: str, about: Mapping[str, Any]) -> int:
        """Say what somebody is about to do, before it is done; returns the row's id. Raises StorageError."""
        row = {
            "at": datetime.now(UTC),
            "key_id": key_id,
            "name": name[:100],
            "action": action[:100],
            "kb": kb,
            "outcome": STARTED,
            "about": json.dumps(about, ensure_ascii=False),
        }
        with storage_errors("audit log"), self._engine.begin() as connection:
            made: int = connection.execute(insert(AUDIT).values(row).returning(AUDIT.c.id)).scalar_one()
        return made

    def end(self, id: int, outcome: str, about: Mapping[str, Any]) -> None:
        """Say how it ended. Raises StorageError."""
        values = {"outcome": outcome[:200], "about": json.dumps(about, ensure_ascii=False)}
        with storage_errors("audit log"), self._engine.begin() as connection:
            connection.execute(update(AUDIT).where(AUDIT.c.id == id).values(values))

    def entries(self, limit: int, before: int | None = None) -> list[Entry]:
        """Up to `limit` rows, newest first, older than row `before`. Raises StorageError."""
        query = select(AUDIT).order_by(AUDIT.c.id.desc()).limit(limit)
        if before is not None:
            query = query.where(AUDIT.c.id < before)
        with storage_errors("audit log"), self._engine.connect() as connection:
            rows = connection.execute(query).mappings().all()
        return [
            Entry.model_validate({**row, "at": in_utc(row["at"]), "about": json.loads(row["about"])})
            for row in rows
        ]
