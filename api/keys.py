"""API keys: made once, shown once, kept as hashes.

A key is `plk_<id>_<secret>`. The secret is 256 random bits, so nobody finds it by guessing, however fast
the hash: SHA-256 is enough, and a slow password hash would only slow every request down. The id, which is
no secret, is hashed with it and so salts it.
"""

import hashlib
import hmac
import json
import logging
import re
import secrets
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from pydantic import BaseModel
from sqlalchemy import Column, DateTime, MetaData, String, Table, Text, insert, select, update

from api.audit import AUDIT, Audit
from knowledge_base.access import GROUP
from knowledge_base.errors import NotFoundError, StorageError, UnauthenticatedError, UsageError
from rag.database import in_utc, make_table, open_database, storage_errors

Role = Literal["reader", "writer", "admin"]
ROLES: tuple[Role, ...] = ("reader", "writer", "admin")

_LOG = logging.getLogger(__name__)
_KEYS = Table(
    "keys",
    MetaData(),
    Column("id", String(16), primary_key=True),
    Column("name", String(100), nullable=False),
    Column("role", String(10), nullable=False),
    Column("groups", Text, nullable=False),
    Column("knowledge_bases", Text, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False),
    Column("created_by", String(100), nullable=False),
    Column("expires_at", DateTime(timezone=True)),
    Column("revoked_at", DateTime(timezone=True)),
    Column("used_at", DateTime(timezone=True)),
)
_KEY = re.compile(r"plk_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")
_NOBODY = "0" * 64
_USED_EVERY = timedelta(minutes=1)
"""How exactly `used_at` is kept: a write for every request would cost more than the key check."""


@dataclass(frozen=True)
class Caller:
    """Who asks: `groups` decide which documents they see, no `knowledge_bases` means all of the server.

    Each role may do what those before it may: a reader asks, a writer changes documents and releases, an
    admin manages keys, passes by the gate and sees every document.
    """

    key_id: str
    name: str
    role: Role
    groups: frozenset[str] = frozenset()
    knowledge_bases: frozenset[str] = frozenset()

    def may(self, role: Role) -> bool:
        """Whether they may do what needs that role."""
        return ROLES.index(self.role) >= ROLES.index(role)

    def may_use(self, knowledge_base: str) -> bool:
        """Whether they may use the knowledge base of that name."""
        return not self.knowledge_bases or knowledge_base in self.knowledge_bases

    @property
    def sees_all(self) -> bool:
        """Whether no document is hidden from them."""
        return self.role == "admin"


class Key(BaseModel):
    """A key without its secret."""

    id: str
    name: str
    role: Role
    groups: tuple[str, ...]
    knowledge_bases: tuple[str, ...]
    created_at: datetime
    created_by: str
    expires_at: datetime | None
    revoked_at: datetime | None
    used_at: datetime | None

    @property
    def state(self) -> Literal["active", "expired", "revoked"]:
        """Whether it still opens anything."""
        if self.revoked_at:
            return "revoked"
        return "expired" if self.expires_at and self.expires_at <= datetime.now(UTC) else "active"

    @property
    def prefix(self) -> str:
        """What its holder knows it by."""
        return f"plk_{self.id}_"

    def as_json(self) -> dict[str, Any]:
        """Plain values, as `rag key list --json` and `GET /v1/keys` give them."""
        return {**self.model_dump(mode="json"), "prefix": self.prefix, "state": self.state}


class Keys:
    """The keys of a server, and the audit log beside them.

    Raises:
        SettingsError: The URL is none, or the driver it needs is not installed.
        StorageError: The database cannot be reached or written.
    """

    def __init__(self, url: str) -> None:
        self._engine = open_database(
            url,
            {
                "keys-001": lambda connection: make_table(connection, _KEYS),
                "keys-002-audit": lambda connection: make_table(connection, AUDIT),
            },
        )
        self.audit = Audit(self._engine)
        self._exist = False

    def exist(self) -> bool:
        """Whether a key was ever created: from then on every request needs one. Raises StorageError."""
        if not self._exist:  # a key is revoked, never deleted: once is for ever
            with storage_errors("key store"), self._engine.connect() as connection:
                self._exist = connection.execute(select(_KEYS.c.id).limit(1)).first() is not None
        return self._exist

    def create(
        self,
        name: str,
        role: Role,
        *,
        groups: Collection[str] = (),
        knowledge_bases: Collection[str] = (),
        expires_at: datetime | None = None,
        by: Caller,
    ) -> tuple[str, Key]:
        """A new key: its secret, which nobody can read again, and what is kept of it.

        Raises:
            UsageError: A name, group or moment that cannot be.
            StorageError: The database cannot be written.
        """
        _check(name, groups, expires_at)
        key_id, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
        row = {
            "id": key_id,
            "name": name,
            "role": role,
            "groups": json.dumps(sorted(set(groups))),
            "knowledge_bases": json.dumps(sorted(set(knowledge_bases))),
            "sha256": _hash(key_id, secret),
            "created_at": datetime.now(UTC),
            "created_by": by.name,
            "expires_at": expires_at,
        }
        told = {name: row[name] for name in ("id", "name", "role", "groups", "knowledge_bases")}
        with self._written_down(by, "create key", told), self._engine.begin() as connection:
            connection.execute(insert(_KEYS), row)
        return f"plk_{key_id}_{secret}", self.key(key_id)

    def key(self, id: str) -> Key:
        """The key of that id. Raises NotFoundError, StorageError."""
        with storage_errors("key store"), self._engine.connect() as connection:
            row = connection.execute(select(_KEYS).where(_KEYS.c.id == id)).mappings().first()
        if row is None:
            raise NotFoundError("key", id, hint="`rag key list` has the ids.")
        return _read(row)

    def list(self) -> list[Key]:
        """Every key ever created, newest first. Raises StorageError."""
        query = select(_KEYS).order_by(_KEYS.c.created_at.desc(), _KEYS.c.id)
        with storage_errors("key store"), self._engine.connect() as connection:
            return [_read(row) for row in connection.execute(query).mappings()]

    def revoke(self, id: str, *, by: Caller) -> Key:
        """Close a key for good; one that is revoked already stays as it is.

        Raises NotFoundError, StorageError.
        """
        key = self.key(id)
        still = (_KEYS.c.id == id) & _KEYS.c.revoked_at.is_(None)
        told = {"id": key.id, "name": key.name}
        with self._written_down(by, "revoke key", told), self._engine.begin() as connection:
            connection.execute(update(_KEYS).where(still).values(revoked_at=datetime.now(UTC)))
        return self.key(id)

    def caller(self, presented: str) -> Caller:
        """Whose key that is. Raises UnauthenticatedError, StorageError."""
        found = _KEY.fullmatch(presented)
        row = None
        if found:
            with storage_errors("key store"), self._engine.connect() as connection:
                row = connection.execute(select(_KEYS).where(_KEYS.c.id == found[1])).mappings().first()
        stored = row["sha256"] if row else _NOBODY
        given = _hash(found[1], found[2]) if found else "-"
        if not hmac.compare_digest(stored, given) or row is None:
            raise UnauthenticatedError("This key is not known.", hint="Ask an admin for one.")
        key = _read(row)
        if key.state != "active":
            raise UnauthenticatedError(f"This key is {key.state}.", hint="Ask an admin for another one.")
        self._used(key)
        groups, scope = frozenset(key.groups), frozenset(key.knowledge_bases)
        return Caller(key.id, key.name, key.role, groups, scope)

    @contextmanager
    def _written_down(self, by: Caller, action: str, about: Mapping[str, Any]) -> Iterator[None]:
        entry = self.audit.begin(by.key_id, by.name, action, "", about)
        with storage_errors("key store"):
            yield
        self.audit.end(entry, "done", about)

    def _used(self, key: Key) -> None:
        now = datetime.now(UTC)
        if key.used_at and now - key.used_at < _USED_EVERY:
            return
        try:
            with storage_errors("key store"), self._engine.begin() as connection:
                connection.execute(update(_KEYS).where(_KEYS.c.id == key.id).values(used_at=now))
        except StorageError as error:
            _LOG.warning("last use of key %s not kept: %s", key.id, error.message)

    def close(self) -> None:
        """Close the database."""
        self._engine.dispose()


def _hash(id: str, secret: str) -> str:
    return hashlib.sha256(f"{id}:{secret}".encode()).hexdigest()


def _check(name: str, groups: Collection[str], expires_at: datetime | None) -> None:
    if not name.strip() or len(name) > 100 or not name.isprintable():
        raise UsageError(f"{name!r} is no name for a key.", hint="Say whose it is: `rag key create website`.")
    for group in groups:
        if not re.fullmatch(GROUP, group):
            raise UsageError(f"{group!r} is no name for a group.", hint="Letters, digits and . _ - @ : /")
    if expires_at and expires_at <= datetime.now(UTC):
        raise UsageError("The key would have expired already.", hint="Name a moment to come.")


def _read(row: Any) -> Key:
    moments = {name: row[name] for name in ("created_at", "expires_at", "revoked_at", "used_at")}
    read = {name: in_utc(moment) if moment else None for name, moment in moments.items()}
    lists = {name: json.loads(row[name]) for name in ("groups", "knowledge_bases")}
    return Key.model_validate({**row, **read, **lists})
