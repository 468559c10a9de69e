"""Answers beside plain LangChain and LlamaIndex, and what each part of retrieval adds.

The same questions, chunks and embedder for all: a LangChain retriever over Chroma, the retriever of a
LlamaIndex query engine over Chroma, and Plumbline with its default settings. recall@5, MRR@10 and nDCG@10
count documents. Only Plumbline answers without a language model; of its answers the table gives how often
the first quoted sentence holds the gold answer (SQuAD) or lies in the annotated sentences (CLAP NQ), and the
share of citations that verify. With SQuAD among the tasks, how well its score tells questions that can be
answered from those that cannot (benchmarks/abstention.py).

`--parts` measures Plumbline without and with each part of retrieval that needs no language model. "Flooded"
is SQuAD with two near copies of every paragraph: there every copy of the right paragraph counts as right,
so what is lost is lost to copies of wrong ones.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import abstention
from benchmarks.common import data_folder, parser, read_jsonl, scratch, show
from benchmarks.retrieval import DEPTH, TASKS, Task, build, score, squad
from eval.metrics import citation_validity
from knowledge_base.documents import Chunk
from rag.engine import Engine
from rag.retriever import Retriever

Search = Callable[[str], list[str]]
"""Question to document names, best first."""

FETCHED = 50
PARTS: dict[str, dict[str, Any]] = {
    "dense only": {"mode": "dense"},
    "lexical only": {"mode": "lexical"},
    "hybrid (default)": {},
    "+ duplicates 0.95": {"duplicates": 0.95},
    "+ diversity 0.3": {"diversity": 0.3},
    "+ neighbours": {"expand": "neighbours"},
    "+ section": {"expand": "section"},
}


# -- the sides -------------------------------------------------------------------------------------


def plumbline(engine: Engine, names: Sequence[str]) -> Search:
    """Plumbline's own retriever with the release's settings."""

    def search(question: str) -> list[str]:
        return _names(names, [p for c in engine.search(question, FETCHED) for p in (c.path, *c.also_in)])

    return search


def vectors_of(engine: Engine) -> tuple[list[Chunk], list[list[float]]]:
    """Every distinct chunk with its vector, as the release has them: nobody embeds a second time."""
    snapshot = engine.snapshot
    live = np.flatnonzero(snapshot.live)
    chunks = [snapshot.chunks_of(int(passage))[0] for passage in live]
    return chunks, snapshot.passage_vectors(live).tolist()


def langchain(engine: Engine, names: Sequence[str], folder: Path) -> Search:
    """`Chroma.as_retriever`, the default similarity search."""
    from langchain_chroma import Chroma
    from langchain_core.embeddings import Embeddings

    chunks, vectors = vectors_of(engine)
    known = dict(zip((chunk.text for chunk in chunks), vectors, strict=True))

    class Same(Embeddings):
        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            return [known[text] for text in texts]

        def embed_query(self, text: str) -> list[float]:
            return list(map(float, engine.embedder.embed_query(text)))

    store = Chroma("answers", Same(), persist_directory=str(folder / "langchain"))
    for start in range(0, len(chunks), 2000):
        part = chunks[start : start + 2000]
        store.add_texts([chunk.text for chunk in part], [{"path": chunk.path} for chunk in part])
    retriever = store.as_retriever(search_kwargs={"k": FETCHED})
    return lambda question: _names(names, [d.metadata["path"] for d in retriever.invoke(question)])


def llamaindex(engine: Engine, names: Sequence[str], folder: Path) -> Search:
    """The retriever of `VectorStoreIndex` over Chroma, as its query engine uses it."""
    import chromadb
    from llama_index.core import VectorStoreIndex
    from llama_index.core.base.embeddings.base import BaseEmbedding
    from llama_index.core.schema import TextNode
    from llama_index.vector_stores.chroma import ChromaVectorStore

    class Same(BaseEmbedding):
        def _get_text_embedding(self, text: str) -> list[float]:
            return list(map(float, engine.embedder.embed_documents([text])[0]))

        def _get_query_embedding(self, query: str) -> list[float]:
            return list(map(float, engine.embedder.embed_query(query)))

        async def _aget_query_embedding(self, query: str) -> list[float]:
            return self._get_query_embedding(query)

    client = chromadb.PersistentClient(str(folder / "llamaindex"))
    store = ChromaVectorStore(chroma_collection=client.get_or_create_collection("answers"))
    nodes = [
        TextNode(text=chunk.text, metadata={"path": chunk.path}, embedding=vector)
        for chunk, vector in zip(*vectors_of(engine), strict=True)
    ]
    for start in range(0, len(nodes), 2000):
        store.add(nodes[start : start + 2000])
    index = VectorStoreIndex.from_vector_store(store, embed_model=Same())
    retriever = index.as_retriever(similarity_top_k=FETCHED)
    return lambda question: _names(names, [n.node.metadata["path"] for n in retriever.retrieve(question)])


def _names(names: Sequence[str], paths: Sequence[str]) -> list[str]:
    return [names[int(path.removesuffix(".md"))] for path in dict.fromkeys(paths)][:DEPTH]


# -- measuring -------------------------------------------------------------------------------------


def ranked(task: Task, search: Search) -> dict[str, float]:
    """Mean scores of one side, and the median milliseconds of a question."""
    scores, seconds = [], []
    for key, question in task.questions.items():
        started = time.perf_counter()
        found = search(question)
        seconds.append(time.perf_counter() - started)
        scores.append(score(found, task.relevant[key]))
    recall, mrr, ndcg = (float(np.mean(column)) for column in zip(*scores, strict=True))
    return {"recall@5": recall, "mrr@10": mrr, "ndcg@10": ndcg, "ms": 1000 * float(np.median(seconds))}


def answered(task: Task, engine: Engine) -> dict[str, float]:
    """How Plumbline's extractive answers fare; the first quote is the best one."""
    gold = gold_answers(task.name)
    right, valid, seconds, given = [], [], [], 0
    for key, question in task.questions.items():
        started = time.perf_counter()
        answer = engine.ask(question)
        seconds.append(time.perf_counter() - started)
        given += not answer.abstained
        verified = citation_validity(answer, engine.snapshot.document_text)
        valid += [] if verified is None else [verified]
        if key in gold:
            quote = " ".join(answer.citations[0].quote.lower().split()) if answer.citations else ""
            right.append(bool(quote) and any(text in quote or quote in text for text in gold[key]))
    return {
        "answered": given / len(task.questions),
        **({"sentence": float(np.mean(right))} if right else {}),
        "citations": float(np.mean(valid)),
        "ms": 1000 * float(np.median(seconds)),
    }


def gold_answers(name: str) -> dict[str, list[str]]:
    """Texts of which a right sentence holds one, or lies in one, by question."""
    if name == "squad":
        rows = read_jsonl(data_folder() / "squad" / "dev-v1.1.questions.jsonl")
        return {row["id"]: [" ".join(text.lower().split()) for text in row["answers"]] for row in rows}
    if name == "clapnq":
        rows = read_jsonl(data_folder() / "clapnq" / "dev_A.jsonl")
        return {
            row["id"]: [
                " ".join(text.lower().split()) for chosen in row["selected_sentences"] for text in chosen
            ]
            for row in rows
            if row["answerable"]
        }
    return {}


def sampled(task: Task, count: int) -> Task:
    """The task with about `count` of its questions, evenly spread."""
    keys = list(task.questions)[:: max(1, len(task.questions) // count)]
    return replace(task, questions={key: task.questions[key] for key in keys})


def compare(chosen: Sequence[str], count: int) -> dict[str, Any]:
    """The chosen tasks on every side."""
    results: dict[str, Any] = {}
    for name in chosen:
        task = sampled(TASKS[name](data_folder()), count)
        names = list(task.documents)
        with scratch() as scratched:
            folder = Path(scratched)
            engine = Engine.open(build(task, folder / "kb", "all-MiniLM-L6-v2", "int8"))
            sides = {
                "Plumbline": plumbline(engine, names),
                "LangChain": langchain(engine, names, folder),
                "LlamaIndex": llamaindex(engine, names, folder),
            }
            results[name] = {side: ranked(task, search) for side, search in sides.items()}
            results[name]["answers"] = answered(task, engine)
            engine.close()
    return results


# -- parts -----------------------------------------------------------------------------------------


def flooded(task: Task) -> Task:
    """Every paragraph three times, the copies with a sentence of their own."""
    documents, relevant = dict(task.documents), dict(task.relevant)
    for number in (1, 2):
        for key, text in task.documents.items():
            documents[f"{key}~{number}"] = f"{text}\n\nCopy {number} of this paragraph."
    for key, right in task.relevant.items():
        relevant[key] = right | {f"{one}~{number}" for one in right for number in (1, 2)}
    return Task("flooded", documents, task.questions, relevant)


def parts(count: int) -> dict[str, Any]:
    """Each part on SQuAD, plain and flooded."""
    plain = sampled(squad(data_folder()), count)
    results: dict[str, Any] = {}
    gold = gold_answers("squad")
    for task in (plain, flooded(plain)):
        with scratch() as folder:
            engine = Engine.open(build(task, Path(folder) / "kb", "all-MiniLM-L6-v2", "int8"))
            results[task.name] = {part: _part(task, engine, part, gold) for part in PARTS}
            engine.close()
    return results


def _part(task: Task, engine: Engine, part: str, gold: dict[str, list[str]]) -> dict[str, float]:
    settings = engine.release.settings.retrieval.model_copy(update=PARTS[part])
    retriever = Retriever(engine.snapshot, engine.embedder, settings)
    held, tokens, seconds, distinct = [], [], [], []
    for key, question in task.questions.items():
        started = time.perf_counter()
        contexts = retriever.search(question, 5)
        seconds.append(time.perf_counter() - started)
        text = " ".join(" ".join(context.text for context in contexts).lower().split())
        held.append(any(answer in text for answer in gold[key]))
        tokens.append(sum(len(engine.embedder.tokenize(context.text)) for context in contexts))
        distinct.append(len({context.text[:80] for context in contexts}))
    return {
        "answer in the passages": float(np.mean(held)),
        "distinct passages": float(np.mean(distinct)),
        "tokens": float(np.mean(tokens)),
        "ms": 1000 * float(np.median(seconds)),
    }


def main() -> None:
    """Print the tables."""
    made = parser(__doc__ or "")
    made.add_argument("--questions", type=int, default=1000, help="of each task, at most about so many")
    made.add_argument("--tasks", default=",".join(TASKS), help="comma-separated")
    made.add_argument("--parts", action="store_true", help="what each part of retrieval adds")
    arguments = made.parse_args()
    if arguments.parts:
        results = parts(arguments.questions)
    else:
        tasks = arguments.tasks.split(",")
        results = compare(tasks, arguments.questions)
        if "squad" in tasks:
            measured = abstention.measure(arguments.questions // 2, abstention.NONE)[abstention.NONE]
            results["abstention, AUROC"] = {"Plumbline": measured.separations}
    if arguments.json:
        print(json.dumps(results))
        return
    for title, table in results.items():
        answers = table.pop("answers", None)
        first = next(iter(table.values()))
        show(title, ("", *first), [(side, *row.values()) for side, row in table.items()])
        if answers:
            show(f"{title}: Plumbline's answers", tuple(answers), [tuple(answers.values())])


if __name__ == "__main__":
    main()
