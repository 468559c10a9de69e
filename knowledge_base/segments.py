"""Segments: write-once parquet is the truth, a Chroma collection and BM25 postings are its caches.

A segment holds three tables. `documents.parquet` has the extracted text of each document it brings,
`chunks.parquet` the spans, `passages.parquet` one vector for each chunk text that no earlier segment
of the release has. A release is a list of segments and the document paths that no longer count in
each, so a chunk text is embedded and stored once however many documents, or versions, repeat it.

The caches lie in `<cache>/<segment id>/`, are built aside, sealed with a hash of every file and
renamed into place. One that is missing, torn or changed is rebuilt from parquet without embedding.
"""

import io
import json
import shutil
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from knowledge_base.documents import Chunk, Document, sha256_hex
from knowledge_base.durable import disk_errors, publish_folder, remove_folder
from knowledge_base.errors import DamagedError
from knowledge_base.lexical import Postings, write_postings
from knowledge_base.release import Manifest

TABLES = ("documents.parquet", "chunks.parquet", "passages.parquet")
SEGMENTS_PREFIX = "index/segments/"
_COLLECTION = "passages"
_CHROMA_DATABASE = "chroma.sqlite3"  # opening a collection rewrites it, so it cannot be sealed by its hash
_SEAL = "seal.json"
_EXHAUSTIVE = 5000
_ADD_BATCH = 5000

OpenTable = Callable[[str], BinaryIO]
"""Opens one of TABLES of one segment for reading."""


@dataclass(frozen=True)
class SegmentFiles:
    """A segment ready to be committed: its id is the hash of its tables."""

    id: str
    tables: Mapping[str, bytes]
    documents: int
    passages: int

    @property
    def size_bytes(self) -> int:
        """Bytes of all tables."""
        return sum(len(content) for content in self.tables.values())


def write_segment(
    documents: Sequence[Document], chunks: Sequence[Chunk], vectors: Mapping[str, NDArray[Any]]
) -> SegmentFiles:
    """Lay out a segment; `vectors` maps the text hash of each new passage to its vector.

    Vectors are stored as float16: against float32 the cosine changes by less than 1e-6, far below
    the 5e-3 of int8 weights, at half the bytes.
    """
    rows = {document.path: row for row, document in enumerate(documents)}
    first: dict[str, Chunk] = {}
    for chunk in chunks:
        if chunk.text_hash in vectors:
            first.setdefault(chunk.text_hash, chunk)
    tables = {
        "documents.parquet": _parquet(
            {
                "path": [document.path for document in documents],
                "sha256": [document.sha256 for document in documents],
                "size_bytes": [document.size_bytes for document in documents],
                "title": [document.title for document in documents],
                "text": [document.text for document in documents],
            }
        ),
        "chunks.parquet": _parquet(
            {
                "document": np.array([rows[chunk.path] for chunk in chunks], np.int32),
                "start": np.array([chunk.start for chunk in chunks], np.int32),
                "end": np.array([chunk.end for chunk in chunks], np.int32),
                "page": [chunk.page or 0 for chunk in chunks],
                "heading": ["\n".join(chunk.heading) for chunk in chunks],
                "text_hash": [bytes.fromhex(chunk.text_hash) for chunk in chunks],
            }
        ),
        "passages.parquet": _parquet(
            {
                "text_hash": [bytes.fromhex(key) for key in first],
                "document": np.array([rows[chunk.path] for chunk in first.values()], np.int32),
                "start": np.array([chunk.start for chunk in first.values()], np.int32),
                "end": np.array([chunk.end for chunk in first.values()], np.int32),
                "vector": [np.asarray(vectors[key], "<f2").tobytes() for key in first],
            }
        ),
    }
    names = json.dumps({name: sha256_hex(content) for name, content in tables.items()}, sort_keys=True)
    return SegmentFiles(sha256_hex(names.encode())[:32], tables, len(documents), len(first))


def segment_id(tables: Mapping[str, bytes]) -> str:
    """The id that these tables must have: what `fsck` compares."""
    names = json.dumps({name: sha256_hex(content) for name, content in tables.items()}, sort_keys=True)
    return sha256_hex(names.encode())[:32]


def _parquet(columns: Mapping[str, Any]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    types = {
        "sha256": pyarrow.string(),
        "path": pyarrow.string(),
        "title": pyarrow.string(),
        "heading": pyarrow.string(),
        "text": pyarrow.large_string(),
        "size_bytes": pyarrow.int64(),
        "page": pyarrow.int32(),
        "text_hash": pyarrow.binary(32),
    }
    arrays = {}
    for name, values in columns.items():
        if name == "vector":
            width = len(values[0]) if values else 2
            arrays[name] = pyarrow.array(values, pyarrow.binary(width))
        else:
            arrays[name] = pyarrow.array(values, types.get(name))
    buffer = io.BytesIO()
    # Half floats hardly compress and dictionaries do not help unique values: plain, then zstd.
    pyarrow.parquet.write_table(
        pyarrow.table(arrays),
        buffer,
        compression="zstd",
        use_dictionary=["heading"] if "heading" in arrays else False,
    )
    return buffer.getvalue()


class Segment:
    """One segment opened for reading: tables on demand, caches checked or rebuilt when first used."""

    def __init__(self, id: str, open_table: OpenTable, cache: Path, *, language: str) -> None:
        self.id = id
        self._open_table = open_table
        self._folder = cache / id
        self._language = language
        self._collection: Any = None
        self._client: Any = None
        self._opening = threading.Lock()

    # -- truth -------------------------------------------------------------------------------

    def table(self, name: str, columns: Sequence[str]) -> Any:
        """Some columns of one table as a pyarrow table. Raises DamagedError."""
        import pyarrow
        import pyarrow.parquet

        try:
            with self._open_table(name) as file:
                # read_table() would import pyarrow.dataset, which takes longer than reading.
                return pyarrow.parquet.ParquetFile(pyarrow.PythonFile(file, mode="r")).read(list(columns))
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            raise DamagedError(
                f"Segment {self.id} cannot be read: {error}.",
                hint="Run `rag fsck`; restore from a clone or backup.",
            ) from error

    @cached_property
    def documents(self) -> dict[str, list[Any]]:
        """path, sha256, size_bytes and title of each document, by column."""
        columns: dict[str, list[Any]] = self.table(
            "documents.parquet", ["path", "sha256", "size_bytes", "title"]
        ).to_pydict()
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
        table = self.table("passages.parquet", ["document", "start", "end"])
        texts = self.texts.to_pylist()
        rows = zip(
            table["document"].to_pylist(), table["start"].to_pylist(), table["end"].to_pylist(), strict=True
        )
        return [texts[document][start:end] for document, start, end in rows]

    def read_vectors(self) -> NDArray[np.float16]:
        """Vectors from the truth, shape (passages, dimension)."""
        table = self.table("passages.parquet", ["vector"])
        values = table.column("vector").to_pylist()
        return (
            np.frombuffer(b"".join(values), "<f2").reshape(len(values), -1)
            if values
            else np.empty((0, 1), "<f2")
        )

    # -- caches ------------------------------------------------------------------------------

    @cached_property
    def vectors(self) -> NDArray[np.float16]:
        """Vectors, memory mapped from the cache, shape (passages, dimension)."""
        self._ensure()
        return np.load(self._folder / "vectors.npy", mmap_mode="r")  # type: ignore[no-any-return]

    @cached_property
    def postings(self) -> Postings:
        """BM25 postings of the passages."""
        self._ensure()
        return Postings(self._folder / f"lexical-{self._language}")

    def nearest(self, query: NDArray[np.float32], count: int) -> NDArray[np.int64]:
        """Rows of the `count` passages nearest to `query` by Chroma, best first."""
        if not len(self.passage_hashes):
            return np.empty(0, np.int64)
        self._ensure()
        count = min(count, len(self.passage_hashes))
        found = self._collection.query(query_embeddings=query.reshape(1, -1), n_results=count, include=[])
        return np.array([int(row) for row in found["ids"][0]], np.int64)

    def _ensure(self) -> None:
        """Open the caches, rebuilding what is missing or fails its seal."""
        with self._opening:
            if self._collection is not None or not len(self.passage_hashes):
                return
            if self.check_cache():
                self.rebuild()
            self._open_collection()

    def _open_collection(self) -> None:
        self._client, self._collection = _open_chroma(self._folder / "chroma", self._folder)

    def close(self) -> None:
        """Release the Chroma collection's files and memory."""
        if self._client is not None:
            self._client.close()
        self._client = self._collection = None

    def check_cache(self) -> str | None:
        """What is wrong with the caches, None when every sealed file is as it was written.

        Checked before Chroma sees the files: some damage kills the process that opens them.
        """
        try:
            seal = json.loads((self._folder / _SEAL).read_bytes())
            sealed = seal["files"]
            if (
                seal["passages"] != len(self.passage_hashes)
                or f"lexical-{self._language}/rows.npy" not in sealed
            ):
                return "the cache is of another index"
            for name, digest in sealed.items():
                if sha256_hex((self._folder / name).read_bytes()) != digest:
                    return f"{name} has changed"
            return _check_database(self._folder / "chroma" / _CHROMA_DATABASE, seal["passages"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            return f"the cache is missing or unreadable ({type(error).__name__})"

    def rebuild(self) -> None:
        """Build the caches from the truth; nothing is embedded.

        Raises:
            DamagedError: The truth itself cannot be read, or Chroma does not give back what it took.
            StorageError: The disk refused.
        """
        self.close()
        with disk_errors(str(self._folder)):
            self._folder.parent.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(prefix=f".{self.id}-", dir=self._folder.parent))
        try:
            with disk_errors(str(temporary)):
                vectors = self.read_vectors()
                np.save(temporary / "vectors.npy", vectors)
                write_postings(temporary / f"lexical-{self._language}", self.passage_texts(), self._language)
                _build_chroma(temporary / "chroma", vectors)
                _seal(temporary, len(vectors))
            _retire(self._folder)
            publish_folder(temporary, self._folder)
        finally:
            remove_folder(temporary)


def _column(table: Any, name: str) -> NDArray[Any]:
    column = table.column(name).combine_chunks()
    if name == "text_hash":
        return np.array(column.to_pylist(), dtype="S32")
    if name == "heading":
        return np.array(column.to_pylist(), dtype=object)
    # Not to_numpy(): that imports pandas.
    return np.frombuffer(column.buffers()[1], np.int32, len(column), column.offset * 4)


def _open_chroma(folder: Path, what: Path) -> tuple[Any, Any]:
    import chromadb
    from chromadb.errors import ChromaError

    try:
        client = chromadb.PersistentClient(
            str(folder), settings=chromadb.Settings(anonymized_telemetry=False)
        )
        return client, client.get_collection(_COLLECTION, embedding_function=None)
    except (ChromaError, OSError, ValueError) as error:
        raise DamagedError(f"Chroma cannot open {what}: {error}.", hint="Run `rag rebuild`.") from error


def _build_chroma(folder: Path, vectors: NDArray[np.float16]) -> None:
    """One sealed collection of inner products; row numbers are the ids.

    `ef_search` reaches every row of a segment of up to 5,000 passages and stays there above: at
    20,000 passages it finds the exact top 100 in 8 ms. Chroma builds a different graph each time,
    and only a search this thorough gives the same answer from all of them.
    """
    import chromadb

    client = chromadb.PersistentClient(str(folder), settings=chromadb.Settings(anonymized_telemetry=False))
    collection = client.create_collection(
        _COLLECTION,
        embedding_function=None,
        configuration={
            "hnsw": {
                "space": "ip",
                "ef_construction": 200,
                "max_neighbors": 16,
                "ef_search": max(100, min(len(vectors), _EXHAUSTIVE)),
                # Flushed once, when all rows are in: each flush is a moment a crash can tear.
                "sync_threshold": max(2, len(vectors)),
                "batch_size": max(2, min(100, len(vectors))),
            }
        },
    )
    wide = vectors.astype(np.float32)
    for start in range(0, len(wide), _ADD_BATCH):
        rows = range(start, min(start + _ADD_BATCH, len(wide)))
        collection.add(ids=[str(row) for row in rows], embeddings=wide[start : rows.stop])
    probes = np.linspace(0, len(wide) - 1, min(8, len(wide)), dtype=int)
    found = collection.query(query_embeddings=wide[probes], n_results=1, include=["distances"])
    client.close()
    # Equal vectors may stand in for each other; what counts is that each probe finds itself or its twin.
    twins = [float(wide[int(ids[0])] @ wide[row]) for ids, row in zip(found["ids"], probes, strict=True)]
    if any(twin < 0.999 * float(wide[row] @ wide[row]) for twin, row in zip(twins, probes, strict=True)):
        raise DamagedError(
            "Chroma did not give back the vectors it was given.", hint="Run the command again."
        )


def _seal(folder: Path, passages: int) -> None:
    files = {
        path.relative_to(folder).as_posix(): sha256_hex(path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(_CHROMA_DATABASE)
    }
    (folder / _SEAL).write_text(json.dumps({"passages": passages, "files": files}, sort_keys=True))


def _check_database(path: Path, passages: int) -> str | None:
    """Chroma's own table must be whole and count what was put in; read without changing it."""
    import sqlite3

    if not path.exists():
        return f"{path.name} is missing"
    try:
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as connection:
            count = connection.execute("select count(*) from embeddings").fetchone()[0]
            names = connection.execute("select name from collections").fetchall()
    except sqlite3.Error as error:
        return f"{path.name}: {error}"
    finally:
        if "connection" in locals():
            connection.close()
    return None if count == passages and names == [(_COLLECTION,)] else f"{path.name} counts {count} rows"


def _retire(folder: Path) -> None:
    """Move a damaged cache aside before the new one takes its name, then drop it."""
    if folder.exists():
        aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-old-", dir=folder.parent))
        shutil.rmtree(aside)
        folder.rename(aside)
        remove_folder(aside)


def open_segments(
    manifest: Manifest, open_object: Callable[[str], BinaryIO], cache: Path, *, language: str
) -> list[Segment]:
    """The segments of a manifest, nothing read yet; `open_object` opens a path of the release's commit."""

    def opener(id: str) -> OpenTable:
        return lambda name: open_object(f"{SEGMENTS_PREFIX}{id}/{name}")

    return [Segment(ref.id, opener(ref.id), cache, language=language) for ref in manifest.segments]
