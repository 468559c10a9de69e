"""Many clients ask while main moves: no error, and no answer that mixes two releases."""

import itertools
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from ingestion.pipeline import IngestOptions, ingest
from ingestion.sources import list_sources
from knowledge_base.home import KnowledgeBase
from knowledge_base.lifecycle import promote
from knowledge_base.republishing import rollback
from knowledge_base.retention import Retention, gc
from tests.running import rag_serve

DOCUMENTS = 12
QUESTIONS = [f"What is the code of machine {number}?" for number in range(DOCUMENTS)]


def write(sources: Path, edition: int) -> None:
    """An edition differs from the one before in every third document."""
    sources.mkdir(exist_ok=True)
    for number in range(edition % 3, DOCUMENTS, 3) if edition else range(DOCUMENTS):
        text = f"# Machine {number}\n\nThe code of machine {number} is {edition * 1000 + number}.\n"
        (sources / f"{number}.md").write_text(text)


class Client(threading.Thread):
    """Asks in three ways until told to stop, and keeps what came."""

    def __init__(self, url: str, number: int, stop: threading.Event) -> None:
        super().__init__()
        self.url, self.number, self.stop = url, number, stop
        self.answers: list[dict[str, Any]] = []
        self.errors: list[str] = []

    def run(self) -> None:
        with httpx.Client(base_url=self.url, timeout=60) as client:
            for turn in itertools.count(self.number):
                if self.stop.is_set():
                    return
                try:
                    self._ask(client, turn)
                except (httpx.HTTPError, KeyError, ValueError) as error:
                    self.errors.append(f"{type(error).__name__}: {error}")

    def _ask(self, client: httpx.Client, turn: int) -> None:
        body: dict[str, Any] = {"question": QUESTIONS[turn % len(QUESTIONS)]}
        if turn % 3 == 0:
            found = client.post("/v1/search", json=body).raise_for_status()
            answer = {**found.json(), "contexts": found.json()["results"], "citations": []}
        elif turn % 3 == 1:
            found = client.post("/v1/query", json=body).raise_for_status()
            answer = found.json()
        else:
            found = client.post("/v1/query", json={**body, "stream": True}).raise_for_status()
            last = found.text.strip().split("\n\n")[-1]
            answer = json.loads(last.partition("data: ")[2])["answer"]
        assert found.headers["x-plumbline-release"] == answer["release"]["commit"]
        self.answers.append(answer)


def is_of_one_release(answer: dict[str, Any], releases: dict[str, dict[str, str]]) -> bool:
    """Whether every passage and every citation stands in the documents of the release that it names."""
    texts = releases[answer["release"]["commit"]]
    return all(
        texts[found["path"]][found["start"] : found["end"]] == found["text"] for found in answer["contexts"]
    ) and all(
        cited["commit"] == answer["release"]["commit"]
        and texts[cited["path"]][cited["start"] : cited["end"]] == cited["quote"]
        for cited in answer["citations"]
    )


def texts_of(knowledge_base: KnowledgeBase, commit: str) -> dict[str, str]:
    snapshot = knowledge_base.snapshot(commit)
    return {path: snapshot.document_text(path) for path in snapshot.paths}


def moves(knowledge_base: KnowledgeBase, sources: Path, count: int) -> Iterator[str]:
    """Promotions, two in three taken back; the commits that main is at. Old releases expire meanwhile."""
    for number in range(count):
        if number % 3 == 2:
            yield rollback(knowledge_base).id
        else:
            write(sources, number + 1)
            branch = f"edition-{number}"
            ingest(knowledge_base, list_sources([str(sources)]), IngestOptions(branch=branch))
            yield promote(knowledge_base, branch).commit
            knowledge_base.repository.delete_branch(branch)
        if number % 20 == 19:
            gc(knowledge_base, Retention(keep_last=3), dry_run=False)


def open_files(process: int) -> int:
    return len(list(Path(f"/proc/{process}/fd").iterdir()))


@pytest.mark.parametrize(
    ("clients", "count"), [(4, 9), pytest.param(16, 200, marks=pytest.mark.slow, id="16-200")]
)
def test_answers_are_of_one_release_while_main_moves(
    empty_kb: KnowledgeBase, tmp_path: Path, clients: int, count: int
) -> None:
    sources = tmp_path / "machines"
    write(sources, 0)
    first = ingest(empty_kb, list_sources([str(sources)]), IngestOptions()).commit
    releases = {first: texts_of(empty_kb, first)}
    limits = tmp_path / "server.toml"
    limits.write_text("[serve]\nrequests_per_minute = 0\n")  # all clients have one address
    with rag_serve(empty_kb.root, "--settings", str(limits)) as (process, url):
        stop = threading.Event()
        threads = [Client(url, number, stop) for number in range(clients)]
        for thread in threads:
            thread.start()
        early = 0
        for number, commit in enumerate(moves(empty_kb, sources, count)):
            releases[commit] = texts_of(empty_kb, commit)
            time.sleep(0.3)  # so that most of them are served
            if number == 8:
                early = open_files(process.pid)
        assert httpx.get(f"{url}/healthz", timeout=60).json()["release"]["commit"] == commit
        late = open_files(process.pid)
        stop.set()
        for thread in threads:
            thread.join()
    answers = [answer for thread in threads for answer in thread.answers]
    assert [error for thread in threads for error in thread.errors] == []
    assert [answer for answer in answers if not is_of_one_release(answer, releases)] == []
    seen = {answer["release"]["commit"] for answer in answers}
    print(f"{len(answers)} answers of {len(seen)} releases during {count} moves, files {early} to {late}")
    assert len(answers) > 2 * count and len(seen) > count / 3
    assert late < early + 60, "files of releases that serve no more stay open"
