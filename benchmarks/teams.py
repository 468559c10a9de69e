"""A team's backends beside the embedded ones: same log, diffs and answers; HTTP requests per release.

Dapr's documentation 1.10, 1.11 and 1.12 goes through embedded git with Chroma in folders, and through a
lakeFS server with a Chroma server. The lakeFS server is the double of the tests, so its speed says
nothing; its number of requests does. Then one document changes, in a knowledge base of 20 documents and
in that of all of them: what a release costs in requests must not grow with the knowledge base.

Each text is embedded once for both sides: embedding is no part of what is compared.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import data_folder, models_folder, parser, scratch, show
from ingestion.pipeline import IngestOptions, ingest
from ingestion.sources import list_sources
from knowledge_base.configuration import EmbedderSettings
from knowledge_base.difference import diff_releases
from knowledge_base.embedders import Embedder, Progress, load_embedder
from knowledge_base.history import list_releases
from knowledge_base.home import KnowledgeBase
from knowledge_base.values import Fingerprint
from rag.engine import Engine
from tests.lakefs_server import LakeFSServer, specification

VERSIONS = ("v1.10", "v1.11", "v1.12")
QUESTIONS = (
    "How do I enable mTLS between sidecars?",
    "Which state stores support transactions?",
    "How does the actor placement service work?",
    "What is the default port of the sidecar's HTTP API?",
    "How are pub/sub messages delivered more than once handled?",
    "Which components can be hot reloaded?",
    "How do I set resource limits of the sidecar on Kubernetes?",
    "What does the workflow building block do?",
)
SMALL = 20


class Once:
    """An embedder that remembers: the second side gets the vectors of the first."""

    def __init__(self, inner: Embedder) -> None:
        self._inner = inner
        self._known: dict[str, NDArray[np.float32]] = {}
        self.dimension, self.max_tokens = inner.dimension, inner.max_tokens

    @property
    def fingerprint(self) -> Fingerprint:
        """That of the embedder itself."""
        return self._inner.fingerprint

    def embed_documents(self, texts: Sequence[str], progress: Progress | None = None) -> NDArray[np.float32]:
        """Vectors of passages, computed only for texts that are new."""
        new = [text for text in texts if text not in self._known]
        if new:
            self._known.update(zip(new, self._inner.embed_documents(new, progress), strict=True))
        return np.stack([self._known[text] for text in texts])

    def embed_query(self, text: str) -> NDArray[np.float32]:
        """Vector of a question."""
        return self._inner.embed_query(text)

    def tokenize(self, text: str) -> list[int]:
        """Token ids."""
        return self._inner.tokenize(text)


@contextmanager
def chroma_server(folder: Path) -> Iterator[str]:
    """`chroma run` on a free port while the block runs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    chroma = Path(sys.executable).with_name("chroma")
    command = [str(chroma), "run", "--path", str(folder), "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"{url}/api/v2/heartbeat", timeout=5).close()
                break
            except urllib.error.URLError:
                if time.monotonic() > deadline or process.poll() is not None:
                    raise
                time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait(20)


def told(knowledge_base: KnowledgeBase) -> list[dict[str, Any]]:
    """The log without ids and times."""
    entries = list_releases(knowledge_base.repository, "main", None)
    return [
        {key: entry[key] for key in entry if key not in ("commit", "parents", "date")} for entry in entries
    ]


def answers(knowledge_base: KnowledgeBase) -> list[Any]:
    """Rankings with their scores, and answers with their citations, without ids of commits."""
    engine = Engine.open(knowledge_base)
    try:
        found: list[Any] = []
        for question in QUESTIONS:
            ranked = [(result.chunk_id, result.score) for result in engine.search(question, 10)]
            answer = engine.ask(question)
            quoted = [(citation.path, citation.start, citation.end) for citation in answer.citations]
            found.append((ranked, answer.answer, quoted))
        return found
    finally:
        engine.close()


def publish(knowledge_base: KnowledgeBase, server: LakeFSServer | None, folder: Path) -> dict[str, Any]:
    """One ingest: what it counts, and the requests it took."""
    if server:
        server.requests.clear()
    result = ingest(knowledge_base, list_sources([str(folder)]), IngestOptions(prune=True)).as_json()
    kept = {key: result[key] for key in ("documents", "chunks", "embedded", "reused")}
    kept["requests"] = dict(server.counts()) if server else {}
    return kept


def one_change(knowledge_base: KnowledgeBase, server: LakeFSServer, folder: Path) -> dict[str, int]:
    """Requests of a release in which one document changed, and of one in which none did."""
    path = min(folder.rglob("*.md"))
    path.write_text(path.read_text() + "\nOne more sentence for the release.\n")
    changed = publish(knowledge_base, server, folder)
    nothing = publish(knowledge_base, server, folder)
    assert changed["documents"]["changed"], "the document changed"
    return {"one": sum(changed["requests"].values()), "none": sum(nothing["requests"].values())}


def main() -> None:
    """Run it."""
    arguments = parser(__doc__ or "").parse_args()
    data = data_folder() / "docs_dapr_A"
    with scratch() as temporary, LakeFSServer(specification(str(data_folder()))) as server:
        folder = Path(temporary)
        os.environ.update(server.environment())
        embedder = Once(load_embedder(EmbedderSettings(), models_folder()))
        with chroma_server(folder / "chroma") as index:
            value = compare(data, folder, server, index, embedder)
    print_result(value, as_json=arguments.json)


def compare(data: Path, folder: Path, server: LakeFSServer, index: str, embedder: Embedder) -> dict[str, Any]:
    """All of it; raises AssertionError where the two sides differ."""

    def remote(name: str) -> KnowledgeBase:
        made = KnowledgeBase.create_remote(
            folder / name, f"lakefs://{name}", models_folder(), objects=folder / f"{name}-objects"
        )
        made.index_at(index)
        made.embedder = lambda settings: embedder  # type: ignore[method-assign]
        return made

    embedded = KnowledgeBase.create(folder / "embedded", models_folder())
    embedded.embedder = lambda settings: embedder  # type: ignore[method-assign]
    team = remote("team")
    rows = []
    for version in VERSIONS:
        here, there = publish(embedded, None, data / version), publish(team, server, data / version)
        requests = there.pop("requests")
        here.pop("requests")
        assert here == there, f"{version}: the counters differ"
        assert answers(embedded) == answers(team), f"{version}: the answers differ"
        documents = sum(len(here["documents"][kind]) for kind in ("added", "changed", "deleted", "renamed"))
        uploads = requests.get("upload_object", 0)
        rows.append(
            {"version": version, "changed": documents, "requests": sum(requests.values()), "uploads": uploads}
        )
    assert told(embedded) == told(team), "the logs differ"
    assert diff_releases(embedded, "main~2", "main") == diff_releases(team, "main~2", "main")
    working = folder / "working"
    shutil.copytree(data / VERSIONS[-1], working)
    everything = one_change(team, server, working)
    few = folder / "few"
    for path in sorted(working.rglob("*.md"))[:SMALL]:
        target = few / path.relative_to(working)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    small = remote("small")
    publish(small, server, few)
    # As many releases as the other one has: what is looked up in earlier ones is then the same.
    for _ in VERSIONS:
        one_change(small, server, few)
    little = one_change(small, server, few)
    assert server.violations == [], server.violations[:3]
    total = len(team.snapshot().paths)
    return {"releases": rows, "small": little, "large": everything, "documents": total}


def print_result(value: dict[str, Any], *, as_json: bool) -> None:
    """Tables, or one JSON object."""
    if as_json:
        sys.stdout.write(json.dumps(value, indent=2) + "\n")
        return
    show(
        "Embedded git and Chroma folders against lakeFS (double) and a Chroma server: log, diffs, counters, "
        "rankings, answers equal",
        ("release", "documents changed", "requests to lakeFS", "of them uploads"),
        [[row["version"], row["changed"], row["requests"], row["uploads"]] for row in value["releases"]],
    )
    show(
        "Requests to lakeFS of a release",
        ("documents in all", "one changed", "none changed"),
        [
            [SMALL, value["small"]["one"], value["small"]["none"]],
            [value["documents"], value["large"]["one"], value["large"]["none"]],
        ],
    )


if __name__ == "__main__":
    main()
