import gc
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from api.hosting import Host, Hosted
from api.server import create_app
from api.serving import Live
from ingestion.pipeline import IngestOptions, ingest
from ingestion.sources import list_sources
from knowledge_base.errors import DamagedError, MissingExtraError, StorageError
from knowledge_base.home import KnowledgeBase
from knowledge_base.republishing import rollback
from rag.answer_log import AnswerLog
from rag.engine import Engine
from tests.running import running

PORT_QUESTION = {"question": "What is the default port of the server?"}


@pytest.fixture
def answer_log(tmp_path: Path) -> Iterator[AnswerLog]:
    log = AnswerLog(f"sqlite:///{tmp_path / 'answers.sqlite'}")
    yield log
    log.close()


@pytest.fixture
def live(knowledge_base: KnowledgeBase) -> Live:
    return Live(knowledge_base)


@pytest.fixture
def client(knowledge_base: KnowledgeBase, live: Live, answer_log: AnswerLog) -> Iterator[httpx.Client]:
    """A client of a real server on a port of its own."""
    host = Host([Hosted(knowledge_base.root.name, knowledge_base, live, answer_log)])
    with running(create_app(host)) as url, httpx.Client(base_url=url, timeout=30) as made:
        yield made


def test_query_answers_with_citations_that_verify(
    client: httpx.Client, knowledge_base: KnowledgeBase, answer_log: AnswerLog
) -> None:
    answer = client.post("/v1/query", json=PORT_QUESTION).raise_for_status().json()
    assert "8420" in answer["answer"] and not answer["abstained"]
    citation = answer["citations"][0]
    text = knowledge_base.snapshot(citation["commit"]).document_text(citation["path"])
    assert text[citation["start"] : citation["end"]] == citation["quote"]
    assert [logged.id for logged in answer_log.recent(5)] == [answer["id"]]


def test_search_gives_ranked_passages(client: httpx.Client) -> None:
    found = client.post("/v1/search", json={**PORT_QUESTION, "top_k": 2}).raise_for_status().json()
    assert [result["path"] for result in found["results"]][0] == "install.md"
    assert len(found["results"]) == 2


def test_health_names_the_release(client: httpx.Client, knowledge_base: KnowledgeBase) -> None:
    health = client.get("/healthz").raise_for_status().json()
    assert health["release"]["commit"] == knowledge_base.repository.resolve("main")
    assert health["documents"] == 6


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"question": ""}, 422),
        ({"question": "   "}, 400),
        ({"question": "x" * 9000}, 422),
        ({"question": "x", "reff": "main"}, 422),
        ({"question": "x", "ref": "nowhere"}, 404),
        ({"question": "x", "ref": "../../etc"}, 404),
        ({"question": "x", "top_k": 0}, 422),
        ([], 422),
    ],
)
def test_bad_requests_are_problems(client: httpx.Client, body: object, status: int) -> None:
    response = client.post("/v1/query", json=body)
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["status"] == status and response.json()["detail"]


@pytest.mark.parametrize(
    ("method", "path", "content", "status"),
    [
        ("GET", "/nowhere", b"", 404),
        ("GET", "/v1/query", b"", 405),
        ("POST", "/v1/query", b"{", 422),
        ("POST", "/v1/query", b"[" * 100_000, 400),
        ("POST", "/v1/search", b'{"question": "' + b"x" * 300_000 + b'"}', 413),
        ("POST", "/v1/search", rb'{"question": "x", "ref": "ma\u0000in"}', 404),
        ("POST", "/v1/search", rb'{"question": "\ud800"}', 422),
        ("GET", "/docs", b"", 404),
    ],
)
def test_whatever_is_wrong_the_reply_is_a_problem(
    client: httpx.Client, method: str, path: str, content: bytes, status: int
) -> None:
    response = client.request(method, path, content=content, headers={"content-type": "application/json"})
    assert (response.status_code, response.json()["status"]) == (status, status)
    assert response.headers["content-type"] == "application/problem+json"


def test_an_unexpected_error_is_a_problem_without_its_text(
    client: httpx.Client, live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(ref: str) -> None:
        raise RuntimeError("secret path")

    monkeypatch.setattr(live, "engine", crash)
    response = client.post("/v1/search", json=PORT_QUESTION)
    assert (response.status_code, response.json()["type"]) == (500, "urn:plumbline:InternalError")
    assert "secret" not in response.text


def test_a_model_that_the_server_lacks_is_no_fault_of_the_request(
    client: httpx.Client, live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacks(ref: str) -> None:
        raise MissingExtraError("The reader needs its weights.", hint="Run: pip install them")

    monkeypatch.setattr(live, "engine", lacks)
    response = client.post("/v1/search", json=PORT_QUESTION)
    assert (response.status_code, response.json()["type"]) == (503, "urn:plumbline:MissingExtraError")
    assert response.json()["hint"] == "Run: pip install them"


def test_an_answer_log_that_fails_does_not_fail_the_answer(
    client: httpx.Client, answer_log: AnswerLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(answer: object) -> None:
        raise StorageError("disk full")

    monkeypatch.setattr(answer_log, "append", fail)
    assert "8420" in client.post("/v1/query", json=PORT_QUESTION).raise_for_status().json()["answer"]


def test_a_ref_is_answered_under_its_own_name(client: httpx.Client, knowledge_base: KnowledgeBase) -> None:
    commit = knowledge_base.repository.resolve("main")
    answer = client.post("/v1/query", json={**PORT_QUESTION, "ref": commit[:10]}).raise_for_status().json()
    assert answer["release"] == {"ref": commit[:10], "commit": commit}


def test_a_release_that_cannot_be_opened_leaves_the_old_one_serving(
    client: httpx.Client,
    live: Live,
    knowledge_base: KnowledgeBase,
    sources: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = knowledge_base.repository.resolve("main")
    (sources / "team.txt").write_text("The support team answers every day.\n")

    def refuse(*_: object) -> Engine:
        raise DamagedError("torn")

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "open", refuse)
        ingest(knowledge_base, list_sources([str(sources)]), IngestOptions())
        live.wake()
        live.follow()
        health = client.get("/healthz").raise_for_status().json()
        assert (health["status"], health["release"]["commit"]) == ("stale", before)
        assert "torn" in health["detail"]
    live.wake()
    live.follow()
    health = client.get("/healthz").json()
    assert (health["status"], health["detail"]) == ("ok", "")
    assert health["release"]["commit"] == knowledge_base.repository.resolve("main")


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_engines_that_are_let_go_close_their_files(knowledge_base: KnowledgeBase) -> None:
    def open_files() -> list[str]:
        links = [os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
        return [link for link in links if link.startswith(str(knowledge_base.cache))]

    live = Live(knowledge_base)
    engine = live.engine()
    assert open_files()
    del live
    gc.collect()
    assert engine.search("default port")  # a request under way keeps what it holds
    del engine
    gc.collect()
    assert not open_files()


def test_a_new_release_and_a_rollback_are_served(
    client: httpx.Client, knowledge_base: KnowledgeBase, sources: Path
) -> None:
    def served() -> str:
        # The server looks for a new release at most every half second.
        for _ in range(100):
            answer: dict[str, str] = client.post("/v1/query", json=PORT_QUESTION).json()
            commit = client.get("/healthz").json()["release"]["commit"]
            if commit == knowledge_base.repository.resolve("main"):
                break
            threading.Event().wait(0.05)
        answer = client.post("/v1/query", json=PORT_QUESTION).json()
        return answer["answer"]

    path = sources / "install.md"
    path.write_text(path.read_text().replace("8420", "9000"))
    ingest(knowledge_base, list_sources([str(sources)]), IngestOptions())
    assert "9000" in served()
    rollback(knowledge_base)
    assert "8420" in served()


def test_concurrent_requests_agree(client: httpx.Client) -> None:
    answers: list[str] = []

    def ask() -> None:
        for _ in range(5):
            answers.append(client.post("/v1/query", json=PORT_QUESTION).json()["answer"])

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 40 and len(set(answers)) == 1


def test_an_answer_can_be_read_again_and_rated(client: httpx.Client, answer_log: AnswerLog) -> None:
    answer = client.post("/v1/query", json=PORT_QUESTION).json()
    assert client.get(f"/v1/answers/{answer['id']}").json() == answer
    said = {"rating": "down", "comment": "No.", "correction": "8421", "citation": 1}
    assert client.post(f"/v1/answers/{answer['id']}/feedback", json=said).status_code == 204
    assert [feedback.correction for _, feedback in answer_log.feedback(5)] == ["8421"]
    assert client.post("/v1/answers/none/feedback", json=said).status_code == 404
    assert client.post(f"/v1/answers/{answer['id']}/feedback", json={"rating": "so-so"}).status_code == 422
