import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from ingestion.pipeline import IngestOptions, ingest
from ingestion.sources import list_sources
from knowledge_base.errors import DamagedError
from knowledge_base.home import KnowledgeBase
from knowledge_base.integrity import fsck, rebuild
from knowledge_base.segment_tables import TABLES, segment_id
from knowledge_base.snapshot import Snapshot
from rag.engine import Engine


@pytest.fixture(params=["embedded", "server"])
def index(request: pytest.FixtureRequest) -> str | None:
    """Every test here holds for collections in folders and on a server."""
    return str(request.getfixturevalue("chroma_server")) if request.param == "server" else None


QUESTIONS = ("default port of the server", "who founded the company", "requests per minute", "refund")


def ranking(kb: KnowledgeBase) -> list[list[tuple[str, float]]]:
    engine = Engine.open(kb)
    try:
        return [[(c.chunk_id, c.score) for c in engine.search(question, 10)] for question in QUESTIONS]
    finally:
        engine.close()


def cache(kb: KnowledgeBase) -> Path:
    (segment,) = kb.release().manifest.segments
    return kb.cache / segment.id


def test_the_ranking_survives_the_loss_of_every_cache(knowledge_base: KnowledgeBase) -> None:
    before = ranking(knowledge_base)
    shutil.rmtree(knowledge_base.cache)
    assert ranking(knowledge_base) == before


def test_rebuild_gives_the_same_ranking(knowledge_base: KnowledgeBase) -> None:
    before = ranking(knowledge_base)
    assert rebuild(knowledge_base) == knowledge_base.snapshot().chunk_count
    assert ranking(knowledge_base) == before


@pytest.mark.parametrize("damage", ["halve", "zero", "delete", "flip"])
def test_no_damaged_cache_file_changes_a_ranking(knowledge_base: KnowledgeBase, damage: str) -> None:
    before = ranking(knowledge_base)
    names = sorted(
        path.relative_to(knowledge_base.cache) for path in knowledge_base.cache.rglob("*") if path.is_file()
    )
    assert any(name.name == "seal.json" for name in names)
    assert any(name.name == "data_level0.bin" for name in names) == (knowledge_base.index is None)
    for name in names:
        path = knowledge_base.cache / name
        if not path.exists():  # Chroma's folder has a new name after each rebuild
            path = next(knowledge_base.cache.rglob(name.name))
        content = path.read_bytes()
        if damage == "delete":
            path.unlink()
        elif damage == "flip":
            middle = len(content) // 2
            flipped = (
                content[:middle] + bytes([content[middle] ^ 16]) + content[middle + 1 :] if content else b"\1"
            )
            path.write_bytes(flipped)
        else:
            path.write_bytes(content[: len(content) // 2] if damage == "halve" else b"\0" * len(content))
        assert ranking(knowledge_base) == before, name


def test_an_unsealed_leftover_is_rebuilt(knowledge_base: KnowledgeBase) -> None:
    before = ranking(knowledge_base)
    (cache(knowledge_base) / "seal.json").unlink()
    assert ranking(knowledge_base) == before
    assert (cache(knowledge_base) / "seal.json").exists()


def test_a_whole_cache_is_opened_time_and_again_without_rebuilding(knowledge_base: KnowledgeBase) -> None:
    built = cache(knowledge_base).stat().st_ino
    for _ in range(5):
        ranking(knowledge_base)
    assert cache(knowledge_base).stat().st_ino == built
    assert not list(fsck(knowledge_base))


def test_a_segments_id_is_the_hash_of_its_tables(knowledge_base: KnowledgeBase) -> None:
    (ref,) = knowledge_base.release().manifest.segments
    tables = {
        name: knowledge_base.repository.get_object("main", f"index/segments/{ref.id}/{name}")
        for name in TABLES
    }
    assert segment_id(tables) == ref.id
    tables["chunks.parquet"] += b" "
    assert segment_id(tables) != ref.id


def test_chunks_are_spans_of_their_documents(knowledge_base: KnowledgeBase) -> None:
    snapshot = knowledge_base.snapshot()
    chunks = [chunk for passage in range(len(snapshot.live)) for chunk in snapshot.chunks_of(passage)]
    assert len(chunks) == snapshot.chunk_count == len(snapshot.chunk_ids())
    for chunk in chunks:
        assert snapshot.document_text(chunk.path)[chunk.start : chunk.end] == chunk.text
    headings = {chunk.path: chunk.heading for chunk in chunks}
    assert headings["api/limits.md"] == ("Rate limits",)


def test_several_segments_rank_as_one(knowledge_base: KnowledgeBase, sources: Path, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (sources / f"{name}.md").write_text(
            f"# Garage {name}\n\nThe garage {name} opens at noon and closes at dusk.\n"
        )
        ingest(knowledge_base, list_sources([str(sources)]), IngestOptions())
    assert len(knowledge_base.release().manifest.segments) == 4
    whole = KnowledgeBase.create(tmp_path / "whole", knowledge_base.models)
    ingest(whole, list_sources([str(sources)]), IngestOptions())
    assert ranking(whole) == ranking(knowledge_base)


def exact(snapshot: Snapshot, query: NDArray[np.float32]) -> list[int]:
    everything = np.flatnonzero(snapshot.live)
    ranked: list[int] = snapshot.rank(everything, snapshot.dense_scores(query, everything)).tolist()
    return ranked


def test_dead_passages_do_not_crowd_out_live_ones(knowledge_base: KnowledgeBase, sources: Path) -> None:
    # Half of a segment, nearest to the question; with more dead it would be written anew without them.
    dead = [sources / f"dead{number}.md" for number in range(30)]
    for number, path in enumerate(dead):
        path.write_text(f"Invoices number {number} are sent on the first day of each month.")
        (sources / f"live{number}.md").write_text(f"A receipt for order {number} is sent when asked for.")
    ingest(knowledge_base, list_sources([str(sources)]), IngestOptions(prune=True))
    for path in dead:
        path.unlink()
    ingest(knowledge_base, list_sources([str(sources)]), IngestOptions(prune=True))
    snapshot = knowledge_base.snapshot()
    assert np.count_nonzero(~snapshot.live) == len(dead)
    query = knowledge_base.embedder(snapshot.release.settings.embedder).embed_query("When are invoices sent?")
    nearest = snapshot.nearest(query, 5).tolist()
    assert nearest == exact(snapshot, query)[:5]
    assert any(snapshot.chunks_of(passage)[0].path.startswith("live") for passage in nearest)


def test_nearest_agrees_with_exact_search(knowledge_base: KnowledgeBase) -> None:
    snapshot = knowledge_base.snapshot()
    query = knowledge_base.embedder(snapshot.release.settings.embedder).embed_query("founded in Gothenburg")
    assert snapshot.nearest(query, 5).tolist() == exact(snapshot, query)[:5]


def test_damaged_truth_is_refused_and_reported(knowledge_base: KnowledgeBase) -> None:
    objects = knowledge_base.folder / "knowledge.git" / "objects"
    (ref,) = knowledge_base.release().manifest.segments
    blob = knowledge_base.repository.stat_object("main", f"index/segments/{ref.id}/chunks.parquet").checksum
    path = objects / blob[:2] / blob[2:]
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-10])
    fresh = KnowledgeBase.open(knowledge_base.root, knowledge_base.models)
    with pytest.raises(DamagedError):
        fresh.snapshot()
    assert list(fsck(fresh))
