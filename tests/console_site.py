"""A server whose knowledge base has all that the console can show, and documents that try to break out."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from api.hosting import Host, Hosted
from api.server import create_app
from api.serving import Live
from eval.evaluate import evaluate_release
from eval.report import write_report
from ingestion.pipeline import IngestOptions, ingest
from ingestion.sources import list_sources
from knowledge_base.home import KnowledgeBase
from rag.answer_log import AnswerLog
from tests.conftest import DOCUMENTS
from tests.running import running

PAYLOADS = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'\"></textarea><svg onload=alert(1)>",
    "{{ 7 * 7 }}{% for x in y %}",
    "[1](javascript:alert(1)) [1] [99]",
    "</title><iframe srcdoc='<script>alert(1)</script>'>",
)
PATH = "<img src=x onerror=alert(1)>.md"


@dataclass(frozen=True)
class Site:
    """Where the server is, and what it serves."""

    url: str
    knowledge_base: KnowledgeBase
    answer_log: AnswerLog


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Iterator[Site]:
    root = tmp_path_factory.mktemp("console")
    sources = root / "sources"
    texts = {**DOCUMENTS, PATH: f"# {PAYLOADS[0]}\n\nThe wombat says {' '.join(PAYLOADS)} to the badger.\n"}
    for name, text in texts.items():
        (sources / name).parent.mkdir(parents=True, exist_ok=True)
        (sources / name).write_text(text, encoding="utf-8")
    made = KnowledgeBase.create(root / "kb", models)
    rows = [
        {"id": "port", "question": "What is the default port of the server?", "document": "install.md"},
        {"id": "refund", "question": "When is a refund paid?", "document": "billing.md"},
        {"id": "bad", "question": f"What says the wombat? {PAYLOADS[1]}", "document": PATH},
        {"id": "new", "question": f"Who founded it? {PAYLOADS[0]}", "state": "candidate"},
        {"id": "old", "question": "Who gives refunds?", "state": "candidate"},
    ]
    (made.root / "golden" / "hand.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    _release(made, sources, f"First {PAYLOADS[0]}")
    (sources / "install.md").write_text("# Installation\n\nThe default port of the server is 9000.\n")
    _release(made, sources, "Another port")
    made.repository.create_tag("first", _before(made))
    made.repository.create_branch("slim", "main")
    (sources / "billing.md").unlink()
    _release(made, sources, "Without billing", branch="slim")
    evaluate_release(made, "main", "first")
    evaluate_release(made, "slim", "main")
    log = AnswerLog(f"sqlite:///{root / 'answers.sqlite'}")
    write_report(made, log, root / "report", day=datetime.now(UTC).date())
    with running(create_app(Host([Hosted("kb", made, Live(made), log)]))) as url:
        yield Site(url, made, log)
    log.close()


def _release(made: KnowledgeBase, sources: Path, message: str, branch: str = "main") -> None:
    ingest(made, list_sources([str(sources)]), IngestOptions(branch=branch, prune=True, message=message))


def _before(made: KnowledgeBase) -> str:
    return made.repository.get_commit("main").parents[0]


def ended(client: httpx.Client, page: httpx.Response) -> httpx.Response:
    """The page of a job when it is over."""
    assert page.url.path == "/job", page.text
    latest = time.monotonic() + 300
    while "How far is it now?" in page.text:
        assert time.monotonic() < latest, page.text
        time.sleep(0.5)
        page = client.get(page.url)
    return page
