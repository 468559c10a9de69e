"""Which segments are merged, and when: never many of them, and no passage written anew without end."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingestion.pipeline import IngestOptions, ingest
from ingestion.sources import list_sources
from knowledge_base.errors import NoChangesError
from knowledge_base.home import KnowledgeBase
from knowledge_base.index import MERGE_FACTOR, plan_compaction, tier
from knowledge_base.integrity import fsck
from knowledge_base.republishing import compact
from tests.releases import Write, kb, ranking, write

__all__ = ["kb", "write"]  # fixtures

# How many passages an ingest adds, and how much of which segments dies with it.
ingests = st.lists(
    st.tuples(st.integers(1, 5000), st.lists(st.tuples(st.integers(0, 40), st.floats(0, 1)), max_size=3)),
    max_size=120,
)

Sizes = list[tuple[int, int]]
"""(live, stored) passages of each segment."""


def compacted(segments: Sizes) -> tuple[Sizes, int]:
    """The segments after one ingest's compaction, and how many passages it wrote anew."""
    segments = [segment for segment in segments if segment[0]]
    chosen = plan_compaction([live for live, _ in segments], [stored for _, stored in segments])
    size = sum(segments[number][0] for number in chosen)
    kept = [segment for number, segment in enumerate(segments) if number not in chosen]
    return kept + ([(size, size)] if size else []), size


def check(segments: Sizes) -> None:
    """In shape: no tier is full, no segment mostly dead, and so there is nothing left to do."""
    assert max(Counter(tier(live) for live, _ in segments).values()) < MERGE_FACTOR
    assert all(2 * live >= stored for live, stored in segments)
    assert compacted(segments) == (segments, 0)


@given(ingests)
def test_no_tier_is_ever_full_and_none_is_mostly_dead(
    steps: list[tuple[int, list[tuple[int, float]]]],
) -> None:
    segments: Sizes = []
    for added, deaths in steps:
        for number, share in deaths:
            if number < len(segments):
                live, stored = segments[number]
                segments[number] = (int(live * share), stored)
        segments, _ = compacted([*segments, (added, added)])
        check(segments)


@given(st.lists(st.integers(65, 5000), max_size=200))
def test_above_the_lowest_tier_a_passage_is_written_anew_once_a_tier(sizes: list[int]) -> None:
    segments: Sizes = []
    rewritten = 0
    for size in sizes:
        segments, written = compacted([*segments, (size, size)])
        rewritten += written
    assert sum(live for live, _ in segments) == sum(sizes)
    assert rewritten <= sum(sizes) * max(0, tier(sum(sizes)) - 1)


@pytest.mark.parametrize("size", [1, 64, 65, 700])
def test_ingests_of_one_size_fill_no_tier_either(size: int) -> None:
    segments: Sizes = []
    for _ in range(1000):
        segments, _ = compacted([*segments, (size, size)])
        check(segments)
    assert sum(live for live, _ in segments) == 1000 * size


def test_a_release_never_has_many_segments_and_compaction_changes_no_ranking(
    kb: KnowledgeBase, write: Write, sources: Path, tmp_path: Path
) -> None:
    counts = []
    for number in range(MERGE_FACTOR * 2):
        write(**{f"extra{number}": f"# Extra\n\nGarage number {number} opens at {number}."})
        counts.append(len(kb.release().manifest.segments))
    assert max(counts) < MERGE_FACTOR and min(counts) == 1
    before = ranking(kb, "Which garage opens at 7?")
    compact(kb, everything=True)
    assert len(kb.release().manifest.segments) == 1 and ranking(kb, "Which garage opens at 7?") == before
    whole = KnowledgeBase.create(tmp_path / "whole", kb.models)
    ingest(whole, list_sources([str(sources)]), IngestOptions())
    assert ranking(whole, "Which garage opens at 7?") == before
    assert not list(fsck(kb))
    with pytest.raises(NoChangesError):
        compact(kb)


def test_a_segment_more_than_half_dead_is_written_anew(
    kb: KnowledgeBase, write: Write, sources: Path
) -> None:
    for path in list(sources.rglob("*.md"))[:4]:
        path.unlink()
    write()
    manifest = kb.release().manifest
    assert [segment.tombstones for segment in manifest.segments] == [()]
    assert sum(segment.passages for segment in manifest.segments) == manifest.chunks
    assert not list(fsck(kb))


def test_a_passage_whose_document_is_gone_keeps_its_text(kb: KnowledgeBase, write: Write) -> None:
    write(copy="# History\n\nThe company was founded in Gothenburg in 1987 by Astrid Lund.\n")
    write(history=None)  # the vector lies in the first segment, the document that shows it in another
    compact(kb, everything=True)
    write(copy=None, again="# History\n\nThe company was founded in Gothenburg in 1987 by Astrid Lund.\n")
    compact(kb, everything=True)
    assert ranking(kb, "Who founded the company?")[0][0] == "again.md"
    assert not list(fsck(kb))
