"""Evaluations and golden questions over HTTP."""

import threading
from pathlib import Path

import httpx

from eval.golden_files import GoldenFiles
from ingestion.pipeline import IngestOptions, ingest
from ingestion.sources import list_sources
from knowledge_base.home import KnowledgeBase
from tests.test_api_documents import finished
from tests.test_api_server import answer_log as answer_log
from tests.test_api_server import client as client
from tests.test_api_server import live as live

PORT = {
    "question": "What is the default port of the server?",
    "id": "port",
    "document": "install.md",
    "quote": "The default port of the server is 8420.",
    "state": "approved",
}


def test_an_evaluation_is_a_job_whose_verdict_is_kept_with_its_answers(client: httpx.Client) -> None:
    assert client.get("/v1/evaluations").json() == {"evaluations": [], "next": None}
    client.post("/v1/golden", json=PORT).raise_for_status()
    ingested = finished(client, client.post("/v1/ingest", json={"message": "Ask for the port"}))
    assert ingested["result"]["published"], ingested
    job = finished(client, client.post("/v1/evaluations", json={"again": True}))
    assert (job["state"], job["result"]["status"]) == ("done", "PASS"), job
    newest = client.get("/v1/evaluations").json()["evaluations"][0]
    assert newest["candidate"] in (job["result"]["candidate"], job["result"]["baseline"])
    shown = client.get(f"/v1/evaluations/{newest['id']}").raise_for_status().json()
    assert shown["verdict"]["questions"] == 1
    assert "8420" in shown["rows"][0]["answer"]["answer"]
    assert client.get(f"/v1/evaluations/{ingested['result']['commit']}").status_code == 404
    assert client.post("/v1/evaluations", json={"ref": "nowhere"}).status_code == 404


def test_a_golden_question_is_added_reviewed_and_goes_stale(
    client: httpx.Client, knowledge_base: KnowledgeBase, sources: Path
) -> None:
    candidate = {**PORT, "state": "candidate"}
    assert client.post("/v1/golden", json=candidate).json()["state"] == "candidate"
    assert client.post("/v1/golden", json={**candidate, "id": "other"}).status_code == 409
    assert client.get("/v1/golden", params={"state": "candidate"}).json()["total"] == 1
    review = {"ids": ["port"], "state": "approved"}
    assert client.post("/v1/golden/review", json=review).json() == review
    assert client.get("/v1/golden").json()["questions"][0]["state"] == "approved"
    (sources / "install.md").write_text("# Installation\n\nThere is no port.\n")
    ingest(knowledge_base, list_sources([str(sources)]), IngestOptions(message="No port"))
    for _ in range(100):
        question = client.get("/v1/golden").json()["questions"][0]
        if question["state"] == "stale":
            break
        threading.Event().wait(0.05)  # the server looks for a new release twice a second
    assert question["reason"] == "its quote does not stand in 'install.md'"
    assert client.post("/v1/golden/review", json={**review, "ids": ["none"]}).status_code == 404
    unclear = {"question": "Why?", "unanswerable": True, "answer": "Because."}
    assert client.post("/v1/golden", json=unclear).status_code == 400


def test_questions_added_at_once_are_all_kept(client: httpx.Client, knowledge_base: KnowledgeBase) -> None:
    def add(number: int) -> None:
        client.post("/v1/golden", json={"question": f"Who is number {number}?"}).raise_for_status()

    threads = [threading.Thread(target=add, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(GoldenFiles(knowledge_base).rows()) == 12
    page = client.get("/v1/golden", params={"limit": 5}).json()
    rest = client.get("/v1/golden", params={"limit": 50, "after": page["next"]}).json()
    assert len(page["questions"]) + len(rest["questions"]) == page["total"] == 12
