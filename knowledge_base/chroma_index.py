"""One Chroma collection in a folder of its own: built once, checked before it is opened, never changed.

Opening a damaged folder is no way to find out: Chroma 1.5 may kill the process, make an empty
collection without a word, or give wrong neighbours. So every file is hashed when it is built. All but
one stay as they are; Chroma writes a row into `chroma.sqlite3` each time it opens it, and what it
touches there is left out of the hash.
"""

import hashlib
import os
import secrets
import shutil
import sqlite3
import tempfile
import threading
import weakref
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from knowledge_base.errors import DamagedError

DATABASE = "chroma.sqlite3"
_COLLECTION = "passages"
_EXHAUSTIVE = 5000
_ADD_BATCH = 5000
_OPENINGS = "acquire_write"  # the table that gets a row at each opening
# What SQLite itself notes in the first page whenever a database is written: bytes from, to.
_COUNTERS = ((24, 32), (92, 100))

# Chroma counts the users of a folder with no lock around counting, opening and closing together.
_turns = threading.Lock()
_unwanted: SimpleQueue[Any] = SimpleQueue()


class EmbeddedIndex:
    """The collections of segments in folders of their own: what a segment asks of an index."""

    def build(self, folder: Path, segment: str, vectors: NDArray[np.float16], *, fresh: bool = False) -> None:
        """Make the collection of a segment below `folder`. Raises DamagedError."""
        # A name of its own: within a process Chroma knows folders by their paths, and would go on
        # with the files of the one that this one replaces.
        build_chroma(folder / f"chroma-{secrets.token_hex(4)}", vectors)

    def open(self, folder: Path, segment: str, vectors: NDArray[np.float16]) -> tuple[Any, Any]:
        """(client, collection) of a folder whose files were checked. Raises DamagedError."""
        place = next(folder.glob("chroma-*"), folder / "chroma")
        return open_chroma(place, vectors[:1].astype(np.float32))

    def query(self, collection: Any, query: NDArray[np.float32], count: int) -> list[int]:
        """Rows nearest to `query`, best first. Raises DamagedError."""
        return query_chroma(collection, query, count)

    def check(self, segment: str, vectors: NDArray[np.float16]) -> str | None:
        """Nothing beyond the files, which their seal checks."""
        return None


def collection_settings(rows: int) -> dict[str, Any]:
    """How Chroma builds and searches the graph of a segment, in a folder as on a server.

    `ef_search` reaches every row of a segment of up to 5,000 passages and stays there above: at
    20,000 passages it finds the exact top 100 in 8 ms. Chroma builds a different graph each time,
    and only a search this thorough gives the same answer from all of them.
    """
    return {
        "hnsw": {
            "space": "ip",
            "ef_construction": 200,
            "max_neighbors": 16,
            "ef_search": max(100, min(rows, _EXHAUSTIVE)),
            # Flushed once, when all rows are in: each flush is a moment a crash can tear.
            "sync_threshold": max(2, rows),
            "batch_size": max(2, min(100, rows)),
        }
    }


def build_chroma(folder: Path, vectors: NDArray[np.float16]) -> None:
    """Make one collection of inner products; row numbers are the ids.

    Raises:
        DamagedError: Chroma does not give back what it took.
    """
    client = _start(folder)
    collection = client.create_collection(
        _COLLECTION, embedding_function=None, configuration=collection_settings(len(vectors))
    )
    wide = vectors.astype(np.float32)
    for start in range(0, len(wide), _ADD_BATCH):
        rows = range(start, min(start + _ADD_BATCH, len(wide)))
        collection.add(ids=[str(row) for row in rows], embeddings=wide[start : rows.stop])
    if len(wide) == 1:  # the smallest threshold is two writes: without a second one nothing is flushed
        collection.update(ids=["0"], embeddings=wide)
    probes = np.linspace(0, len(wide) - 1, min(8, len(wide)), dtype=int)
    found = collection.query(query_embeddings=wide[probes], n_results=1, include=["distances"])
    close_chroma(client)
    # Equal vectors may stand in for each other; what counts is that each probe finds itself or its twin.
    twins = [float(wide[int(ids[0])] @ wide[row]) for ids, row in zip(found["ids"], probes, strict=True)]
    if any(twin < 0.999 * float(wide[row] @ wide[row]) for twin, row in zip(twins, probes, strict=True)):
        raise DamagedError(
            "Chroma did not give back the vectors it was given.", hint="Run the command again."
        )
    connection = sqlite3.connect(folder / DATABASE)
    # Nine tenths of it are free pages that once held the queue of vectors.
    connection.execute("vacuum")
    connection.close()


def open_chroma(folder: Path, probe: NDArray[np.float32]) -> tuple[Any, Any]:
    """The client and the collection of a folder that was checked, after one query by `probe`.

    The graph is read with the first query: here, before anybody may take the files away.

    Chroma writes when it opens a folder: where it may not, it gets a copy that lives as long as the client.

    Raises:
        DamagedError: Chroma refuses it.
    """
    from chromadb.errors import ChromaError

    client = None
    try:
        place = folder
        if not os.access(folder / DATABASE, os.W_OK):
            place = Path(tempfile.mkdtemp(prefix="plumbline-")) / "chroma"
            shutil.copytree(folder, place, copy_function=shutil.copyfile)
        client = _start(place)
        if place is not folder:
            weakref.finalize(client, shutil.rmtree, place.parent, ignore_errors=True)
        collection = client.get_collection(_COLLECTION, embedding_function=None)
        collection.query(query_embeddings=probe, n_results=1, include=[])
        return client, collection
    except (ChromaError, OSError, ValueError) as error:
        if client is not None:
            close_chroma(client)
        raise DamagedError(f"Chroma cannot open {folder}: {error}.", hint="Run `rag rebuild`.") from error


def _start(folder: Path) -> Any:
    import chromadb

    settings = chromadb.Settings(anonymized_telemetry=False)
    with _turns:
        client = chromadb.PersistentClient(str(folder), settings=settings)
    _close_unwanted()
    return client


def close_chroma(client: Any) -> None:
    """Let a client's files go: at once, or when a thread that is opening one is done with that.

    Never waits, so a finalizer may call it, also one that runs inside Chroma.
    """
    _unwanted.put(client)
    _close_unwanted()


def _close_unwanted() -> None:
    while not _unwanted.empty() and _turns.acquire(blocking=False):
        try:
            with suppress(Empty):
                while True:
                    _unwanted.get_nowait().close()
        finally:
            _turns.release()


def query_chroma(collection: Any, query: NDArray[np.float32], count: int) -> list[int]:
    """Rows nearest to `query`, best first. Raises DamagedError when the files are gone or unreadable."""
    from chromadb.errors import ChromaError

    try:
        found = collection.query(query_embeddings=query.reshape(1, -1), n_results=count, include=[])
    except ChromaError as error:
        raise DamagedError(f"Chroma cannot answer: {error}.", hint="Run `rag rebuild`.") from error
    return [int(row) for row in found["ids"][0]]


def seal_database(path: Path) -> dict[str, Any]:
    """Size, hash, and which page is left out of the hash, of a database that nobody has open."""
    connection = sqlite3.connect(path)
    try:
        page = connection.execute("select rootpage from sqlite_master where name = ?", [_OPENINGS]).fetchone()
        size = connection.execute("pragma page_size").fetchone()[0]
    finally:
        connection.close()
    hidden = [(page[0] - 1) * size, page[0] * size] if page else [0, 0]
    content = path.read_bytes()
    return {"size": len(content), "hidden": hidden, "sha256": _hash_database(content, hidden)}


def check_database(path: Path, seal: dict[str, Any]) -> str | None:
    """What is wrong with a database, None when it is as it was sealed.

    What Chroma added since lies behind the sealed size or on the hidden page; it says when the
    database was opened and nothing else, and SQLite checks that it can be read.
    """
    content = path.read_bytes()
    if (
        len(content) < seal["size"]
        or _hash_database(content[: seal["size"]], seal["hidden"]) != seal["sha256"]
    ):
        return f"{path.name} has changed"
    try:
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
        try:
            answer = connection.execute("pragma quick_check(1)").fetchone()[0]
        finally:
            connection.close()
    except sqlite3.OperationalError as error:
        if "locked" in str(error):  # another process is opening it this moment
            return None
        return f"{path.name}: {error}"
    except sqlite3.Error as error:
        return f"{path.name}: {error}"
    return None if answer == "ok" else f"{path.name}: {answer}"


def _hash_database(content: bytes, hidden: list[int]) -> str:
    masked = bytearray(content)
    for start, stop in (*_COUNTERS, hidden):
        masked[start:stop] = bytes(stop - start)
    return hashlib.sha256(masked).hexdigest()
