"""A release opened for search: its live documents, chunks and passages over all segments."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from knowledge_base.access import Access
from knowledge_base.documents import Chunk, Document, chunk_id
from knowledge_base.errors import NotFoundError
from knowledge_base.lexical import Analyzer, bm25_scores
from knowledge_base.release import Release, order_paths
from knowledge_base.segment_tables import hex_hash
from knowledge_base.segments import PassageIndex, Segment, SharedSegments, open_segments
from knowledge_base.version_store import Repository

_SCANNED = 2048
"""Passages of a segment that are compared one by one sooner than Chroma finds the nearest."""

_SPARSE = 8
"""When fewer than one passage in so many counts, those are compared one by one."""

_ROUNDING = 1e-5
"""More than scores of equal vectors differ by before they are rounded."""


@dataclass(frozen=True)
class Selection:
    """Part of a snapshot's chunks: which rows, and the passages that at least one of them shows."""

    rows: NDArray[np.bool_]
    passages: NDArray[np.int64]


class Snapshot:
    """Read-only view of one release.

    A passage is a distinct chunk text; passages are numbered over all segments in manifest order.
    Every score is computed from the stored vectors and counts, rounded to six decimals, and ties go
    to the smaller text hash, so a ranking depends on the release alone.
    """

    def __init__(
        self, release: Release, segments: Sequence[Segment], hidden: Collection[str] = frozenset()
    ) -> None:
        self.release = release
        self.segments = list(segments)
        tombstones = [frozenset(ref.tombstones) for ref in release.manifest.segments]
        live_rows = [
            np.array([path not in dead and path not in hidden for path in segment.documents["path"]], bool)
            for segment, dead in zip(self.segments, tombstones, strict=True)
        ]
        self._place = {
            path: (number, row)
            for number, segment in enumerate(self.segments)
            for row, path in enumerate(segment.documents["path"])
            if live_rows[number][row]
        }
        self.paths = order_paths(self._place)
        self._index_chunks(live_rows)

    def _index_chunks(self, live_rows: list[NDArray[np.bool_]]) -> None:
        rank = {path: number for number, path in enumerate(self.paths)}
        hashes = [segment.passage_hashes for segment in self.segments]
        self._hashes = np.concatenate(hashes) if hashes else np.empty(0, "S32")
        self._starts = np.cumsum([0, *map(len, hashes)])
        order = np.argsort(self._hashes, kind="stable")
        columns: dict[str, list[NDArray[np.generic]]] = {
            name: [] for name in ("rank", "start", "end", "page", "heading", "hash")
        }
        for segment, live in zip(self.segments, live_rows, strict=True):
            spans = segment.spans
            keep = live[spans["document"]]
            ranks = np.array([rank.get(path, -1) for path in segment.documents["path"]], np.int64)
            columns["rank"].append(ranks[spans["document"][keep]])
            columns["hash"].append(spans["text_hash"][keep])
            for name in ("start", "end", "page", "heading"):
                columns[name].append(spans[name][keep])
        merged = {
            name: np.concatenate(parts) if parts else np.empty(0, np.int64) for name, parts in columns.items()
        }
        # The first segment that holds a text wins; equal texts of later segments are never live.
        positions = (
            np.searchsorted(self._hashes, merged["hash"], sorter=order)
            if len(order)
            else np.empty(0, np.int64)
        )
        passages = order[positions]
        sort = np.lexsort((merged["start"], merged["rank"], passages))
        self._chunks = {name: column[sort] for name, column in merged.items()}
        self._chunk_passages = passages[sort]
        self.live = np.zeros(len(self._hashes), bool)
        self.live[self._chunk_passages] = True
        # Small segments beside a larger one are read whole: faster than asking Chroma once for each.
        # So are those of which next to nothing counts: the graph would have to be asked for all the rest.
        sizes = list(map(len, hashes))
        self._graphs = [
            n
            for n, size in enumerate(sizes)
            if (size > _SCANNED or size == max(sizes)) and _SPARSE * len(self.live_passages(n)) >= size
        ]
        scanned = [
            self._starts[n] + self.live_passages(n) for n in range(len(sizes)) if n not in self._graphs
        ]
        self._recent = np.concatenate([np.empty(0, np.int64), *scanned])

    # -- who may read what ---------------------------------------------------------------------

    @cached_property
    def access(self) -> Access:
        """Who may read which of its documents."""
        declared = {
            path: self.segments[number].documents["allow"][row] for path, (number, row) in self._place.items()
        }
        named = {path: groups for path, groups in declared.items() if groups is not None}
        return Access(self.release.settings.access, named)

    def without(self, hidden: Collection[str]) -> "Snapshot":
        """The release as if those documents had never been in it.

        Their texts weigh nothing, not even in the statistics that the others are ranked by.
        """
        view = Snapshot(self.release, self.segments, hidden)
        counts = {"documents": len(view.paths), "chunks": view.chunk_count}
        manifest = self.release.manifest.model_copy(update=counts)
        view.release = self.release.model_copy(update={"manifest": manifest})
        return view

    # -- documents and chunks ------------------------------------------------------------------

    def __contains__(self, path: str) -> bool:
        """Whether a document of that path is part of the release."""
        return path in self._place

    def document(self, path: str) -> Document:
        """One document with its extracted text. Raises NotFoundError."""
        number, row = self._locate(path)
        columns = self.segments[number].documents
        return Document(
            path,
            columns["sha256"][row],
            columns["size_bytes"][row],
            columns["title"][row],
            self.document_text(path),
            allow=None if columns["allow"][row] is None else tuple(columns["allow"][row]),
        )

    def document_text(self, path: str) -> str:
        """The extracted text that spans and citations count in. Raises NotFoundError."""
        number, row = self._locate(path)
        text: str = self.segments[number].texts[row].as_py()
        return text

    def hashes(self) -> dict[str, str]:
        """SHA-256 of the source bytes of every live document, by path."""
        return {
            path: self.segments[number].documents["sha256"][row]
            for path, (number, row) in self._place.items()
        }

    def titles(self, path: str) -> str:
        """The title of a document. Raises NotFoundError."""
        number, row = self._locate(path)
        title: str = self.segments[number].documents["title"][row]
        return title

    def segment_of(self, path: str) -> str:
        """Id of the segment that holds a document. Raises NotFoundError."""
        return self.segments[self._locate(path)[0]].id

    def placed(self) -> set[tuple[str, str]]:
        """(path, segment id) of every live document: equal in two releases means equal chunks."""
        return {(path, self.segments[number].id) for path, (number, _) in self._place.items()}

    def _locate(self, path: str) -> tuple[int, int]:
        if path not in self._place:
            raise NotFoundError("document", path, hint="`rag show` lists the documents of a release.")
        return self._place[path]

    @property
    def chunk_count(self) -> int:
        """Number of live chunks; equal texts count each time they occur."""
        return len(self._chunk_passages)

    def chunks_of(self, passage: int, selection: Selection | None = None) -> list[Chunk]:
        """Every place where a passage stands, or every selected one, by path and position."""
        first, last = np.searchsorted(self._chunk_passages, [passage, passage + 1])
        rows = range(int(first), int(last))
        return [self._chunk(row) for row in rows if selection is None or selection.rows[row]]

    @property
    def chunk_documents(self) -> NDArray[np.int64]:
        """For each chunk, the index of its document in `paths`; shape (chunk_count,)."""
        ranks: NDArray[np.int64] = self._chunks["rank"].astype(np.int64)
        return ranks

    @property
    def chunk_pages(self) -> NDArray[np.int64]:
        """For each chunk, its page from 1; 0 where there are no pages."""
        pages: NDArray[np.int64] = self._chunks["page"].astype(np.int64)
        return pages

    @property
    def chunk_headings(self) -> NDArray[np.generic]:
        """For each chunk, the headings above it, outermost first, in lines."""
        return self._chunks["heading"]

    def select(self, rows: NDArray[np.bool_]) -> Selection:
        """The chunks for which `rows` is true, shape (chunk_count,)."""
        return Selection(rows, np.unique(self._chunk_passages[rows]))

    def chunk_ids(self, paths: Collection[str] | None = None) -> set[str]:
        """The id of every live chunk, or of those of some documents."""
        columns = self._chunks
        if paths is not None:
            wanted = np.fromiter((path in paths for path in self.paths), bool, len(self.paths))
            here = wanted[columns["rank"]] if len(wanted) else np.zeros(0, bool)
            columns = {name: column[here] for name, column in columns.items()}
        rows = zip(columns["rank"], columns["start"], columns["end"], columns["hash"], strict=True)
        return {
            chunk_id(self.paths[rank], int(start), int(end), hex_hash(digest))
            for rank, start, end, digest in rows
        }

    def chunks_in(self, paths: Collection[str], selection: Selection | None = None) -> list[Chunk]:
        """The chunks of some documents, or the selected ones of them, by path and position."""
        columns = self._chunks
        wanted = np.fromiter((path in paths for path in self.paths), bool, len(self.paths))
        rows = np.flatnonzero(wanted[columns["rank"]]) if len(wanted) else np.empty(0, np.int64)
        if selection is not None:
            rows = rows[selection.rows[rows]]
        order = np.lexsort((columns["end"][rows], columns["start"][rows], columns["rank"][rows]))
        return [self._chunk(int(row)) for row in rows[order]]

    # -- what each segment still gives -----------------------------------------------------------

    def live_documents(self, number: int) -> list[str]:
        """Paths whose document of this release lies in segment `number`."""
        return [path for path, (here, _) in self._place.items() if here == number]

    def live_passages(self, number: int) -> NDArray[np.int64]:
        """Rows of segment `number` whose text is part of this release."""
        found: NDArray[np.int64] = np.flatnonzero(self.live[self._starts[number] : self._starts[number + 1]])
        return found

    def _chunk(self, row: int) -> Chunk:
        columns = self._chunks
        path = self.paths[int(columns["rank"][row])]
        start, end = int(columns["start"][row]), int(columns["end"][row])
        heading = str(columns["heading"][row])
        return Chunk(
            path,
            start,
            end,
            self.document_text(path)[start:end],
            tuple(heading.split("\n")) if heading else (),
            int(columns["page"][row]) or None,
        )

    # -- search --------------------------------------------------------------------------------

    def nearest(self, query: NDArray[np.float32], count: int) -> NDArray[np.int64]:
        """Up to `count` live passages nearest to `query`, best first."""
        found = [self._nearest_in(number, query, count) for number in self._graphs]
        passages = np.concatenate([self._scan(query, count), *found])
        return self.rank(passages, self.dense_scores(query, passages))[:count]

    def _scan(self, query: NDArray[np.float32], count: int) -> NDArray[np.int64]:
        """At least the `count` nearest passages of the small segments, in no order."""
        if len(self._recent) <= count:
            return self._recent
        # Not `@`: so many rows make BLAS start threads, which wait for each other on a busy machine.
        scores = np.einsum("ij,j->i", self._recent_vectors, query)
        edge = np.partition(scores, -count)[-count] - _ROUNDING
        return self._recent[np.flatnonzero(scores >= edge)]

    @cached_property
    def _recent_vectors(self) -> NDArray[np.float32]:
        # Kept wide: turning half floats into floats takes far longer than the products.
        parts = [
            self.segments[n].vectors[self.live_passages(n)].astype(np.float32)
            for n in range(len(self.segments))
            if n not in self._graphs
        ]
        return np.concatenate(parts)

    def _nearest_in(self, number: int, query: NDArray[np.float32], count: int) -> NDArray[np.int64]:
        segment, start = self.segments[number], int(self._starts[number])
        size, alive = len(segment.passage_hashes), len(self.live_passages(number))
        # Dead passages stand in front of live ones: what is asked for leaves room for their share.
        want = count if alive == size else int(1.3 * count * size / max(alive, 1))
        while True:
            passages = segment.nearest(query, want) + start
            live = passages[self.live[passages]]
            if len(live) >= min(count, alive) or want >= size:
                return live
            want *= 4

    def dense_scores(self, query: NDArray[np.float32], passages: NDArray[np.int64]) -> NDArray[np.float64]:
        """Cosine similarity of `query` to each passage, shape (len(passages),)."""
        scores = np.empty(len(passages))
        numbers = np.searchsorted(self._starts, passages, side="right") - 1
        for number in np.unique(numbers):
            here = numbers == number
            rows = passages[here] - int(self._starts[number])
            # In double precision: in single, the last digit depends on how many rows are asked at once.
            scores[here] = self.segments[number].vectors[rows].astype(np.float64) @ query.astype(np.float64)
        return np.round(scores, 6)

    def passage_vectors(self, passages: NDArray[np.int64]) -> NDArray[np.float32]:
        """The vector of each passage, shape (len(passages), dimension)."""
        numbers = np.searchsorted(self._starts, passages, side="right") - 1
        rows = passages - self._starts[numbers]
        pairs = zip(numbers.tolist(), rows.tolist(), strict=True)
        return np.array([self.segments[number].vectors[row] for number, row in pairs], np.float32)

    def lexical_scores(self, question: str) -> NDArray[np.float64]:
        """BM25 of every passage, shape (passages,); 0 where no term matches or the passage is dead."""
        if not self.segments:
            return np.empty(0)
        terms = Analyzer(self.release.settings.retrieval.language).terms(question)
        live = [self.live[self._starts[n] : self._starts[n + 1]] for n in range(len(self.segments))]
        usable = [
            (s.postings, mask) for s, mask in zip(self.segments, live, strict=True) if len(s.passage_hashes)
        ]
        return np.round(np.concatenate([np.empty(0), *bm25_scores(terms, usable)]), 6)

    def rank(self, passages: NDArray[np.int64], scores: NDArray[np.float64]) -> NDArray[np.int64]:
        """`passages` ordered by falling score, ties by text hash."""
        return passages[np.lexsort((self._hashes[passages], -scores))]

    def vectors_by_hash(self, wanted: set[str]) -> dict[str, NDArray[np.float16]]:
        """Stored vectors of those texts, dead or alive, that this release's segments hold."""
        found: dict[str, NDArray[np.float16]] = {}
        for segment in self.segments:
            found.update(segment.vectors_of(wanted))
        return found

    def passage_hashes(self) -> set[str]:
        """Hash of every text that has a vector in these segments, dead or alive."""
        return set(map(hex_hash, self._hashes))

    def close(self) -> None:
        """Release the segments' files and memory."""
        for segment in self.segments:
            segment.close()


def count_chunk_changes(before: Snapshot, after: Snapshot) -> dict[str, int]:
    """How many chunks `after` has that `before` has not, the reverse, and its total."""
    # Only documents that moved between segments: listing every chunk of a large release takes seconds.
    moved = before.placed() ^ after.placed()
    paths = {path for path, _ in moved}
    old, new = before.chunk_ids(paths), after.chunk_ids(paths)
    return {"added": len(new - old), "removed": len(old - new), "total": after.chunk_count}


def open_snapshot(
    repository: Repository,
    release: Release,
    cache: Path,
    index: PassageIndex | None = None,
    shared: SharedSegments | None = None,
) -> Snapshot:
    """Open a release for search, with segments of `shared` where it has them.

    Raises DamagedError when its truth cannot be read.
    """
    segments = open_segments(
        release.manifest,
        lambda path: repository.open_object(release.commit, path),
        cache,
        language=release.settings.retrieval.language,
        index=index,
        shared=shared,
    )
    return Snapshot(release, segments)
