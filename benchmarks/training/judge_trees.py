"""Train the judge's boosted trees on counted features, weigh the reader against them, and calibrate both.

    python -m benchmarks.training.judge_trees --output rag/models

After benchmarks.training.judge_reader. Needs lightgbm (development only): the trees are written as ONNX.
"""

import argparse
import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
from numpy.typing import NDArray

from benchmarks import judge_data
from benchmarks.common import data_folder
from benchmarks.judge_data import Judged
from benchmarks.training.judge_answers import fold as part
from knowledge_base.documents import sha256_hex
from rag.evidence import FEATURES, Evidence, Words, features
from rag.support_reader import WEIGHTS, base_weights, unsupported

# A claim that shares more with its contexts is never less supported: what keeps the trees sane on new data.
_LESS = ("covered_by_window", "covered_by_sentence", "covered_by_all", "pairs_covered", "triples_covered",
         "grams_covered", "longest_copy", "verbatim")  # fmt: skip
_MORE = (
    "novel_words",
    "longest_novel_run",
    "novel_digits",
    "novel_numbers",
    "novel_names",
    "negation_differs",
)
_SETTINGS: dict[str, Any] = {
    "objective": "binary",
    "learning_rate": 0.05,
    "num_leaves": 15,
    "min_data_in_leaf": 40,
    "feature_fraction": 0.7,
    "bagging_fraction": 0.8,
    "bagging_freq": 1,
    "lambda_l2": 5,
    "monotone_constraints": [-(name in _LESS) + (name in _MORE) for name in FEATURES],
    "deterministic": True,
    "num_threads": 1,
    "seed": 0,
    "verbose": -1,
}
_ROUNDS = 300
_FOLDS = 5
_WEIGHTS = {"clapnq": 2.0}
# Between the 43 % of flawed answers here and the 18 % of RAGTruth's test half, where stronger models
# answer too.
FLAWED = 0.3


@dataclass(frozen=True)
class Table:
    """Claims as rows: features, 1 for each that is not supported, weight, and the number of the fold."""

    x: NDArray[np.float32]
    y: NDArray[np.float64]
    weight: NDArray[np.float64]
    fold: NDArray[np.int64]

    @classmethod
    def of(cls, judged: Sequence[Judged]) -> "Table":
        """Count the features of all claims; a fold holds whole questions."""
        x = np.concatenate([features([Words(c) for c in j.claims], Evidence.of(j.contexts)) for j in judged])
        rows = [(j, s) for j in judged for s in j.supported]
        folds = {j.question: int(sha256_hex(j.question.encode())[1:3], 16) % _FOLDS for j in judged}
        return cls(
            x,
            np.array([float(not s) for _, s in rows]),
            np.array([_WEIGHTS.get(j.source, 1.0) for j, _ in rows]),
            np.array([folds[j.question] for j, _ in rows]),
        )


def fit(table: Table, extra: Table, chosen: NDArray[np.bool_]) -> lightgbm.Booster:
    """Trees trained on the chosen rows and all extra ones."""
    data = lightgbm.Dataset(
        np.concatenate([table.x[chosen], extra.x]),
        np.concatenate([table.y[chosen], extra.y]),
        weight=np.concatenate([table.weight[chosen], extra.weight]),
    )
    return lightgbm.train(_SETTINGS, data, _ROUNDS)


def unseen(table: Table, extra: Table) -> NDArray[np.float64]:
    """Log-odds of each claim by trees that were not trained on its question."""
    raw = np.empty(len(table.y))
    for fold in range(_FOLDS):
        out = table.fold == fold
        raw[out] = fit(table, extra, ~out).predict(table.x[out], raw_score=True)
    return raw


def to_onnx(model: lightgbm.Booster) -> bytes:
    """The trees as one ONNX node; output `raw` is the log-odds."""
    from onnx import TensorProto, helper

    table: dict[str, list[Any]] = {name: [] for name in (
        "nodes_treeids", "nodes_nodeids", "nodes_featureids", "nodes_values", "nodes_modes",
        "nodes_truenodeids", "nodes_falsenodeids", "target_treeids", "target_nodeids", "target_ids",
        "target_weights",
    )}  # fmt: skip

    def add(tree: int, node: dict[str, Any], counter: list[int]) -> int:
        number = counter[0]
        counter[0] += 1
        leaf = "leaf_value" in node
        place = len(table["nodes_nodeids"])
        for name, value in (
            ("treeids", tree), ("nodeids", number), ("featureids", 0 if leaf else node["split_feature"]),
            ("values", 0.0 if leaf else float(node["threshold"])),
            ("modes", "LEAF" if leaf else "BRANCH_LEQ"),
            ("truenodeids", 0), ("falsenodeids", 0),
        ):  # fmt: skip
            table[f"nodes_{name}"].append(value)
        if leaf:
            for name, value in (
                ("treeids", tree),
                ("nodeids", number),
                ("ids", 0),
                ("weights", node["leaf_value"]),
            ):
                table[f"target_{name}"].append(value)
        else:
            table["nodes_truenodeids"][place] = add(tree, node["left_child"], counter)
            table["nodes_falsenodeids"][place] = add(tree, node["right_child"], counter)
        return number

    for number, tree in enumerate(model.dump_model()["tree_info"]):
        add(number, tree["tree_structure"], [0])
    node = helper.make_node(
        "TreeEnsembleRegressor", ["features"], ["raw"], domain="ai.onnx.ml", n_targets=1, **table
    )
    graph = helper.make_graph(
        [node],
        "trees",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["claims", model.num_feature()])],
        [helper.make_tensor_value_info("raw", TensorProto.FLOAT, ["claims", 1])],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    made: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
    return made


def best_threshold(flawed: NDArray[np.bool_], worst: NDArray[np.float64]) -> float:
    """Support below which an answer is flagged: best F1 when FLAWED of the answers are flawed."""
    weight = np.where(flawed, FLAWED / flawed.mean(), (1 - FLAWED) / (1 - flawed.mean()))

    def f1(threshold: float) -> float:
        flagged = worst < threshold
        hit = weight[flawed & flagged].sum()
        return float(2 * hit / max(1e-9, weight[flagged].sum() + weight[flawed].sum()))

    return max((float(t) for t in np.arange(0.02, 0.99, 0.01)), key=f1)


def calibrated(
    scores: NDArray[np.float64], y: NDArray[np.float64], judged: Sequence[Judged]
) -> tuple[list[float], float, float]:
    """Weights of the scores (rows, scores), shift, and threshold on the answers of RAGTruth."""
    from sklearn.linear_model import LogisticRegression

    fitted = LogisticRegression(C=1e6).fit(scores, y)
    weights, shift = [float(w) for w in fitted.coef_[0]], float(fitted.intercept_[0])
    supported = 1 / (1 + np.exp(scores @ np.array(weights) + shift))
    ends = np.cumsum([len(j.claims) for j in judged])
    worst = np.array([part.min() for part in np.split(supported, ends[:-1])])
    own = np.array([j.source == "ragtruth" for j in judged])
    flawed = np.array([not all(j.supported) for j in judged])
    return weights, shift, best_threshold(flawed[own], worst[own])


def read(judged: Sequence[Judged], base: str) -> NDArray[np.float64]:
    """The reader's log-odds of each claim, as it is shipped."""
    return np.concatenate([
        unsupported([Words(c) for c in j.claims], Evidence.of(j.contexts), j.contexts, base) for j in judged
    ]).astype(np.float64)  # fmt: skip


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--output", type=Path, required=True)
    options = arguments.parse_args()
    data = data_folder()
    marked = judge_data.ragtruth(data) + judge_data.scifact(data) + judge_data.clapnq(data)
    marked = [j for j in marked if not j.held_out]
    extra = [j for j in judge_data.made_from_squad(data, random.Random(0)) if not j.held_out]
    extra += judge_data.crossed([j for j in marked if j.source == "ragtruth"])
    table, more = Table.of(marked), Table.of(extra)
    raw = unseen(table, more)
    (slope,), shift, threshold = calibrated(raw[:, None], table.y, marked)
    trees = to_onnx(fit(table, more, np.ones(len(table.y), bool)))
    (options.output / "support.onnx").write_bytes(trees)
    # Neither trees nor reader was trained on these questions.
    unread = [j for j in marked if part(j.question) == 0]
    rows = np.repeat([part(j.question) == 0 for j in marked], [len(j.claims) for j in marked])
    base = hashlib.sha256(base_weights().read_bytes()).hexdigest()
    both = np.stack([raw[rows], read(unread, base)], axis=1)
    (trees_weight, reader_weight), both_shift, both_threshold = calibrated(both, table.y[rows], unread)
    facts = {
        "trees": hashlib.sha256(trees).hexdigest(),
        "slope": round(slope, 4),
        "shift": round(shift, 4),
        "threshold": round(threshold, 2),
        "read": {
            "adapter": hashlib.sha256(WEIGHTS.read_bytes()).hexdigest(),
            "base": base,
            "trees": round(trees_weight, 4),
            "reader": round(reader_weight, 4),
            "shift": round(both_shift, 4),
            "threshold": round(both_threshold, 2),
        },
    }
    (options.output / "support.json").write_text(json.dumps(facts, indent=1) + "\n")
    print(facts, f"{len(trees)} bytes")


if __name__ == "__main__":
    main()
