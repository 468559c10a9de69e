"""The index of the next release, written into a transaction: segments, tombstones, manifest.

Segments are merged as an LSM tree merges its runs, so that a release never has many of them. Sizes
count live passages in tiers: up to 64, then each `MERGE_FACTOR` times the one before. When a tier has
`MERGE_FACTOR` segments they become one of a higher tier, and a segment is written anew when more than
half of it is dead. A passage is therefore rewritten a few times while it is in the lowest tier, where
that costs next to nothing, and once for each tier above; its vector is copied, never embedded again. A
release has fewer than `MERGE_FACTOR` segments a tier. Rankings do not depend on where a passage lies, so
none changes.
"""

import io
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from knowledge_base.home import KnowledgeBase
from knowledge_base.release import MANIFEST_PATH, Manifest, Release, SegmentRef
from knowledge_base.segment_tables import TABLES, SegmentFiles, hex_hash, write_segment
from knowledge_base.segments import SEGMENTS_PREFIX, Segment
from knowledge_base.snapshot import Snapshot
from knowledge_base.values import canonical_json
from knowledge_base.version_store import CommonPrefix, Transaction

MERGE_FACTOR = 8
_SMALLEST = 64
_DEAD_SHARE = 0.5


@dataclass
class IndexDraft:
    """Segments of a release in the making; `fresh` are those that no commit has yet."""

    knowledge_base: KnowledgeBase
    release: Release
    segments: list[tuple[SegmentRef, Segment]]
    fresh: dict[str, SegmentFiles] = field(default_factory=dict)

    def add(self, files: SegmentFiles) -> None:
        """Append a new segment."""
        ref = SegmentRef(
            id=files.id, documents=files.documents, passages=files.passages, bytes=files.size_bytes
        )
        segment = Segment(
            files.id,
            lambda name: io.BytesIO(files.tables[name]),
            self.knowledge_base.cache,
            language=self.release.settings.retrieval.language,
            index=self.knowledge_base.index,
        )
        self.fresh[files.id] = files
        self.segments.append((ref, segment))

    def snapshot(self) -> Snapshot:
        """The release opened for reading before it is committed: its counts are counted, not computed."""
        manifest = self.release.manifest.model_copy(
            update={"segments": tuple(ref for ref, _ in self.segments)}
        )
        snapshot = Snapshot(_with(self.release, manifest), [segment for _, segment in self.segments])
        counts = {"documents": len(snapshot.paths), "chunks": snapshot.chunk_count}
        snapshot.release = _with(self.release, manifest.model_copy(update=counts))
        return snapshot

    def compact(self, snapshot: Snapshot, numbers: Sequence[int]) -> None:
        """Replace those segments by one that holds what is alive in them."""
        files = merge_segments(snapshot, numbers)
        self.keep([pair for number, pair in enumerate(self.segments) if number not in set(numbers)])
        if files.documents or files.passages:
            self.add(files)

    def keep(self, segments: Sequence[tuple[SegmentRef, Segment]]) -> None:
        """Go on with some of the segments."""
        self.segments = list(segments)
        kept = {ref.id for ref, _ in segments}
        self.fresh = {key: files for key, files in self.fresh.items() if key in kept}


def bury(parent: Snapshot, dead: Collection[str]) -> list[tuple[SegmentRef, Segment]]:
    """The segments of a release, with tombstones for those documents too."""
    buried = []
    for ref, segment in zip(parent.release.manifest.segments, parent.segments, strict=True):
        here = [path for path in segment.documents["path"] if path in dead]
        buried.append((ref.without([*ref.tombstones, *here]), segment))
    return buried


def write_index(
    draft: IndexDraft,
    transaction: Transaction,
    *,
    everything: bool = False,
    progress: Callable[[str, int, int | None], None] = lambda stage, done, total: None,
) -> tuple[Snapshot, int]:
    """Drop what is dead, compact, build and check the caches, then stage segments and manifest.

    With `everything` all segments become one. Returns the release as it will be, and bytes written.

    Raises:
        DamagedError: A segment cannot be read, or Chroma does not give back what it took.
        StorageError: The disk refused.
    """
    snapshot = draft.snapshot()
    useful = [
        pair
        for number, pair in enumerate(draft.segments)
        if snapshot.live_documents(number) or len(snapshot.live_passages(number))
    ]
    if len(useful) < len(draft.segments):
        draft.keep(useful)
        snapshot = draft.snapshot()
    chosen = list(range(len(draft.segments))) if everything else _plan(snapshot)
    if chosen:
        progress("compact", 0, 1)
        draft.compact(snapshot, chosen)
        snapshot = draft.snapshot()
        progress("compact", 1, 1)
    for _, segment in draft.segments:
        if segment.id in draft.fresh:
            # A release that cannot be searched is never committed.
            progress("index", 0, len(draft.fresh))
            segment.rebuild()
            progress("index", 1, len(draft.fresh))
    return snapshot, _stage(draft, snapshot, transaction)


def _stage(draft: IndexDraft, snapshot: Snapshot, transaction: Transaction) -> int:
    written = 0
    staged = draft.knowledge_base.repository.list_objects(
        transaction.base_commit_id, prefix=SEGMENTS_PREFIX, delimiter="/"
    )
    present = {
        item.path.removeprefix(SEGMENTS_PREFIX).strip("/")
        for item in staged
        if isinstance(item, CommonPrefix)
    }
    for gone in present - {ref.id for ref, _ in draft.segments}:
        transaction.delete_prefix(f"{SEGMENTS_PREFIX}{gone}/")
    for ref, segment in draft.segments:
        if ref.id in present and ref.id not in draft.fresh:
            continue
        for name in TABLES:
            with segment.open_table(name) as table:
                written += transaction.upload(f"{SEGMENTS_PREFIX}{ref.id}/{name}", table).size_bytes
    manifest = canonical_json(snapshot.release.manifest)
    transaction.upload(MANIFEST_PATH, manifest)
    return written + len(manifest)


def _plan(snapshot: Snapshot) -> list[int]:
    live = [len(snapshot.live_passages(number)) for number in range(len(snapshot.segments))]
    return plan_compaction(live, [len(segment.passage_hashes) for segment in snapshot.segments])


def plan_compaction(live: Sequence[int], stored: Sequence[int]) -> list[int]:
    """Which segments to make into one, none when the release is in shape.

    Of each segment, `live` passages are part of the release and `stored` lie in it.
    """
    tiers: dict[int, list[int]] = {}
    chosen: list[int] = []
    for number, (alive, everything) in enumerate(zip(live, stored, strict=True)):
        # Passages alone count: nearly all bytes are vectors, and those of a changed document often live on.
        if alive < _DEAD_SHARE * everything:
            chosen.append(number)
        else:
            tiers.setdefault(tier(alive), []).append(number)
    size = sum(live[number] for number in chosen)
    for here in sorted(tiers):
        # What is merged already may fill the next tier up: better one rewrite than two in a row.
        arriving = 1 if chosen and tier(size) == here else 0
        if len(tiers[here]) + arriving >= MERGE_FACTOR:
            chosen += tiers[here]
            size += sum(live[number] for number in tiers[here])
    return sorted(chosen)


def tier(passages: int) -> int:
    """The tier of a segment of so many live passages, from 0 up."""
    return max(0, math.ceil(math.log(max(passages, 1) / _SMALLEST, MERGE_FACTOR)))


def merge_segments(snapshot: Snapshot, numbers: Sequence[int]) -> SegmentFiles:
    """One segment with the live documents and the live passages of several; vectors are copied."""
    documents = [snapshot.document(path) for number in numbers for path in snapshot.live_documents(number)]
    documents.sort(key=lambda document: document.path.encode())
    chunks = snapshot.chunks_in({document.path for document in documents})
    vectors, texts = {}, {}
    for number in numbers:
        segment, rows = snapshot.segments[number], snapshot.live_passages(number)
        stored, contents = segment.read_vectors(), segment.passage_texts()
        for row in rows.tolist():
            text_hash = hex_hash(segment.passage_hashes[row])
            vectors[text_hash], texts[text_hash] = stored[row], contents[row]
    return write_segment(documents, chunks, vectors, texts)


def _with(release: Release, manifest: Manifest) -> Release:
    return release.model_copy(update={"manifest": manifest})
