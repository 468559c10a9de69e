"""Dense, lexical and hybrid retrieval on SQuAD, SciFact and CLAP NQ, through the real ingest and query path.

A document is found when one of its passages is; its rank is that of its best passage. recall@5, MRR@10
and nDCG@10 over all questions that have a relevant document.
"""

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import data_folder, models_folder, parser, read_jsonl, scratch, show
from ingestion.pipeline import IngestOptions, ingest
from ingestion.sources import SourceFile, Sources
from knowledge_base.home import KnowledgeBase
from rag.engine import Engine
from rag.retriever import Retriever

MODES = ("dense", "lexical", "hybrid")
DEPTH = 10


@dataclass(frozen=True)
class Task:
    """Documents by id, questions by id, and which documents answer each question."""

    name: str
    documents: Mapping[str, str]
    questions: Mapping[str, str]
    relevant: Mapping[str, set[str]]


def squad(data: Path) -> Task:
    """The paragraph of each question among all paragraphs."""
    documents = {row["id"]: row["text"] for row in read_jsonl(data / "squad" / "dev-v1.1.paragraphs.jsonl")}
    rows = read_jsonl(data / "squad" / "dev-v1.1.questions.jsonl")
    questions = {row["id"]: row["question"] for row in rows}
    return Task("squad", documents, questions, {row["id"]: {row["paragraph"]} for row in rows})


def scifact(data: Path) -> Task:
    """The abstracts that speak to each claim (training half)."""
    corpus = read_jsonl(data / "scifact" / "corpus.jsonl")
    documents = {row["_id"]: f"{row['title']}\n\n{row['text']}" for row in corpus}
    questions = {row["_id"]: row["text"] for row in read_jsonl(data / "scifact" / "queries_train.jsonl")}
    relevant: dict[str, set[str]] = {}
    for line in (data / "scifact" / "qrels_train.tsv").read_text().splitlines()[1:]:
        claim, document, _ = line.split("\t")
        relevant.setdefault(claim, set()).add(document)
    return Task("scifact", documents, questions, relevant)


def clapnq(data: Path) -> Task:
    """The passage of each answerable question among all passages."""
    rows = read_jsonl(data / "clapnq" / "dev_A.jsonl")
    documents = {row["id"]: f"{row['title']}\n\n{row['passage']}" for row in rows}
    answerable = [row for row in rows if row["answerable"]]
    questions = {row["id"]: row["question"] for row in answerable}
    return Task("clapnq", documents, questions, {row["id"]: {row["id"]} for row in answerable})


TASKS = {"squad": squad, "scifact": scifact, "clapnq": clapnq}


def build(task: Task, folder: Path, embedder: str, precision: str) -> KnowledgeBase:
    """A knowledge base that holds the task's documents."""
    knowledge_base = KnowledgeBase.create(folder, models_folder())
    settings = folder / "plumbline.toml"
    text = (
        settings.read_text()
        .replace('"all-MiniLM-L6-v2"', f'"{embedder}"')
        .replace('"int8"', f'"{precision}"')
    )
    settings.write_text(text)
    files = tuple(
        SourceFile(f"{number:06d}.md", content=text.encode())
        for number, text in enumerate(task.documents.values())
    )
    ingest(knowledge_base, Sources(files), IngestOptions())
    return knowledge_base


def evaluate(task: Task, engine: Engine, mode: str, weight: float | None = None) -> dict[str, Any]:
    """Scores of one mode, and the median milliseconds of a question."""
    changes: dict[str, Any] = {"mode": mode} | ({} if weight is None else {"dense_weight": weight})
    settings = engine.release.settings.retrieval.model_copy(update=changes)
    retriever = Retriever(engine.snapshot, engine.embedder, settings)
    names = list(task.documents)
    scores, seconds = [], []
    for key, question in task.questions.items():
        started = time.perf_counter()
        contexts = retriever.search(question, settings.candidates)
        seconds.append(time.perf_counter() - started)
        paths = dict.fromkeys(path for c in contexts for path in (c.path, *c.also_in))
        ranked = [names[int(path.removesuffix(".md"))] for path in paths][:DEPTH]
        scores.append(score(ranked, task.relevant[key]))
    recall, mrr, ndcg = (float(np.mean(column)) for column in zip(*scores, strict=True))
    return {"recall@5": recall, "mrr@10": mrr, "ndcg@10": ndcg, "ms": 1000 * float(np.median(seconds))}


def score(ranked: list[str], relevant: set[str]) -> tuple[float, float, float]:
    """(recall@5, reciprocal rank at 10, nDCG@10) of one question."""
    hits = [rank for rank, name in enumerate(ranked[:DEPTH]) if name in relevant]
    ideal = sum(1 / math.log2(rank + 2) for rank in range(min(len(relevant), DEPTH)))
    return (
        len([rank for rank in hits if rank < 5]) / len(relevant),
        1 / (hits[0] + 1) if hits else 0.0,
        sum(1 / math.log2(rank + 2) for rank in hits) / ideal,
    )


def main() -> None:
    """Run the chosen tasks."""
    made = parser(__doc__ or "")
    made.add_argument("--tasks", default=",".join(TASKS), help="comma-separated")
    made.add_argument("--embedder", default="all-MiniLM-L6-v2")
    made.add_argument("--precision", default="int8")
    made.add_argument("--weights", default="", help="comma-separated dense weights to try as well")
    arguments = made.parse_args()
    results: dict[str, dict[str, Any]] = {}
    for name in arguments.tasks.split(","):
        task = TASKS[name](data_folder())
        with scratch() as folder:
            engine = Engine.open(build(task, Path(folder) / "kb", arguments.embedder, arguments.precision))
            results[name] = {mode: evaluate(task, engine, mode) for mode in MODES}
            for weight in filter(None, arguments.weights.split(",")):
                results[name][f"hybrid {weight}"] = evaluate(task, engine, "hybrid", float(weight))
            engine.close()
    if arguments.json:
        print(
            json.dumps({"embedder": arguments.embedder, "precision": arguments.precision, "tasks": results})
        )
        return
    rows = [
        (f"{name} {mode}", *values.values())
        for name, modes in results.items()
        for mode, values in modes.items()
    ]
    columns = ("task and mode", "recall@5", "MRR@10", "nDCG@10", "ms a question")
    show(f"{arguments.embedder} ({arguments.precision})", columns, rows)


if __name__ == "__main__":
    main()
