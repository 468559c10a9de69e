"""The evaluator: golden questions, judge, gate, report."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from eval.evaluate import evaluate_release
from eval.golden import load_golden, parse_golden
from eval.judge import faithfulness
from eval.measure import Measurement
from eval.metrics import Measures, citation_validity
from ingestion.pipeline import IngestOptions, ingest
from ingestion.sources import list_sources
from knowledge_base.errors import DamagedError, MissingExtraError, PlumblineError, SettingsError
from knowledge_base.home import KnowledgeBase
from knowledge_base.lifecycle import Judgement
from rag.answer import Answer
from rag.answer_log import AnswerLog
from rag.engine import Engine
from rag.support import SUPPORT_THRESHOLD, claims, support

GOLDEN = [
    {
        "id": "port",
        "question": "What is the default port of the server?",
        "document": "install.md",
        "answer": "8420",
    },
    {
        "id": "founder",
        "question": "Who founded the company?",
        "document": "history.md",
        "quote": "Astrid Lund",
    },
    {"id": "hash", "question": "How are passwords hashed?", "document": "security.md"},
    {"id": "moon", "question": "How far away is the moon?", "unanswerable": True},
]


@pytest.fixture
def golden(knowledge_base: KnowledgeBase, sources: Path) -> KnowledgeBase:
    rows = "\n".join(json.dumps(row) for row in GOLDEN)
    (knowledge_base.root / "golden" / "main.jsonl").write_text(rows)
    result = ingest(knowledge_base, list_sources([str(sources)]), IngestOptions(), gate=passed)
    assert result.changed == ("golden",)
    return knowledge_base


def passed(candidate: str, live: str) -> Judgement:
    """A gate that lets everything through, so that what it lets through counts as judged."""
    return Judgement("PASS", True)


def lose_answers(knowledge_base: KnowledgeBase, sources: Path, branch: str = "main") -> None:
    """Ingest, past the gate, a release without the documents that the golden questions require."""
    for name in ("install.md", "history.md", "security.md"):
        (sources / name).unlink()
    ingest(knowledge_base, list_sources([str(sources)]), IngestOptions(branch=branch, prune=True))


@pytest.fixture
def log(tmp_path: Path) -> Iterator[AnswerLog]:
    made = AnswerLog(f"sqlite:///{tmp_path / 'answers.sqlite'}")
    yield made
    made.close()


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "line 2: not JSON"),
        ('{"id": "b"}', "question"),
        ('{"id": "b", "question": "q", "anwser": "x"}', "anwser"),
        ('{"id": "a", "question": "q"}', "occurs twice"),
        (
            '{"id": "b", "question": "q", "unanswerable": true, "document": "x.md"}',
            "unanswerable question has",
        ),
    ],
)
def test_a_bad_golden_line_is_named(line: str, complaint: str) -> None:
    with pytest.raises(SettingsError, match=complaint):
        parse_golden([("golden/x.jsonl", '{"id": "a", "question": "q"}\n' + line)])


def test_golden_lines_may_hold_what_other_systems_call_a_line_break() -> None:
    row = json.dumps({"id": "a", "question": "one\u2028two\x85three"}, ensure_ascii=False)
    assert [r.question for r in parse_golden([("x", "\ufeff" + row + "\r\n\r\n")])] == [
        "one\u2028two\x85three"
    ]


def test_the_judge_supports_what_the_context_says() -> None:
    context = "The default port of the server is 8420. Run the installer with administrator rights."
    assert support(["The default port is 8420.", "No."], [context])[0] > SUPPORT_THRESHOLD
    assert support(["The reactor melts at dawn."], [context])[0] < 0.5
    assert (
        faithfulness("The default port is 8420. [1] Elephants paint houses on Tuesdays. [2]", [context])
        == 0.5
    )
    assert faithfulness("", [context]) is None


def test_quotes_without_full_stops_are_claims_of_their_own() -> None:
    answer = "Run the installer [1] Invoices are monthly [2]."
    assert claims(answer) == ["Run the installer", "Invoices are monthly"]
    assert faithfulness(answer, ["Run the installer", "Invoices are monthly"]) == 1.0


def test_the_judge_sees_a_changed_digit() -> None:
    wrong, right = support(["Open port 9", "Open port 8"], ["Open port 8"])
    assert wrong < right == 1.0


def test_without_golden_questions_the_built_in_checks_judge_and_say_so(knowledge_base: KnowledgeBase) -> None:
    verdict = evaluate_release(knowledge_base, "main")
    assert verdict.label == "PASS (no golden set)" and verdict.publishable
    assert "no golden set" in verdict.reasons[0]


def test_a_golden_question_whose_document_is_nowhere_is_stale_and_named(
    knowledge_base: KnowledgeBase, sources: Path
) -> None:
    rows = [GOLDEN[0], {"id": "typo", "question": "Who founded it?", "document": "histroy.md"}]
    (knowledge_base.root / "golden" / "main.jsonl").write_text("\n".join(map(json.dumps, rows)))
    ingest(knowledge_base, list_sources([str(sources)]), IngestOptions())
    verdict = evaluate_release(knowledge_base, "main")
    assert verdict.status == "PASS"
    (named,) = [reason for reason in verdict.reasons if "histroy.md" in reason]
    assert "'typo' is stale" in named
    assert verdict.questions == 1


def test_what_serves_is_compared_with_the_release_before_it(golden: KnowledgeBase, sources: Path) -> None:
    before = golden.repository.resolve("main")
    lose_answers(golden, sources)
    verdict = evaluate_release(golden, "main")
    assert (verdict.status, verdict.baseline) == ("FAIL", before)


def test_first_scores_are_said_to_be_compared_with_nothing(empty_kb: KnowledgeBase, sources: Path) -> None:
    (empty_kb.root / "golden" / "main.jsonl").write_text(json.dumps(GOLDEN[0]))
    ingest(empty_kb, list_sources([str(sources)]), IngestOptions())
    verdict = evaluate_release(empty_kb, "main")
    assert (verdict.status, verdict.baseline) == ("PASS", "")
    assert "nothing to compare with: the first scores of these golden questions" in verdict.reasons


def test_a_release_is_scored_on_its_golden_questions(golden: KnowledgeBase) -> None:
    verdict = evaluate_release(golden, "main")
    measured = {metric.name: metric.candidate for metric in verdict.metrics}
    assert verdict.status == "PASS"
    assert (measured["context_recall"], measured["citation_validity"]) == (1.0, 1.0)
    assert measured["abstention"] == 1.0
    assert measured["faithfulness"] == 1.0


def test_a_question_that_crashes_is_a_failed_row_and_the_others_are_scored(
    golden: KnowledgeBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine.open(golden)
    ask = engine.ask

    def fail_once(question: str, **further: object) -> Answer:
        if "founded" in question:
            raise RuntimeError("out of luck")
        return ask(question)

    monkeypatch.setattr(engine, "ask", fail_once)
    measures = Measures(engine.release.settings.judge, engine.embedder)
    found = Measurement(golden, measures, "", {}).measure(engine, load_golden(golden.repository, "main"))
    assert found.failures == {"founder": "RuntimeError: out of luck"}
    assert set(found.values("context_recall")) == {"port", "hash"}


def test_a_citation_must_stand_in_the_document_at_the_commit_it_names(knowledge_base: KnowledgeBase) -> None:
    engine = Engine.open(knowledge_base)
    answer = engine.ask("What is the default port of the server?")
    text = engine.snapshot.document_text
    assert citation_validity(answer, text) == 1.0
    for wrong in ({"start": 0}, {"path": "gone.md"}, {"commit": "0" * 40}, {"sha256": "0" * 64}):
        citation = answer.citations[0].model_copy(update=wrong)
        assert citation_validity(answer.model_copy(update={"citations": (citation,)}), text) == 0.0


@pytest.mark.parametrize(
    "refusal",
    [
        DamagedError("The vectors come from another embedder."),
        MissingExtraError("Its reader is not installed.", hint="Install it."),
    ],
)
def test_a_release_still_gets_a_verdict_when_main_cannot_be_opened_here(
    golden: KnowledgeBase, monkeypatch: pytest.MonkeyPatch, refusal: PlumblineError
) -> None:
    head = golden.repository.resolve("main")
    candidate = golden.repository.resolve("main~1")
    monkeypatch.setattr("eval.case.load_golden", lambda repository, ref: load_golden(repository, head))
    opened = Engine.open

    def refuse_main(kb: KnowledgeBase, ref: str) -> Engine:
        if ref == head:
            raise refusal
        return opened(kb, ref)

    monkeypatch.setattr(Engine, "open", refuse_main)
    verdict = evaluate_release(golden, candidate, "main")
    assert (verdict.status, verdict.publishable) == ("INCOMPLETE", False)
    assert refusal.message in verdict.reasons[0]


def test_losing_a_required_document_shows(golden: KnowledgeBase, sources: Path) -> None:
    lose_answers(golden, sources, branch="worse")
    verdict = evaluate_release(golden, "worse", "main")
    assert verdict.status == "FAIL"
    assert any("context_recall" in reason for reason in verdict.reasons)
