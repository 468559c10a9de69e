"""What the HTTP server adds to an answer, and what it does when it is asked too much.

A knowledge base of real documents with pseudorandom vectors in place of embedded ones (as in
benchmarks.versions) is served by a real `rag serve`; real questions are embedded by the real model at
question time. Three sides take turns in one run, so that all meet the same noise of the machine:

in process   the same search or answer, log entry included, called in this process;
server       POST /v1/search and /v1/query over keep-alive connections to another process;
echo         a bare FastAPI application that returns its JSON body: the price of HTTP alone.

Each side goes through the same list of questions and repeats none before its end (5,466 of them).
Then ten times as many clients ask at once, main is rolled back and forth while the server's answers are
watched for it, and with --soak its memory is. The clients are threads of this process: what they cost is in
every figure of the last two sides. The server's limits are the default ones, but that a client may ask as
often as it likes.
"""

import http.client
import json
import os
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import Any

from benchmarks.common import data_folder, models_folder, parser, read_jsonl, scratch, show
from benchmarks.versions import Corpus, Prepared, editions, publish
from knowledge_base.configuration import EmbedderSettings
from knowledge_base.embedders import load_embedder
from knowledge_base.home import KnowledgeBase
from knowledge_base.republishing import rollback
from rag.answer_log import AnswerLog
from rag.engine import Engine, Shared

ROUNDS = 5
SWAPS = 10
OVERLOAD = 10
REFUSALS = (429, 503)
PATIENCE = 120.0
_ECHO = """
import socket, sys, uvicorn
from fastapi import FastAPI
app = FastAPI()
@app.post("/v1/echo")
def echo(body: dict) -> dict:
    return body
uvicorn.run(app, port=int(sys.argv[1]), log_level="critical")
"""

Ask = Callable[[str], int]
"""Asks one question; returns a status."""


# -- sides -----------------------------------------------------------------------------------------


def read_questions() -> Iterator[str]:
    """Real questions without end, neighbours from different documents; threads may share it."""
    rows = read_jsonl(data_folder() / "squad" / "dev-v1.1.questions.jsonl")
    # A prime stride visits each row once.
    return cycle([rows[turn * 7919 % len(rows)]["question"] for turn in range(len(rows))])


def fill(root: Path, chunks: int) -> None:
    """A knowledge base of about `chunks` chunks."""
    real = load_embedder(EmbedderSettings(), models_folder())
    corpus = Corpus(root.with_name(f"{root.name}-documents"), editions(), chunks, real)
    publish(root, Prepared(real, []), corpus)
    corpus.change(1)  # one document in a hundred
    publish(root, Prepared(real, []), corpus)


@contextmanager
def started(*command: str) -> Iterator[tuple[int, int]]:
    """(process id, port) of a server that listens; the port is the last argument of its command."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, *command, str(port)], stderr=subprocess.DEVNULL)
    try:
        while True:
            assert process.poll() is None, f"{command} ended"
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(0.1)
        yield process.pid, port
    finally:
        process.terminate()
        process.wait(60)


def over_http(port: int, path: str) -> Ask:
    """Asks over a connection of the calling thread."""
    own = threading.local()

    def ask(question: str) -> int:
        connection = getattr(own, "connection", None)
        if connection is None:
            connection = own.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        try:
            connection.request(
                "POST", path, json.dumps({"question": question}), {"Content-Type": "application/json"}
            )
            answer = connection.getresponse()
            answer.read()
        except (OSError, http.client.HTTPException):
            own.connection = None
            connection.close()
            return 0
        return answer.status

    return ask


def in_process(root: Path, log: Path) -> dict[str, Ask]:
    """The same work without a server."""
    engine = Engine.open(KnowledgeBase.open(root, models_folder()), shared=Shared())
    engine.warm()
    answer_log = AnswerLog(f"sqlite:///{log}")

    def search(question: str) -> int:
        engine.search(question)
        return 200

    def query(question: str) -> int:
        answer_log.append(engine.ask(question))
        return 200

    return {"search, in process": search, "query, in process": query}


# -- load ------------------------------------------------------------------------------------------


class Load:
    """What some clients met who asked without a pause: milliseconds and statuses of every request."""

    def __init__(self) -> None:
        self.milliseconds: list[float] = []
        self.refused: list[float] = []
        self.statuses: Counter[int] = Counter()
        self.seconds = 0.0

    def run(self, ask: Ask, questions: Iterator[str], clients: int, requests: int) -> None:
        """`requests` by each of `clients`."""

        def work() -> None:
            for _ in range(requests):
                question = next(questions)
                begun = time.perf_counter()
                status = ask(question)
                taken = (time.perf_counter() - begun) * 1000
                self.milliseconds.append(taken)
                self.statuses[status] += 1
                if status in REFUSALS:
                    self.refused.append(taken)

        threads = [threading.Thread(target=work) for _ in range(clients)]
        begun = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.seconds += time.perf_counter() - begun

    def as_json(self) -> dict[str, Any]:
        """Percentiles and rate."""
        found = sorted(self.milliseconds)
        marks = {f"p{p}": round(found[min(len(found) - 1, len(found) * p // 100)], 2) for p in (50, 95, 99)}
        if self.refused:
            marks["refused_p50"] = round(statistics.median(self.refused), 2)
            marks["refused_max"] = round(max(self.refused), 2)
        return {
            **marks,
            "max": round(found[-1], 2),
            "per_second": round(len(found) / self.seconds, 1),
            "requests": len(found),
            "statuses": {str(status): number for status, number in sorted(self.statuses.items())},
        }


def measure(root: Path, folder: Path, clients: int, requests: int, soak: float) -> dict[str, Any]:
    """Every side by one client and by several, overload, and memory."""
    with (
        started("-c", _ECHO) as (_, echo),
        started("-c", "from api.cli import main; main()", "serve", "--kb", str(root), "--port") as (
            pid,
            port,
        ),
    ):
        sides = {
            **in_process(root, folder / "answers.sqlite"),
            "search, server": over_http(port, "/v1/search"),
            "query, server": over_http(port, "/v1/query"),
            "echo": over_http(echo, "/v1/echo"),
        }
        questions = {name: read_questions() for name in sides}
        loads = {(name, number): Load() for name in sides for number in (1, clients)}
        for name, ask in sides.items():
            Load().run(ask, questions[name], clients, 5)  # connections, pools, imports
        for _ in range(ROUNDS):
            for (name, number), load in loads.items():
                load.run(sides[name], questions[name], number, max(1, requests // ROUNDS // number))
        crowd = {}
        for name in ("search, server", "query, server"):
            crowd[name] = Load()
            crowd[name].run(sides[name], questions[name], OVERLOAD * clients, 3)
        swaps = swap(root, port)
        memory = watch(pid, sides, questions, clients, soak) if soak else {}
    return {
        "clients": clients,
        "sides": {f"{name}, {number} client(s)": load.as_json() for (name, number), load in loads.items()},
        "overload": {name: load.as_json() for name, load in crowd.items()},
        "rollback_served_after_ms": swaps,
        "memory": memory,
    }


def swap(root: Path, port: int) -> list[float]:
    """Milliseconds from a rollback to the first answer of its release, back and forth."""
    knowledge_base = KnowledgeBase.open(root, models_folder())
    releases = [commit.id for commit in knowledge_base.repository.log("main", first_parent=True, amount=2)]
    found = []
    for turn in range(SWAPS):
        commit = rollback(knowledge_base, releases[1 - turn % 2]).id
        begun = time.perf_counter()
        while served(port) != commit:
            assert time.perf_counter() - begun < PATIENCE, "a rollback was never served"
            time.sleep(0.005)
        found.append(round((time.perf_counter() - begun) * 1000, 1))
    return found


def served(port: int) -> str:
    """The commit that answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    connection.request("GET", "/healthz")
    commit: str = json.load(connection.getresponse())["release"]["commit"]
    connection.close()
    return commit


def watch(
    pid: int, sides: dict[str, Ask], questions: dict[str, Iterator[str]], clients: int, seconds: float
) -> dict[str, Any]:
    """Resident memory of the server under load, in twenty pieces of the time."""
    megabytes, load, until = [], Load(), time.monotonic() + seconds
    mark = time.monotonic()
    while time.monotonic() < until:
        for name in ("search, server", "query, server"):
            load.run(sides[name], questions[name], clients, 5)
        if time.monotonic() - mark > seconds / 20:
            megabytes.append(resident(pid))
            mark = time.monotonic()
    megabytes.append(resident(pid))
    third = max(1, len(megabytes) // 3)
    return {
        "seconds": seconds,
        "requests": sum(load.statuses.values()),
        "megabytes": megabytes,
        "first_third": statistics.median(megabytes[:third]),
        "last_third": statistics.median(megabytes[-third:]),
    }


def resident(pid: int) -> float:
    """Megabytes of memory that a process has."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 1)


# -- together --------------------------------------------------------------------------------------


def print_result(result: dict[str, Any]) -> None:
    """Tables."""
    columns = ("", "p50, ms", "p95, ms", "p99, ms", "a second", "requests")
    for title, loads in (
        (f"{result['chunks']} chunks", result["sides"]),
        (f"{OVERLOAD} times as many clients", result["overload"]),
    ):
        rows = [
            (name, row["p50"], row["p95"], row["p99"], row["per_second"], row["requests"])
            for name, row in loads.items()
        ]
        show(title, columns, rows)
    for name, row in result["overload"].items():
        print(f"overload, {name}: statuses {row['statuses']}, slowest {row['max']} ms")
        if "refused_p50" in row:
            print(f"refused after {row['refused_p50']} ms at the median, {row['refused_max']} ms at most")
    swaps = result["rollback_served_after_ms"]
    print(f"a rollback is served after {statistics.median(swaps)} ms, at most {max(swaps)} ms")
    if memory := result["memory"]:
        print(
            f"memory over {memory['seconds']:.0f} s and {memory['requests']} requests: "
            f"{memory['first_third']} MB in the first third, {memory['last_third']} MB in the last"
        )


def main() -> None:
    """Measure at one size."""
    made = parser(__doc__ or "")
    made.add_argument("--chunks", type=int, default=10_000)
    made.add_argument("--clients", type=int, default=16)
    made.add_argument("--requests", type=int, default=500, help="of each side and number of clients")
    made.add_argument("--soak", type=float, default=20.0, help="seconds under load, watching memory")
    made.add_argument("--folder", type=Path, help="where the knowledge base is kept for the next run")
    arguments = made.parse_args()
    with scratch() as name:
        root = (arguments.folder or Path(name)).resolve() / f"kb-{arguments.chunks}"
        if not root.exists():
            fill(root, arguments.chunks)
        result = measure(root, Path(name), arguments.clients, arguments.requests, arguments.soak)
    result["chunks"] = KnowledgeBase.open(root, models_folder()).release().manifest.chunks
    print(json.dumps(result)) if arguments.json else print_result(result)


if __name__ == "__main__":
    main()
