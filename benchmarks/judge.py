"""The offline judge against people: RAGTruth QA answers and SciFact claims that it was not trained on.

Response level: is any claim unsupported? Sentence level: is this claim? "Positive" is unsupported. The
questions are a part of RAGTruth's training half, with four open models and 43 % flawed answers; published
figures are for its test half, with six models and 18 %, so a second row weighs the answers to that share.
"""

import json
import random
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import judge_data
from benchmarks.common import auroc, data_folder, parser, show
from benchmarks.judge_data import Judged
from rag.support import GROUNDING, JUDGE, READ_THRESHOLD, SUPPORT_THRESHOLD, support

FLAWED = 0.178
PUBLISHED = (  # RAGTruth (arXiv 2401.00396) and LettuceDetect (arXiv 2502.17125), test half
    ("flag everything", None, None, 0.309),
    ("prompted GPT-3.5-turbo", 0.188, 0.844, 0.308),
    ("RAGAS faithfulness", 0.312, 0.419, 0.357),
    ("TruLens groundedness", 0.228, 0.925, 0.366),
    ("SelfCheckGPT", 0.350, 0.580, 0.437),
    ("prompted GPT-4-turbo", 0.332, 0.906, 0.456),
    ("Luna", 0.378, 0.800, 0.513),
    ("LettuceDetect base", None, None, 0.655),
    ("fine-tuned Llama-2-13B", 0.616, 0.763, 0.682),
    ("LettuceDetect large", None, None, 0.702),
    ("RAG-HAT", 0.765, 0.731, 0.748),
)
Floats = NDArray[np.float64]


def measures(
    wrong: NDArray[np.bool_], supported: Floats, threshold: float, flawed: float | None = None
) -> dict[str, float]:
    """Precision, recall, F1 at the shipped threshold; AUROC; calibration.

    `flawed` weighs the rows so that this share of them is wrong.
    """
    share = flawed or float(wrong.mean())
    weight = np.where(wrong, share / wrong.mean(), (1 - share) / (1 - wrong.mean()))
    flagged = supported < threshold
    hit = weight[wrong & flagged].sum()
    precision, recall = hit / max(1e-9, weight[flagged].sum()), hit / weight[wrong].sum()
    bins = np.minimum((supported * 10).astype(int), 9)
    gaps = [
        abs(np.average(supported[bins == b] - ~wrong[bins == b], weights=weight[bins == b]))
        * weight[bins == b].sum()
        for b in range(10)
        if (bins == b).any()
    ]
    return {
        "wrong": share,
        "precision": float(precision),
        "recall": float(recall),
        "f1": float(2 * precision * recall / max(1e-9, precision + recall)),
        "auroc": auroc(wrong, -supported),
        "ece": float(sum(gaps) / weight.sum()),
        "brier": float(np.average((supported - ~wrong) ** 2, weights=weight)),
    }


def judge(answers: Sequence[Judged], read: bool) -> tuple[list[list[float]], float]:
    """Support of each claim of each answer, and the answers judged in a second."""
    support(answers[0].claims, answers[0].contexts, read=read)  # opens the models
    started = time.process_time()
    scores = [support(answer.claims, answer.contexts, read=read) for answer in answers]
    return scores, len(answers) / (time.process_time() - started)


def table(
    answers: Sequence[Judged], scores: Sequence[Sequence[float]], threshold: float
) -> dict[str, dict[str, float]]:
    """Measures by level."""
    wrong = np.array([not s for a in answers for s in a.supported])
    every = np.array([value for row in scores for value in row])
    flawed = np.array([not all(a.supported) for a in answers])
    worst = np.array([min(row) for row in scores])
    return {
        "response": measures(flawed, worst, threshold),
        f"response, {FLAWED:.0%} flawed": measures(flawed, worst, threshold, FLAWED),
        "sentence": measures(wrong, every, threshold),
    }


def measure(sets: Mapping[str, Sequence[Judged]], read: bool) -> dict[str, Any]:
    """The judge with or without its reader on all sets; its speed is that of the first."""
    threshold = READ_THRESHOLD if read else SUPPORT_THRESHOLD
    rows: dict[str, dict[str, float]] = {}
    speeds = []
    for name, answers in sets.items():
        scores, speed = judge(answers, read)
        speeds.append(speed)
        levels = table(answers, scores, threshold)
        if all(len(a.claims) == 1 for a in answers):
            rows[f"{name}, {len(answers)} claims"] = levels["sentence"]
        else:
            rows |= {f"{name}, {level}": values for level, values in levels.items()}
    return {
        "judge": JUDGE if read else GROUNDING,
        "threshold": threshold,
        "answers_per_cpu_second": speeds[0],
        "rows": rows,
    }


def main() -> None:
    """Print the tables."""
    arguments = parser(__doc__ or "").parse_args()
    data = data_folder()
    every = {
        "RAGTruth QA": judge_data.ragtruth(data),
        "SciFact": judge_data.scifact(data),
        "made from SQuAD": judge_data.made_from_squad(data, random.Random(0)),
    }
    sets = {name: [a for a in answers if a.held_out] for name, answers in every.items()}
    result: dict[str, Any] = {
        "answers": len(sets["RAGTruth QA"]),
        "claims": sum(len(a.claims) for a in sets["RAGTruth QA"]),
        "counting": measure(sets, read=False),
        "reading": measure(sets, read=True),
    }
    if arguments.json:
        print(json.dumps(result))
        return
    for name in ("counting", "reading"):
        found = result[name]
        title = (
            f"{name}, {found['judge']}: {result['answers']} answers, {result['claims']} claims, "
            f"{found['answers_per_cpu_second']:.0f} answers/s of one core"
        )
        rows = [(row, *values.values()) for row, values in found["rows"].items()]
        show(title, ("questions not trained on", *next(iter(found["rows"].values()))), rows)
    show(
        "Published, RAGTruth QA test half, response level",
        ("method", "precision", "recall", "f1"),
        [tuple("" if cell is None else cell for cell in row) for row in PUBLISHED],
    )


if __name__ == "__main__":
    main()
