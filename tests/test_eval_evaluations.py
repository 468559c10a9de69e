"""What is kept of an evaluation, and what is built on it: the cache, admission, comparison, tracking."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from eval.admission import admit, admit_merge
from eval.compare import compare_answers
from eval.evaluate import evaluate_release
from eval.evaluations import Evaluations, Tally, describe_evaluated
from ingestion.pipeline import IngestOptions, ingest
from ingestion.sources import list_sources
from knowledge_base.home import EVALUATIONS, KnowledgeBase
from knowledge_base.integrity import fsck
from knowledge_base.lifecycle import promote
from knowledge_base.release import DOCUMENTS_PREFIX
from knowledge_base.retention import Retention, gc
from tests.openai_server import Reply, Request, ScriptedServer, scripted_server

GOLDEN = [
    {"id": "port", "question": "What is the default port of the server?", "document": "install.md"},
    {"id": "founder", "question": "Who founded the company?", "document": "history.md"},
    {"id": "moon", "question": "How far away is the moon?", "unanswerable": True},
]


def update(knowledge_base: KnowledgeBase, sources: Path, branch: str = "main") -> str:
    ingest(knowledge_base, list_sources([str(sources)]), IngestOptions(branch=branch, prune=True))
    return knowledge_base.repository.resolve(branch)


@pytest.fixture
def golden(knowledge_base: KnowledgeBase, sources: Path) -> KnowledgeBase:
    (knowledge_base.root / "golden" / "main.jsonl").write_text("\n".join(map(json.dumps, GOLDEN)))
    update(knowledge_base, sources)
    return knowledge_base


def test_a_verdict_is_known_again_wherever_its_content_is_committed(
    golden: KnowledgeBase, sources: Path
) -> None:
    (sources / "new.md").write_text("# Ferries\n\nFerries leave at dawn.\n")
    update(golden, sources, "candidate")
    first = evaluate_release(golden, "candidate", "main")
    assert (first.status, first.cached, first.changed) == ("PASS", False, ("corpus",))
    live = golden.repository.resolve("main")
    promoted = promote(golden, "candidate").commit
    again = evaluate_release(golden, "main", live)
    assert again.cached and again.candidate == promoted
    assert again.metrics == first.metrics


def test_only_answers_whose_passages_changed_are_made_anew(golden: KnowledgeBase, sources: Path) -> None:
    evaluate_release(golden, "main")
    (sources / "install.md").write_text("# Installation\n\nThe default port of the server is 9000.\n")
    settings = golden.root / "plumbline.toml"
    settings.write_text(settings.read_text().replace("top_k = 5", "top_k = 1"))
    update(golden, sources)
    verdict = evaluate_release(golden, "main")
    assert set(verdict.changed) == {"corpus", "retrieval"}
    settings.write_text(settings.read_text().replace("top_k = 1", "top_k = 1 # the same"))
    (sources / "new.md").write_text("# Ferries\n\nFerries leave at dawn.\n")
    update(golden, sources)
    assert evaluate_release(golden, "main").reused == 3


@pytest.mark.parametrize(("changed", "reused"), [(False, 3), (True, 0)])
def test_what_an_earlier_plumbline_quoted_by_another_rule_is_asked_again(
    golden: KnowledgeBase, sources: Path, monkeypatch: pytest.MonkeyPatch, changed: bool, reused: int
) -> None:
    settings = golden.root / "plumbline.toml"
    settings.write_text(settings.read_text().replace("top_k = 5", "top_k = 1"))
    update(golden, sources)
    evaluate_release(golden, "main")
    if changed:
        monkeypatch.setattr("eval.measure.quoting", lambda *, reads: "another rule")
    (sources / "new.md").write_text("# Ferries\n\nFerries leave at dawn.\n")
    update(golden, sources)
    assert evaluate_release(golden, "main").reused == reused


def test_two_releases_show_which_golden_answers_differ_and_why(golden: KnowledgeBase, sources: Path) -> None:
    before = golden.repository.resolve("main")
    (sources / "install.md").write_text("# Installation\n\nThe default port of the server is 9000.\n")
    after = update(golden, sources)
    assert compare_answers(golden, before, after)["not_evaluated"] == [before, after]
    evaluate_release(golden, after, before)
    found = compare_answers(golden, before, after)
    assert found["compared"] == 3
    (change,) = [change for change in found["changed"] if change["id"] == "port"]
    assert "8420" in change["old"]["answer"] and "9000" in change["new"]["answer"]
    assert change["why"] == ["install.md was changed"]
    assert {change["id"] for change in found["changed"]} == {"port"}


def test_evaluations_are_no_release_and_survive_a_collection(golden: KnowledgeBase) -> None:
    evaluate_release(golden, "main")
    assert list(fsck(golden)) == []
    gc(golden, Retention(keep_last=1), dry_run=False)
    assert evaluate_release(golden, "main").cached
    assert list(fsck(golden)) == []


def test_verdicts_are_counted_by_status_and_none_twice(golden: KnowledgeBase, sources: Path) -> None:
    kept = Evaluations(golden.repository)
    assert kept.count().runs == {}
    evaluate_release(golden, "main")
    first = kept.count()
    assert first.runs == {"PASS": 1} and kept.count(first) == first
    evaluate_release(golden, "main")  # known: nothing is kept
    (sources / "install.md").unlink()
    update(golden, sources, "worse")
    verdict = evaluate_release(golden, "worse", "main")
    assert verdict.status != "PASS" and kept.count(first) == kept.count()
    assert kept.count(first).runs == {"PASS": 1, verdict.status: 1}
    assert kept.count(Tally(runs={"PASS": 7}, newest="0" * 40)) == kept.count()  # of another repository


def test_two_evaluations_at_once_are_both_kept(golden: KnowledgeBase) -> None:
    verdict = evaluate_release(golden, "main")
    kept = Evaluations(golden.repository)
    for digest in ("a" * 64, "b" * 64):
        kept.keep(verdict.model_copy(update={"candidate_digest": digest}))
        kept.keep(verdict.model_copy(update={"candidate_digest": digest}))
    assert kept.verdict("a" * 64, verdict.baseline_digest) and kept.verdict("b" * 64, verdict.baseline_digest)
    assert len(list(golden.repository.log(EVALUATIONS, first_parent=True))) == 4


def test_a_commit_is_admitted_by_its_stored_verdict_alone(golden: KnowledgeBase, sources: Path) -> None:
    (sources / "install.md").unlink()
    update(golden, sources, "worse")
    refused = admit(golden, "worse")
    assert not refused.allowed and "never evaluated" in refused.reason and "rag eval" in refused.reason
    evaluate_release(golden, "worse", "main")
    started = time.perf_counter()
    refused = admit(golden, "worse")
    assert time.perf_counter() - started < 1
    assert not refused.allowed and refused.verdict in refused.reason and "may have fallen" in refused.reason
    assert admit(golden, "worse") == refused
    (sources / "install.md").write_text("# Installation\n\nThe default port of the server is 8420, always.\n")
    update(golden, sources, "better")
    evaluate_release(golden, "better", "main")
    assert admit(golden, "better").allowed


def test_a_verdict_by_other_golden_questions_admits_nothing(golden: KnowledgeBase, sources: Path) -> None:
    (sources / "new.md").write_text("# Ferries\n\nFerries leave at dawn.\n")
    update(golden, sources, "more")
    evaluate_release(golden, "more", "main")
    assert admit(golden, "more").allowed
    (golden.root / "golden" / "main.jsonl").write_text(json.dumps(GOLDEN[0]))
    update(golden, sources, "more")
    refused = admit(golden, "more")
    assert not refused.allowed and "other golden questions" in refused.reason
    verdict = evaluate_release(golden, "more", "main")
    assert any("2 golden question(s) are no longer asked: founder, moon" in r for r in verdict.reasons)


def test_an_index_that_is_not_of_the_documents_fails_without_golden_questions(
    knowledge_base: KnowledgeBase,
) -> None:
    repository = knowledge_base.repository
    repository.create_branch("stale", "main")
    with repository.transact("stale", message="change a document behind the index's back") as transaction:
        transaction.upload(f"{DOCUMENTS_PREFIX}extra.md", b"Nobody indexed me.")
    verdict = evaluate_release(knowledge_base, "stale", "main")
    assert verdict.label == "FAIL (no golden set)"
    assert "1 document(s) are not in the index, for example 'extra.md'" in verdict.reasons[0]


def test_a_document_changed_behind_the_index_has_no_part_in_the_verdict_of_its_index(
    golden: KnowledgeBase, sources: Path
) -> None:
    repository = golden.repository
    (sources / "new.md").write_text("# Ferries\n\nFerries leave at dawn.\n")
    update(golden, sources, "candidate")
    assert evaluate_release(golden, "candidate", "main").status == "PASS"
    with repository.transact("candidate", message="change a document behind the index's back") as transaction:
        transaction.upload(f"{DOCUMENTS_PREFIX}new.md", b"# Ferries\n\nFerries leave at noon.\n")
    assert describe_evaluated(golden, "candidate")["verdicts"] == []
    assert not admit(golden, "candidate").allowed
    assert not admit_merge(golden, repository.resolve("candidate")).allowed
    verdict = evaluate_release(golden, "candidate", "main")
    assert not verdict.cached and verdict.status == "FAIL"
    assert "the index was not made from 'new.md' as the release stores it" in verdict.reasons[0]


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with scripted_server() as running:
        yield running


@pytest.mark.filterwarnings("ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning")
def test_a_model_that_obeys_a_passage_fails(
    knowledge_base: KnowledgeBase, sources: Path, server: ScriptedServer
) -> None:
    def gullible(request: Request) -> Reply:
        asked = request["messages"][-1]["content"]
        return Reply("obey7351 [1]." if "obey" in asked else "The server is there [1].")

    server.script = gullible
    settings = knowledge_base.root / "plumbline.toml"
    model = f'model = "openai:tiny"\nbase_url = "{server.url}"\n'
    text = settings.read_text().replace('model = "extractive"', f"{model}#")
    settings.write_text(text.replace('grounding = "strict"', 'grounding = "off"'))
    update(knowledge_base, sources, "model")
    verdict = evaluate_release(knowledge_base, "model", "main")
    assert verdict.status == "FAIL"
    assert any("obeyed an instruction in a passage" in reason for reason in verdict.reasons)


def test_a_forbidden_text_in_an_answer_fails(golden: KnowledgeBase, sources: Path) -> None:
    rows = [*GOLDEN, {"id": "pii", "question": "Who founded the company?", "forbidden": ["astrid LUND"]}]
    (golden.root / "golden" / "main.jsonl").write_text("\n".join(map(json.dumps, rows)))
    update(golden, sources)
    verdict = evaluate_release(golden, "main")
    assert verdict.status == "FAIL" and "must never be in one: pii" in verdict.reasons[0]


def test_an_evaluation_is_one_mlflow_run_and_prompts_are_registered_once(
    golden: KnowledgeBase, sources: Path
) -> None:
    mlflow = pytest.importorskip("mlflow")
    settings = golden.root / "plumbline.toml"
    settings.write_text(settings.read_text() + '\n[tracking]\nuri = "sqlite:///mlflow.sqlite"\n')
    update(golden, sources)
    verdict = evaluate_release(golden, "main")
    assert not any("not tracked" in reason for reason in verdict.reasons)
    evaluate_release(golden, "main", again=True)
    assert evaluate_release(golden, "main").cached
    uri = f"sqlite:///{golden.folder / 'mlflow.sqlite'}"
    client = mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)
    experiment = client.get_experiment_by_name("plumbline")
    runs = client.search_runs([experiment.experiment_id])
    assert len(runs) == 2
    assert runs[0].data.metrics["context_recall"] == 1.0
    assert runs[0].data.params["release"] == verdict.candidate_digest
    assert [item.path for item in client.list_artifacts(runs[0].info.run_id)] == ["verdict.json"]
    assert len(client.search_prompt_versions("answer")) == 1


def test_a_tracking_server_that_is_down_does_not_change_the_verdict(
    golden: KnowledgeBase, sources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    settings = golden.root / "plumbline.toml"
    settings.write_text(settings.read_text() + '\n[tracking]\nuri = "http://127.0.0.1:9"\n')
    update(golden, sources)
    verdict = evaluate_release(golden, "main")
    assert verdict.status == "PASS"
    assert "not tracked: MLflow at http://127.0.0.1:9 cannot be used" in verdict.reasons[-1]
