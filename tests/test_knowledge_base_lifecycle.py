"""Promotion, rollback, and what stays on disk and on branches."""

from pathlib import Path

import pytest

from ingestion.pipeline import IngestOptions, ingest
from ingestion.sources import list_sources
from knowledge_base.errors import CheckFailedError, HeadMovedError, NoChangesError, OutdatedError
from knowledge_base.history import list_branches, list_releases
from knowledge_base.home import KnowledgeBase
from knowledge_base.lifecycle import Judgement, promote
from knowledge_base.merging import merge
from knowledge_base.republishing import compact, rollback
from tests.releases import Write, documents, kb, write

NO = Judgement("FAIL", False, {"reasons": ["worse"]})
YES = Judgement("PASS", True)
__all__ = ["kb", "write"]  # fixtures


def test_a_branch_can_be_brought_up_to_date_and_then_promoted(kb: KnowledgeBase, write: Write) -> None:
    write("draft", team="The team sleeps.")
    write("main", team=None, news="The news are good.")
    with pytest.raises(OutdatedError) as raised:
        promote(kb, "draft")
    assert "rag merge main --into draft" in raised.value.hint
    merge(kb, "main", "draft")
    landing = promote(kb, "draft", gate=lambda candidate, live: YES)
    assert (landing.verdict, landing.published) == ("PASS", True)
    assert {"team.md", "news.md"} <= set(documents(kb))


def test_a_branch_that_moved_since_it_was_looked_at_is_not_promoted(kb: KnowledgeBase, write: Write) -> None:
    write("draft", team="The team sleeps.")
    seen, before = kb.repository.resolve("draft"), kb.repository.resolve("main")
    write("draft", team="Nobody has looked at this.")
    with pytest.raises(HeadMovedError):
        promote(kb, "draft", gate=lambda candidate, live: YES, expected=seen)
    assert kb.repository.resolve("main") == before
    promote(kb, "draft", gate=lambda candidate, live: YES, expected=kb.repository.resolve("draft"))
    assert "Nobody" in documents(kb)["team.md"]


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


def test_a_rollback_is_no_way_around_the_gate(kb: KnowledgeBase, write: Write) -> None:
    write(team="One.")
    write("draft", team="Nobody has judged this.")
    step = kb.repository.resolve("draft")
    before = kb.repository.resolve("main")
    with pytest.raises(CheckFailedError, match="never a release of main"):
        rollback(kb, "draft")
    write("draft", team="Two.")
    promote(kb, "draft")
    with pytest.raises(CheckFailedError, match="never a release of main"):
        rollback(kb, step)
    rollback(kb, before)
    rollback(kb, "draft")
    assert documents(kb)["team.md"] == "Two."
    rollback(kb, step, branch="draft")  # no gate stands before other branches


def test_rolling_back_twice_goes_two_releases_back(kb: KnowledgeBase, write: Write) -> None:
    write(team="One.")
    write(team="Two.")
    compact(kb, everything=True)
    rollback(kb)
    assert documents(kb)["team.md"] == "One."
    rollback(kb)
    assert "team.md" not in documents(kb)
    with pytest.raises(NoChangesError):
        rollback(kb)


def test_a_persons_branch_is_never_swept(kb: KnowledgeBase, write: Write) -> None:
    kb.repository.create_branch("work-in-progress", "main")
    write(team="The team sleeps.")
    assert [row["branch"] for row in list_branches(kb.repository)] == ["main", "work-in-progress"]


def test_settings_of_a_release_come_back_to_disk_and_the_old_ones_are_kept(
    kb: KnowledgeBase, write: Write
) -> None:
    settings = kb.root / "plumbline.toml"
    edited = settings.read_text().replace("top_k = 5", "top_k = 9")
    settings.write_text(edited)
    (kb.root / "golden" / "new.jsonl").write_text("")
    assert kb.restore("main") == ["golden/new.jsonl", "plumbline.toml"]
    assert "top_k = 5" in settings.read_text()
    assert (kb.root / "plumbline.toml~").read_text() == edited
    assert not (kb.root / "golden" / "new.jsonl").exists() and not kb.restore("main")
