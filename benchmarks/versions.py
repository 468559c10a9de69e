"""What a release costs: 1 % changes published in a row, against rebuilding and against copying.

Real documents, each release editing every paragraph of one document in a hundred, through the real
ingest with the gate off. Beside it two ways to keep releases with plain Chroma and its default settings,
each release a folder of its own:

rebuild  read, split and add everything again;
copy     read every vector and text out of the release before and add them to a new collection, then
         split and add what changed, which is given to it.

All sides take the same pseudorandom unit vectors instead of embedding: what changed would cost every
side the same, and a rebuild that embeds would take minutes more than is counted here. The questions are
real and embedded before the clock starts. Bytes are those of all files that are new or changed after a
release. The peers run fewer releases, which the table says; nothing is extrapolated.
"""

import hashlib
import json
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import data_folder, models_folder, parser, read_jsonl, scratch, show
from benchmarks.ingest import texts
from ingestion.chunking import Chunker
from ingestion.pipeline import IngestOptions, ingest
from ingestion.readers import extract
from ingestion.sources import list_sources
from knowledge_base.configuration import ChunkerSettings, EmbedderSettings
from knowledge_base.documents import Chunk, Document
from knowledge_base.embedders import Embedder, load_embedder
from knowledge_base.home import KnowledgeBase
from knowledge_base.merging import merge
from rag.retriever import Retriever

EVERY = 100
"""One document in so many changes with each release."""

QUESTIONS = 100
ROUNDS = 3
NEW_CHUNKS = 1000
_BATCH = 5000


# -- the same documents, vectors and questions for every side --------------------------------------


def vectors_of(batch: Iterable[str]) -> NDArray[np.float32]:
    """A unit vector for each text that depends on the text alone."""
    rows = [
        np.random.default_rng(list(hashlib.blake2b(text.encode(), digest_size=16).digest())).normal(size=384)
        for text in batch
    ]
    made = np.array(rows, np.float32).reshape(-1, 384)
    unit: NDArray[np.float32] = made / np.linalg.norm(made, axis=1, keepdims=True)
    return unit


class Prepared:
    """The real embedder, but documents get `vectors_of` and questions what was computed before."""

    def __init__(self, real: Embedder, questions: Sequence[str]) -> None:
        self._real = real
        self._known = {question: real.embed_query(question) for question in questions}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def embed_documents(self, batch: Sequence[str], progress: object = None) -> NDArray[np.float32]:
        """Pseudorandom unit vectors."""
        return vectors_of(batch)

    def embed_query(self, question: str) -> NDArray[np.float32]:
        """What the model said of it."""
        return self._known[question]


class Bench(KnowledgeBase):
    """A knowledge base whose embedder is the prepared one."""

    prepared: Prepared

    def embedder(self, settings: EmbedderSettings) -> Embedder:
        """The prepared one."""
        return self.prepared


class Corpus:
    """Files of about `chunks` chunks in a folder, and their changes."""

    def __init__(self, folder: Path, supply: Iterator[str], chunks: int, embedder: Embedder) -> None:
        self.folder = folder
        self.chunks = 0
        self._chunker = Chunker(ChunkerSettings(), embedder.tokenize, limit=embedder.max_tokens - 2)
        self._texts: dict[str, str] = {}
        while self.chunks < chunks:
            name, text = f"{folder.name}-{len(self._texts):06d}.md", next(supply)
            self._texts[name] = text
            self._write(name, text)
            self.chunks += len(self.split(name))

    def change(self, release: int) -> list[str]:
        """Edit every paragraph of one document in a hundred, others with each release; returns names."""
        names = [name for number, name in enumerate(self._texts) if number % EVERY == release % EVERY]
        for name in names:
            paragraphs = self._texts[name].split("\n\n")
            self._write(name, "\n\n".join(f"{text}\nSeen in release {release}." for text in paragraphs))
        return names

    def names(self) -> list[str]:
        """Of every document."""
        return list(self._texts)

    def split(self, name: str) -> list[Chunk]:
        """The chunks of one document as it is on disk."""
        content = (self.folder / name).read_bytes()
        found = extract(name, content)
        document = Document(name, "", len(content), found.title, found.text, found.sections)
        return self._chunker.split(document)

    def _write(self, name: str, text: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / name).write_text(text, encoding="utf-8")


def editions() -> Iterator[str]:
    """Distinct documents without end: when the data are used up they come again, each paragraph marked."""
    seen: set[str] = set()
    for edition in count():
        for text in texts(data_folder()):
            marked = text.replace("\n\n", f"\n\n({edition}) ") + f"\n({edition})\n" if edition else text
            if marked not in seen:
                seen.add(marked)
                yield marked


def read_questions() -> list[str]:
    """Real questions, spread over the whole data set."""
    rows = read_jsonl(data_folder() / "squad" / "dev-v1.1.questions.jsonl")
    return [row["question"] for row in rows[:: len(rows) // QUESTIONS][:QUESTIONS]]


# -- measuring -------------------------------------------------------------------------------------


@dataclass
class Costs:
    """Of each release of one side: seconds, bytes written, and for Plumbline segments."""

    seconds: list[float] = field(default_factory=list)
    bytes: list[int] = field(default_factory=list)
    segments: list[int] = field(default_factory=list)

    def time(self, folder: Path, work: Callable[[], None]) -> None:
        """Do the work of one release, whose files lie in `folder`."""
        before = _files(folder)
        started = time.perf_counter()
        work()
        self.seconds.append(time.perf_counter() - started)
        after = _files(folder)
        self.bytes.append(sum(stat[0] for path, stat in after.items() if before.get(path) != stat))

    def as_json(self) -> dict[str, Any]:
        """Medians first."""
        return {
            "releases": len(self.seconds),
            "seconds_median": round(statistics.median(self.seconds), 3),
            "bytes_median": int(statistics.median(self.bytes)),
            "seconds": [round(value, 3) for value in self.seconds],
            "bytes": self.bytes,
            "segments": self.segments,
        }


def _files(folder: Path) -> dict[str, tuple[int, int, int]]:
    stats = ((str(path), path.stat()) for path in folder.rglob("*") if path.is_file())
    return {name: (stat.st_size, stat.st_mtime_ns, stat.st_ino) for name, stat in stats}


def open_bench(root: Path, prepared: Prepared) -> Bench:
    """The knowledge base of a folder, made when there is none."""
    if not root.exists():
        Bench.create(root, models_folder())
    made = Bench.open(root, models_folder())
    assert isinstance(made, Bench)
    made.prepared = prepared
    return made


def publish(root: Path, prepared: Prepared, corpus: Corpus, branch: str = "main") -> None:
    """One ingest as `rag ingest` does it, from opening the knowledge base on."""
    ingest(open_bench(root, prepared), list_sources([str(corpus.folder)]), IngestOptions(branch=branch))


def query_milliseconds(
    roots: Sequence[Path], prepared: Prepared, questions: Sequence[str]
) -> tuple[list[float], float]:
    """Median retrieval time of each knowledge base, asked in turn, and the share of equal top tens."""
    snapshots = [open_bench(root, prepared).snapshot() for root in roots]
    retrievers = [
        Retriever(snapshot, prepared, snapshot.release.settings.retrieval) for snapshot in snapshots
    ]
    times: list[list[float]] = [[] for _ in roots]
    equal = 0
    for round_ in range(ROUNDS + 1):
        for question in questions:
            found = []
            for own, retriever in zip(times, retrievers, strict=True):
                started = time.perf_counter()
                found.append(
                    [(context.chunk_id, context.score) for context in retriever.search(question, 10)]
                )
                if round_:  # the first one opens the caches
                    own.append((time.perf_counter() - started) * 1000)
            equal += all(ranking == found[0] for ranking in found)
    for snapshot in snapshots:
        snapshot.close()
    return [statistics.median(own) for own in times], equal / (len(questions) * (ROUNDS + 1))


def branch_and_merge(
    root: Path, prepared: Prepared, corpus: Corpus, more: Corpus, release: int
) -> dict[str, float]:
    """Seconds of each step of bringing new documents in by a branch while main moves on."""
    knowledge_base = open_bench(root, prepared)
    steps: dict[str, float] = {"chunks": more.chunks}

    def timed(name: str, work: Callable[[], object]) -> None:
        started = time.perf_counter()
        work()
        steps[name] = round(time.perf_counter() - started, 3)

    timed("branch", lambda: knowledge_base.repository.create_branch("more", "main"))
    corpus.change(release)
    publish(root, prepared, corpus)  # not timed: without it there would be nothing to merge
    timed("ingest", lambda: publish(root, prepared, more, "more"))
    timed("merge", lambda: merge(open_bench(root, prepared), "more"))
    steps["total"] = round(steps["branch"] + steps["ingest"] + steps["merge"], 3)
    return steps


# -- plain Chroma ----------------------------------------------------------------------------------


def open_collection(folder: Path) -> tuple[Any, Any]:
    """A client of a folder and its one collection."""
    import chromadb

    client = chromadb.PersistentClient(str(folder), settings=chromadb.Settings(anonymized_telemetry=False))
    return client, client.get_or_create_collection("release", embedding_function=None)


def add_chunks(collection: Any, corpus: Corpus, names: Sequence[str]) -> None:
    """Split and add some documents."""
    chunks = [chunk for name in names for chunk in corpus.split(name)]
    for start in range(0, len(chunks), _BATCH):
        part = chunks[start : start + _BATCH]
        collection.add(
            ids=[chunk.id for chunk in part],
            embeddings=vectors_of(chunk.text for chunk in part),
            documents=[chunk.text for chunk in part],
            metadatas=[{"path": chunk.path} for chunk in part],
        )


def rebuild(folder: Path, corpus: Corpus) -> None:
    """A collection of everything, from nothing."""
    client, collection = open_collection(folder)
    add_chunks(collection, corpus, corpus.names())
    client.close()


def copy(old: Path, new: Path, corpus: Corpus, changed: Sequence[str]) -> None:
    """A collection with what another one holds, but for some documents, which are read again."""
    (source_client, source), (client, collection) = open_collection(old), open_collection(new)
    gone = set(changed)
    for start in range(0, source.count(), _BATCH):
        rows = source.get(limit=_BATCH, offset=start, include=["embeddings", "documents", "metadatas"])
        kept = [row for row, meta in enumerate(rows["metadatas"]) if meta["path"] not in gone]
        collection.add(
            ids=[rows["ids"][row] for row in kept],
            embeddings=rows["embeddings"][kept],
            documents=[rows["documents"][row] for row in kept],
            metadatas=[rows["metadatas"][row] for row in kept],
        )
    add_chunks(collection, corpus, changed)
    client.close()
    source_client.close()


# -- all together ----------------------------------------------------------------------------------


def measure_peers(folder: Path, corpus: Corpus, release: int, runs: int) -> dict[str, Costs]:
    """The two ways of plain Chroma; each of their releases changes the corpus, from `release` on."""
    peers = {"rebuild": Costs(), "copy": Costs()}
    last = folder / "rebuild-0"
    for number in range(runs):
        last = folder / f"rebuild-{number}"
        corpus.change(release + number)
        peers["rebuild"].time(last, lambda last=last: rebuild(last, corpus))  # type: ignore[misc]
    for number in range(runs):
        old, last = last, folder / f"copy-{number}"
        changed = corpus.change(release + runs + number)
        peers["copy"].time(last, lambda old=old, new=last, it=changed: copy(old, new, corpus, it))  # type: ignore[misc]
    return peers


def measure(folder: Path, chunks: int, releases: int, peer_releases: int) -> dict[str, Any]:
    """Every side on one corpus, one after the other."""
    questions = read_questions()
    real = load_embedder(EmbedderSettings(), models_folder())
    prepared = Prepared(real, questions)
    supply = editions()
    corpus = Corpus(folder / "documents", supply, chunks, real)
    more = Corpus(folder / "more", supply, NEW_CHUNKS, real)
    aged, fresh = folder / "aged", folder / "fresh"
    first, ours = Costs(), Costs()
    first.time(aged, lambda: publish(aged, prepared, corpus))
    for release in range(1, releases + 1):
        corpus.change(release)
        ours.time(aged, lambda: publish(aged, prepared, corpus))
        ours.segments.append(len(open_bench(aged, prepared).release().manifest.segments))
    publish(fresh, prepared, corpus)
    milliseconds, equal = query_milliseconds((aged, fresh), prepared, questions)
    branching = branch_and_merge(aged, prepared, corpus, more, releases + 1)
    peers = measure_peers(folder, corpus, releases + 2, peer_releases)
    medians = {name: statistics.median(costs.seconds) for name, costs in peers.items()}
    own_seconds, own_bytes = statistics.median(ours.seconds), statistics.median(ours.bytes)
    return {
        "chunks": corpus.chunks,
        "first_fill": first.as_json(),
        "plumbline": ours.as_json(),
        **{name: costs.as_json() for name, costs in peers.items()},
        "query_ms": {"aged": round(milliseconds[0], 2), "fresh": round(milliseconds[1], 2)},
        "equal_top_ten": round(equal, 4),
        "branch_and_merge": branching,
        "ratios": {
            "faster_than_rebuild": round(medians["rebuild"] / own_seconds, 1),
            "fewer_bytes_than_rebuild": round(statistics.median(peers["rebuild"].bytes) / own_bytes, 1),
            "faster_than_copy": round(medians["copy"] / own_seconds, 1),
            "fewer_bytes_than_copy": round(statistics.median(peers["copy"].bytes) / own_bytes, 1),
            "query_aged_to_fresh": round(milliseconds[0] / milliseconds[1], 2),
            "branch_and_merge_to_copy": round(branching["total"] / medians["copy"], 3),
        },
    }


def print_result(result: dict[str, Any]) -> None:
    """Three tables."""
    sides = ("plumbline", "rebuild", "copy")
    show(
        f"One release that changes 1 % of {result['chunks']} chunks (medians)",
        ("", *(f"{side} ({result[side]['releases']} run)" for side in sides)),
        [
            ("seconds", *(result[side]["seconds_median"] for side in sides)),
            ("slowest, seconds", *(max(result[side]["seconds"]) for side in sides)),
            ("megabytes written", *(result[side]["bytes_median"] / 1e6 for side in sides)),
            ("most, megabytes", *(max(result[side]["bytes"]) / 1e6 for side in sides)),
        ],
    )
    steps = result["branch_and_merge"]
    show(
        "After the last release",
        ("", "value"),
        [
            ("query p50, ms", result["query_ms"]["aged"]),
            ("query p50 of a fresh index, ms", result["query_ms"]["fresh"]),
            ("share of questions with the same top ten, scores included", result["equal_top_ten"]),
            ("segments after each release", " ".join(map(str, result["plumbline"]["segments"]))),
            (f"branch, ingest {steps['chunks']} new chunks, merge: seconds", steps["total"]),
            ("of which merge", steps["merge"]),
        ],
    )
    show("Ratios", ("", "value"), list(result["ratios"].items()))


def main() -> None:
    """Compare at one size, or with --large at two."""
    made = parser(__doc__ or "")
    made.add_argument("--chunks", type=int, default=20_000)
    made.add_argument("--large", type=int, help="measure again with so many chunks, for example 100000")
    made.add_argument("--releases", type=int, default=20)
    made.add_argument("--peer-releases", type=int, default=3)
    arguments = made.parse_args()
    results = []
    for chunks in filter(None, (arguments.chunks, arguments.large)):
        with scratch() as name:
            results.append(measure(Path(name), chunks, arguments.releases, arguments.peer_releases))
    if arguments.json:
        print(json.dumps(results[0] if len(results) == 1 else {"small": results[0], "large": results[1]}))
        return
    for result in results:
        print_result(result)


if __name__ == "__main__":
    main()
