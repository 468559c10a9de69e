"""The evaluator: golden questions, judge, gate, report."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.evaluate import evaluate_release
from eval.gate import bootstrap_interval, judge
from eval.golden import parse_golden
from eval.judge import faithfulness, support
from eval.metrics import Row, Score, Scores
from eval.report import write_report
from ingestion.pipeline import IngestOptions, ingest
from ingestion.sources import list_sources
from knowledge_base.errors import SettingsError
from knowledge_base.home import KnowledgeBase
from rag.answer_log import AnswerLog
from rag.engine import Engine

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
    result = ingest(knowledge_base, list_sources([str(sources)]), IngestOptions())
    assert result.changed == ("golden",)
    return knowledge_base


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "line 2: not JSON"),
        ('{"id": "b"}', "question"),
        ('{"id": "b", "question": "q", "anwser": "x"}', "anwser"),
        ('{"id": "a", "question": "q"}', "occurs twice"),
    ],
)
def test_a_bad_golden_line_is_named(line: str, complaint: str) -> None:
    with pytest.raises(SettingsError, match=complaint):
        parse_golden([("golden/x.jsonl", '{"id": "a", "question": "q"}\n' + line)])


def test_the_judge_supports_what_the_context_says() -> None:
    context = "The default port of the server is 8420. Run the installer with administrator rights."
    assert support("The default port is 8420.", [context]) == 1.0
    assert support("The reactor melts at dawn.", [context]) < 0.5
    assert (
        faithfulness("The default port is 8420. [1] Elephants paint houses on Tuesdays. [2]", [context])
        == 0.5
    )
    assert faithfulness("", [context]) is None


def scores(**values: list[float]) -> Scores:
    length = max(map(len, values.values()))
    rows = [
        Row(str(i), tuple(Score(name, column[i]) for name, column in values.items())) for i in range(length)
    ]
    return Scores("c" * 40, tuple(rows))


def test_the_gate_fails_what_is_credibly_worse() -> None:
    verdict = judge(scores(context_recall=[0.0] * 20), scores(context_recall=[1.0] * 20), golden="")
    assert verdict.status == "FAIL" and "context_recall" in verdict.reasons[0]


def test_the_gate_passes_what_did_not_change() -> None:
    same = scores(context_recall=[1.0, 0.0] * 10, faithfulness=[0.9] * 20)
    assert judge(same, same, golden="").status == "PASS"


def test_the_gate_refuses_an_invalid_citation() -> None:
    assert judge(scores(citation_validity=[1.0, 0.5]), None, golden="").status == "FAIL"


def test_the_gate_is_incomplete_when_questions_could_not_be_scored() -> None:
    rows = (
        Row("a", (Score("faithfulness", None, "judge timed out"),)),
        Row("b", (Score("faithfulness", 1.0),)),
    )
    verdict = judge(Scores("c", rows), None, golden="")
    assert verdict.status == "INCOMPLETE" and "judge timed out" in verdict.reasons[0]
    assert not verdict.publishable


def test_without_golden_questions_the_release_is_unevaluated(knowledge_base: KnowledgeBase) -> None:
    verdict = evaluate_release(knowledge_base, "main")
    assert verdict.status == "UNEVALUATED" and verdict.publishable


@given(st.lists(st.sampled_from([-1.0, -0.5, 0.0, 0.5, 1.0]), min_size=2, max_size=30))
def test_the_interval_holds_the_mean(differences: list[float]) -> None:
    interval = bootstrap_interval(differences)
    assert interval is not None
    assert interval[0] - 1e-6 <= sum(differences) / len(differences) <= interval[1] + 1e-6


def test_a_release_is_scored_on_its_golden_questions(golden: KnowledgeBase) -> None:
    verdict = evaluate_release(golden, "main")
    measured = {metric.name: metric.candidate for metric in verdict.metrics}
    assert verdict.status == "PASS"
    assert (measured["context_recall"], measured["citation_validity"]) == (1.0, 1.0)
    assert measured["abstention"] == 1.0
    assert measured["faithfulness"] == 1.0


def test_losing_a_required_document_shows(golden: KnowledgeBase, sources: Path) -> None:
    for name in ("install.md", "history.md", "security.md"):
        (sources / name).unlink()
    ingest(golden, list_sources([str(sources)]), IngestOptions(branch="worse", prune=True))
    verdict = evaluate_release(golden, "worse", "main")
    assert verdict.status == "FAIL"
    assert any("context_recall" in reason for reason in verdict.reasons)


def test_the_report_says_what_changed_since_the_last(
    golden: KnowledgeBase, sources: Path, tmp_path: Path
) -> None:
    log = AnswerLog(f"sqlite:///{tmp_path / 'answers.sqlite'}")
    log.append(Engine.open(golden).ask("What is the default port of the server?"))
    now = datetime(2026, 11, 21, tzinfo=UTC)
    first = write_report(golden, log, tmp_path / "report", now=now)
    assert (first.verdict, first.exit_code, first.previous) == ("OK", 0, "")
    assert first.answers["faithfulness"] == first.answers["citation_validity"] == 1.0
    (sources / "a<b>.md").write_text("A new document about lighthouses and their keepers.")
    ingest(golden, list_sources([str(sources)]), IngestOptions())
    second = write_report(golden, log, tmp_path / "report", now=now)
    assert second.changes["documents"]["added"] == ["a<b>.md"]
    page = (tmp_path / "report" / "report.html").read_text()
    assert "a&lt;b&gt;.md" in page and "a<b>" not in page and "http" not in page
    assert json.loads((tmp_path / "report" / "report.json").read_text())["schema_version"] == 1
    log.close()
