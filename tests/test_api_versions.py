"""Releases over HTTP: log, difference, promotion, rollback, branches and tags."""

import time
from pathlib import Path

import httpx
import pytest

from api.idempotency import Claim
from ingestion.pipeline import IngestOptions, ingest
from ingestion.sources import list_sources
from knowledge_base.errors import StorageError
from knowledge_base.home import KnowledgeBase
from tests.test_api_documents import finished
from tests.test_api_server import answer_log as answer_log
from tests.test_api_server import client as client
from tests.test_api_server import live as live


@pytest.fixture
def releases(knowledge_base: KnowledgeBase, sources: Path) -> list[str]:
    """Two releases of main, the older one first, and a candidate on branch `next`."""
    first = knowledge_base.repository.resolve("main")
    (sources / "team.txt").write_text("The support team answers every day.\n")
    second = ingest(knowledge_base, list_sources([str(sources)]), IngestOptions(message="Every day")).commit
    (sources / "printer.md").write_text("# Printer\n\nThe printer stands in room 12.\n")
    candidate = ingest(knowledge_base, list_sources([str(sources)]), IngestOptions(branch="next")).commit
    return [first, second, candidate]


def test_the_log_comes_in_pages(client: httpx.Client, releases: list[str]) -> None:
    page = client.get("/v1/releases", params={"limit": 1}).raise_for_status().json()
    assert [entry["commit"] for entry in page["releases"]] == [releases[1]]
    assert page["releases"][0]["message"] == "Every day"
    rest = client.get("/v1/releases", params={"ref": page["next"]}).json()
    assert [entry["commit"] for entry in rest["releases"]] == [releases[0]] and rest["next"] is None


def test_a_release_and_a_difference_are_those_of_the_command_line(
    client: httpx.Client, releases: list[str]
) -> None:
    shown = client.get("/v1/releases/next").raise_for_status().json()
    assert shown["commit"] == releases[2] and "printer.md" in shown["paths"]
    found = client.get("/v1/diff", params={"from": releases[0], "to": "next"}).raise_for_status().json()
    assert found["documents"] == {
        "added": ["printer.md"],
        "changed": ["team.txt"],
        "deleted": [],
        "renamed": [],
    }
    assert found["chunks"] == {"added": 2, "removed": 1, "total": 8}
    assert client.get("/v1/diff", params={"from": "nowhere"}).status_code == 404
    assert client.get("/v1/releases/nowhere").status_code == 404


def test_a_candidate_is_promoted_by_a_job(client: httpx.Client, releases: list[str]) -> None:
    refused = client.post("/v1/promote", json={"ref": releases[0]})
    assert (refused.status_code, refused.json()["title"]) == (409, "NoChangesError")
    job = finished(client, client.post("/v1/promote", json={"ref": "next", "message": "Printers"}))
    assert (job["state"], job["result"]["published"]) == ("done", True), job
    newest = client.get("/v1/releases", params={"limit": 1}).json()["releases"][0]
    assert (newest["commit"], newest["message"]) == (job["result"]["commit"], "Printers")
    assert newest["verdict"].startswith("PASS")


def test_an_outdated_candidate_is_a_conflict(
    client: httpx.Client, releases: list[str], knowledge_base: KnowledgeBase, sources: Path
) -> None:
    (sources / "team.txt").write_text("Nobody answers.\n")
    ingest(knowledge_base, list_sources([str(sources)]), IngestOptions())
    refused = client.post("/v1/promote", json={"ref": "next"})
    assert (refused.status_code, refused.json()["title"]) == (409, "OutdatedError")


def test_a_rollback_sent_twice_goes_back_once(client: httpx.Client, releases: list[str]) -> None:
    first = client.post("/v1/rollback", json={}, headers={"Idempotency-Key": "back"}).raise_for_status()
    again = client.post("/v1/rollback", json={}, headers={"Idempotency-Key": "back"}).raise_for_status()
    assert first.json() == again.json() and first.json()["content_of"] == releases[0]
    written = [entry["about"] for entry in client.get("/v1/audit").json()["entries"]]
    assert written[1] == {"reopen": False, **first.json()}
    other = client.post("/v1/rollback", json={"ref": releases[1]}, headers={"Idempotency-Key": "back"})
    assert other.status_code == 422


@pytest.mark.parametrize("killed", ["before it acts", "before it is answered"])
def test_a_rollback_that_was_cut_off_is_done_once(
    client: httpx.Client,
    releases: list[str],
    knowledge_base: KnowledgeBase,
    monkeypatch: pytest.MonkeyPatch,
    killed: str,
) -> None:
    def cut_off(*_: object, **__: object) -> None:
        raise StorageError("killed")

    repository, sent = knowledge_base.repository, {"Idempotency-Key": "back"}
    before = len(list(repository.log("main")))
    with monkeypatch.context() as patch:
        if killed == "before it acts":
            patch.setattr(repository, "transact", cut_off)
        else:
            patch.setattr(Claim, "keep", cut_off)
        assert client.post("/v1/rollback", json={}, headers=sent).status_code == 503
    acted = killed != "before it acts"
    assert len(list(repository.log("main"))) == before + acted
    # The same key with another request is refused although there is no reply yet.
    assert client.post("/v1/rollback", json={"ref": "main~1"}, headers=sent).status_code == 422
    done = client.post("/v1/rollback", json={}, headers=sent).raise_for_status().json()
    assert done == {"commit": repository.resolve("main"), "content_of": releases[0]}
    assert client.post("/v1/rollback", json={}, headers=sent).json() == done
    assert len(list(repository.log("main"))) == before + 1


def test_a_rollback_that_was_cut_off_and_overtaken_is_done_from_where_main_is(
    client: httpx.Client,
    releases: list[str],
    knowledge_base: KnowledgeBase,
    sources: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def cut_off(*_: object, **__: object) -> None:
        raise StorageError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(knowledge_base.repository, "transact", cut_off)
        assert client.post("/v1/rollback", json={}, headers={"Idempotency-Key": "back"}).status_code == 503
    (sources / "team.txt").write_text("Nobody answers.\n")
    ingest(knowledge_base, list_sources([str(sources)]), IngestOptions())
    done = client.post("/v1/rollback", json={}, headers={"Idempotency-Key": "back"}).raise_for_status().json()
    assert done["content_of"] == releases[1]


def test_a_rollback_serves_at_once(
    releases: list[str], monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setattr("api.serving._LOOK_SECONDS", 3600.0)
    client = request.getfixturevalue("client")
    done = client.post("/v1/rollback", json={}).raise_for_status().json()
    until = time.monotonic() + 20
    while client.get("/healthz").json()["release"]["commit"] != done["commit"]:
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_rollback_to_what_main_never_was_is_refused(client: httpx.Client, releases: list[str]) -> None:
    refused = client.post("/v1/rollback", json={"ref": "next"})
    assert (refused.status_code, refused.json()["title"]) == (409, "CheckFailedError")
    assert client.get("/v1/releases", params={"limit": 1}).json()["releases"][0]["commit"] == releases[1]


def test_a_rollback_from_somewhere_else_is_a_conflict(client: httpx.Client, releases: list[str]) -> None:
    refused = client.post("/v1/rollback", json={"expected": releases[0]})
    assert (refused.status_code, refused.json()["title"]) == (409, "HeadMovedError")
    done = client.post("/v1/rollback", json={"expected": releases[1], "ref": releases[0]})
    assert done.status_code == 200


def test_a_locked_knowledge_base_is_a_conflict(
    client: httpx.Client, releases: list[str], knowledge_base: KnowledgeBase
) -> None:
    knowledge_base.lock_seconds = 0.0
    with knowledge_base.writing():
        assert client.post("/v1/rollback", json={}).status_code == 409


def test_branches_and_tags_are_made_listed_and_deleted(client: httpx.Client, releases: list[str]) -> None:
    for kind, ref in (("branch", "source"), ("tag", "ref")):
        address = {"branch": "/v1/branches", "tag": "/v1/tags"}[kind]
        made = client.post(address, json={kind: "v1-0", ref: releases[0]})
        assert (made.status_code, made.json()["commit"]) == (201, releases[0])
        assert client.post(address, json={kind: "v1-0"}).status_code == 409
        assert client.post(address, json={kind: "no good"}).status_code == 400
        assert "v1-0" in [one[kind] for one in client.get(address).json()]
        assert client.delete(f"{address}/v1-0").status_code == 204
        assert client.delete(f"{address}/v1-0").status_code == 404


@pytest.mark.parametrize("name", ["evaluations", "plumbline-work-1"])
def test_branches_of_plumbline_itself_are_out_of_reach(client: httpx.Client, name: str) -> None:
    assert client.post("/v1/branches", json={"branch": name}).status_code == 400
    assert client.delete(f"/v1/branches/{name}").status_code == 400
    assert client.delete("/v1/branches/main").status_code == 409
