"""The nightly report on real releases and a real answer log: verdicts, causes, files, history."""

import http.server
import json
import random
import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from eval.attribution import Facts, attribute
from eval.findings import Finding
from eval.monitors_retrieval import overlap
from eval.nights import Nights
from eval.report import Report, judge_family, write_report
from eval.report_files import as_junit, as_prometheus, as_text, post
from ingestion.pipeline import IngestOptions, ingest
from ingestion.sources import list_sources
from knowledge_base.embedders import OnnxEmbedder
from knowledge_base.errors import UnavailableError, UsageError
from knowledge_base.home import KnowledgeBase
from knowledge_base.lifecycle import Judgement
from rag.answer import Answer, ReleaseRef, Unsupported
from rag.answer_log import AnswerLog, Feedback
from rag.engine import Engine

DAY = date(2026, 11, 20)
FILES = {"report.html", "report.json", "report.txt", "junit.xml", "plumbline.prom"}
QUESTIONS = (
    "What is the default port of the server?",
    "Who founded the company?",
    "How are passwords hashed?",
    "When is a refund paid?",
    "How many requests may a key send?",
    "When does the support team answer?",
)
ELSEWHERE = ("How long do I boil an egg?", "Which flour is best for bread?", "Can I freeze cooked rice?")
GOLDEN = [
    {"id": "port", "question": QUESTIONS[0], "document": "install.md", "answer": "8420"},
    {"id": "founder", "question": QUESTIONS[1], "document": "history.md", "quote": "Astrid Lund"},
    {"id": "hash", "question": QUESTIONS[2], "document": "security.md"},
    {"id": "moon", "question": "How far away is the moon?", "unanswerable": True},
]


def passed(candidate: str, live: str) -> Judgement:
    return Judgement("PASS", True)


@pytest.fixture
def golden(knowledge_base: KnowledgeBase, sources: Path) -> KnowledgeBase:
    rows = "\n".join(json.dumps(row) for row in GOLDEN)
    (knowledge_base.root / "golden" / "main.jsonl").write_text(rows)
    ingest(knowledge_base, list_sources([str(sources)]), IngestOptions(), gate=passed)
    return knowledge_base


@pytest.fixture
def log(tmp_path: Path) -> Iterator[AnswerLog]:
    made = AnswerLog(f"sqlite:///{tmp_path / 'answers.sqlite'}")
    yield made
    made.close()


def traffic(
    kb: KnowledgeBase, log: AnswerLog, day: date, number: int = 100, other: float = 0.0, blocked: int = 0
) -> list[Answer]:
    """Log a day of questions, one every twelve minutes: a share about something else, the last blocked."""
    engine, drawn, logged = Engine.open(kb), random.Random(day.isoformat()), []
    answers = {text: engine.ask(text) for text in (*QUESTIONS, *ELSEWHERE)}
    engine.close()
    for place in range(number):
        text = drawn.choice(ELSEWHERE if drawn.random() < other else QUESTIONS)
        asked_at = datetime(day.year, day.month, day.day, tzinfo=UTC) + timedelta(minutes=12 * place)
        answer = answers[text].model_copy(update={"id": f"{day}-{place}", "timings_ms": {"total": 50.0}})
        if place >= number - blocked:
            said = Unsupported(sentence="The moon is made of cheese.", support=0.01, flagged=False)
            without: dict[str, Any] = {"abstained": True, "citations": (), "unsupported": (said,)}
            answer = answer.model_copy(update=without)
        log.append(answer, asked_at)
        logged.append(answer)
    return logged


def lose_answers(kb: KnowledgeBase, sources: Path) -> None:
    """Ingest, past the gate, a release without the documents that the golden questions require."""
    for name in ("install.md", "history.md", "security.md"):
        (sources / name).unlink()
    ingest(kb, list_sources([str(sources)]), IngestOptions(prune=True))


def alarm(report: Report, name: str) -> Finding:
    return next(finding for finding in report.alarms if finding.name == name)


def test_a_quiet_night_is_ok_and_again_the_same_bytes(
    golden: KnowledgeBase, log: AnswerLog, tmp_path: Path
) -> None:
    for days in (2, 1, 0):
        traffic(golden, log, DAY - timedelta(days=days))
    write_report(golden, log, tmp_path / "first", day=DAY - timedelta(days=1))
    report = write_report(golden, log, tmp_path / "out", day=DAY)
    assert (report.verdict, report.exit_code, report.reasons) == ("OK", 0, ())
    assert report.values["questions"] == 100 and report.values["reference_questions"] == 200
    assert report.values["citation_validity"] == report.values["faithfulness"] == 1.0
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert set(before) == FILES
    assert write_report(golden, log, tmp_path / "out", day=DAY) == report
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    page = before["report.html"].decode()
    assert len(page) < 1_000_000 and "http" not in page and "<script" not in page and "<svg" in page
    assert [night["date"] for night in Nights(golden).before(DAY + timedelta(days=1))] == [
        "2026-11-19",
        "2026-11-20",
    ]


def test_questions_about_something_else_page_with_their_own_cause(
    golden: KnowledgeBase, log: AnswerLog, tmp_path: Path
) -> None:
    for days in (2, 1):
        traffic(golden, log, DAY - timedelta(days=days))
    traffic(golden, log, DAY, other=0.6)
    write_report(golden, log, tmp_path, day=DAY - timedelta(days=1))
    report = write_report(golden, log, tmp_path, day=DAY)
    assert report.verdict == "PAGE" and report.causes[0] == "queries"
    assert alarm(report, "queries.mmd").causes[0].part == "queries"
    assert "boil an egg" in (tmp_path / "report.html").read_text()


def test_lost_documents_page_and_are_laid_at_the_corpus(
    golden: KnowledgeBase, sources: Path, log: AnswerLog, tmp_path: Path
) -> None:
    before = golden.repository.resolve("main")
    write_report(golden, log, tmp_path, day=DAY - timedelta(days=1))
    lose_answers(golden, sources)
    report = write_report(golden, log, tmp_path, day=DAY)
    assert (report.verdict, report.previous) == ("PAGE", before)
    assert alarm(report, "corpus.loss").level == "page"
    cause = alarm(report, "retrieval.gate").causes[0]
    assert cause.part == "corpus" and f"rag diff {before[:12]}" in cause.command
    stale = alarm(report, "golden_rows.stale")
    assert stale in report.sections[-1].findings and report.sections[-1].monitor == "housekeeping"
    assert "3 golden question(s) are stale: founder, hash, port" in stale.said
    assert stale.causes[0].part == "corpus"
    told = alarm(report, "changes.gate").said
    assert "NO-GATE" in told and "FAIL" in told and "context_recall fell by" in told


def test_an_accepted_release_is_no_news_any_more(
    golden: KnowledgeBase, sources: Path, log: AnswerLog, tmp_path: Path
) -> None:
    write_report(golden, log, tmp_path, day=DAY - timedelta(days=2))
    lose_answers(golden, sources)
    assert write_report(golden, log, tmp_path, day=DAY - timedelta(days=1)).verdict == "PAGE"
    Nights(golden).accept("main", DAY - timedelta(days=1), "they are meant to be gone")
    report = write_report(golden, log, tmp_path, day=DAY)
    assert (report.verdict, report.reasons) == ("OK", ())
    # The questions about them, which nobody has retired, are still told.
    assert any("3 golden question(s) are stale" in found.said for found in report.sections[-1].findings)


def test_blocked_answers_are_told_from_other_abstentions(
    golden: KnowledgeBase, log: AnswerLog, tmp_path: Path
) -> None:
    for days in (2, 1):
        traffic(golden, log, DAY - timedelta(days=days), other=0.1)
    traffic(golden, log, DAY, other=0.1, blocked=60)
    write_report(golden, log, tmp_path, day=DAY - timedelta(days=1))
    report = write_report(golden, log, tmp_path, day=DAY)
    assert report.values["blocked_rate"] == 0.6 < report.values["abstention_rate"]
    assert alarm(report, "service.blocked").effect == pytest.approx(0.6, abs=0.01)


def test_another_embedder_under_the_same_name_pages(
    golden: KnowledgeBase, log: AnswerLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_report(golden, log, tmp_path, day=DAY - timedelta(days=1))
    run = OnnxEmbedder._run
    monkeypatch.setattr(OnnxEmbedder, "_run", lambda self, rows: run(self, [ids[:-1] for ids in rows]))
    report = write_report(golden, log, tmp_path, day=DAY)
    assert report.verdict == "PAGE"
    assert alarm(report, "embedder.served").causes[0].part == "embedder"


def test_what_was_added_is_listed_and_escaped(
    golden: KnowledgeBase, sources: Path, log: AnswerLog, tmp_path: Path
) -> None:
    write_report(golden, log, tmp_path, day=DAY - timedelta(days=1))
    (sources / "a<b>.md").write_text("A new document about lighthouses and their keepers.")
    ingest(golden, list_sources([str(sources)]), IngestOptions(), gate=passed)
    report = write_report(golden, log, tmp_path, day=DAY)
    assert report.values["added_passages"] == 1
    page = (tmp_path / "report.html").read_text()
    assert "a&lt;b&gt;.md" in page and "<b>.md" not in page


def test_a_report_that_measured_nothing_is_blind(
    knowledge_base: KnowledgeBase, log: AnswerLog, tmp_path: Path
) -> None:
    report = write_report(knowledge_base, log, tmp_path, day=DAY)
    assert (report.verdict, report.exit_code) == ("BLIND", 1)
    assert any("nothing was measured" in reason for reason in report.reasons)


def test_a_monitor_that_cannot_run_is_blind_not_silent(
    golden: KnowledgeBase, log: AnswerLog, tmp_path: Path
) -> None:
    with sqlite3.connect(tmp_path / "answers.sqlite") as database:
        database.execute("drop table answers")
    database.close()
    report = write_report(golden, log, tmp_path / "out", day=DAY)
    assert report.verdict == "BLIND"
    assert {"queries", "answers", "service"} <= {a.monitor for a in report.alarms if a.level == "blind"}


def test_citations_that_do_not_verify_page_and_unknown_releases_are_told(
    golden: KnowledgeBase, log: AnswerLog, tmp_path: Path
) -> None:
    noon = datetime(2026, 11, 20, 12, tzinfo=UTC)
    engine = Engine.open(golden)
    answer = engine.ask(QUESTIONS[0])
    engine.close()
    gone = answer.model_copy(update={"id": "1", "release": ReleaseRef(ref="main", commit="f" * 40)})
    log.append(gone, noon)
    assert alarm(write_report(golden, log, tmp_path, day=DAY), "answers.citations").level == "blind"
    forged = answer.citations[0].model_copy(update={"quote": "<script>alert(1)</script>"})
    log.append(answer.model_copy(update={"citations": (forged,)}), noon)
    report = write_report(golden, log, tmp_path, day=DAY)
    assert alarm(report, "answers.citations").level == "page"
    assert report.values["unknown_release"] == 1
    assert "<script" not in (tmp_path / "report.html").read_text()


def test_a_quote_that_the_log_took_an_address_out_of_still_verifies(
    golden: KnowledgeBase, sources: Path, log: AnswerLog, tmp_path: Path
) -> None:
    (sources / "desk.md").write_text("# Desk\n\nThe help desk reads mail sent to desk.help@example.org.\n")
    ingest(golden, list_sources([str(sources)]), IngestOptions(), gate=passed)
    engine = Engine.open(golden)
    log.append(engine.ask("Where does the help desk read mail?"), datetime(2026, 11, 20, 12, tzinfo=UTC))
    engine.close()
    (kept,) = log.recent(1)
    assert kept.citations and "example.org" not in kept.citations[0].quote
    assert write_report(golden, log, tmp_path, day=DAY).values["citation_validity"] == 1.0


def test_the_reference_moves_only_when_it_is_accepted(golden: KnowledgeBase, sources: Path) -> None:
    nights, first = Nights(golden), golden.repository.resolve("main")
    assert nights.begin(DAY, first).release == first
    (sources / "more.md").write_text("More.")
    ingest(golden, list_sources([str(sources)]), IngestOptions(), gate=passed)
    later = nights.reference(DAY + timedelta(days=9))
    assert later is not None and later.release == first
    with pytest.raises(UsageError):
        nights.accept("main", DAY, " ")
    accepted = nights.accept("main", DAY + timedelta(days=2), "the new documents are in")
    assert accepted.release == golden.repository.resolve("main")
    # Made again, the report of the night on which it was accepted says what it said.
    again, after = nights.reference(DAY + timedelta(days=2)), nights.reference(DAY + timedelta(days=3))
    assert again is not None and again.release == first
    assert after == accepted


def test_readers_against_answers_count_from_when_they_say_so(golden: KnowledgeBase, log: AnswerLog) -> None:
    traffic(golden, log, DAY, number=3)
    log.rate(f"{DAY}-1", Feedback(rating="down"))
    log.rate(f"{DAY}-2", Feedback(rating="up"))
    begin = datetime(2026, 11, 20, tzinfo=UTC)
    assert [one.down for one in log.between(begin, datetime.now(UTC) + timedelta(days=3000))] == [
        False,
        True,
        False,
    ]
    assert not any(one.down for one in log.between(begin, begin + timedelta(days=1))) or (
        datetime.now(UTC) < begin + timedelta(days=1)
    )
    assert log.between(begin, begin) == []


def finding(**given: object) -> Finding:
    return Finding.model_validate({"monitor": "queries", "check": "mmd", "said": "x", **given})


def test_a_test_alarms_only_when_it_is_significant_and_its_effect_is_large_enough() -> None:
    family = [finding(check=f"quiet{n}", p=0.5, effect=1.0) for n in range(9)]

    def level(**given: object) -> str:
        return judge_family([finding(floor=0.55, page_floor=0.6, **given), *family])[0].level

    assert level(p=0.0001, effect=0.7) == "page"
    assert level(p=0.0001, effect=0.58) == "warn"
    assert level(p=0.0001, effect=0.52) == "ok"
    assert level(p=0.004, effect=0.7) == "warn"
    assert level(p=0.04, effect=0.7) == "ok"


def facts(*lately: str, altogether: tuple[str, ...] = (), same: float | None = None) -> Facts:
    return Facts(frozenset(lately), frozenset((*lately, *altogether)), "a" * 40, "b" * 40, "c" * 40, same)


@pytest.mark.parametrize(
    ("name", "known", "cause"),
    [
        ("golden_answers.abstention", facts("prompt", "corpus", same=1.0), "prompt"),
        ("golden_answers.abstention", facts("prompt", "corpus", same=0.2), "corpus"),
        ("retrieval.gate", facts("corpus", "embedder", same=0.1), "embedder"),
        ("retrieval.gate", facts("model", same=1.0), "model"),
        ("answers.faithfulness", facts(altogether=("corpus",)), "corpus"),
        ("service.latency", facts(), "machine"),
        ("answers.faithfulness", facts(), "unknown"),
        ("queries.mmd", facts("corpus"), "queries"),
    ],
)
def test_alarms_get_the_cause_that_can_have_moved_them(name: str, known: Facts, cause: str) -> None:
    monitor, check = name.split(".")
    (found,) = attribute([finding(monitor=monitor, check=check, level="page")], known)
    assert found.causes[0].part == cause and found.causes[0].command


def test_golden_alarms_after_several_releases_name_the_search_for_the_one_that_did_it() -> None:
    several = replace(facts("corpus"), since_last=3)

    def command(monitor: str, check: str, known: Facts) -> str:
        (found,) = attribute([finding(monitor=monitor, check=check, level="page")], known)
        return found.causes[0].command

    last, served = "a" * 12, "c" * 12
    undo = f"rag rollback {last}"
    assert command("retrieval", "gate", several) == f"rag bisect --good {last}; {undo}"
    searched = f"rag bisect --metric context_recall --good {last}; {undo}"
    assert command("retrieval", "context_recall", several) == searched
    assert command("corpus", "loss", several) == f"rag diff {last} {served}; {undo}"
    assert command("retrieval", "gate", facts("corpus")) == f"rag diff {last} {served}; rag rollback"


def test_live_answers_that_fell_while_the_questions_drifted_are_laid_at_the_questions() -> None:
    alarms = [finding(level="page"), finding(monitor="service", check="abstention", level="page")]
    _, abstention = attribute(alarms, facts())
    assert abstention.causes[0].part == "queries"
    _, abstention = attribute(alarms, facts("prompt", same=1.0))
    assert [cause.part for cause in abstention.causes] == ["prompt", "queries"]


def test_rank_biased_overlap_weighs_the_top() -> None:
    assert overlap("abcde", "abcde") == 1.0 and overlap("", "") == 1.0 and overlap("abc", "xyz") == 0.0
    assert overlap("abcde", "abcxy") > overlap("abcde", "xycde") > 0
    assert overlap("ab", "ba", 0.5) == pytest.approx(0.5 * 0.5 * 1 + 0.25 * 1)


@pytest.fixture
def alarming(golden: KnowledgeBase, log: AnswerLog, tmp_path: Path) -> Report:
    report = write_report(golden, log, tmp_path, day=DAY)
    odd = finding(monitor="corpus", check="loss", level="page", said='gone\x00: "a" & <b>')
    sections = (report.sections[0].model_copy(update={"findings": (odd,)}), *report.sections[1:])
    return report.model_copy(update={"sections": sections, "verdict": "PAGE"})


def test_machines_can_read_the_report(alarming: Report) -> None:
    suite = ElementTree.fromstring(as_junit(alarming))
    assert suite.get("failures") == "1" and suite.get("tests") == str(len(alarming.findings))
    assert suite.find("testcase/failure").get("message") == 'gone\ufffd: "a" & <b>'  # type: ignore[union-attr]
    metrics = as_prometheus(alarming).splitlines()
    assert "plumbline_report_status 3" in metrics
    assert 'plumbline_report_alarm{monitor="corpus",check="loss",level="page"} 1' in metrics
    assert all(line.startswith("#") or float(line.rsplit(" ", 1)[1]) is not None for line in metrics)
    assert len(as_text(alarming).splitlines()) <= 10 and "PAGE" in as_text(alarming)


class _Chat(http.server.BaseHTTPRequestHandler):
    got: list[bytes] = []
    status = 200

    def do_POST(self) -> None:
        self.got.append(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(self.status)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_a_webhook_gets_the_ten_lines_and_its_url_stays_secret(alarming: Report) -> None:
    server = http.server.HTTPServer(("127.0.0.1", 0), _Chat)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}/secret"
    try:
        post(alarming, url)
        assert json.loads(_Chat.got[0])["text"] == as_text(alarming)
        _Chat.status = 500
        with pytest.raises(UnavailableError, match="500") as failure:
            post(alarming, url)
        assert "secret" not in str(failure.value)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    with pytest.raises(UsageError):
        post(alarming, "file:///etc/passwd")
