"""Two questions in one, beside the same answerer that takes every question as one.

Two questions of SQuAD on the same article, about different paragraphs as a rule, are joined by "and". Each
side retrieves five passages, the second for the parts as well; counted is whether these, and the
sentences that it quotes, hold the gold answers of both, and of how many halves it says that it found none.
"""

import json
import random
import time
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.answers import gold_answers
from benchmarks.common import data_folder, parser, read_jsonl, scratch, show
from benchmarks.retrieval import Task, build, squad
from rag.conversation import split_question
from rag.engine import Engine
from rag.extractive import choose, find_support

_OPENINGS = ("what", "which", "who", "when", "where", "why", "how")
_LONGEST = 300


def joined(task: Task, count: int) -> list[tuple[str, str, str]]:
    """Keys of two questions and the one that asks both, drawn at random."""
    titles: dict[str, list[str]] = defaultdict(list)
    for row in read_jsonl(data_folder() / "squad" / "dev-v1.1.questions.jsonl"):
        titles[row["title"]].append(row["id"])
    draw = random.Random(4)
    made: list[tuple[str, str, str]] = []
    while len(made) < count:
        first, second = draw.sample(titles[draw.choice(sorted(titles))], 2)
        one, other = task.questions[first].rstrip(" ?"), task.questions[second]
        if other.lower().startswith(_OPENINGS) and len(one) + len(other) < _LONGEST:
            made.append((first, second, f"{one}{draw.choice([',', ''])} and {other[0].lower()}{other[1:]}"))
    return made


def measure(count: int) -> dict[str, Any]:
    """Both sides on `count` joined questions, in turn."""
    task, gold = squad(data_folder()), gold_answers("squad")
    sides: dict[str, list[tuple[float, ...]]] = {"as one": [], "taken apart": []}
    asked = joined(task, count)
    with scratch() as folder:
        engine = Engine.open(build(task, Path(folder) / "kb", "all-MiniLM-L6-v2", "int8"))
        for first, second, question in asked:
            for name, answer in (("as one", _as_one), ("taken apart", _taken_apart)):
                started = time.perf_counter()
                passages, quotes, unanswered = answer(engine, question)
                seconds = time.perf_counter() - started
                known = [_holds(passages, gold[key]) for key in (first, second)]
                found = [_holds(quotes, gold[key]) for key in (first, second)]
                row = (all(known), all(found), any(found), len(quotes), unanswered, 1000 * seconds)
                sides[name].append(row)
        engine.close()
    return {
        "questions": count,
        "taken apart": sum(len(split_question(question)) == 2 for _, _, question in asked) / count,
        "single questions taken apart": sum(len(split_question(q)) > 1 for q in task.questions.values()),
        "sides": {name: _summary(rows) for name, rows in sides.items()},
    }


def _summary(rows: list[tuple[float, ...]]) -> dict[str, float]:
    *means, _ = np.mean(rows, axis=0)
    names = ("both in passages", "both quoted", "one at least", "quotes", "named unanswered")
    return dict(zip(names, map(float, means), strict=True)) | {
        "ms": float(np.median([row[-1] for row in rows]))
    }


def _as_one(engine: Engine, question: str) -> tuple[list[str], list[str], int]:
    settings, passages = engine.release.settings, engine.search(question)
    found = find_support(question, passages, engine.embedder, settings.retrieval.language)
    quoted = choose(found, minimum=settings.answer.min_support, maximum=settings.answer.max_sentences)
    return [passage.text for passage in passages], [sentence.text for sentence in quoted], 0


def _taken_apart(engine: Engine, question: str) -> tuple[list[str], list[str], int]:
    answer = engine.ask(question)
    passages = [passage.text for passage in answer.contexts]
    return passages, [citation.quote for citation in answer.citations], len(answer.unanswered)


def _holds(quotes: Iterable[str], gold: Iterable[str]) -> bool:
    said = [" ".join(quote.lower().split()) for quote in quotes]
    return any(text in quote or quote in text for quote in said for text in gold)


def main() -> None:
    """Print the table."""
    made = parser(__doc__ or "")
    made.add_argument("--questions", type=int, default=300)
    arguments = made.parse_args()
    results = measure(arguments.questions)
    if arguments.json:
        print(json.dumps(results))
        return
    sides = results["sides"]
    title = (
        f"{results['questions']} joined questions, {results['taken apart']:.1%} recognised; "
        f"of the single ones {results['single questions taken apart']} taken apart"
    )
    show(title, ("", *sides["as one"]), [(side, *row.values()) for side, row in sides.items()])


if __name__ == "__main__":
    main()
