"""Answered and abstained, by threshold: questions that the documents answer, and questions they do not.

The documents are the SQuAD paragraphs alone. Every question is answered once with `min_support` 0; a
threshold then leaves what the answer's best sentence supports at least so well. The questions are on
articles that the score was not trained on. "Unanswerable" rows are SQuAD 2.0 questions on the paragraphs' own
topics that they do not answer: the hard kind; foreign ones are those questions of CLAP NQ that are kept for
tests. AUROC is the chance that an answerable question has more support than one that is not. With `--reader`
every question is asked once without that reader and once with it, in turn.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.answerability_data import Question, clapnq, held_out, squad
from benchmarks.common import auroc, data_folder, models_folder, parser, read_jsonl, scratch, show
from ingestion.pipeline import IngestOptions, ingest
from ingestion.sources import SourceFile, Sources
from knowledge_base.home import KnowledgeBase
from rag.engine import Engine

NONE = "none"
THRESHOLDS = (0.0, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6, 0.7)


Asked = list[tuple[float, bool]]
"""Of each question the support of the best sentence, and whether that holds a gold answer."""


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


def with_reader(folder: Path, reader: str) -> Engine:
    """An engine over the same paragraphs whose release names that `answer.reader`."""
    settings = folder / "plumbline.toml"
    settings.write_text(settings.read_text().replace("min_support", f'reader = "{reader}"\nmin_support', 1))
    knowledge_base = KnowledgeBase.open(folder, models_folder())
    ingest(knowledge_base, Sources(()), IngestOptions())
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


def ask(engine: Engine, question: str, gold: Sequence[str]) -> tuple[float, bool]:
    """(support of the best sentence, whether it holds a gold answer)."""
    answer = engine.ask(question)
    best = max(answer.citations, key=lambda citation: citation.support, default=None)
    quote = best.quote.lower() if best else ""
    return best.support if best else 0.0, any(text.lower() in quote for text in gold)


def curve(known: Asked, hard: Asked, foreign: Asked) -> list[dict[str, Any]]:
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


def _share(rows: Asked, threshold: float) -> float:
    return sum(support >= threshold and support > 0 for support, _ in rows) / len(rows)


def separation(known: Asked, unknown: Asked) -> float:
    """AUROC of the support of the best sentence as a sign that the question can be answered."""
    answerable = [True] * len(known) + [False] * len(unknown)
    return auroc(np.array(answerable), np.array([support for support, _ in known + unknown]))


@dataclass
class Side:
    """What came of the questions of each kind, the answerable ones first, and what one took."""

    kinds: dict[str, Asked]
    milliseconds: float

    @property
    def curve(self) -> list[dict[str, Any]]:
        """One row for each threshold."""
        return curve(*self.kinds.values())

    @property
    def separations(self) -> dict[str, float]:
        """AUROC against each kind of question that cannot be answered."""
        (_, known), *others = self.kinds.items()
        return {name: separation(known, rows) for name, rows in others}


def plot(path: Path, sides: Mapping[str, Side]) -> None:
    """Draw which share of each kind is answered, over all thresholds."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "plumbline"  # the same data, the same file
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5, 4))
    thresholds = np.linspace(0, 1, 201)
    for reader, line in zip(sides, ("-", "--"), strict=False):
        (_, known), *others = sides[reader].kinds.items()
        answered = [_share(known, t) for t in thresholds]
        for number, (kind, rows) in enumerate(others):
            label = f"{kind}{'' if reader == NONE else f', {reader}'} (AUROC {separation(known, rows):.2f})"
            shares = [_share(rows, t) for t in thresholds]
            axes.plot(shares, answered, line, color=f"C{number}", label=label)
    axes.plot([0, 1], [0, 1], color="gray", linewidth=0.8, linestyle=":")
    axes.set(xlabel="unanswerable questions answered", ylabel="answerable questions answered")
    axes.legend(loc="lower right", frameon=False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def measure(count: int, reader: str) -> dict[str, Side]:
    """Ask at most `count` questions of each kind, without a reader and, where one is named, with it."""
    data = data_folder()
    paragraphs = [row["text"] for row in read_jsonl(data / "squad" / "dev-v2.0.paragraphs.jsonl")]
    kinds = dict(zip(("answerable", "on the topic", "foreign"), questions(data, count), strict=True))
    with scratch() as name:
        engines = {NONE: build(Path(name), paragraphs)}
        if reader != NONE:
            engines[reader] = with_reader(Path(name), reader)
        found: dict[str, dict[str, Asked]] = {side: {kind: [] for kind in kinds} for side in engines}
        seconds: dict[str, list[float]] = {side: [] for side in engines}
        for kind, asked in kinds.items():
            for question in asked:
                for side, engine in engines.items():
                    begun = time.perf_counter()
                    found[side][kind].append(ask(engine, question.question, question.gold))
                    seconds[side].append(time.perf_counter() - begun)
        for engine in engines.values():
            engine.close()
    return {side: Side(found[side], 1000 * float(np.median(seconds[side]))) for side in engines}


def main() -> None:
    """Print the trade-off."""
    made = parser(__doc__ or "")
    made.add_argument("--questions", type=int, default=1000, help="of each kind, at most")
    made.add_argument("--plot", type=Path, help="write the curve to this SVG or PNG")
    made.add_argument("--reader", default=NONE, help="measure this answer.reader beside none: mpnet-1")
    arguments = made.parse_args()
    sides = measure(arguments.questions, arguments.reader)
    counts = {kind: len(rows) for kind, rows in sides[NONE].kinds.items()}
    if arguments.plot:
        plot(arguments.plot, sides)
    if arguments.json:
        told = {
            side: {"curve": one.curve, "auroc": one.separations, "milliseconds": one.milliseconds}
            for side, one in sides.items()
        }
        print(json.dumps({"questions": counts, "readers": told}))
        return
    for side, one in sides.items():
        title = f"Share of questions ({counts}), answer.reader = {side}"
        show(title, tuple(one.curve[0]), [tuple(row.values()) for row in one.curve])
    show(
        "Support tells answerable from",
        ("answer.reader", *next(iter(sides.values())).separations, "median ms"),
        [(side, *one.separations.values(), one.milliseconds) for side, one in sides.items()],
    )


if __name__ == "__main__":
    main()
