"""Answered and abstained, by threshold: questions that the documents answer, and questions they do not.

The documents are the SQuAD paragraphs alone. Every question is answered once with `min_support` 0; a
threshold then leaves what the answer's best sentence supports at least so well. The questions are on
articles that the score was not trained on. "Unanswerable" rows are SQuAD 2.0 questions on the paragraphs' own
topics that they do not answer: the hard kind; foreign ones are those questions of CLAP NQ that are kept for
tests. AUROC is the chance that an answerable question has more support than one that is not.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.answerability_data import Question, clapnq, held_out, squad
from benchmarks.common import auroc, data_folder, models_folder, parser, read_jsonl, scratch, show
from ingestion.pipeline import IngestOptions, ingest
from ingestion.sources import SourceFile, Sources
from knowledge_base.home import KnowledgeBase
from rag.engine import Engine

THRESHOLDS = (0.0, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6, 0.7)


def build(folder: Path, paragraphs: Sequence[str]) -> Engine:
    """An engine over the paragraphs that answers whatever the support."""
    knowledge_base = KnowledgeBase.create(folder, models_folder())
    settings = folder / "plumbline.toml"
    settings.write_text(settings.read_text().replace("min_support = 0.5", "min_support = 0.0"))
    files = tuple(
        SourceFile(f"{number:06d}.md", content=text.encode()) for number, text in enumerate(paragraphs)
    )
    ingest(knowledge_base, Sources(files), IngestOptions())
    return Engine.open(knowledge_base)


def questions(data: Path, count: int) -> tuple[list[Question], list[Question], list[Question]]:
    """At most `count` answerable, unanswerable and foreign questions, none of them trained on."""
    own = [q for q in squad(data) if q.source == "squad2" and held_out(q)]
    kinds = (
        [q for q in own if q.gold],
        [q for q in own if not q.gold],
        [q for q in clapnq(data) if held_out(q)],
    )
    answerable, hard, foreign = (kind[:: max(1, len(kind) // count)][:count] for kind in kinds)
    return answerable, hard, foreign


def ask(engine: Engine, questions: Sequence[tuple[str, Sequence[str]]]) -> list[tuple[float, bool]]:
    """(support of the first sentence, whether it holds a gold answer) of each question."""
    results = []
    for question, gold in questions:
        answer = engine.ask(question)
        best = max(answer.citations, key=lambda citation: citation.support, default=None)
        quote = best.quote.lower() if best else ""
        results.append((best.support if best else 0.0, any(text.lower() in quote for text in gold)))
    return results


def curve(
    known: list[tuple[float, bool]], hard: list[tuple[float, bool]], foreign: list[tuple[float, bool]]
) -> list[dict[str, Any]]:
    """One row for each threshold."""
    rows = []
    for threshold in THRESHOLDS:
        answered = [right for support, right in known if support >= threshold and support > 0]
        rows.append(
            {
                "min_support": threshold,
                "answered": len(answered) / len(known),
                "right_of_answered": sum(answered) / max(len(answered), 1),
                "unanswerable_answered": _share(hard, threshold),
                "foreign_answered": _share(foreign, threshold),
            }
        )
    return rows


def _share(rows: list[tuple[float, bool]], threshold: float) -> float:
    return sum(support >= threshold and support > 0 for support, _ in rows) / len(rows)


def separation(known: list[tuple[float, bool]], unknown: list[tuple[float, bool]]) -> float:
    """AUROC of the support of the best sentence as a sign that the question can be answered."""
    answerable = [True] * len(known) + [False] * len(unknown)
    return auroc(np.array(answerable), np.array([support for support, _ in known + unknown]))


def plot(path: Path, known: list[tuple[float, bool]], unknown: dict[str, list[tuple[float, bool]]]) -> None:
    """Draw which share of each kind is answered, over all thresholds."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "plumbline"  # the same data, the same file
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5, 4))
    thresholds = np.linspace(0, 1, 201)
    answered = [_share(known, t) for t in thresholds]
    for name, rows in unknown.items():
        label = f"{name} (AUROC {separation(known, rows):.2f})"
        axes.plot([_share(rows, t) for t in thresholds], answered, label=label)
    axes.plot([0, 1], [0, 1], color="gray", linewidth=0.8, linestyle=":")
    axes.set(xlabel="unanswerable questions answered", ylabel="answerable questions answered")
    axes.legend(loc="lower right", frameon=False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def measure(count: int) -> dict[str, list[tuple[float, bool]]]:
    """(support, rightness) of at most `count` questions of each kind; the first kind can be answered."""
    data = data_folder()
    paragraphs = [row["text"] for row in read_jsonl(data / "squad" / "dev-v2.0.paragraphs.jsonl")]
    answerable, hard, foreign = questions(data, count)
    with scratch() as name:
        engine = build(Path(name), paragraphs)
        results = {
            "answerable": ask(engine, [(q.question, q.gold) for q in answerable]),
            "on the topic": ask(engine, [(q.question, ()) for q in hard]),
            "foreign": ask(engine, [(q.question, ()) for q in foreign]),
        }
        engine.close()
    return results


def separations(results: dict[str, list[tuple[float, bool]]]) -> dict[str, float]:
    """AUROC against each kind of unanswerable question."""
    known, *unknown = results.items()
    return {name: separation(known[1], rows) for name, rows in unknown}


def main() -> None:
    """Print the trade-off."""
    made = parser(__doc__ or "")
    made.add_argument("--questions", type=int, default=1000, help="of each kind, at most")
    made.add_argument("--plot", type=Path, help="write the curve to this SVG or PNG")
    arguments = made.parse_args()
    results = measure(arguments.questions)
    counts = {name: len(rows) for name, rows in results.items()}
    table, separated = curve(*results.values()), separations(results)
    if arguments.plot:
        known, *unknown = results.items()
        plot(arguments.plot, known[1], dict(unknown))
    if arguments.json:
        print(json.dumps({"questions": counts, "curve": table, "auroc": separated}))
        return
    show(f"Share of questions ({counts})", tuple(table[0]), [tuple(row.values()) for row in table])
    show("Support tells answerable from", ("unanswerable questions", "AUROC"), list(separated.items()))


if __name__ == "__main__":
    main()
