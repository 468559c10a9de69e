"""Segments: write-once parquet is the truth, a Chroma collection and BM25 postings are its caches.

A segment holds three tables. `documents.parquet` has the extracted text of each document it brings,
`chunks.parquet` the spans, `passages.parquet` one vector for each chunk text that no earlier segment
of the release has. A release is a list of segments and the document paths that no longer count in
each, so a chunk text is embedded and stored once however many documents, or versions, repeat it.

The caches lie in `<cache>/<segment id>/`, are built aside, sealed with a hash of every file and
renamed into place. One that is missing, torn or changed is rebuilt from parquet without embedding.
"""

import json
import os
import shutil
import tempfile
import threading
import weakref
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from knowledge_base.chroma_index import (
    DATABASE,
    EmbeddedIndex,
    check_database,
    close_chroma,
    seal_database,
)
from knowledge_base.documents import sha256_hex
from knowledge_base.durable import disk_errors, exclusive_lock, publish_folder, remove_folder
from knowledge_base.errors import DamagedError
from knowledge_base.lexical import Postings, write_postings
from knowledge_base.release import Manifest
from knowledge_base.segment_tables import OpenTable, SegmentTables
from knowledge_base.values import canonical_json

SEGMENTS_PREFIX = "index/segments/"
_SEAL = "seal.json"
_REBUILD_SECONDS = 600.0
_ATTEMPTS = 5


class PassageIndex(Protocol):
    """Where the collections of segments lie: in folders (`EmbeddedIndex`) or on a server."""

    def build(self, folder: Path, segment: str, vectors: NDArray[np.float16], *, fresh: bool = False) -> None:
        """Make the collection of a segment, row numbers as ids. Raises DamagedError, UnavailableError."""
        ...

    def open(self, folder: Path, segment: str, vectors: NDArray[np.float16]) -> tuple[Any, Any]:
        """(client to close or None, collection). Raises DamagedError, UnavailableError."""
        ...

    def query(self, collection: Any, query: NDArray[np.float32], count: int) -> list[int]:
        """Rows nearest to `query`, best first. Raises DamagedError, UnavailableError."""
        ...

    def check(self, segment: str, vectors: NDArray[np.float16]) -> str | None:
        """What is wrong with a collection that is no file, None when nothing is."""
        ...


@dataclass
class _Caches:
    vectors: NDArray[np.float16]
    postings: Postings
    collection: Any = None
    close: Callable[[], object] = lambda: None


class Segment(SegmentTables):
    """One segment opened for reading: tables on demand, caches checked or rebuilt when first used."""

    def __init__(
        self,
        id: str,
        open_table: OpenTable,
        cache: Path,
        *,
        language: str,
        index: PassageIndex | None = None,
    ) -> None:
        super().__init__(id, open_table)
        self._index = index or EmbeddedIndex()
        self._folder = cache / id
        self._language = language
        self._caches: _Caches | None = None
        self._opening = threading.Lock()

    # -- caches ------------------------------------------------------------------------------

    @property
    def vectors(self) -> NDArray[np.float16]:
        """Vectors, memory mapped from the cache, shape (passages, dimension)."""
        return self._opened().vectors

    @property
    def postings(self) -> Postings:
        """BM25 postings of the passages."""
        return self._opened().postings

    def nearest(self, query: NDArray[np.float32], count: int) -> NDArray[np.int64]:
        """Rows of the `count` passages nearest to `query` by Chroma, best first."""
        if not len(self.passage_hashes):
            return np.empty(0, np.int64)
        count = min(count, len(self.passage_hashes))
        caches = self._opened(with_chroma=True)  # kept while it is asked: its end closes the collection
        try:
            rows = self._index.query(caches.collection, query, count)
        except DamagedError:
            # gc took the files of a release that still serves, and Chroma wanted to open one more time.
            with self._opening:
                if self._caches is caches:
                    self._caches = None
            caches = self._opened(with_chroma=True)
            rows = self._index.query(caches.collection, query, count)
        return np.array(rows, np.int64)

    def _opened(self, *, with_chroma: bool = False) -> "_Caches":
        """The caches, checked and if need be rebuilt when first used."""
        caches = self._caches
        if caches is not None and (caches.collection is not None or not with_chroma):
            return caches
        with self._opening:
            for attempt in range(_ATTEMPTS):
                # Nobody may swap or drop the files between the check and the opening.
                with _undisturbed(self._folder.parent):
                    try:
                        if not self.check_cache():
                            return self._open_caches(with_chroma)
                    except (DamagedError, OSError, ValueError):  # Chroma refuses what is as it was sealed
                        if attempt == _ATTEMPTS - 1:
                            raise
                self._restore()
        raise DamagedError(
            f"The cache of segment {self.id} vanishes as soon as it is built.", hint="Run it again."
        )

    def _open_caches(self, with_chroma: bool) -> "_Caches":
        if self._caches is None:
            vectors = np.load(self._folder / "vectors.npy", mmap_mode="r")
            self._caches = _Caches(vectors, Postings(self._folder / f"lexical-{self._language}"))
        if with_chroma and self._caches.collection is None:
            client, self._caches.collection = self._index.open(self._folder, self.id, self._caches.vectors)
            if client is not None:
                # Chroma keeps a folder's files open until told otherwise.
                closing = weakref.finalize(self._caches, close_chroma, client)
                closing.atexit = False
                self._caches.close = closing
        return self._caches

    def _restore(self) -> None:
        # Two processes may find the same damage: the second one finds it mended.
        with self._building():
            if self.check_cache() or self._caches is not None:
                self._build()

    def _building(self) -> AbstractContextManager[None]:
        self._folder.parent.mkdir(parents=True, exist_ok=True)
        return exclusive_lock(self._folder.parent / ".rebuilding", wait_seconds=_REBUILD_SECONDS)

    def close(self) -> None:
        """Release the Chroma collection's files and memory; so does the end of the segment itself."""
        caches, self._caches = self._caches, None
        if caches is not None:
            caches.close()

    def check_cache(self) -> str | None:
        """What is wrong with the caches, None when every sealed file is as it was written.

        Checked before Chroma sees the files: some damage kills the process that opens them.
        """
        try:
            seal = json.loads((self._folder / _SEAL).read_bytes())
            sealed = seal["files"]
            if seal["sha256"] != _seal_hash(seal):
                return f"{_SEAL} has changed"
            if (
                seal["passages"] != len(self.passage_hashes)
                or f"lexical-{self._language}/rows.npy" not in sealed
            ):
                return "the cache is of another index"
            for name, digest in sealed.items():
                if sha256_hex((self._folder / name).read_bytes()) != digest:
                    return f"{name} has changed"
            if not isinstance(self._index, EmbeddedIndex):
                return None  # its collection is not among the files
            (database,) = self._folder.glob(f"chroma-*/{DATABASE}")
            return check_database(database, seal["database"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            return f"the cache is missing or unreadable ({type(error).__name__})"

    def check_index(self) -> str | None:
        """What is wrong with its collection where that lies on a server. Raises UnavailableError."""
        return self._index.check(self.id, self.read_vectors()) if len(self.passage_hashes) else None

    def rebuild(self, *, fresh: bool = False) -> None:
        """Build the caches from the truth; nothing is embedded.

        A whole collection on a server stays, unless `fresh`.

        Raises:
            DamagedError: The truth itself cannot be read, or Chroma does not give back what it took.
            StorageError: The disk refused.
        """
        with self._building():
            self._build(fresh=fresh)

    def _build(self, *, fresh: bool = False) -> None:
        self.close()
        if not len(self.passage_hashes):
            return
        with disk_errors(str(self._folder)):
            self._folder.parent.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(prefix=f".{self.id}-", dir=self._folder.parent))
        try:
            with disk_errors(str(temporary)):
                vectors = self.read_vectors()
                np.save(temporary / "vectors.npy", vectors)
                write_postings(temporary / f"lexical-{self._language}", self.passage_texts(), self._language)
                self._index.build(temporary, self.id, vectors, fresh=fresh)
                _seal(temporary, len(vectors))
            with _undisturbed(self._folder.parent):
                _retire(self._folder)
                publish_folder(temporary, self._folder)
        finally:
            remove_folder(temporary)


def _seal(folder: Path, passages: int) -> None:
    files = {
        path.relative_to(folder).as_posix(): sha256_hex(path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != DATABASE
    }
    database = next((seal_database(path) for path in folder.glob(f"chroma-*/{DATABASE}")), None)
    seal = {"passages": passages, "files": files, "database": database}
    (folder / _SEAL).write_bytes(canonical_json({**seal, "sha256": _seal_hash(seal)}))


def _seal_hash(seal: Mapping[str, Any]) -> str:
    return sha256_hex(canonical_json({key: value for key, value in seal.items() if key != "sha256"}))


def _undisturbed(cache: Path) -> AbstractContextManager[None]:
    """Keeps every other process from opening, swapping or dropping caches; held for moments only."""
    if cache.exists() and not os.access(cache, os.W_OK):
        return nullcontext()  # a read-only disk: nobody swaps anything there
    return exclusive_lock(cache / ".opening", wait_seconds=_REBUILD_SECONDS)


def drop_cache(folder: Path) -> None:
    """Remove the cache of a segment, though not while somebody is opening it."""
    with _undisturbed(folder.parent):
        _retire(folder)


def _retire(folder: Path) -> None:
    """Move a damaged cache aside before the new one takes its name, then drop it."""
    if folder.exists():
        aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-old-", dir=folder.parent))
        shutil.rmtree(aside)
        folder.rename(aside)
        remove_folder(aside)


SharedSegments = weakref.WeakValueDictionary[tuple[str, str], Segment]
"""Segments by id and language, opened once for all the releases of a process that hold them."""


def open_segments(
    manifest: Manifest,
    open_object: Callable[[str], BinaryIO],
    cache: Path,
    *,
    language: str,
    index: PassageIndex | None = None,
    shared: SharedSegments | None = None,
) -> list[Segment]:
    """The segments of a manifest, nothing read yet; `open_object` opens a path of the release's commit.

    Those that are in `shared` are taken from there, the others are put there. Nobody may close them
    then: each goes with the last release that holds it.
    """

    def opener(id: str) -> OpenTable:
        return lambda name: open_object(f"{SEGMENTS_PREFIX}{id}/{name}")

    found = []
    for ref in manifest.segments:
        segment = shared.get((ref.id, language)) if shared is not None else None
        if segment is None:
            segment = Segment(ref.id, opener(ref.id), cache, language=language, index=index)
        else:
            segment.open_table = opener(ref.id)  # gc may expire the commit that it was opened from
        if shared is not None:
            shared[ref.id, language] = segment
        found.append(segment)
    return found
