"""What was fetched from a remote version store, kept on this machine: bounded, shared, checked by hash.

A commit never changes, so its record, its listings and its objects are fetched once. Contents are files
named by their SHA-256; SQLite knows which object is which content and when it was last used. Nothing
here is the truth: a damaged or missing piece is fetched again.
"""

import hashlib
import io
import json
import os
import sqlite3
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from knowledge_base.version_store import ObjectInfo

DEFAULT_LIMIT = 10 * 2**30
_LISTINGS = 20_000
_IN_MEMORY = 2000
_TRIM_EVERY = 64
_SCHEMA = """
create table if not exists facts (key text primary key, value text, used real) without rowid;
create table if not exists contents
    (checksum text, size integer, sha256 text, used real, primary key (checksum, size)) without rowid;
"""


class ObjectCache:
    """One folder for all repositories of a machine; safe for many threads and processes.

    Args:
        folder: Where it lies; made when first used.
        limit_bytes: Contents that were not used for longest go when all are larger than this.
    """

    def __init__(self, folder: Path, limit_bytes: int = DEFAULT_LIMIT) -> None:
        self._folder = folder
        self._limit = limit_bytes
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._facts: dict[str, Any] = {}
        self._checked: set[str] = set()
        self._kept = 0

    # -- facts about commits -------------------------------------------------------------------

    def fact(self, key: str) -> Any:
        """A JSON value that never changes once it is known, None when it is not."""
        if key not in self._facts:
            row = self._ask("select value from facts where key = ?", key)
            if row is None:
                return None
            self._facts[key] = json.loads(row[0])
        return self._facts[key]

    def keep_fact(self, key: str, value: Any) -> None:
        """Remember a JSON value."""
        if len(self._facts) > _IN_MEMORY:
            self._facts.clear()
        self._facts[key] = value
        self._tell("insert or replace into facts values (?, ?, ?)", key, json.dumps(value), time.time())

    # -- contents ------------------------------------------------------------------------------

    def open(self, info: ObjectInfo, fetch: Callable[[], bytes]) -> BinaryIO:
        """The content of an object, fetched unless a file here has its hash."""
        row = self._ask(
            "select sha256 from contents where checksum = ? and size = ?", info.checksum, info.size_bytes
        )
        if row is not None:
            with suppress(OSError):
                file = open(self.path(row[0]), "rb")  # noqa: SIM115 - the caller closes it
                if self._whole(row[0], file):
                    self._tell("update contents set used = ? where sha256 = ?", time.time(), row[0])
                    return file
                file.close()
        content = fetch()
        self.keep(info, content)
        return io.BytesIO(content)  # not from the file: another process may trim it this moment

    def keep(self, info: ObjectInfo, content: bytes) -> None:
        """Keep the content of an object, unless the disk refuses: then it is fetched each time."""
        digest = hashlib.sha256(content).hexdigest()
        path = self.path(digest)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Not flushed to the disk: what a power cut tears has another hash and is fetched again.
            with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", delete=False) as file:
                try:
                    file.write(content)
                    file.flush()
                    os.replace(file.name, path)
                except OSError:
                    os.unlink(file.name)
                    raise
        except OSError:
            return
        self._checked.add(digest)
        self._tell(
            "insert or replace into contents values (?, ?, ?, ?)",
            info.checksum,
            info.size_bytes,
            digest,
            time.time(),
        )
        self._kept += 1
        if self._kept % _TRIM_EVERY == 0 or len(content) > self._limit // 10:
            self.trim()

    def path(self, sha256: str) -> Path:
        """Where a content lies if it is here."""
        return self._folder / "objects" / sha256[:2] / sha256

    def _whole(self, digest: str, file: BinaryIO) -> bool:
        """Whether the file is what it was; read once in the life of the process."""
        if digest in self._checked:
            return True
        if hashlib.sha256(file.read()).hexdigest() != digest:
            return False
        file.seek(0)
        self._checked.add(digest)
        return True

    def damaged(self) -> Iterator[str]:
        """SHA-256 of every content whose file is damaged; its file is removed."""
        for (digest,) in self._tell("select distinct sha256 from contents order by sha256"):
            path = self.path(digest)
            with suppress(FileNotFoundError), open(path, "rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                    self._checked.discard(digest)
                    path.unlink(missing_ok=True)
                    yield digest

    def trim(self) -> int:
        """Remove what was not used for longest until the rest is within the limit; returns bytes freed."""
        freed, total = 0, 0
        for digest, size in self._tell(
            "select sha256, max(size) from contents group by sha256 order by max(used) desc"
        ):
            total += size
            if total > self._limit:
                self.path(digest).unlink(missing_ok=True)  # who has it open reads on
                self._checked.discard(digest)
                self._tell("delete from contents where sha256 = ?", digest)
                freed += size
        self._tell(
            "delete from facts where key in (select key from facts order by used desc limit -1 offset ?)",
            _LISTINGS,
        )
        return freed

    # -- SQLite --------------------------------------------------------------------------------

    def _ask(self, query: str, *values: Any) -> Any:
        return next(iter(self._tell(query, *values)), None)

    def _tell(self, statement: str, *values: Any) -> list[Any]:
        """Run a statement. Where the disk is full or read-only nothing is kept, and everything fetched."""
        with self._lock:
            try:
                return (self._connection or self._connect()).execute(statement, values).fetchall()
            except sqlite3.OperationalError:
                return []
            except sqlite3.DatabaseError:  # damaged: made anew
                if self._connection is not None:
                    self._connection.close()
                self._connection = None
                for file in self._folder.glob("index.sqlite*"):
                    file.unlink(missing_ok=True)
                return []
            except OSError:
                return []

    def _connect(self) -> sqlite3.Connection:
        self._folder.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(
            self._folder / "index.sqlite", timeout=30, isolation_level=None, check_same_thread=False
        )
        weakref.finalize(self, connection.close)
        connection.execute("pragma journal_mode = wal")
        connection.execute("pragma synchronous = off")  # a lost index is fetched again
        connection.executescript(_SCHEMA)
        self._connection = connection
        return connection
