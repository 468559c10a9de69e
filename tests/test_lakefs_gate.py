"""The gate on lakeFS: the action file asks before main moves, and what got past it is not served."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from api.cli_common import gate_of
from api.hosting import Host, Hosted
from api.server import create_app
from api.serving import Live
from ingestion.pipeline import IngestOptions, ingest
from ingestion.sources import list_sources
from knowledge_base.errors import CheckFailedError, HookFailedError, UsageError
from knowledge_base.home import KnowledgeBase
from knowledge_base.lifecycle import override_gate, promote
from knowledge_base.republishing import compact, rollback
from knowledge_base.version_store_lakefs_actions import GATE_ROUTE, gate_action, install_gate
from knowledge_base.version_store_lakefs_repository import LakeFSRepository
from rag.answer_log import AnswerLog
from tests.lakefs_server import LakeFSServer
from tests.running import running


class Gate:
    """A web server in the gate's place: what it was asked, and what it says."""

    def __init__(self) -> None:
        self.status, self.asked = 200, list[tuple[str, str, dict[str, Any]]]()
        gate = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                gate.asked.append((self.path, self.headers["authorization"], body))
                self.send_response(gate.status)
                self.end_headers()
                self.wfile.write(b"faithfulness fell from 0.9 to 0.4")

            def log_message(self, format: str, *args: Any) -> None:
                """Quiet."""

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"


@pytest.fixture
def gate() -> Iterator[Gate]:
    made = Gate()
    thread = threading.Thread(target=made.http.serve_forever, args=(0.05,))
    thread.start()
    yield made
    made.http.shutdown()
    made.http.server_close()
    thread.join()


@pytest.fixture
def remote(lakefs_server: LakeFSServer, tmp_path: Path, models: Path) -> KnowledgeBase:
    lakefs_server.actions.environment["LAKEFSACTION_PLUMBLINE_TOKEN"] = "secret"
    return KnowledgeBase.create_remote(
        tmp_path / "kb", "lakefs://knowledge", models, objects=tmp_path / "objects"
    )


def repository_of(kb: KnowledgeBase) -> LakeFSRepository:
    assert isinstance(kb.repository, LakeFSRepository)
    return kb.repository


def test_the_action_file_is_one_that_lakefs_takes() -> None:
    action = yaml.safe_load(gate_action("http://plumbline:8000/", "main"))
    events = action.get("on", action.get(True))  # YAML 1.1 takes a bare `on` for true
    assert events == {"pre-merge": {"branches": ["main"]}, "pre-create-tag": None}
    (hook,) = action["hooks"]
    assert hook["properties"]["url"] == f"http://plumbline:8000{GATE_ROUTE}"
    assert hook["properties"]["headers"] == {"Authorization": "Bearer {{ ENV.LAKEFSACTION_PLUMBLINE_TOKEN }}"}
    for wrong in ("plumbline", "ftp://x", 'http://x"\nhooks: []'):
        with pytest.raises(UsageError):
            gate_action(wrong, "main")


def test_the_gate_is_asked_and_its_report_is_shown(remote: KnowledgeBase, gate: Gate, sources: Path) -> None:
    repository = repository_of(remote)
    assert install_gate(repository, gate.url, {"verdict": "UNEVALUATED"}) is not None
    assert install_gate(repository, gate.url, {"verdict": "UNEVALUATED"}) is None
    assert gate.asked == [], "nobody is there yet to be asked about the file itself"
    gate.status = 422
    head = repository.resolve("main")
    with pytest.raises(HookFailedError, match="faithfulness fell"):
        ingest(remote, list_sources([str(sources)]), IngestOptions())
    assert repository.resolve("main") == head
    path, token, body = gate.asked[0]
    assert (path, token, body["event_type"]) == (GATE_ROUTE, "Bearer secret", "pre-merge")
    assert (body["branch_id"], body["repository_id"]) == ("main", "knowledge")
    gate.status = 200
    assert ingest(remote, list_sources([str(sources)]), IngestOptions()).published
    gate.status = 422
    with pytest.raises(HookFailedError):
        repository.create_tag("v1", "main")
    assert repository.list_tags() == []
    assert [item.path for item in repository.list_objects("main") if "lakefs" in item.path] == []


def test_what_got_past_the_gate_is_not_served(
    remote: KnowledgeBase, lakefs_server: LakeFSServer, sources: Path
) -> None:
    ingest(remote, list_sources([str(sources)]), IngestOptions())
    live = Live(remote)
    served = live.engine().release_ref.commit
    held = lakefs_server.store.get("knowledge")
    held.create_branch("sneaky", "main", False)
    held.upload("sneaky", "documents/x.md", b"x", "text/plain", {})
    held.commit("sneaky", "x", {}, None, False)
    held.merge("sneaky", "main", {})
    live.follow()
    assert live.engine().release_ref.commit == served
    assert "past the gate" in live.problem
    with pytest.raises(CheckFailedError, match="past the gate"):
        Live(remote)
    sneaked = remote.repository.resolve("main")
    rollback(remote)
    live.follow()
    assert live.engine().release_ref.commit == remote.repository.resolve("main")
    assert live.problem == ""
    with pytest.raises(CheckFailedError, match="past the gate"):
        rollback(remote, sneaked)


def test_what_is_made_of_content_that_got_past_the_gate_is_not_served(
    remote: KnowledgeBase, lakefs_server: LakeFSServer, sources: Path
) -> None:
    for number in range(2):
        (sources / "new.md").write_text(f"# Ferries\n\nFerry {number} leaves at dawn.\n")
        ingest(remote, list_sources([str(sources)]), IngestOptions(branch="sneaky"))
    held = lakefs_server.store.get("knowledge")
    held.merge("sneaky", "main", {})
    compact(remote, everything=True)
    head = remote.repository.get_commit("main")
    assert head.metadata["changed"] == "compaction" and len(remote.snapshot(head.id).segments) == 1
    with pytest.raises(CheckFailedError, match="past the gate"):
        Live(remote)


def test_a_candidate_that_was_promoted_is_served_again_with_its_verdict(
    remote: KnowledgeBase, sources: Path
) -> None:
    ingest(remote, list_sources([str(sources)]), IngestOptions())
    (sources / "new.md").write_text("# Ferries\n\nFerries leave at dawn.\n")
    candidate = ingest(remote, list_sources([str(sources)]), IngestOptions(branch="feature")).commit
    promote(remote, "feature")
    rollback(remote)
    assert rollback(remote, candidate).metadata["verdict"] == "NO-GATE"
    assert "new.md" in Live(remote).engine().snapshot


@pytest.fixture
def plumbline(remote: KnowledgeBase, tmp_path: Path) -> Iterator[str]:
    """The address of a Plumbline server that lakeFS asks before main moves."""
    log = AnswerLog(f"sqlite:///{tmp_path / 'answers.sqlite'}")
    host = Host([Hosted("kb", remote, Live(remote), log)])
    with running(create_app(host, gate_token="secret")) as url:
        install_gate(repository_of(remote), url, {"verdict": "UNEVALUATED"})
        yield url
    log.close()


def publish(kb: KnowledgeBase, sources: Path, *, branch: str = "main", gate: bool = True) -> bool:
    judge = gate_of(kb, "main", False, "") if gate else None
    return ingest(kb, list_sources([str(sources)]), IngestOptions(branch=branch), gate=judge).published


def test_lakefs_asks_plumbline_before_main_moves(
    plumbline: str, remote: KnowledgeBase, lakefs_server: LakeFSServer, sources: Path
) -> None:
    repository = repository_of(remote)
    head = repository.resolve("main")
    with pytest.raises(HookFailedError, match="never evaluated against main"):
        publish(remote, sources, gate=False)
    assert repository.resolve("main") == head
    assert publish(remote, sources)
    first = repository.resolve("main")
    assert repository.create_tag("v1", "main").commit_id == first
    (sources / "new.md").write_text("# Ferries\n\nFerries leave at dawn.\n")
    publish(remote, sources, branch="feature", gate=False)
    with pytest.raises(HookFailedError, match="never evaluated"):
        repository.create_tag("v2", "feature")
    lakefs = f"{lakefs_server.endpoint}/api/v1/repositories/knowledge/refs/feature/merge/main"
    by_hand = httpx.post(lakefs, auth=lakefs_server.key, json={"message": "by hand"})
    assert by_hand.status_code == 412 and repository.resolve("main") == first
    promote(remote, "feature", gate=gate_of(remote, "main", False, ""))
    assert httpx.post(lakefs, auth=lakefs_server.key, json={"message": "again"}).status_code == 400
    assert rollback(remote, first).metadata["verdict"].startswith("PASS")
    (sources / "new.md").write_text("# Ferries\n\nFerries leave at noon.\n")
    gate = override_gate("the ferries were rescheduled")
    assert ingest(remote, list_sources([str(sources)]), IngestOptions(), gate=gate).published


def test_only_who_knows_the_token_is_answered(
    plumbline: str, remote: KnowledgeBase, lakefs_server: LakeFSServer, sources: Path
) -> None:
    environment, head = lakefs_server.actions.environment, remote.repository.resolve("main")
    for wrong in ("", "Secret", "secret "):
        environment["LAKEFSACTION_PLUMBLINE_TOKEN"] = wrong
        with pytest.raises(HookFailedError, match="401"):
            publish(remote, sources)
    assert remote.repository.resolve("main") == head
    event = {"event_type": "pre-merge", "repository_id": "knowledge", "branch_id": "main", "commit_id": head}
    headers = {"Authorization": "Bearer secret"}
    said = [httpx.post(plumbline + GATE_ROUTE, json=event, headers=headers) for _ in range(2)]
    assert said[0].status_code == 200 and said[0].json() == said[1].json()
    for change, status in (
        ({"repository_id": "other"}, 404),
        ({"commit_id": "0" * 64}, 404),
        ({"commit_id": ""}, 422),
        ({"branch_id": "feature"}, 200),
    ):
        answer = httpx.post(plumbline + GATE_ROUTE, json={**event, **change}, headers=headers)
        assert answer.status_code == status, answer.text
    assert httpx.post(plumbline + GATE_ROUTE, json=event).status_code == 401


def test_a_server_without_a_token_lets_nothing_through(remote: KnowledgeBase, tmp_path: Path) -> None:
    log = AnswerLog(f"sqlite:///{tmp_path / 'answers.sqlite'}")
    event = {"event_type": "pre-merge", "repository_id": "knowledge", "branch_id": "main", "commit_id": "x"}
    with running(create_app(Host([Hosted("kb", remote, Live(remote), log)]))) as url:
        for headers in ({}, {"Authorization": "Bearer x"}):
            answer = httpx.post(url + GATE_ROUTE, json=event, headers=headers)
            assert answer.status_code == 403 and "PLUMBLINE_GATE_TOKEN" in answer.json()["detail"]
    log.close()
