"""Train the optional reader behind abstention: does any of these sentences answer the question?

    python -m benchmarks.training.answer_reader --asked asked.pickle --output rag/models

all-mpnet-base-v2 learns from the questions that the trees learn from (benchmarks.training.answerability) and
from made ones; what changed is written as low-rank matrices, with constants that weigh it against the trees.
Forty minutes a round on two cores with bfloat16; `--state` keeps what was trained, `--start` goes on.
"""

import argparse
import json
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save, save_file
from safetensors.torch import load_file

from benchmarks.common import auroc, data_folder, models_folder
from benchmarks.training.answer_reader_changes import Changes
from benchmarks.training.answer_reader_cloze import Cloze, sources
from benchmarks.training.answer_reader_data import (
    DEV_TITLES,
    Example,
    Reading,
    batches,
    found,
    split,
    views,
)
from benchmarks.training.answer_reader_model import Batch, Reader, Weights, joined, losses, predict
from benchmarks.training.answerability import (
    Counted,
    calibrate,
    count,
    judged,
    report,
    unseen_questions,
    unseen_rows,
)
from benchmarks.training.answerability_asked import Asked, asked_once
from knowledge_base.configuration import EmbedderSettings
from knowledge_base.documents import sha256_hex
from knowledge_base.embedders import DEFAULT_MODEL, load_embedder
from rag.answer_reader import ADAPTER, FACTS, TREES_AT_MOST, adapter, facts, together
from rag.answer_reader import Reading as Said
from rag.answer_reader_graph import CHANGE, LAYERS, LINEAR, base_files, merged
from rag.answerability import trees_odds

SCORES = ("span", "wrong", "answers")
_TOKENS = 3000
_RATE, _CLOZE_RATE = 5e-5, 1.5e-4
_DECAY, _HEADS = 0.93, 8.0
"""A layer learns slower than the one above it by _DECAY, the new heads faster than the topmost by _HEADS."""
_WARM_UP, _SLOWEST = 40, 0.1
_WEIGHT_DECAY = 0.01
_AVERAGED = 0.995
_CLOZE, _CLOZE_ALONE = 700, 20_000
_SHOWN = 40
# Of weights fitted on one development title, these did best on the other (log-loss).
_FREEDOM = 0.1

Epoch = Callable[[], list[list[Example]]]


@dataclass(frozen=True)
class Limit:
    """How long to train: the first one that is over ends it."""

    epochs: float = math.inf
    minutes: float = math.inf


class Training:
    """AdamW with a rate for each layer (Howard & Ruder 2018); a moving average of the weights is kept."""

    def __init__(self, reader: Reader, rate: float) -> None:
        self.reader = reader
        self.done = 0
        named = [(name, p) for name, p in reader.named_parameters()]
        groups = [
            {"params": [p], "rate": rate * _share(name), "weight_decay": _WEIGHT_DECAY * (p.ndim > 1)}
            for name, p in named
        ]
        self._weights = [p for _, p in named]
        self._average = [p.detach().clone() for p in self._weights]
        self._optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98))

    def step(self, batch: Batch, part: float) -> list[float]:
        """Learn from one batch when `part` of the training is done; the loss and its parts."""
        for group in self._optimizer.param_groups:
            warm = min(1, (self.done + 1) / _WARM_UP)
            group["lr"] = group["rate"] * warm * (1 - (1 - _SLOWEST) * part)
        loss, parts = losses(self.reader(batch), batch)
        self._optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._weights, 1.0)
        self._optimizer.step()
        self.done += 1
        with torch.no_grad():
            for average, weight in zip(self._average, self._weights, strict=True):
                average.lerp_(weight, max(1 - _AVERAGED, 1 / self.done))
        return [loss.item(), *parts]

    def swap(self) -> None:
        """Put the average in place of the weights; a second time, the weights back."""
        for average, weight in zip(self._average, self._weights, strict=True):
            kept = weight.detach().clone()
            weight.data.copy_(average)
            average.copy_(kept)


def _share(name: str) -> float:
    """Part of the rate that a weight learns with."""
    if name.startswith(("tokens", "mix", "weigh")):
        return _HEADS
    layer = int(name.split(".")[1]) if name.startswith("layers.") else -1
    return float(_DECAY ** (LAYERS - 1 - layer))


def fit(reader: Reader, rate: float, epoch: Epoch, limit: Limit, watch: Callable[[str], None]) -> None:
    """Train until the limit; `watch` is called with the averaged weights in place after each epoch."""
    training, begun, shown = Training(reader, rate), time.time(), []
    todo = epoch()
    steps = len(todo) * limit.epochs
    reader.train()
    while True:
        for batch in todo:
            part = max((time.time() - begun) / 60 / limit.minutes, training.done / steps)
            if part >= 1:
                training.swap()
                watch(f"step {training.done}")
                return
            shown.append(training.step(Batch.of(batch), part))
            if training.done % _SHOWN == 0:
                means = " ".join(f"{value:.3f}" for value in np.mean(shown[-_SHOWN:], 0))
                print(f"step {training.done}: loss, of span, answers, wrong: {means}, "
                      f"{time.time() - begun:.0f} s", flush=True)  # fmt: skip
        training.swap()
        watch(f"step {training.done}")
        training.swap()
        todo = epoch()


def learn(reader: Reader, reading: Reading, asked: Sequence[Asked], options: argparse.Namespace) -> None:
    """Cloze questions alone for a while, then the questions with some cloze questions among them."""
    chance = random.Random(options.seed)
    training, dev = split(asked, () if options.everything else DEV_TITLES)
    items = sources(data_folder(), training)
    embedder = load_embedder(EmbedderSettings(model=DEFAULT_MODEL), models_folder(), threads=1)
    changes = Changes.of((text for some in items.values() for text, _, _ in some), embedder)
    cloze = Cloze(reading, items, changes)
    known = np.array([one.answerable for one in dev])
    shown = [reading.example(one.question.question, found(one)) for one in dev]

    def watch(when: str) -> None:
        if not shown:
            return
        scores = predict(reader, shown).T
        # The surer of a wrong word, the less the question is answered.
        areas = [auroc(known, score * sign) for score, sign in zip(scores, (1, -1, 1), strict=True)]
        print(
            f"{when}: AUROC on {' and '.join(DEV_TITLES)}:", dict(zip(SCORES, areas, strict=True)), flush=True
        )

    def mixed() -> list[list[Example]]:
        examples = [*views(reading, training, changes, chance), *cloze.examples(_CLOZE, chance)]
        return batches(examples, _TOKENS, chance)

    def alone() -> list[list[Example]]:
        return batches(cloze.examples(_CLOZE_ALONE, chance), _TOKENS, chance)

    if options.cloze_minutes:
        fit(reader, _CLOZE_RATE, alone, Limit(minutes=options.cloze_minutes), watch)
    fit(reader, options.rate, mixed, Limit(options.epochs, options.minutes), watch)


def low_rank(change: NDArray[np.float32], rank: int) -> dict[str, NDArray[Any]]:
    """`(b * scale) @ a`, the nearest matrix of that rank (Eckart & Young 1936) but for rounding to int8."""
    u, sizes, v = np.linalg.svd(change, full_matrices=False)
    b, a = u[:, :rank] * sizes[:rank], v[:rank]
    b_scale, a_scale = (np.abs(part).max(axis) / 127 for part, axis in ((b, 0), (a, 1)))
    return {
        "b": np.ascontiguousarray(np.round(b / b_scale), np.int8),
        "a": np.ascontiguousarray(np.round(a / a_scale[:, None]), np.int8),
        "scale": (b_scale * a_scale).astype(np.float32),
    }


def shipped(reader: Reader, base: Weights, rank: int) -> dict[str, NDArray[Any]]:
    """The changes to the base's matrices at low rank, all else that was trained in half precision."""
    named = {name: value.detach().numpy() for name, value in reader.named_parameters()}
    parts: dict[str, NDArray[Any]] = {}
    for layer, product in product_names():
        name = f"layers.{layer}.{product}"
        change = named.pop(f"{name}.weight") - joined(base, layer, product, "weight").numpy()
        parts |= {f"{name}.{part}": value for part, value in low_rank(change, rank).items()}
    return parts | {name: value.astype(np.float16) for name, value in named.items()}


def take(reader: Reader, base: Weights, parts: Mapping[str, NDArray[Any]]) -> None:
    """Give the reader the weights that are shipped, so that what is weighed is what is shipped."""
    weights = {name: value.astype(np.float32) for name, value in parts.items()}
    for layer, product in product_names():
        name = f"layers.{layer}.{product}"
        weights[f"{name}.weight"] = merged(base, weights, layer, product)
        for part in CHANGE:
            del weights[f"{name}.{part}"]
    reader.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})


def product_names() -> list[tuple[int, str]]:
    """Layer and name of each matrix that is shipped as a low-rank change."""
    return [(layer, name) for layer in range(LAYERS) for name in LINEAR]


def weigh(reader: Reader, reading: Reading, asked: Sequence[Asked]) -> dict[str, float]:
    """Constants that make a probability of the trees' own log-odds and the reader's scores.

    On questions that neither has seen: the development titles and CLAP NQ, foreign ones among both. Wrong
    words count by what `answers` makes of them: weighed once more, the weights fit their titles alone.
    """
    every = count(asked)
    counted, rows = judged(every, unseen_rows(every))
    raw = unseen_questions(rows, counted)
    new = [i for i, c in enumerate(counted) if _is_new(c)]
    some = [counted[i] for i in new]
    read = read_pages(reader, reading, [c.asked for c in some])
    scores = {name: np.array([getattr(one, name) for one in read]) for name in ("span", "answers")}
    trees = np.array([trees_odds(raw[i], counted[i].rows) for i in new])
    report(trees, some)
    scores["trees"] = np.minimum(trees, TREES_AT_MOST)
    weights, odds = calibrate(scores, some, _FREEDOM)
    report(odds, some)
    return weights


def read_pages(reader: Reader, reading: Reading, asked: Sequence[Asked]) -> list[Said]:
    """What the reader says of all pages of each question, put together as for an answer."""
    pages = [reading.examples(one.question.question, found(one)) for one in asked]
    said = iter(predict(reader, [page for some in pages for page in some]).tolist())
    return [together([Said(span, answers) for span, _, answers in islice(said, len(some))]) for some in pages]


def _is_new(counted: Counted) -> bool:
    """Whether the reader did not learn from it."""
    question = counted.asked.question
    return question.source == "clapnq" or question.title in DEV_TITLES


def main() -> None:
    options = _arguments().parse_args()
    torch.set_num_threads(options.threads)
    base_hash = facts()["base"]
    base, tokenizer = base_files(base_hash)
    asked, reading, reader = asked_once(options.asked), Reading(tokenizer), Reader(base, options.seed)
    if options.start and options.start.samefile(ADAPTER):
        take(reader, base, adapter())
    elif options.start:
        reader.load_state_dict(load_file(options.start))
    if options.epochs:
        learn(reader, reading, asked, options)
        if options.state:
            save_file({name: p.detach().numpy() for name, p in reader.named_parameters()}, options.state)
    parts = shipped(reader, base, options.rank)
    take(reader, base, parts)
    written = save(parts)
    known: dict[str, Any] = {"adapter": sha256_hex(written), "base": base_hash, "rank": options.rank}
    # After everything there is nothing left that it has not seen.
    known["weighed"] = facts()["weighed"] if options.everything else weigh(reader, reading, asked)
    (options.output / ADAPTER.name).write_bytes(written)
    (options.output / FACTS.name).write_text(json.dumps(known, indent=1) + "\n")
    print(known)


def _arguments() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("--asked", type=Path, required=True)
    made.add_argument("--output", type=Path, required=True)
    made.add_argument("--start", type=Path, help=f"go on from what --state kept, or from {ADAPTER}")
    made.add_argument("--state", type=Path, help="keep what was trained here, whole")
    made.add_argument("--epochs", type=float, default=2.2, help="0: only write what --start holds")
    made.add_argument("--rate", type=float, default=_RATE, help="of the topmost layer, at its highest")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument(
        "--everything",
        action="store_true",
        help="learn the development titles as well, and keep the weighing that was made before",
    )
    made.add_argument("--minutes", type=float, default=math.inf, help="stop earlier than the epochs")
    made.add_argument("--cloze-minutes", type=float, default=0.0, help="before the questions")
    made.add_argument("--rank", type=int, default=128)
    made.add_argument("--threads", type=int, default=2)
    return made


if __name__ == "__main__":
    main()
