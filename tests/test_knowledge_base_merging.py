"""Merges combine the indexes of two branches, and embed nothing."""

from pathlib import Path

import pytest

from ingestion.pipeline import IngestOptions, ingest
from ingestion.sources import list_sources
from knowledge_base.errors import IncompatibleError, MergeConflictError, NoChangesError, NotFoundError
from knowledge_base.history import list_releases
from knowledge_base.home import KnowledgeBase
from knowledge_base.integrity import fsck
from knowledge_base.merging import merge
from knowledge_base.republishing import rollback
from tests.releases import Write, documents, kb, ranking, write

__all__ = ["kb", "write"]  # fixtures


def test_merging_branches_combines_their_indexes_and_embeds_nothing(
    kb: KnowledgeBase, write: Write, monkeypatch: pytest.MonkeyPatch
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
    kb: KnowledgeBase, write: Write, sources: Path, tmp_path: Path
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
    kb: KnowledgeBase, write: Write, strategy: str
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


def test_branches_of_different_chunkers_do_not_mix(kb: KnowledgeBase, write: Write) -> None:
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


def test_what_is_merged_already_is_said_so(kb: KnowledgeBase, write: Write) -> None:
    write("draft", team="The team sleeps.")
    merge(kb, "draft")
    with pytest.raises(NoChangesError) as again:
        merge(kb, "draft")
    assert "`rag rollback draft` brings it back" in again.value.hint
    with pytest.raises(NoChangesError) as itself:
        merge(kb, "main")
    assert "`rag merge main --into BRANCH`" in itself.value.hint


def test_a_step_inside_a_merge_is_no_release_to_go_back_to(kb: KnowledgeBase, write: Write) -> None:
    write("draft", team="The team sleeps.")
    write("main", news="The news are good.", team=None)
    merge(kb, "draft")
    before = kb.repository.resolve("main")
    with pytest.raises(NotFoundError, match="release"):
        rollback(kb, "main^2~1")
    assert kb.repository.resolve("main") == before
    assert "team.md" in documents(kb) and not list(fsck(kb))
