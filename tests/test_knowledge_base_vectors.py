"""Vectors that exist are not computed again."""

import os
import time
from pathlib import Path

import pytest

from ingestion.pipeline import IngestOptions, IngestResult, ingest
from ingestion.sources import list_sources
from knowledge_base.errors import StorageError
from knowledge_base.home import KnowledgeBase
from knowledge_base.retention import Retention, gc
from tests.releases import Write, kb, write

__all__ = ["kb", "write"]  # fixtures


@pytest.fixture
def killed(kb: KnowledgeBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sources of twelve texts; embedding them in batches of four was killed in the third batch."""
    monkeypatch.setattr("ingestion.passages._BATCH", 4)
    folder = tmp_path / "many"
    folder.mkdir()
    (folder / "many.txt").write_text("\n\n".join(f"Entry {n}: " + f"word{n} " * 120 for n in range(12)))
    embedder = kb.embedder(kb.settings().embedder)
    calls = []

    class Failing:
        def __getattr__(self, name: str) -> object:
            return getattr(embedder, name)

        def embed_documents(self, texts: list[str], progress: object = None) -> object:
            calls.append(len(texts))
            if len(calls) == 3:
                raise StorageError("killed")
            return embedder.embed_documents(texts)

    with monkeypatch.context() as patch:
        patch.setattr(kb, "embedder", lambda settings: Failing())
        with pytest.raises(StorageError):
            again(kb, folder)
    return folder


def again(kb: KnowledgeBase, folder: Path) -> IngestResult:
    return ingest(kb, list_sources([str(folder)]), IngestOptions())


def test_a_killed_embedding_run_goes_on_where_it_stopped(kb: KnowledgeBase, killed: Path) -> None:
    result = again(kb, killed)
    assert result.published and (result.reused, result.embedded) == (8, 4)
    assert not (kb.folder / "embedding").exists()


def test_another_ingest_in_between_loses_no_finished_batch(
    kb: KnowledgeBase, killed: Path, write: Write
) -> None:
    assert write(team="The team sleeps.").published
    assert again(kb, killed).reused == 8


def test_gc_takes_a_killed_run_that_nobody_went_on_with_for_a_week(kb: KnowledgeBase, killed: Path) -> None:
    (journal,) = (kb.folder / "embedding").iterdir()
    assert journal.name not in gc(kb, Retention(), dry_run=False).caches and journal.exists()
    os.utime(journal, (0, time.time() - 8 * 86_400))
    report = gc(kb, Retention(), dry_run=False)
    assert journal.name in report.caches and report.cache_bytes > 4000 and not journal.exists()


def test_a_text_that_an_earlier_release_held_is_not_embedded_again(kb: KnowledgeBase, write: Write) -> None:
    write(team="The team sleeps.")
    write(team=None)
    assert len(kb.release().manifest.segments) == 1, "the segment that had it is gone"
    assert write(team="The team sleeps.").embedded == 0


def test_vectors_of_another_embedder_are_not_reused(kb: KnowledgeBase, write: Write) -> None:
    write(team="The team sleeps.")
    write(team=None)
    settings = kb.root / "plumbline.toml"
    settings.write_text(settings.read_text().replace('"int8"', '"fp32"'))
    write(other="Another document.")  # the last release of the old embedder is now one behind
    result = write(team="The team sleeps.")
    assert (result.embedded, result.reused) == (1, 0)
