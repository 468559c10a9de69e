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
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from knowledge_base.access import declared_groups
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
from knowledge_base.release import Manifest, canonical_json
from knowledge_base.segment_tables import NOWHERE

SEGMENTS_PREFIX = "index/segments/"
_SEAL = "seal.json"
_REBUILD_SECONDS = 600.0
_ATTEMPTS = 5

OpenTable = Callable[[str], BinaryIO]
"""Opens one of TABLES of one segment for reading."""


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


class Segment:
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
        self.id = id
        self._index = index or EmbeddedIndex()
        self.open_table = open_table
        self._folder = cache / id
        self._language = language
        self._caches: _Caches | None = None
        self._opening = threading.Lock()

    # -- truth -------------------------------------------------------------------------------

    def table(self, name: str, columns: Sequence[str]) -> Any:
        """Some columns of one table as a pyarrow table. Raises DamagedError."""
        import pyarrow
        import pyarrow.parquet

        try:
            with self.open_table(name) as file:
                # read_table() would import pyarrow.dataset, which takes longer than reading.
                return pyarrow.parquet.ParquetFile(pyarrow.PythonFile(file, mode="r")).read(list(columns))
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            raise DamagedError(
                f"Segment {self.id} cannot be read: {error}.",
                hint="`rag fsck --repair --from BACKUP` restores it; `rag ingest --reindex` makes it anew.",
            ) from error

    @cached_property
    def documents(self) -> dict[str, list[Any]]:
        """path, sha256, size_bytes, title and allow of each document, by column."""
        columns: dict[str, list[Any]] = self.table(
            "documents.parquet", ["path", "sha256", "size_bytes", "title", "allow"]
        ).to_pydict()
        if "allow" not in columns:  # a segment from before documents could be closed
            columns["allow"] = [declared_groups(text) for text in self.texts.to_pylist()]
        return columns

    @cached_property
    def texts(self) -> Any:
        """Extracted text of each document, a pyarrow column in the order of `documents`."""
        return self.table("documents.parquet", ["text"]).column("text")

    @cached_property
    def spans(self) -> dict[str, NDArray[Any]]:
        """document, start, end, page, heading, text_hash of each chunk, by column."""
        table = self.table("chunks.parquet", ["document", "start", "end", "page", "heading", "text_hash"])
        return {name: _column(table, name) for name in table.column_names}

    @cached_property
    def passage_hashes(self) -> NDArray[Any]:
        """Text hash of each passage, shape (passages,), dtype S32."""
        return _column(self.table("passages.parquet", ["text_hash"]), "text_hash")

    def passage_texts(self) -> list[str]:
        """Text of each passage, in row order."""
        table = self.table("passages.parquet", ["document", "start", "end", "text"])
        texts = self.texts.to_pylist()
        rows = zip(*(table[name].to_pylist() for name in table.column_names), strict=True)
        return [
            own if document == NOWHERE else texts[document][start:end] for document, start, end, own in rows
        ]

    def read_vectors(self) -> NDArray[np.float16]:
        """Vectors from the truth, shape (passages, dimension)."""
        table = self.table("passages.parquet", ["vector"])
        values = table.column("vector").to_pylist()
        return (
            np.frombuffer(b"".join(values), "<f2").reshape(len(values), -1)
            if values
            else np.empty((0, 1), "<f2")
        )

    def vectors_of(self, wanted: Collection[str]) -> dict[str, NDArray[np.float16]]:
        """Vectors of those text hashes that this segment holds."""
        keys = map(hex_hash, self.passage_hashes)
        rows = [(key, row) for row, key in enumerate(keys) if key in wanted]
        if not rows:
            return {}
        vectors = self.read_vectors()
        return {key: vectors[row] for key, row in rows}

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


def hex_hash(stored: bytes) -> str:
    """A text hash out of a column, which has lost the zero bytes at its end, in hexadecimal digits."""
    return bytes(stored).ljust(32, b"\0").hex()


def _column(table: Any, name: str) -> NDArray[Any]:
    column = table.column(name).combine_chunks()
    if name == "text_hash":
        return np.array(column.to_pylist(), dtype="S32")
    if name == "heading":
        return np.array(column.to_pylist(), dtype=object)
    # Not to_numpy(): that imports pandas.
    return np.frombuffer(column.buffers()[1], np.int32, len(column), column.offset * 4)


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
