"""A server that follows main: swaps, rollbacks, slow and absent version stores, a clean end."""

import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from api import serving
from api.hosting import Host, Hosted
from api.server import create_app
from api.serving import Live
from ingestion.pipeline import IngestOptions, ingest
from ingestion.sources import list_sources
from knowledge_base.errors import UnavailableError
from knowledge_base.home import KnowledgeBase
from rag.answer_log import AnswerLog
from rag.engine import Engine
from tests.lakefs_server import Fault, LakeFSServer
from tests.openai_server import Reply, scripted_server
from tests.running import RAG, rag_serve, running

PORT_QUESTION = {"question": "What is the default port of the server?"}


def edit(knowledge_base: KnowledgeBase, sources: Path, port: int) -> str:
    """A release that says another port."""
    (sources / "install.md").write_text(f"# Installation\n\nThe default port of the server is {port}.\n")
    return ingest(knowledge_base, list_sources([str(sources)]), IngestOptions()).commit


def wait_for(url: str, commit: str, seconds: float) -> float:
    """Seconds until answers are of a release."""
    started = time.monotonic()
    while time.monotonic() - started < seconds:
        if httpx.post(f"{url}/v1/search", json=PORT_QUESTION).json()["release"]["commit"] == commit:
            return time.monotonic() - started
        time.sleep(0.02)
    raise AssertionError(f"{commit} was not served within {seconds} s")


def test_a_rollback_by_another_process_is_served_within_a_second(
    knowledge_base: KnowledgeBase, sources: Path
) -> None:
    edit(knowledge_base, sources, 9000)
    with rag_serve(knowledge_base.root) as (_, url):
        assert "9000" in httpx.post(f"{url}/v1/query", json=PORT_QUESTION).json()["answer"]
        subprocess.run([*RAG, "rollback", "--kb", str(knowledge_base.root)], check=True, capture_output=True)
        wait_for(url, knowledge_base.repository.resolve("main"), 1.0)
        answer = httpx.post(f"{url}/v1/query", json=PORT_QUESTION)
        assert "8420" in answer.json()["answer"]
        assert answer.headers["x-plumbline-release"] == answer.json()["release"]["commit"]


def test_sigterm_says_so_first_and_finishes_what_is_under_way(knowledge_base: KnowledgeBase) -> None:
    asked, told = threading.Event(), threading.Event()
    answers: list[httpx.Response] = []

    def reply(_: object) -> Reply:
        asked.set()
        told.wait(120)
        return Reply("The default port of the server is 8420 [1].")

    with scripted_server() as model:
        model.script = reply
        settings = f'[answer]\nmodel = "openai:tiny"\nbase_url = "{model.url}"\ntimeout_seconds = 120\n'
        (knowledge_base.root / "plumbline.toml").write_text(settings)
        ingest(knowledge_base, list_sources([]), IngestOptions())
        with rag_serve(knowledge_base.root, "--linger", "600") as (process, url):

            def ask() -> None:
                answers.append(httpx.post(f"{url}/v1/query", json=PORT_QUESTION, timeout=120))

            thread = threading.Thread(target=ask)
            thread.start()
            assert asked.wait(120)
            process.send_signal(signal.SIGTERM)
            while (ready := httpx.get(f"{url}/readyz", timeout=60)).status_code == 200:
                time.sleep(0.02)
            assert (ready.status_code, ready.json()["status"]) == (503, "draining")
            assert httpx.post(f"{url}/v1/search", json=PORT_QUESTION, timeout=60).status_code == 200
            process.send_signal(signal.SIGTERM)  # lingers no longer
            with pytest.raises(httpx.TransportError):
                while True:
                    httpx.get(f"{url}/readyz", timeout=60)
            assert process.poll() is None and not answers
            told.set()
            thread.join()
            assert [answer.status_code for answer in answers] == [200]
            assert process.wait(60) == 0


@pytest.fixture
def remote(
    lakefs_server: LakeFSServer, tmp_path: Path, models: Path, sources: Path
) -> Iterator[KnowledgeBase]:
    made = KnowledgeBase.create_remote(
        tmp_path / "kb", "lakefs://knowledge", models, objects=tmp_path / "objects"
    )
    ingest(made, list_sources([str(sources)]), IngestOptions())
    yield made
    lakefs_server.fault = lambda request: None


@pytest.fixture
def log(tmp_path: Path) -> Iterator[AnswerLog]:
    made = AnswerLog(f"sqlite:///{tmp_path / 'answers.sqlite'}")
    yield made
    made.close()


def test_no_request_waits_for_a_lakefs_that_does_not_answer(
    remote: KnowledgeBase,
    log: AnswerLog,
    lakefs_server: LakeFSServer,
    sources: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(serving, "_PATIENCE_SECONDS", 0.5)
    monkeypatch.setattr(serving, "_LOOK_SECONDS_SHARED", 0.2)
    remote.repository.create_tag("v1", "main")
    with running(create_app(Host([Hosted("kb", remote, Live(remote), log)]))) as url:

        def search(ref: str) -> httpx.Response:
            return httpx.post(f"{url}/v1/search", json={**PORT_QUESTION, "ref": ref}, timeout=30)

        assert search("v1").status_code == 200
        before = search("main").json()["release"]["commit"]
        slow = threading.Event()
        lakefs_server.fault = lambda request: slow.wait(20) and None or Fault(500)
        time.sleep(0.5)  # the thread that follows is stuck now
        asked = len(lakefs_server.requests)
        for _ in range(20):
            assert search("main").json()["release"]["commit"] == before
        assert len(lakefs_server.requests) < asked + 10, "by the thread that follows alone"
        assert search("v1").json()["release"]["commit"] == before, "as it was last seen"
        refused = search("feature")
        assert refused.status_code == 503 and "does not answer" in refused.json()["detail"]
        assert httpx.get(f"{url}/v1/models", timeout=30).status_code == 503
        assert httpx.get(f"{url}/readyz", timeout=30).status_code == 200
        slow.set()
        lakefs_server.fault = lambda request: None
        after = edit(remote, sources, 9000)
        httpx.post(f"{url}/v1/follow").raise_for_status()
        wait_for(url, after, 60)


def test_questions_about_many_refs_do_not_pile_up(
    remote: KnowledgeBase, lakefs_server: LakeFSServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "_PATIENCE_SECONDS", 0.2)
    live, slow = Live(remote), threading.Event()
    lakefs_server.fault = lambda request: slow.wait(20) and None or Fault(500)
    before = threading.active_count()
    for number in range(40):
        with pytest.raises(UnavailableError):
            live.engine(f"feature-{number}")
    # One that asks, and one of the lakeFS double that does not answer it.
    assert threading.active_count() - before <= 2 * serving._ASKING_AT_ONCE + 1
    slow.set()


def test_releases_share_what_they_have_in_common(knowledge_base: KnowledgeBase, sources: Path) -> None:
    live = Live(knowledge_base)
    first = live.engine()
    edit(knowledge_base, sources, 9000)
    live.follow()
    second = live.engine()
    assert second.release_ref != first.release_ref and live.problem == ""
    assert second.snapshot.segments[0] is first.snapshot.segments[0]
    assert second.embedder is first.embedder
    ranked = [(found.chunk_id, found.score) for found in second.search("default port")]
    alone = Engine.open(KnowledgeBase.open(knowledge_base.root, knowledge_base.models))
    assert ranked == [(found.chunk_id, found.score) for found in alone.search("default port")]
    alone.close()
    assert second.search("default port"), "what another one closes is not shared with it"


def test_readiness_tells_what_is_wrong(
    knowledge_base: KnowledgeBase, log: AnswerLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    from api import readiness

    monkeypatch.setattr(readiness, "_YOUNG_SECONDS", 0.0)
    live = Live(knowledge_base)
    host = Host([Hosted("kb", knowledge_base, live, log)])
    with running(create_app(host)) as url:

        def ready() -> tuple[int, dict[str, Any]]:
            answer = httpx.get(f"{url}/readyz", timeout=30)
            return answer.status_code, answer.json()

        well = {"main": "served", "manifest": "ok", "query": "ok", "model": "ok"}
        assert ready() == (200, {"status": "ready", "knowledge_bases": {"kb": well}})

        def fail(*_: object) -> None:
            raise RuntimeError("no index")

        with monkeypatch.context() as patch:
            patch.setattr(Engine, "search", fail)
            assert ready()[0] == 503
        with monkeypatch.context() as patch:
            patch.setattr(readiness, "_model_answers", lambda release: False)
            assert ready()[1]["status"] == "degraded"
        host.draining = True
        assert ready() == (503, {"status": "draining", "knowledge_bases": {"kb": well}})


def test_a_model_server_that_is_down_is_noticed(knowledge_base: KnowledgeBase, sources: Path) -> None:
    from api.readiness import _model_answers

    def release(answer: str) -> Any:
        (knowledge_base.root / "plumbline.toml").write_text(f"[answer]\n{answer}")
        ingest(knowledge_base, list_sources([]), IngestOptions())
        return knowledge_base.release()

    nobody = 'model = "openai:tiny"\nbase_url = "http://127.0.0.1:1/v1"\n'
    assert not _model_answers(release(nobody))
    assert _model_answers(release(nobody + 'fallbacks = ["extractive"]\n'))
