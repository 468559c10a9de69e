"""Chroma collections on a server that a team shares, instead of in folders on each machine.

A collection is uploaded under a name of its own, read back and compared, and only then gets the name
that readers look for: half an upload is never searched. Names start with the knowledge base's
identity, so two knowledge bases on one server never meet. Chroma has no authentication; a header for a
proxy in front of it can be given.
"""

import hashlib
import secrets
import time
import weakref
from collections.abc import Collection as Some
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from knowledge_base.chroma_index import collection_settings, query_chroma
from knowledge_base.documents import sha256_hex
from knowledge_base.errors import (
    DamagedError,
    PlumblineError,
    UnauthorizedError,
    UnavailableError,
    UsageError,
)

_CONNECT_SECONDS = 5.0
_ANSWER_SECONDS = 120.0
_ADD_BATCH = 1000
_READ_BATCH = 5000
_YOUNG_SECONDS = 3600


class ServerIndex:
    """The collections of one knowledge base on one Chroma server; safe to use from several threads.

    Args:
        url: `http://host:port` or `https://host`.
        identity: What tells this knowledge base from all others.
        header: `Name: value`, sent with every request to a proxy that wants one.

    Raises:
        UsageError: The URL or the header is not one.
    """

    def __init__(self, url: str, identity: str, header: str = "") -> None:
        parts = urlsplit(url)
        name, colon, value = header.partition(":")
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/"):
            raise UsageError(f"{url!r} is no Chroma server.", hint="Write http://host:port.")
        if header and not (colon and name.strip()):
            raise UsageError("The index header is not one.", hint="Write it as 'Name: value'.")
        self.url = url.rstrip("/")
        self._host, self._secure = parts.hostname, parts.scheme == "https"
        self._port = parts.port or (443 if self._secure else 80)
        self._headers = {name.strip(): value.strip()} if header else {}
        self._prefix = f"plumbline-{sha256_hex(identity.encode())[:16]}-"
        self._client: Any = None

    # -- the four things a segment asks of an index ----------------------------------------------

    def build(self, folder: Path, segment: str, vectors: NDArray[np.float16], *, fresh: bool = False) -> None:
        """Make the collection of a segment; one that is there and sealed is kept unless `fresh`.

        Raises:
            DamagedError: The server does not give back what it took.
            UnavailableError: It cannot be reached.
        """
        wide = vectors.astype(np.float32)
        with self._talking() as client:
            old = self._find(client, segment)
            if old is not None and not fresh and self._fault(old, wide) is None:
                return
            temporary = f"{self._prefix}{segment}-{secrets.token_hex(6)}"
            made = client.create_collection(
                temporary,
                embedding_function=None,
                configuration=collection_settings(len(wide)),
                metadata={"made": int(time.time())},
            )
            try:
                for start in range(0, len(wide), _ADD_BATCH):
                    rows = range(start, min(start + _ADD_BATCH, len(wide)))
                    made.add(ids=[str(row) for row in rows], embeddings=wide[start : rows.stop])
                if fault := self._difference(made, wide):
                    raise DamagedError(f"The Chroma server {fault}.", hint="Run the command again.")
                self._seal(client, made, segment, wide, old)
            except BaseException:
                client.delete_collection(temporary)
                raise

    def open(self, folder: Path, segment: str, vectors: NDArray[np.float16]) -> tuple[Any, Any]:
        """(None, the collection of a segment). Raises DamagedError when it is missing or not sealed."""
        with self._talking() as client:
            found = self._find(client, segment)
            fault = "is not there" if found is None else self._fault(found, vectors.astype(np.float32))
        if fault:
            raise DamagedError(f"The collection of segment {segment} {fault}.", hint="Run `rag rebuild`.")
        return None, found

    def query(self, collection: Any, query: NDArray[np.float32], count: int) -> list[int]:
        """Rows nearest to `query`, best first. Raises DamagedError, UnavailableError."""
        with self._talking():
            return query_chroma(collection, query, count)

    def check(self, segment: str, vectors: NDArray[np.float16]) -> str | None:
        """What is wrong with a collection, every vector read back; a missing one is nothing wrong."""
        with self._talking() as client:
            found, wide = self._find(client, segment), vectors.astype(np.float32)
            return None if found is None else self._fault(found, wide) or self._difference(found, wide)

    # -- care ----------------------------------------------------------------------------------

    def idle(self, used: Some[str]) -> list[str]:
        """Names of this knowledge base's collections that nothing in `used` needs, an hour old at least."""
        names = []
        with self._talking() as client:
            for collection in self._all(client):
                segment = collection.name.removeprefix(self._prefix)
                made = (collection.metadata or {}).get("made", 0)
                if segment not in used and made < time.time() - _YOUNG_SECONDS:
                    names.append(collection.name)
        return sorted(names)

    def drop(self, names: Some[str]) -> None:
        """Delete collections; Chroma frees their disk space only when it likes."""
        with self._talking() as client:
            for name in names:
                client.delete_collection(name)

    # -- how -----------------------------------------------------------------------------------

    def _all(self, client: Any) -> Iterator[Any]:
        offset = 0
        while page := client.list_collections(limit=500, offset=offset):
            yield from (found for found in page if found.name.startswith(self._prefix))
            offset += len(page)

    def _find(self, client: Any, segment: str) -> Any:
        from chromadb.errors import NotFoundError

        try:
            return client.get_collection(self._prefix + segment, embedding_function=None)
        except NotFoundError:
            return None

    def _seal(self, client: Any, made: Any, segment: str, wide: NDArray[np.float32], old: Any) -> None:
        """Give a finished collection its name; another machine may have been first."""
        from chromadb.errors import ChromaError

        if old is not None:
            client.delete_collection(old.name)
        seal = {"made": int(time.time()), "rows": len(wide), "sha256": _digest(wide)}
        try:
            made.modify(name=self._prefix + segment, metadata=seal)
        except ChromaError:
            other = self._find(client, segment)
            if other is None or self._fault(other, wide) is not None:
                raise
            client.delete_collection(made.name)

    def _fault(self, collection: Any, wide: NDArray[np.float32]) -> str | None:
        """What is wrong by its seal and its number of rows; two requests whatever its size."""
        seal = collection.metadata or {}
        if (seal.get("rows"), seal.get("sha256")) != (len(wide), _digest(wide)):
            return "is not sealed, or is of other vectors"
        count = collection.count()
        return f"holds {count} rows of {len(wide)}" if count != len(wide) else None

    def _difference(self, collection: Any, wide: NDArray[np.float32]) -> str | None:
        """What is wrong with the vectors themselves, read back."""
        for start in range(0, len(wide), _READ_BATCH):
            rows = range(start, min(start + _READ_BATCH, len(wide)))
            got = collection.get(ids=[str(row) for row in rows], include=["embeddings"])
            order = np.argsort(np.array(got["ids"], np.int64))
            if len(order) != len(rows):
                return f"lost {len(rows) - len(order)} vectors"
            if not np.array_equal(np.asarray(got["embeddings"], np.float32)[order], wide[start : rows.stop]):
                return "holds other vectors than it was given"
        return None

    @contextmanager
    def _talking(self) -> Iterator[Any]:
        """The client; what it raises becomes ours. Chroma raises bare exceptions for a proxy's answers."""
        import httpx
        from chromadb.errors import ChromaError

        try:
            yield self._client or self._connect()
        except PlumblineError:
            raise
        except (httpx.HTTPError, OSError) as error:
            said = str(error) or type(error).__name__
            raise UnavailableError(
                f"The Chroma server at {self.url} does not answer: {said}.",
                hint="Is it running, and is PLUMBLINE_INDEX its address?",
            ) from error
        except ChromaError as error:
            raise DamagedError(
                f"The Chroma server refuses: {error}.", hint="Run the command again."
            ) from error
        except Exception as error:
            raise UnavailableError(f"The Chroma server at {self.url} failed: {str(error)[:200]}.") from error

    def _connect(self) -> Any:
        import chromadb
        import httpx

        # Asked before chromadb does, which would wait for ever.
        answer = httpx.get(
            f"{self.url}/api/v2/heartbeat",
            headers=self._headers,
            timeout=_CONNECT_SECONDS,
            follow_redirects=False,
        )
        if answer.status_code in (401, 403):
            raise UnauthorizedError(
                f"{self.url} refused the credentials.", hint="Set PLUMBLINE_INDEX_HEADER to 'Name: value'."
            )
        if answer.status_code != 200 or "heartbeat" not in answer.text:
            raise UnavailableError(
                f"{self.url} is no Chroma server (status {answer.status_code}).",
                hint="Set PLUMBLINE_INDEX to the address of `chroma run`.",
            )
        client: Any = chromadb.HttpClient(
            self._host,
            self._port,
            self._secure,
            dict(self._headers),
            chromadb.Settings(anonymized_telemetry=False),
        )
        # chromadb has no setting for it: a stuck server is waited for for ever, and nothing hangs up.
        limits = httpx.Timeout(_ANSWER_SECONDS, connect=_CONNECT_SECONDS)
        for part in (client, client._admin_client):
            part._server._session.timeout = limits
            weakref.finalize(self, part._server._session.close)
        self._client = client
        return client


def _digest(wide: NDArray[np.float32]) -> str:
    return hashlib.sha256(wide.astype("<f4").tobytes()).hexdigest()
