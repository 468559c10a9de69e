"""Branches, merges, promotion, rollback, compaction, retention, and vectors that are not computed twice."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ingestion.pipeline import IngestOptions, IngestResult, ingest
from ingestion.sources import list_sources
from knowledge_base.documents import sha256_hex
from knowledge_base.errors import (
    CheckFailedError,
    DamagedError,
    ExpiredError,
    HeadMovedError,
    IncompatibleError,
    InvalidNameError,
    MergeConflictError,
    NoChangesError,
    OutdatedError,
    SettingsError,
    SourceError,
    StorageError,
)
from knowledge_base.history import list_branches, list_releases
from knowledge_base.home import KnowledgeBase
from knowledge_base.index import MERGE_FACTOR
from knowledge_base.integrity import fsck
from knowledge_base.lifecycle import Judgement, compact, promote, rollback
from knowledge_base.merging import merge
from knowledge_base.retention import Retention, gc
from knowledge_base.vectors import Journal
from rag.engine import Engine

NO = Judgement("FAIL", False, {"reasons": ["worse"]})
YES = Judgement("PASS", True)


@pytest.fixture
def kb(knowledge_base: KnowledgeBase) -> KnowledgeBase:
    return knowledge_base


@pytest.fixture
def write(kb: KnowledgeBase, sources: Path) -> Callable[..., IngestResult]:
    """Edit the sources (None deletes a file), then ingest them on a branch."""

    def run(branch: str = "main", **files: str | None) -> IngestResult:
        for name, text in files.items():
            path = sources / f"{name}.md"
            path.unlink() if text is None else path.write_text(text)
        options = IngestOptions(branch=branch, prune=True)
        return ingest(kb, list_sources([str(sources)]), options)

    return run


def documents(kb: KnowledgeBase, ref: str = "main") -> dict[str, str]:
    snapshot = kb.snapshot(ref)
    return {path: snapshot.document_text(path) for path in snapshot.paths}


def ranking(kb: KnowledgeBase, question: str, ref: str = "main") -> list[tuple[str, float]]:
    engine = Engine.open(kb, ref)
    found = [(result.path, result.score) for result in engine.search(question, 20)]
    engine.close()
    return found


# -- branches and merges -----------------------------------------------------------------------


def test_ingesting_on_a_branch_leaves_main_alone(
    kb: KnowledgeBase, write: Callable[..., IngestResult]
) -> None:
    before = kb.repository.resolve("main")
    write("draft", team="The team sleeps.")
    assert kb.repository.resolve("main") == before
    assert "team.md" in documents(kb, "draft") and "team.md" not in documents(kb)


def test_merging_branches_combines_their_indexes_and_embeds_nothing(
    kb: KnowledgeBase, write: Callable[..., IngestResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    kb.repository.create_branch("one", "main")
    kb.repository.create_branch("two", "main")
    write("one", alpha="The alpha garage opens at noon.")
    write("two", alpha=None, beta="The beta garage opens at dawn.", billing=None)
    monkeypatch.setattr(kb, "embedder", None)  # whoever asks for one fails
    merge(kb, "one")
    landing = merge(kb, "two")
    monkeypatch.undo()
    assert landing.documents.added == ("beta.md",) and landing.documents.deleted == ("billing.md",)
    assert {"alpha.md", "beta.md"} <= set(documents(kb)) and "billing.md" not in documents(kb)
    assert {path for path, _ in ranking(kb, "When does the garage open?")[:2]} == {"alpha.md", "beta.md"}
    assert not list(fsck(kb))
    entry = list_releases(kb.repository, "main", 1)[0]
    assert len(entry["parents"]) == 2 and entry["documents_changed"]["added"] == 1


def test_a_merged_index_ranks_as_one_that_was_built_at_once(
    kb: KnowledgeBase, write: Callable[..., IngestResult], sources: Path, tmp_path: Path
) -> None:
    kb.repository.create_branch("one", "main")
    write("main", billing="# Billing\n\nInvoices are sent weekly.", twin="The twin text stands twice.")
    write(
        "one",
        billing=(sources / "billing.md").read_text(),
        twin="The twin text stands twice.",
        only="One more.",
    )
    merge(kb, "one")
    whole = KnowledgeBase.create(tmp_path / "whole", kb.models)
    ingest(whole, list_sources([str(sources)]), IngestOptions())
    assert documents(whole) == documents(kb)
    for question in ("When are invoices sent?", "twin text", "default port"):
        assert ranking(kb, question) == ranking(whole, question)


@pytest.mark.parametrize("strategy", ["source-wins", "dest-wins"])
def test_a_conflict_names_the_documents_and_a_strategy_decides(
    kb: KnowledgeBase, write: Callable[..., IngestResult], strategy: str
) -> None:
    kb.repository.create_branch("draft", "main")
    write("draft", billing="Invoices are sent weekly.", extra="Something else.")
    write("main", billing="Invoices are sent daily.", extra=None)
    before = kb.repository.resolve("main")
    with pytest.raises(MergeConflictError) as raised:
        merge(kb, "draft")
    assert raised.value.paths == ["documents/billing.md"] and "--source-wins" in raised.value.hint
    assert kb.repository.resolve("main") == before
    merge(kb, "draft", strategy=strategy)  # type: ignore[arg-type]
    assert ("weekly" in documents(kb)["billing.md"]) == (strategy == "source-wins")
    assert "extra.md" in documents(kb)
    assert not list(fsck(kb))


def test_branches_of_different_chunkers_do_not_mix(
    kb: KnowledgeBase, write: Callable[..., IngestResult]
) -> None:
    settings = kb.root / "plumbline.toml"
    original = settings.read_text()
    settings.write_text(original.replace("size = 250", "size = 64"))
    write("small")
    settings.write_text(original)
    write("main", team="The team sleeps.")
    with pytest.raises(IncompatibleError):
        merge(kb, "small")
    settings.write_text(original.replace("size = 250", "size = 64"))
    write("main")  # both sides are of one kind now
    write("small", team=None, small="A small document.")
    merge(kb, "small", strategy="dest-wins")
    assert {"team.md", "small.md"} <= set(documents(kb)) and not list(fsck(kb))


def test_what_is_merged_already_is_said_so(kb: KnowledgeBase, write: Callable[..., IngestResult]) -> None:
    write("draft", team="The team sleeps.")
    merge(kb, "draft")
    with pytest.raises(NoChangesError):
        merge(kb, "draft")


def test_a_branch_can_be_brought_up_to_date_and_then_promoted(
    kb: KnowledgeBase, write: Callable[..., IngestResult]
) -> None:
    write("draft", team="The team sleeps.")
    write("main", team=None, news="The news are good.")
    with pytest.raises(OutdatedError) as raised:
        promote(kb, "draft")
    assert "rag merge main --into draft" in raised.value.hint
    merge(kb, "main", "draft")
    landing = promote(kb, "draft", gate=lambda candidate, live: YES)
    assert (landing.verdict, landing.published) == ("PASS", True)
    assert {"team.md", "news.md"} <= set(documents(kb))


def test_a_candidate_that_the_gate_refused_waits_and_can_be_promoted(
    kb: KnowledgeBase, sources: Path
) -> None:
    (sources / "team.md").write_text("The team sleeps.")
    before = kb.repository.resolve("main")
    refused = [
        ingest(kb, list_sources([str(sources)]), IngestOptions(), gate=lambda candidate, live: NO)
        for _ in range(2)
    ]
    assert refused[0].branch == refused[1].branch, "the same candidate every night is one branch"
    assert kb.repository.resolve("main") == before and refused[1].embedded == 0
    with pytest.raises(CheckFailedError):
        promote(kb, refused[0].branch, gate=lambda candidate, live: NO)
    promote(kb, refused[0].branch)
    assert "team.md" in documents(kb)
    assert list_releases(kb.repository, "main", 1)[0]["verdict"] == "NO-GATE"
    assert [branch.id for branch in kb.repository.list_branches()] == ["main"]


def test_rolling_back_twice_goes_two_releases_back(
    kb: KnowledgeBase, write: Callable[..., IngestResult]
) -> None:
    write(team="One.")
    write(team="Two.")
    compact(kb, everything=True)
    rollback(kb)
    assert documents(kb)["team.md"] == "One."
    rollback(kb)
    assert "team.md" not in documents(kb)
    with pytest.raises(NoChangesError):
        rollback(kb)


def test_an_ingest_starts_over_when_somebody_pushed_with_git(
    kb: KnowledgeBase, sources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (sources / "team.md").write_text("The team sleeps.")
    pushed: list[str] = []

    def gate(candidate: str, live: str) -> Judgement:
        if not pushed:
            transaction = kb.repository.transact("main", message="pushed by somebody")
            with transaction:
                transaction.upload("golden/x.jsonl", b"")
            pushed.append(live)
        return YES

    assert ingest(kb, list_sources([str(sources)]), IngestOptions(), gate=gate).published
    assert "team.md" in documents(kb)


def test_a_branch_that_keeps_moving_is_an_error_that_loses_nothing(kb: KnowledgeBase, sources: Path) -> None:
    (sources / "team.md").write_text("The team sleeps.")

    def gate(candidate: str, live: str) -> Judgement:
        transaction = kb.repository.transact("main", message="pushed by somebody")
        with transaction:
            transaction.upload("golden/x.jsonl", live.encode())
        return YES

    with pytest.raises(HeadMovedError):
        ingest(kb, list_sources([str(sources)]), IngestOptions(), gate=gate)
    assert [branch.id for branch in kb.repository.list_branches()] == ["main"]


def test_a_persons_branch_is_never_swept(kb: KnowledgeBase, write: Callable[..., IngestResult]) -> None:
    kb.repository.create_branch("work-in-progress", "main")
    write(team="The team sleeps.")
    assert [row["branch"] for row in list_branches(kb.repository)] == ["main", "work-in-progress"]


def test_what_is_no_branch_cannot_be_ingested_on(kb: KnowledgeBase, sources: Path) -> None:
    with pytest.raises(InvalidNameError):
        ingest(kb, list_sources([str(sources)]), IngestOptions(branch="main~0", prune=True))


# -- changing chunker and embedder -------------------------------------------------------------


def test_a_new_chunker_splits_the_stored_documents_again(kb: KnowledgeBase, tmp_path: Path) -> None:
    settings = kb.root / "plumbline.toml"
    settings.write_text(settings.read_text().replace("size = 250", "size = 16"))
    (tmp_path / "elsewhere").mkdir()
    before = documents(kb)
    result = ingest(kb, list_sources([str(tmp_path / "elsewhere")]), IngestOptions())
    assert result.changed == ("chunker",) and result.chunks["added"] > 0
    assert documents(kb) == before and len(kb.release().manifest.segments) == 1


def test_a_same_dimension_swap_embeds_everything_anew(kb: KnowledgeBase, tmp_path: Path) -> None:
    settings = kb.root / "plumbline.toml"
    settings.write_text(settings.read_text().replace('"int8"', '"fp32"'))
    (tmp_path / "elsewhere").mkdir()
    result = ingest(kb, list_sources([str(tmp_path / "elsewhere")]), IngestOptions())
    assert result.changed == ("embedder",) and (result.reused, result.embedded) == (0, result.chunks["total"])
    manifest = kb.release().manifest
    assert manifest.embedder["precision"] == "fp32" and len(manifest.segments) == 1


def test_vectors_of_another_embedder_are_never_searched(
    kb: KnowledgeBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = kb.release()
    fingerprint = {**release.manifest.embedder, "weights": "0" * 64}
    other = release.model_copy(
        update={"manifest": release.manifest.model_copy(update={"embedder": fingerprint})}
    )
    monkeypatch.setattr(kb, "release", lambda ref="main": other)
    with pytest.raises(DamagedError, match="weights"):
        Engine.open(kb)


def test_a_killed_embedding_run_goes_on_where_it_stopped(
    kb: KnowledgeBase, sources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingestion.passages._BATCH", 4)
    (sources / "many.txt").write_text("\n\n".join(f"Entry {n}: " + f"word{n} " * 120 for n in range(12)))
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
            ingest(kb, list_sources([str(sources)]), IngestOptions())
    result = ingest(kb, list_sources([str(sources)]), IngestOptions())
    assert result.published and result.reused == 8
    assert not Journal(kb, embedder.fingerprint).load([sha256_hex(b"x")])
    assert not (kb.folder / "embedding").exists()


def test_a_text_that_an_earlier_release_held_is_not_embedded_again(
    kb: KnowledgeBase, write: Callable[..., IngestResult]
) -> None:
    write(team="The team sleeps.")
    write(team=None)
    assert len(kb.release().manifest.segments) == 1, "the segment that had it is gone"
    assert write(team="The team sleeps.").embedded == 0


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("size = 250", "size = 300", "chunker.size is 300"),
        ("overlap = 0", "overlap = 200", "at most half"),
        ("size = 250", "sizes = 250", "no such key"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    kb: KnowledgeBase, sources: Path, old: str, new: str, complaint: str
) -> None:
    settings = kb.root / "plumbline.toml"
    settings.write_text(settings.read_text().replace(old, new))
    with pytest.raises(SettingsError, match=complaint):
        ingest(kb, list_sources([str(sources)]), IngestOptions())


def test_pruning_by_an_empty_folder_needs_to_be_meant(kb: KnowledgeBase, tmp_path: Path) -> None:
    (tmp_path / "unmounted").mkdir()
    sources = list_sources([str(tmp_path / "unmounted")])
    with pytest.raises(SourceError, match="--prune would delete every document"):
        ingest(kb, sources, IngestOptions(prune=True))
    assert ingest(kb, sources, IngestOptions(prune=True, allow_empty=True)).chunks["total"] == 0


def test_settings_of_a_release_come_back_to_disk_and_the_old_ones_are_kept(
    kb: KnowledgeBase, write: Callable[..., IngestResult]
) -> None:
    settings = kb.root / "plumbline.toml"
    edited = settings.read_text().replace("top_k = 5", "top_k = 9")
    settings.write_text(edited)
    (kb.root / "golden" / "new.jsonl").write_text("")
    assert kb.restore("main") == ["golden/new.jsonl", "plumbline.toml"]
    assert "top_k = 5" in settings.read_text()
    assert (kb.root / "plumbline.toml~").read_text() == edited
    assert not (kb.root / "golden" / "new.jsonl").exists() and not kb.restore("main")


# -- compaction and retention ------------------------------------------------------------------


def test_a_release_never_has_many_segments_and_compaction_changes_no_ranking(
    kb: KnowledgeBase, write: Callable[..., IngestResult], sources: Path, tmp_path: Path
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
    kb: KnowledgeBase, write: Callable[..., IngestResult], sources: Path
) -> None:
    for path in list(sources.rglob("*.md"))[:4]:
        path.unlink()
    write()
    manifest = kb.release().manifest
    assert [segment.tombstones for segment in manifest.segments] == [()]
    assert sum(segment.passages for segment in manifest.segments) == manifest.chunks
    assert not list(fsck(kb))


def test_a_passage_whose_document_is_gone_keeps_its_text(
    kb: KnowledgeBase, write: Callable[..., IngestResult]
) -> None:
    write(copy="# History\n\nThe company was founded in Gothenburg in 1987 by Astrid Lund.\n")
    write(history=None)  # the vector lies in the first segment, the document that shows it in another
    compact(kb, everything=True)
    write(copy=None, again="# History\n\nThe company was founded in Gothenburg in 1987 by Astrid Lund.\n")
    compact(kb, everything=True)
    assert ranking(kb, "Who founded the company?")[0][0] == "again.md"
    assert not list(fsck(kb))


def test_gc_without_rules_keeps_every_release(kb: KnowledgeBase, write: Callable[..., IngestResult]) -> None:
    write(team="One.")
    write("draft", team="A draft nobody wants.")
    write("main", team="Two.")
    kb.repository.delete_branch("draft")
    texts = {commit.id: documents(kb, commit.id) for commit in kb.repository.log("main", first_parent=True)}
    plan = gc(kb, Retention())
    assert plan.dry_run and plan.object_bytes > 0 and not plan.expired
    done = gc(kb, Retention(), dry_run=False)
    assert done.object_bytes == plan.object_bytes and done.cache_bytes == plan.cache_bytes
    assert {commit: documents(kb, commit) for commit in texts} == texts
    assert not list(fsck(kb)) and gc(kb, Retention()).bytes == 0


def test_expired_releases_stay_in_the_log_and_say_that_they_are_gone(
    kb: KnowledgeBase, write: Callable[..., IngestResult]
) -> None:
    write(team="One.")
    kb.repository.create_tag("kept", "main")
    write(team="Two.")
    expired = kb.repository.resolve("main")
    write(team="Three.")
    write(team="Four.")
    report = gc(kb, Retention(keep_last=2), dry_run=False)
    assert expired in report.expired and report.bytes > 0
    assert documents(kb)["team.md"] == "Four." and documents(kb, "main~1")["team.md"] == "Three."
    assert documents(kb, "kept")["team.md"] == "One."
    for read in (lambda: documents(kb, expired), lambda: rollback(kb, expired)):
        with pytest.raises(ExpiredError):
            read()
    assert expired in [commit.id for commit in kb.repository.log("main")]
    assert not list(fsck(kb))
    assert write(team="Two.").published, "its bytes are new again"
    assert documents(kb)["team.md"] == "Two." and not list(fsck(kb))


def test_retention_by_days_keeps_what_is_young(kb: KnowledgeBase, write: Callable[..., IngestResult]) -> None:
    write(team="One.")
    assert not gc(kb, Retention(keep_days=1)).expired
    time.sleep(1.1)  # commits are dated in whole seconds
    assert gc(kb, Retention(keep_days=0)).expired


def test_caches_that_nothing_serves_go_and_come_back_when_asked(
    kb: KnowledgeBase, write: Callable[..., IngestResult]
) -> None:
    for number in range(3):
        write(team=f"Number {number}.")
        compact(kb, everything=True)
    old = kb.repository.resolve("main~4")
    before = ranking(kb, "number", old)
    report = gc(kb, Retention(), dry_run=False)
    assert report.caches and report.cache_bytes > 0
    assert ranking(kb, "number", old) == before
