"""The tables that a segment is made of: how they are written and read, and the id that they give."""

import io
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from knowledge_base.access import declared_groups
from knowledge_base.documents import Chunk, Document, sha256_hex
from knowledge_base.errors import DamagedError

TABLES = ("documents.parquet", "chunks.parquet", "passages.parquet")
NOWHERE = -1
"""In the column `document` of a passage that carries its own text."""

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
    documents: Sequence[Document],
    chunks: Sequence[Chunk],
    vectors: Mapping[str, NDArray[Any]],
    texts: Mapping[str, str] | None = None,
) -> SegmentFiles:
    """Lay out a segment; `vectors` maps the text hash of each of its passages to its vector.

    `texts` has those passages that no chunk of this segment shows: the document they came from is
    gone, but one of another segment repeats them.

    Vectors are stored as float16: against float32 the cosine changes by less than 1e-6, far below
    the 5e-3 of int8 weights, at half the bytes.
    """
    rows = {document.path: row for row, document in enumerate(documents)}
    passages = _passage_columns(chunks, rows, vectors, texts or {})
    tables = {
        "documents.parquet": _parquet(_document_columns(documents)),
        "chunks.parquet": _parquet(_chunk_columns(chunks, rows)),
        "passages.parquet": _parquet(passages),
    }
    return SegmentFiles(segment_id(tables), tables, len(documents), len(passages["text"]))


def segment_id(tables: Mapping[str, bytes]) -> str:
    """The id that these tables must have: what `fsck` compares."""
    names = json.dumps({name: sha256_hex(content) for name, content in tables.items()}, sort_keys=True)
    return sha256_hex(names.encode())[:32]


def _document_columns(documents: Sequence[Document]) -> dict[str, Any]:
    return {
        "path": [document.path for document in documents],
        "sha256": [document.sha256 for document in documents],
        "size_bytes": [document.size_bytes for document in documents],
        "title": [document.title for document in documents],
        "text": [document.text for document in documents],
        "allow": [None if document.allow is None else list(document.allow) for document in documents],
    }


def _chunk_columns(chunks: Sequence[Chunk], rows: Mapping[str, int]) -> dict[str, Any]:
    return {
        "document": np.array([rows[chunk.path] for chunk in chunks], np.int32),
        "start": np.array([chunk.start for chunk in chunks], np.int32),
        "end": np.array([chunk.end for chunk in chunks], np.int32),
        "page": [chunk.page or 0 for chunk in chunks],
        "heading": ["\n".join(chunk.heading) for chunk in chunks],
        "text_hash": [bytes.fromhex(chunk.text_hash) for chunk in chunks],
    }


def _passage_columns(
    chunks: Sequence[Chunk],
    rows: Mapping[str, int],
    vectors: Mapping[str, NDArray[Any]],
    texts: Mapping[str, str],
) -> dict[str, Any]:
    """A passage is the first chunk that shows it, or a text of its own."""
    first: dict[str, Chunk] = {}
    for chunk in chunks:
        if chunk.text_hash in vectors:
            first.setdefault(chunk.text_hash, chunk)
    loose = {key: text for key, text in texts.items() if key not in first}
    spans = [(rows[chunk.path], chunk.start, chunk.end, "") for chunk in first.values()]
    spans += [(NOWHERE, 0, 0, text) for text in loose.values()]
    passages = [*first, *loose]
    return {
        "text_hash": [bytes.fromhex(key) for key in passages],
        "document": np.array([span[0] for span in spans], np.int32),
        "start": np.array([span[1] for span in spans], np.int32),
        "end": np.array([span[2] for span in spans], np.int32),
        "text": [span[3] for span in spans],
        "vector": [np.asarray(vectors[key], "<f2").tobytes() for key in passages],
    }


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
        "allow": pyarrow.list_(pyarrow.string()),
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


class SegmentTables:
    """The tables of one segment, each read when it is first asked for."""

    def __init__(self, id: str, open_table: OpenTable) -> None:
        self.id = id
        self.open_table = open_table

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
