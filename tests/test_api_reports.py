"""Nightly reports over HTTP."""

from datetime import date
from pathlib import Path

import httpx

from eval.report import write_report
from knowledge_base.home import KnowledgeBase
from rag.answer_log import AnswerLog
from tests.test_api_server import answer_log as answer_log
from tests.test_api_server import client as client
from tests.test_api_server import live as live


def test_a_report_is_listed_and_shown_as_a_page_that_runs_nothing(
    client: httpx.Client, knowledge_base: KnowledgeBase, answer_log: AnswerLog, tmp_path: Path
) -> None:
    assert client.get("/v1/reports").json() == {"reports": [], "next": None}
    assert client.get("/v1/reports/latest").status_code == 404
    for day in (date(2026, 11, 19), date(2026, 11, 20)):
        write_report(knowledge_base, answer_log, tmp_path / "report", day=day)
    page = client.get("/v1/reports", params={"limit": 1}).raise_for_status().json()
    assert ([one["date"] for one in page["reports"]], page["next"]) == (["2026-11-20"], "2026-11-20")
    older = client.get("/v1/reports", params={"after": page["next"]}).json()
    assert ([one["date"] for one in older["reports"]], older["next"]) == (["2026-11-19"], None)
    latest = client.get("/v1/reports/latest").raise_for_status()
    assert latest.json() == client.get("/v1/reports/2026-11-20").json()
    shown = client.get("/v1/reports/2026-11-20/html").raise_for_status()
    assert shown.text == (tmp_path / "report" / "report.html").read_text()
    assert shown.headers["content-security-policy"].startswith("sandbox; default-src 'none'")
    assert client.get("/v1/reports/2026-02-31").status_code == 404
    assert client.get("/v1/reports/yesterday").status_code == 422
    assert client.get("/v1/reports", params={"after": "0.0"}).status_code == 422
