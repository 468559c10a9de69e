from pathlib import Path

import pytest

from ingestion.pipeline import IngestOptions, IngestResult, ingest
from ingestion.sources import list_sources
from knowledge_base.difference import diff_releases
from knowledge_base.errors import (
    CheckFailedError,
    DamagedError,
    DocumentError,
    HeadMovedError,
    InvalidNameError,
    LockedError,
    SettingsError,
    SourceError,
)
from knowledge_base.home import KnowledgeBase
from knowledge_base.integrity import fsck
from knowledge_base.lifecycle import Gate, Judgement
from knowledge_base.republishing import rollback
from rag.engine import Engine


def run(kb: KnowledgeBase, folder: Path, gate: Gate | None = None, **options: object) -> IngestResult:
    chosen = IngestOptions(**{"prune": True, **options})  # type: ignore[arg-type]
    return ingest(kb, list_sources([str(folder)]), chosen, gate=gate)


def test_first_ingest_publishes_every_document(empty_kb: KnowledgeBase, sources: Path) -> None:
    result = run(empty_kb, sources)
    assert result.published
    assert len(result.documents.added) == 6
    assert result.embedded == result.chunks["total"] == empty_kb.release().manifest.chunks


def test_unchanged_sources_publish_nothing(knowledge_base: KnowledgeBase, sources: Path) -> None:
    before = knowledge_base.repository.resolve("main")
    result = run(knowledge_base, sources)
    assert (result.published, result.unchanged, result.embedded) == (False, 6, 0)
    assert knowledge_base.repository.resolve("main") == before


def test_only_new_texts_are_embedded(knowledge_base: KnowledgeBase, sources: Path) -> None:
    (sources / "new.md").write_text("# Parking\n\nThe car park closes at midnight.\n")
    result = run(knowledge_base, sources)
    assert (result.embedded, len(result.documents.added), result.unchanged) == (1, 1, 6)


def test_a_renamed_document_keeps_its_vectors(knowledge_base: KnowledgeBase, sources: Path) -> None:
    (sources / "team.txt").rename(sources / "support.txt")
    result = run(knowledge_base, sources)
    assert result.documents.renamed == (("team.txt", "support.txt"),)
    assert (result.embedded, result.reused) == (0, 1)
    assert Engine.open(knowledge_base).search("support team weekdays")[0].path == "support.txt"


def test_a_deleted_document_is_no_longer_found(knowledge_base: KnowledgeBase, sources: Path) -> None:
    (sources / "security.md").unlink()
    assert run(knowledge_base, sources).documents.deleted == ("security.md",)
    found = Engine.open(knowledge_base).search("Argon2 passwords", 20)
    assert "security.md" not in {context.path for context in found}


def test_without_prune_nothing_is_deleted(knowledge_base: KnowledgeBase, sources: Path) -> None:
    (sources / "security.md").unlink()
    assert not run(knowledge_base, sources, prune=False).documents.deleted


def test_pruning_reaches_no_further_than_the_prefix(knowledge_base: KnowledgeBase, tmp_path: Path) -> None:
    (tmp_path / "api").mkdir()
    (tmp_path / "api" / "new.md").write_text("# Keys\n\nA key expires after a year.\n")
    for prefix, gone in (("api", ("api/limits.md",)), ("/api/", ()), ("ap", ())):
        found = list_sources([str(tmp_path / "api")], prefix=prefix)
        assert ingest(knowledge_base, found, IngestOptions(prune=True)).documents.deleted == gone


def test_a_stored_document_that_can_no_longer_be_read_is_named(knowledge_base: KnowledgeBase) -> None:
    transaction = knowledge_base.repository.transact("main", message="pushed by somebody")
    with transaction:
        transaction.upload("documents/broken.pdf", b"%PDF-1.4 broken")
    with pytest.raises(DocumentError, match=r"stored document 'broken\.pdf'"):
        ingest(knowledge_base, list_sources([]), IngestOptions(reindex=True))


def test_files_that_decide_no_answer_are_committed_and_called_so(knowledge_base: KnowledgeBase) -> None:
    settings = knowledge_base.root / "plumbline.toml"
    for path, changed in ((settings, "files"), (knowledge_base.root / "golden" / "new.jsonl", "golden")):
        path.write_text((path.read_text() if path.exists() else "") + "# a comment\n" * (path == settings))
        planned = ingest(knowledge_base, list_sources([]), IngestOptions(dry_run=True))
        result = ingest(knowledge_base, list_sources([]), IngestOptions())
        assert result.published and result.changed == planned.changed == (changed,)


def test_equal_documents_are_embedded_once(knowledge_base: KnowledgeBase, sources: Path) -> None:
    (sources / "copy.md").write_bytes((sources / "install.md").read_bytes())
    assert run(knowledge_base, sources).embedded == 0
    best = Engine.open(knowledge_base).search("default port of the server")[0]
    assert (best.path, best.also_in) == ("copy.md", ("install.md",))


def test_an_earlier_release_still_gives_its_answer(knowledge_base: KnowledgeBase, sources: Path) -> None:
    first = knowledge_base.repository.resolve("main")
    text = (sources / "install.md").read_text().replace("8420", "9000")
    (sources / "install.md").write_text(text)
    run(knowledge_base, sources)
    question = "What is the default port of the server?"
    assert "9000" in Engine.open(knowledge_base).ask(question).answer
    assert "8420" in Engine.open(knowledge_base, first).ask(question).answer


def test_unreadable_files_are_reported_and_do_not_enter(empty_kb: KnowledgeBase, sources: Path) -> None:
    (sources / "broken.pdf").write_bytes(b"%PDF-1.7 nothing else")
    (sources / "empty.md").write_bytes(b"")
    result = run(empty_kb, sources)
    assert {path for path, _ in result.failed} == {"broken.pdf", "empty.md"}
    assert empty_kb.snapshot().paths == tuple(sorted(result.documents.added))


def test_strict_publishes_nothing_when_a_file_is_unreadable(empty_kb: KnowledgeBase, sources: Path) -> None:
    (sources / "empty.md").write_bytes(b"")
    before = empty_kb.repository.resolve("main")
    with pytest.raises(CheckFailedError, match="empty.md"):
        run(empty_kb, sources, strict=True)
    assert empty_kb.repository.resolve("main") == before
    assert [branch.id for branch in empty_kb.repository.list_branches()] == ["main"]


def test_a_document_that_turns_unreadable_keeps_its_last_version(
    knowledge_base: KnowledgeBase, sources: Path
) -> None:
    (sources / "install.md").write_bytes(b"")
    result = run(knowledge_base, sources)
    assert result.failed == (("install.md", "empty"),)
    assert "install.md" in knowledge_base.snapshot()


def test_dry_run_changes_nothing(knowledge_base: KnowledgeBase, sources: Path) -> None:
    before = knowledge_base.repository.resolve("main")
    (sources / "new.md").write_text("# Parking\n\nThe car park closes at midnight.\n")
    result = run(knowledge_base, sources, dry_run=True)
    assert (result.documents.added, result.embedded, result.published) == (("new.md",), 1, False)
    assert knowledge_base.repository.resolve("main") == before


def test_a_candidate_that_the_gate_refuses_waits_on_a_branch(
    knowledge_base: KnowledgeBase, sources: Path
) -> None:
    before = knowledge_base.repository.resolve("main")
    (sources / "new.md").write_text("# Parking\n\nThe car park closes at midnight.\n")
    result = run(knowledge_base, sources, gate=lambda candidate, live: Judgement("FAIL", False))
    assert (result.published, knowledge_base.repository.resolve("main")) == (False, before)
    assert "new.md" in knowledge_base.snapshot(result.branch)


def test_another_branch_leaves_main_alone(knowledge_base: KnowledgeBase, sources: Path) -> None:
    before = knowledge_base.repository.resolve("main")
    (sources / "new.md").write_text("# Parking\n\nThe car park closes at midnight.\n")
    run(knowledge_base, sources, branch="trial")
    assert knowledge_base.repository.resolve("main") == before
    assert "new.md" in knowledge_base.snapshot("trial")


def test_a_changed_chunker_splits_the_stored_documents_again_but_embeds_only_new_texts(
    knowledge_base: KnowledgeBase, tmp_path: Path
) -> None:
    settings = knowledge_base.root / "plumbline.toml"
    settings.write_text(settings.read_text().replace("size = 250", "size = 16"))
    (tmp_path / "nothing").mkdir()
    before = knowledge_base.snapshot().hashes()
    result = run(knowledge_base, tmp_path / "nothing", prune=False)
    assert result.changed == ("chunker",) and knowledge_base.snapshot().hashes() == before
    assert result.reused > 0 and result.embedded > 0
    assert len(knowledge_base.release().manifest.segments) == 1


def test_a_changed_embedder_embeds_everything_again_without_the_sources(
    knowledge_base: KnowledgeBase, tmp_path: Path
) -> None:
    settings = knowledge_base.root / "plumbline.toml"
    settings.write_text(settings.read_text().replace('"int8"', '"fp32"'))
    (tmp_path / "nothing").mkdir()
    result = run(knowledge_base, tmp_path / "nothing", prune=False)
    assert (result.changed, result.reused) == (("embedder",), 0)
    assert result.embedded == knowledge_base.snapshot().chunk_count
    assert knowledge_base.release().manifest.embedder["precision"] == "fp32"
    assert len(knowledge_base.release().manifest.segments) == 1
    assert "8420" in Engine.open(knowledge_base).ask("What is the default port of the server?").answer


def test_a_second_writer_is_told_to_wait(knowledge_base: KnowledgeBase, sources: Path) -> None:
    knowledge_base.lock_seconds = 0.1
    with knowledge_base.writing(), pytest.raises(LockedError):
        run(knowledge_base, sources)


def test_rollback_restores_documents_and_settings(knowledge_base: KnowledgeBase, sources: Path) -> None:
    first = knowledge_base.repository.resolve("main")
    (sources / "team.txt").unlink()
    run(knowledge_base, sources)
    rollback(knowledge_base)
    difference = diff_releases(knowledge_base, first, "main")
    assert not difference.documents and difference.chunks["added"] == 0
    assert not list(fsck(knowledge_base))


def test_an_ingest_starts_over_when_somebody_pushed_with_git(
    knowledge_base: KnowledgeBase, sources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (sources / "team.md").write_text("The team sleeps.")
    pushed: list[str] = []

    def gate(candidate: str, live: str) -> Judgement:
        if not pushed:
            transaction = knowledge_base.repository.transact("main", message="pushed by somebody")
            with transaction:
                transaction.upload("golden/x.jsonl", b"")
            pushed.append(live)
        return Judgement("PASS", True)

    assert ingest(knowledge_base, list_sources([str(sources)]), IngestOptions(), gate=gate).published
    assert "team.md" in knowledge_base.snapshot()


def test_a_branch_that_keeps_moving_is_an_error_that_loses_nothing(
    knowledge_base: KnowledgeBase, sources: Path
) -> None:
    (sources / "team.md").write_text("The team sleeps.")

    def gate(candidate: str, live: str) -> Judgement:
        transaction = knowledge_base.repository.transact("main", message="pushed by somebody")
        with transaction:
            transaction.upload("golden/x.jsonl", live.encode())
        return Judgement("PASS", True)

    with pytest.raises(HeadMovedError):
        ingest(knowledge_base, list_sources([str(sources)]), IngestOptions(), gate=gate)
    assert [branch.id for branch in knowledge_base.repository.list_branches()] == ["main"]


def test_what_is_no_branch_cannot_be_ingested_on(knowledge_base: KnowledgeBase, sources: Path) -> None:
    with pytest.raises(InvalidNameError):
        ingest(knowledge_base, list_sources([str(sources)]), IngestOptions(branch="main~0", prune=True))


def test_vectors_of_another_embedder_are_never_searched(
    knowledge_base: KnowledgeBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = knowledge_base.release()
    fingerprint = {**release.manifest.embedder, "weights": "0" * 64}
    other = release.model_copy(
        update={"manifest": release.manifest.model_copy(update={"embedder": fingerprint})}
    )
    monkeypatch.setattr(knowledge_base, "release", lambda ref="main": other)
    with pytest.raises(DamagedError, match="weights"):
        Engine.open(knowledge_base)


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("size = 250", "size = 300", "chunker.size is 300"),
        ("overlap = 0", "overlap = 200", "at most half"),
        ("size = 250", "sizes = 250", "no such key"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    knowledge_base: KnowledgeBase, sources: Path, old: str, new: str, complaint: str
) -> None:
    settings = knowledge_base.root / "plumbline.toml"
    settings.write_text(settings.read_text().replace(old, new))
    with pytest.raises(SettingsError, match=complaint):
        ingest(knowledge_base, list_sources([str(sources)]), IngestOptions())


def test_pruning_by_an_empty_folder_needs_to_be_meant(knowledge_base: KnowledgeBase, tmp_path: Path) -> None:
    (tmp_path / "unmounted").mkdir()
    sources = list_sources([str(tmp_path / "unmounted")])
    with pytest.raises(SourceError, match="--prune would delete every document"):
        ingest(knowledge_base, sources, IngestOptions(prune=True))
    assert ingest(knowledge_base, sources, IngestOptions(prune=True, allow_empty=True)).chunks["total"] == 0
