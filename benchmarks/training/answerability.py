"""Train the two sets of trees behind abstention: which sentence answers, and does any?

    python -m benchmarks.training.answerability --asked asked.pickle --output rag/models

Titles, not questions, make the folds. Needs lightgbm (development only).
"""

import argparse
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
from numpy.typing import NDArray

from benchmarks.common import auroc
from benchmarks.training.answerability_asked import Asked, asked_once
from benchmarks.training.judge_trees import to_onnx
from knowledge_base.documents import sha256_hex
from rag.answerability import FEATURES, features, nearness, question_features

# Sharing more with the question never makes an answer less likely, missing more never more likely.
_MORE = ("overlap", "cosine", "best_cosine", "best_overlap", "right_kind")
_LESS = ("below_best_overlap", "below_best_cosine", "missing_here", "missing_in_passage", "missing_anywhere",
         "share_missing_here", "share_missing_in_passage", "names_missing_here", "names_missing_in_passage",
         "numbers_missing_in_passage", "opposites", "negation_differs")  # fmt: skip
_BOUNDS = [(name in _MORE) - (name in _LESS) for name in FEATURES]
_SENTENCES: dict[str, Any] = {
    "objective": "binary",
    "learning_rate": 0.04,
    "num_leaves": 12,
    "min_data_in_leaf": 40,
    "feature_fraction": 0.4,
    "bagging_fraction": 0.8,
    "bagging_freq": 1,
    "lambda_l2": 10,
    "monotone_constraints": _BOUNDS,
    "deterministic": True,
    "num_threads": 1,
    "seed": 0,
    "verbose": -1,
}
_QUESTION = _SENTENCES | {
    "learning_rate": 0.03,
    "num_leaves": 8,
    "min_data_in_leaf": 30,
    "monotone_constraints": [*_BOUNDS, 1, 0],
}
_ROUNDS = {"sentences": 300, "question": 250}
_FOLDS = 4
# Among the questions that a knowledge base is asked, more have an answer than in SQuAD 2.0.
_ANSWERABLE = 0.75
_FREE = 1e6


@dataclass(frozen=True)
class Counted:
    """A question with the features of its sentences; `lower`: in lower case, as many people type."""

    asked: Asked
    rows: NDArray[np.float32]
    lower: bool

    @property
    def fold(self) -> int:
        """Number of the fold; an article is in one fold only."""
        return int(sha256_hex(self.asked.question.title.encode())[:4], 16) % _FOLDS


def count(asked: Sequence[Asked]) -> list[Counted]:
    """Every question as it is, and in lower case."""
    made = []
    for one in asked:
        q = one.question
        for text in dict.fromkeys((q.question, q.question.lower())):
            rows = features(text, one.found, one.passages)
            made.append(Counted(replace(one, question=replace(q, question=text)), rows, text != q.question))
    return made


def fit_sentences(counted: Sequence[Counted]) -> lightgbm.Booster:
    """Trees that tell which sentence answers."""
    rows = np.concatenate([c.rows for c in counted])
    right = np.concatenate([c.asked.right for c in counted])
    return lightgbm.train(_SENTENCES, lightgbm.Dataset(rows, right), _ROUNDS["sentences"])


def fit_question(rows: NDArray[np.float32], answerable: NDArray[np.bool_]) -> lightgbm.Booster:
    """Trees that tell whether any sentence does."""
    data = lightgbm.Dataset(rows, answerable.astype(np.float64))
    return lightgbm.train(_QUESTION, data, _ROUNDS["question"])


def unseen_rows(counted: Sequence[Counted]) -> NDArray[np.float32]:
    """Features of each question by trees for sentences that did not see its article."""
    made: list[NDArray[np.float32]] = [np.empty(0, np.float32)] * len(counted)
    for fold in range(_FOLDS):
        model = fit_sentences([c for c in counted if c.fold != fold])
        for number, c in enumerate(counted):
            if c.fold == fold:
                made[number] = question_features(c.rows, np.asarray(model.predict(c.rows)))
    return np.array(made)


def unseen_questions(rows: NDArray[np.float32], counted: Sequence[Counted]) -> NDArray[np.float64]:
    """Log-odds of each question by trees that saw neither it nor its article."""
    folds, answerable = np.array([(c.fold, c.asked.answerable) for c in counted]).T
    raw = np.empty(len(counted))
    for fold in range(_FOLDS):
        out = folds == fold
        raw[out] = fit_question(rows[~out], answerable[~out] > 0).predict(rows[out], raw_score=True)
    return raw


def judged(
    counted: Sequence[Counted], rows: NDArray[np.float32]
) -> tuple[list[Counted], NDArray[np.float32]]:
    """Those that teach whether a question is answered: SQuAD 1.1's own, all answered, teach only by what."""
    chosen = [i for i, c in enumerate(counted) if c.asked.question.source != "squad1" or c.asked.foreign]
    return [counted[i] for i in chosen], rows[chosen]


def calibrate(
    scores: Mapping[str, NDArray[np.float64]], counted: Sequence[Counted], freedom: float = _FREE
) -> tuple[dict[str, float], NDArray[np.float64]]:
    """Weights of the scores, and the log-odds that they make together.

    As if _ANSWERABLE of the questions had an answer; the others are half on the topic, half foreign.
    `freedom` is C of a LogisticRegression; below _FREE each weight is held back by its score's spread.
    """
    from sklearn.linear_model import LogisticRegression

    inputs = np.stack(list(scores.values()), axis=1)
    answerable, foreign = np.array([(c.asked.answerable, c.asked.foreign) for c in counted]).T
    weight = np.full(len(counted), _ANSWERABLE / answerable.sum())
    for kind in (foreign, ~answerable & ~foreign):
        weight[kind] = (1 - _ANSWERABLE) / 2 / kind.sum()
    spread = inputs.std(axis=0) if freedom < _FREE else np.ones(len(scores))
    inputs = inputs / spread
    fitted = LogisticRegression(C=freedom).fit(inputs, answerable, sample_weight=weight * len(counted))
    facts = dict(zip(scores, fitted.coef_[0] / spread, strict=True)) | {"shift": fitted.intercept_[0]}
    return {name: round(float(value), 4) for name, value in facts.items()}, fitted.decision_function(inputs)


def report(odds: NDArray[np.float64], counted: Sequence[Counted]) -> None:
    """AUROC on the training titles, each by trees that did not see it; the share answered by threshold."""
    known, foreign = np.array([(c.asked.answerable, c.asked.foreign) for c in counted]).T
    own = np.array([c.asked.question.source == "squad2" and not c.lower for c in counted])
    print(f"on the topic {auroc(known[own & ~foreign], odds[own & ~foreign]):.4f}")
    print(f"foreign      {auroc(known[known | foreign], odds[known | foreign]):.4f}")
    for threshold in (0.3, 0.4, 0.5, 0.6):
        kept = 1 / (1 + np.exp(-odds)) >= threshold
        print(threshold, *(f"{kept[kind].mean():.3f}" for kind in (known, own & ~known & ~foreign, foreign)))


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--asked", type=Path, required=True)
    arguments.add_argument("--output", type=Path, required=True)
    options = arguments.parse_args()
    learn(count(asked_once(options.asked)), options.output)


def learn(counted: Sequence[Counted], output: Path) -> None:
    """Train, calibrate, report, and write the models."""
    rows = unseen_rows(counted)
    both, rows = judged(counted, rows)
    near = np.array([nearness(c.rows) for c in both])
    facts, odds = calibrate({"trees": unseen_questions(rows, both), "nearness": near}, both)
    report(odds, both)
    answerable = np.array([c.asked.answerable for c in both])
    models = {"sentences": fit_sentences(counted), "question": fit_question(rows, answerable)}
    hashes = {}
    for kind, model in models.items():
        trees = to_onnx(model)
        (output / f"answerability_{kind}.onnx").write_bytes(trees)
        hashes[kind] = hashlib.sha256(trees).hexdigest()
        print(f"{kind}: {len(trees)} bytes")
    (output / "answerability.json").write_text(json.dumps(facts | hashes, indent=1) + "\n")
    print(facts)


if __name__ == "__main__":
    main()
