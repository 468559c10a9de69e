"""What a server says of itself: request ids, headers, log lines, metrics, traces."""

import io
import json
import logging
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import date
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from prometheus_client.parser import text_string_to_metric_families

from api.access import LOCAL
from api.hosting import Host, Hosted
from api.keys import Keys
from api.logs import JsonLines
from api.serve_settings import ServeSettings, read_serve_settings
from api.server import create_app
from api.serving import Live
from api.settings import read_environment
from api.tracing import Tracing
from eval.evaluate import evaluate_release
from eval.report import write_report
from ingestion.pipeline import IngestOptions, ingest
from ingestion.sources import Sources, list_sources
from knowledge_base.errors import SettingsError
from knowledge_base.home import KnowledgeBase
from rag.answer_log import AnswerLog
from tests.openai_server import Reply, Request, ScriptedServer, scripted_server
from tests.running import RAG, running
from tests.test_api_server import PORT_QUESTION
from tests.test_api_server import answer_log as answer_log
from tests.test_rag_chain import number_of

ORIGIN = "https://app.example"


class Collector(ThreadingHTTPServer):
    """An OTLP/HTTP receiver: keeps every span that it is sent."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Receive)
        self.requests: list[ExportTraceServiceRequest] = []

    @property
    def spans(self) -> dict[str, Span]:
        found = [
            span
            for request in self.requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]
        return {span.name: span for span in found}


class _Receive(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        assert (self.path, self.headers["content-type"]) == ("/v1/traces", "application/x-protobuf")
        self.server.requests.append(ExportTraceServiceRequest.FromString(body))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def collecting() -> Iterator[Collector]:
    with Collector() as collector:
        thread = threading.Thread(target=collector.serve_forever)
        thread.start()
        yield collector
        collector.shutdown()
        thread.join()


@pytest.fixture
def model(knowledge_base: KnowledgeBase) -> Iterator[ScriptedServer]:
    """A priced language model behind the knowledge base."""
    with scripted_server() as server:
        text = f'[answer]\nmodel = "openai:tiny"\nbase_url = "{server.url}"\nretries = 0\ninput_price = 2.0\n'
        (knowledge_base.root / "plumbline.toml").write_text(text)
        ingest(knowledge_base, Sources(()), IngestOptions())
        yield server


def port_with_its_source(request: Request) -> Reply:
    return Reply(f"The default port of the server is 8420 [{number_of(request, 'install.md')}].")


@contextmanager
def served(
    knowledge_base: KnowledgeBase, answer_log: AnswerLog, tracing: Tracing | None = None, **settings: Any
) -> Iterator[httpx.Client]:
    host = Host([Hosted("kb", knowledge_base, Live(knowledge_base), answer_log)])
    app = create_app(host, settings=ServeSettings(**settings), tracing=tracing)
    with running(app) as url, httpx.Client(base_url=url, timeout=60) as client:
        yield client


@contextmanager
def log_lines() -> Iterator[list[dict[str, Any]]]:
    """The lines that the server logs while the block runs; filled at its end."""
    written, lines = io.StringIO(), list[dict[str, Any]]()
    handler, logger = logging.StreamHandler(written), logging.getLogger("plumbline")
    handler.setFormatter(JsonLines())
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield lines
    logger.removeHandler(handler)
    logger.setLevel(logging.NOTSET)
    lines.extend(json.loads(line) for line in written.getvalue().splitlines())


def numbers(client: httpx.Client) -> dict[tuple[str, ...], float]:
    """Every sample of /metrics, by its name and the values of its labels in the labels' order."""
    families = text_string_to_metric_families(client.get("/metrics").raise_for_status().text)
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def test_an_answer_is_counted_logged_and_traced(
    knowledge_base: KnowledgeBase,
    answer_log: AnswerLog,
    model: ScriptedServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model.script = port_with_its_source
    caller = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.server_port}")
        tracing = Tracing(wanted=read_environment().tracing)
        with log_lines() as lines, served(knowledge_base, answer_log, tracing) as client:
            sent = {"X-Request-Id": "mine-1", "traceparent": caller}
            answer = client.post("/v1/query", json=PORT_QUESTION, headers=sent).raise_for_status().json()
            client.get("/v1/nowhere/at/all")
            unsampled = client.get("/v1/models", headers={"traceparent": caller[:-1] + "0"})
            found = numbers(client)

    assert unsampled.status_code == 200 and "GET /v1/models" not in collector.spans
    assert found["plumbline_answers_total", "kb", "answered"] == 1
    used, name = answer["usage"], "openai:tiny"
    assert found["plumbline_llm_tokens_total", "input", name] == used["input_tokens"] > 0
    assert found["plumbline_llm_tokens_total", "output", name] == used["output_tokens"] > 0
    assert found["plumbline_llm_cost_total", name] == pytest.approx(answer["cost"]) and answer["cost"] > 0
    assert found["plumbline_llm_time_to_first_text_seconds_count", name] == 1
    assert found["plumbline_retrieval_duration_seconds_count", "kb"] == 1
    assert found["plumbline_http_request_duration_seconds_count", "POST", "/v1/query", "200"] == 1
    assert found["plumbline_http_request_duration_seconds_count", "GET", "unmatched", "404"] == 1
    commit = knowledge_base.repository.resolve("main")
    assert found["plumbline_serving_release_info", commit, "all-MiniLM-L6-v2", "kb"] == 1
    assert found["plumbline_documents", "kb"] == 6

    access = next(line for line in lines if line.get("path") == "/v1/query")
    assert (access["status"], access["release"], access["request_id"]) == (200, commit, "mine-1")
    assert access["ms"] > 0 and access["level"] == "info"
    told = next(line for line in lines if line["message"] == "answer")
    assert (told["answer"], told["cost"], told["request_id"]) == (answer["id"], answer["cost"], "mine-1")
    assert "port" not in json.dumps(lines)

    request, retrieval = collector.spans["POST /v1/query"], collector.spans["retrieval kb"]
    chat = collector.spans["chat tiny"]
    assert (
        request.trace_id.hex() == caller.split("-")[1]
        and request.parent_span_id.hex() == caller.split("-")[2]
    )
    assert {retrieval.parent_span_id, chat.parent_span_id} == {request.span_id}
    assert request.start_time_unix_nano <= retrieval.start_time_unix_nano <= retrieval.end_time_unix_nano
    assert retrieval.end_time_unix_nano <= chat.start_time_unix_nano <= chat.end_time_unix_nano
    about = {attribute.key: attribute.value for attribute in chat.attributes}
    assert about["gen_ai.usage.input_tokens"].int_value == used["input_tokens"]
    assert about["gen_ai.provider.name"].string_value == "openai"
    assert about["gen_ai.response.time_to_first_chunk"].double_value > 0
    resource = {
        a.key: a.value.string_value for a in collector.requests[0].resource_spans[0].resource.attributes
    }
    assert resource["service.name"] == "plumbline"
    assert b"What is the default port" not in b"".join(r.SerializeToString() for r in collector.requests)


def test_the_newest_evaluation_and_report_are_told_without_details_where_documents_are_closed(
    knowledge_base: KnowledgeBase, answer_log: AnswerLog, sources: Path, tmp_path: Path
) -> None:
    with served(knowledge_base, answer_log) as client:
        assert not any(name.startswith(("plumbline_eval", "plumbline_rep")) for name, *_ in numbers(client))
    row = {"id": "port", "question": PORT_QUESTION["question"], "document": "install.md"}
    (knowledge_base.root / "golden" / "main.jsonl").write_text(json.dumps(row))
    ingest(knowledge_base, list_sources([str(sources)]), IngestOptions())
    evaluate_release(knowledge_base, "main")
    report = write_report(knowledge_base, answer_log, tmp_path, day=date(2026, 11, 20))
    with served(knowledge_base, answer_log) as client:
        found = numbers(client)
    assert found["plumbline_evaluation_status", "kb", "PASS"] == 1
    assert found["plumbline_evaluation_status", "kb", "FAIL"] == 0
    assert found["plumbline_gate_runs_total", "kb", "PASS"] == 1
    assert found["plumbline_gate_runs_total", "kb", "FAIL"] == 0
    assert found["plumbline_evaluation_score", "kb", "context_recall"] == 1
    assert time.time() - found["plumbline_evaluation_timestamp_seconds", "kb"] < 600
    assert found["plumbline_report_status", "kb"] == ("OK", "WARN", "BLIND", "PAGE").index(report.verdict)
    assert found["plumbline_report_day_timestamp_seconds", "kb"] == 1_795_132_800
    assert found["plumbline_report_value", "kb", "documents"] == 6
    told = {tuple(labels) for name, *labels in found if name == "plumbline_report_alarm"}
    assert told == {(a.check, "kb", a.level, a.monitor) for a in report.alarms}

    (sources / "secret.md").write_text("---\nallow: [board]\n---\n# Secret\n\nWe are for sale.\n")
    ingest(knowledge_base, list_sources([str(sources)]), IngestOptions())
    with served(knowledge_base, answer_log) as client:
        names = {name for name, *_ in numbers(client)}
    assert {"plumbline_report_status", "plumbline_evaluation_status"} <= names
    assert not names & {"plumbline_report_value", "plumbline_report_alarm", "plumbline_evaluation_score"}


def test_every_response_has_an_id_and_safe_headers_even_an_unexpected_one(
    knowledge_base: KnowledgeBase, answer_log: AnswerLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(knowledge_base, answer_log) as client:
        fine = client.post("/v1/search", json=PORT_QUESTION, headers={"X-Request-Id": "a_B-9"})
        bad = client.post("/v1/search", json={}, headers={b"X-Request-Id": "no\u00e4".encode()})
        monkeypatch.setattr(Live, "engine", lambda *_: 1 / 0)
        broken = client.post("/v1/search", json=PORT_QUESTION)
    assert fine.headers["x-request-id"] == "a_B-9"
    assert re.fullmatch("[0-9a-f]{32}", bad.headers["x-request-id"])
    assert [reply.status_code for reply in (fine, bad, broken)] == [200, 422, 500]
    assert all(reply.json()["request_id"] == reply.headers["x-request-id"] for reply in (bad, broken))
    for reply in (fine, bad, broken):
        assert reply.headers["content-security-policy"].startswith("default-src 'self'; ")
        assert "unsafe" not in reply.headers["content-security-policy"]
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["cache-control"] == "no-store"
        assert "access-control-allow-origin" not in reply.headers


def test_only_pages_of_named_origins_may_read_answers(
    knowledge_base: KnowledgeBase, answer_log: AnswerLog
) -> None:
    with closing(Keys(answer_log.url)) as keys:
        secret, _ = keys.create("page", "reader", by=LOCAL)
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    page = {"Origin": ORIGIN, "Authorization": f"Bearer {secret}"}
    settings: dict[str, Any] = {"cors_origins": [ORIGIN], "requests_per_minute": 1, "log_questions": True}
    with served(knowledge_base, answer_log, **settings) as client:
        before = client.options("/v1/query", headers={"Origin": ORIGIN, **asked})
        # Until a key was found to be one, what it asks counts for the address.
        client.post("/v1/query", json=PORT_QUESTION, headers=page).raise_for_status()
        with log_lines() as lines:
            answer = client.post("/v1/query", json=PORT_QUESTION, headers=page)
        refused = client.post("/v1/query", json=PORT_QUESTION, headers=page)
        other = client.options("/v1/query", headers={"Origin": "https://other.example", **asked})
    assert before.status_code == 200 and other.status_code == 400
    assert [reply.status_code for reply in (answer, refused)] == [200, 429]
    assert all(reply.headers["access-control-allow-origin"] == ORIGIN for reply in (before, answer, refused))
    assert "access-control-allow-origin" not in other.headers
    assert any(line.get("question") == PORT_QUESTION["question"] for line in lines)
    assert secret not in json.dumps(lines)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[serve]\nrequests_per_minute = -1\n", "serve.requests_per_minute"),
        ("[serve]\nrequests = 1\n", "serve.requests"),
        ("[limits]\n", "limits"),
        ("[serve\n", "not TOML"),
        (None, "cannot be read"),
    ],
)
def test_what_is_no_setting_is_refused(tmp_path: Path, text: str | None, reason: str) -> None:
    file = tmp_path / "server.toml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(SettingsError, match=reason):
        read_serve_settings(file)


def test_rag_serve_reads_the_server_file_before_anything_else(tmp_path: Path) -> None:
    (tmp_path / "server.toml").write_text("[serve]\nqueue_seconds = 0\n")
    done = subprocess.run(
        [*RAG, "serve", "--settings", "server.toml"], cwd=tmp_path, capture_output=True, check=False
    )
    assert done.returncode == 2 and b"serve.queue_seconds" in done.stderr
