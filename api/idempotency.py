"""`Idempotency-Key`: a request sent twice is carried out once (draft-ietf-httpapi-idempotency-key-header-07).

The reply to a key is kept on disk for a day beside the jobs, so it is known after a crash too.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

from fastapi import Header
from pydantic import BaseModel, ValidationError

from knowledge_base.documents import sha256_hex
from knowledge_base.durable import remove_file, write_bytes
from knowledge_base.errors import KeyInUseError, KeyReusedError
from knowledge_base.values import canonical_json

_KEPT_SECONDS = 24 * 3600.0

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        pattern=r"^[\x21-\x7e]+$",
        description="A request with the same key and content is carried out once within 24 hours.",
    ),
]


class Kept(BaseModel):
    """What was asked under a key, and the reply; `plan` is what was about to be done when there is none."""

    fingerprint: str
    reply: dict[str, Any] | None
    plan: dict[str, str] = {}


class Replies:
    """The replies to the idempotency keys of one knowledge base. Safe to use from several threads."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._busy: set[str] = set()

    @contextmanager
    def claim(self, key: str | None, caller: str) -> Iterator["Claim"]:
        """Hold a caller's key while its request is carried out. Raises KeyInUseError.

        `caller` is the id of their API key: what one asked is nothing to another who chose the same words.
        """
        path = self._folder / f"{sha256_hex(f'{caller}/{key}'.encode())}.json" if key else None
        if path is None:
            yield Claim(None)
            return
        with self._lock:
            if path.name in self._busy:
                raise KeyInUseError(
                    "A request with this Idempotency-Key is being carried out.",
                    hint="Ask again when it has been answered.",
                )
            self._busy.add(path.name)
        try:
            yield Claim(path)
        finally:
            with self._lock:
                self._busy.discard(path.name)


class Claim:
    """One key, held by one request."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def known(self, fingerprint: str) -> dict[str, Any] | None:
        """The reply to the same request, if it was carried out before. Raises KeyReusedError."""
        kept = self._kept(fingerprint)
        return kept.reply if kept else None

    def planned(self, fingerprint: str) -> dict[str, str]:
        """What the same request was about to do when it was cut off. Raises KeyReusedError."""
        kept = self._kept(fingerprint)
        return kept.plan if kept else {}

    def _kept(self, fingerprint: str) -> Kept | None:
        if self._path is None:
            return None
        try:
            fresh = time.time() - self._path.stat().st_mtime < _KEPT_SECONDS
            kept = Kept.model_validate_json(self._path.read_bytes()) if fresh else None
        except (FileNotFoundError, ValidationError):
            kept = None
        if kept is None:
            return None
        if kept.fingerprint != fingerprint:
            raise KeyReusedError(
                "This Idempotency-Key came with another request before.", hint="Make a key for each request."
            )
        return kept

    def plan(self, fingerprint: str, **facts: str) -> None:
        """Keep what is about to be done: after a crash it tells whether it was. Raises StorageError."""
        self._write(Kept(fingerprint=fingerprint, reply=None, plan=facts))

    def keep(self, fingerprint: str, reply: dict[str, Any]) -> None:
        """Keep the reply, and forget those of yesterday. Raises StorageError."""
        self._write(Kept(fingerprint=fingerprint, reply=reply))

    def _write(self, kept: Kept) -> None:
        if self._path is None:
            return
        write_bytes(self._path, kept.model_dump_json().encode())
        for path in self._path.parent.glob("*.json"):
            with suppress(FileNotFoundError):  # another request forgot it meanwhile
                if time.time() - path.stat().st_mtime > _KEPT_SECONDS:
                    remove_file(path)


def fingerprint(**facts: Any) -> str:
    """Names what a request asks for."""
    return sha256_hex(canonical_json(facts))
