"""Several processes on one knowledge base: readers never see half a change, writers take turns."""

import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import httpx
import pytest

from ingestion.pipeline import IngestOptions, ingest
from ingestion.sources import list_sources
from knowledge_base.home import KnowledgeBase
from knowledge_base.integrity import fsck
from knowledge_base.retention import Retention, gc

RAG = "from api.cli import main; main()"

OPEN = """
import sys, json, itertools
from pathlib import Path
from api.settings import read_environment, silence
silence()
from knowledge_base.home import KnowledgeBase
knowledge_base = KnowledgeBase.open(Path(sys.argv[1]), read_environment().cache / "models")
"""

# Publishes editions that change every third document, rolls back, frees all but two releases; says at
# the end which edition of which document each release had.
WRITER = (
    OPEN
    + """
from ingestion.pipeline import IngestOptions, ingest
from ingestion.sources import list_sources
from knowledge_base.republishing import rollback
from knowledge_base.retention import Retention, gc
sources = Path(sys.argv[2])
editions = {knowledge_base.repository.resolve("main"): {f"{n}.md": 0 for n in range(12)}}
for edition in range(1, 7):
    head = knowledge_base.repository.resolve("main")
    now = dict(editions[head])
    for number in range(edition % 3, 12, 3):
        now[f"{number}.md"] = edition
        (sources / f"{number}.md").write_text(sys.argv[3].format(number=number, edition=edition))
    done = ingest(knowledge_base, list_sources([str(sources)]), IngestOptions())
    editions[done.commit] = now
    if edition % 3 == 0:
        back = rollback(knowledge_base)
        editions[back.id] = editions[head]
        for path, old in editions[head].items():
            (sources / path).write_text(sys.argv[3].format(number=path[:-3], edition=old))
    gc(knowledge_base, Retention(keep_last=2), dry_run=False)
print(json.dumps(editions))
"""
)

# Opens releases of all ages, whose caches gc takes away, until standard input ends.
READER = (
    OPEN
    + """
import threading
from rag.retriever import Retriever
settings = knowledge_base.release().settings
embedder = knowledge_base.embedder(settings.embedder)
ended = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
print("ready", flush=True)
known, done = {}, 0
commits = [commit.id for commit in knowledge_base.repository.log("main") if commit.parents]
for commit in itertools.cycle(commits):
    snapshot = knowledge_base.snapshot(commit)
    search = Retriever(snapshot, embedder, settings.retrieval).search
    found = [(context.chunk_id, context.score) for context in search("default port", 10)]
    snapshot.close()
    assert found == known.setdefault(commit, found), (commit, found, known[commit])
    done += 1
    if ended.is_set():
        break
print(done, flush=True)
"""
)

# With each line of standard input, opens main (or builds it anew) and prints its ranking.
SEARCHER = (
    OPEN
    + """
from rag.engine import Engine
from knowledge_base.integrity import rebuild
for line in sys.stdin:
    if line.strip() == "rebuild":
        rebuild(knowledge_base)
    engine = Engine.open(knowledge_base)
    print(json.dumps([(c.chunk_id, c.score) for c in engine.search("default port", 10)]), flush=True)
    engine.close()
"""
)

TEXT = "# Server {number}\n\nIn edition {edition} the default port of server {number} is 84{number}.\n"


@contextmanager
def process(
    script: str, *arguments: object, errors: IO[str] | None = None
) -> Iterator["subprocess.Popen[str]"]:
    """A Python process that is gone at the end of the block."""
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout"), subprocess.PIPE)
    command = [sys.executable, "-c", script, *map(str, arguments)]
    with subprocess.Popen(command, text=True, stderr=errors or subprocess.PIPE, **pipes) as made:
        try:
            yield made
        finally:
            made.kill()


def finished(made: "subprocess.Popen[str]") -> str:
    """What a process printed, once it ended well."""
    output, errors = made.communicate(timeout=120)
    assert made.returncode == 0, errors
    return output


@pytest.fixture
def servers(empty_kb: KnowledgeBase, tmp_path: Path) -> Path:
    """Sources of twelve documents of edition 0, published on main."""
    folder = tmp_path / "servers"
    folder.mkdir()
    for number in range(12):
        (folder / f"{number}.md").write_text(TEXT.format(number=number, edition=0))
    ingest(empty_kb, list_sources([str(folder)]), IngestOptions())
    return folder


@contextmanager
def serving(knowledge_base: KnowledgeBase, log: Path) -> Iterator[httpx.Client]:
    """A client of `rag serve` in a process of its own, whose standard error goes into `log`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (
        log.open("w") as errors,
        process(RAG, "serve", "--kb", knowledge_base.root, "--port", port, errors=errors) as server,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client,
    ):
        while True:
            assert server.poll() is None, log.read_text()
            try:
                client.get("/healthz").raise_for_status()
                break
            except httpx.ConnectError:
                time.sleep(0.05)
        yield client


def test_a_server_answers_from_whole_releases_while_another_process_writes(
    empty_kb: KnowledgeBase, servers: Path, tmp_path: Path
) -> None:
    replies: list[httpx.Response] = []
    stop = threading.Event()

    def ask(client: httpx.Client, number: int) -> None:
        while not stop.is_set():
            number = (number + 5) % 12
            body = {"question": f"default port of server {number}", "top_k": 12}
            replies.append(client.post("/v1/query", json=body))

    with (
        serving(empty_kb, tmp_path / "log") as client,
        process(WRITER, empty_kb.root, servers, TEXT) as writer,
    ):
        threads = [threading.Thread(target=ask, args=(client, number)) for number in range(3)]
        for thread in threads:
            thread.start()
        try:
            editions = json.loads(finished(writer))
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        last = client.post("/v1/query", json={"question": "default port"})
    assert {reply.status_code for reply in replies} == {200}, (tmp_path / "log").read_text()
    served = set()
    for reply in [*replies, last]:
        answer = reply.json()
        edition = editions[answer["release"]["commit"]]
        served.add(answer["release"]["commit"])
        assert answer["contexts"]
        for context in answer["contexts"]:
            path = context["path"]
            assert context["text"] in TEXT.format(number=path[:-3], edition=edition[path])
    assert len(served) > 2
    assert list(fsck(empty_kb)) == []


def test_of_two_ingests_at_once_each_publishes_whole_or_says_that_it_was_locked_out(
    empty_kb: KnowledgeBase, tmp_path: Path
) -> None:
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
        for number in range(15):
            text = TEXT.format(number=number, edition=folder.name)
            (folder / f"{folder.name}-{number}.md").write_text(text)
    arguments = [
        ("ingest", "--no-gate", "--reason", "test", "--kb", empty_kb.root, folder) for folder in folders
    ]
    with process(RAG, *arguments[0]) as one, process(RAG, *arguments[1]) as two:
        results = [(made.communicate(timeout=120), made.returncode) for made in (one, two)]
    assert sorted(code for _, code in results) in ([0, 0], [0, 3])
    for ((_, errors), code), folder in zip(results, folders, strict=True):
        if code:
            error, hint = errors.splitlines()
            assert error.startswith("error: Another process is writing here") and hint.startswith("  Wait")
            ingest(empty_kb, list_sources([str(folder)]), IngestOptions())
    assert len(empty_kb.snapshot().paths) == 30
    assert list(fsck(empty_kb)) == []


def test_a_command_is_locked_out_while_another_command_writes(empty_kb: KnowledgeBase, servers: Path) -> None:
    head = empty_kb.repository.resolve("main")
    (servers / "0.md").write_text("Changed.\n")
    with empty_kb.writing(), process(RAG, "rollback", "--kb", empty_kb.root) as made:
        output, errors = made.communicate(timeout=120)
    assert made.returncode == 3 and not output
    assert errors.startswith("error: Another process is writing here") and len(errors.splitlines()) == 2
    assert empty_kb.repository.resolve("main") == head


def test_gc_takes_nothing_from_under_a_reader(empty_kb: KnowledgeBase, servers: Path) -> None:
    for edition in range(1, 5):
        for number in range(edition, 12, 4):
            (servers / f"{number}.md").write_text(TEXT.format(number=number, edition=edition))
        ingest(empty_kb, list_sources([str(servers)]), IngestOptions())
    with process(READER, empty_kb.root) as reader:
        assert reader.stdout is not None and reader.stdout.readline() == "ready\n"
        removed = 0
        ends = time.monotonic() + 8
        while time.monotonic() < ends:
            removed += len(gc(empty_kb, Retention(), dry_run=False).caches)
        opened = int(finished(reader))
    assert removed and opened
    assert list(fsck(empty_kb)) == []


@pytest.mark.parametrize("other", ["search", "rebuild"])
def test_two_processes_build_the_same_missing_cache(
    empty_kb: KnowledgeBase, servers: Path, other: str
) -> None:
    with process(SEARCHER, empty_kb.root) as one, process(SEARCHER, empty_kb.root) as two:
        rankings = set()
        for _ in range(4):
            for made in (one, two):
                assert made.stdin is not None
                made.stdin.write("search\n" if made is one else f"{other}\n")
                made.stdin.flush()
            for made in (one, two):
                assert made.stdout is not None
                line = made.stdout.readline()
                assert line, made.communicate()[1]
                rankings.add(line)
            shutil.rmtree(empty_kb.cache)
    assert len(rankings) == 1
