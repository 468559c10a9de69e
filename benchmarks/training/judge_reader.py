"""Train the judge's reader: a low-rank adapter on all-MiniLM-L6-v2 that reads answers beside their contexts.

    python -m benchmarks.training.judge_reader --output rag/models

Two thirds of the questions train it; benchmarks.training.judge_trees weighs it against the trees on the rest.
About half an hour on one core with bfloat16.
"""

import argparse
import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.numpy import save_file
from torch import Tensor

from benchmarks.common import data_folder
from benchmarks.training.adapter import Reader
from benchmarks.training.judge_answers import Maker, Pack, Run, fold, marked, packs
from rag.support_graph import LINEAR, NORMS
from rag.support_reader import CONTEXT

ROUNDS = 3
_RATE = 1e-3
_WARM_UP = 0.06
_TOKENS = 6000
_NEIGHBOURS = 120
_SHORT = 224  # so that choosing sentences is learned too
_OTHERS = 3  # of the other sets, every third pack in a round


@dataclass(frozen=True)
class Batch:
    """Packs as rectangles, named as in Reader; `wrong` are labels of tokens, `claims_wrong` of claims."""

    read: Tensor
    lengths: Tensor
    which: Tensor
    claims: Tensor
    places: Tensor
    known: Tensor
    numbers: Tensor
    wrong: Tensor
    claims_wrong: Tensor

    @classmethod
    def of(cls, batch: Sequence[Pack]) -> "Batch":
        """Fill the rectangles."""
        runs = [(number, pack, run) for number, pack in enumerate(batch) for run in pack.runs]
        shape = len(runs), max(len(run.piece.tokens) for _, _, run in runs)
        size = len(batch), max(len(pack.read) for pack in batch)
        made = cls(
            torch.zeros(*size, 2, dtype=torch.long), torch.zeros(size, dtype=torch.bool),
            torch.tensor([number for number, _, _ in runs]),
            torch.zeros(*shape, 2, dtype=torch.long), torch.zeros(shape, dtype=torch.long),
            torch.zeros(shape, dtype=torch.bool), torch.full(shape, -1, dtype=torch.long),
            torch.full(shape, -1.0),
            torch.tensor([float(wrong) for _, _, run in runs for _, wrong in run.claims]),
        )  # fmt: skip
        for row, pack in enumerate(batch):
            made.read[row, : len(pack.read)] = torch.tensor(pack.read)
            made.lengths[row, : len(pack.read)] = True
        before = 0
        for row, (_, pack, run) in enumerate(runs):
            made._fill(row, pack, run, before)
            before += len(run.claims)
        return made

    def _fill(self, row: int, pack: Pack, run: Run, before: int) -> None:
        length = len(run.piece.tokens)
        self.claims[row, :length] = torch.tensor(run.piece.tokens)
        self.known[row, :length] = True
        self.places[row, :length] = len(pack.read) + torch.arange(length)
        self.wrong[row, :length] = torch.tensor(run.tokens, dtype=torch.float)
        numbers = {claim: before + i for i, (claim, _) in enumerate(run.claims)}
        self.numbers[row, :length] = torch.tensor([numbers.get(claim, -1) for claim in run.piece.claims])

    def losses(self, reader: Reader) -> tuple[Tensor, Tensor]:
        """Mean loss of a token, and of a claim."""
        vectors = reader(self.read, self.lengths, self.which, self.claims, self.places, self.known)
        tokens, claims = reader.judge(vectors, self.numbers, len(self.claims_wrong))
        labelled = self.wrong >= 0
        token = torch.zeros(())
        if labelled.any():
            token = F.binary_cross_entropy_with_logits(tokens[labelled], self.wrong[labelled])
        return token, F.binary_cross_entropy_with_logits(claims, self.claims_wrong)


def batches(packed: Sequence[Pack], chance: random.Random) -> list[list[Pack]]:
    """Packs of like length together, up to _TOKENS, in random order."""
    order = list(packed)
    chance.shuffle(order)
    found: list[list[Pack]] = []
    for start in range(0, len(order), _NEIGHBOURS):
        found += _filled(sorted(order[start : start + _NEIGHBOURS], key=lambda pack: len(pack.read)))
    chance.shuffle(found)
    return found


def _filled(packed: Sequence[Pack]) -> Iterator[list[Pack]]:
    batch: list[Pack] = []
    for pack in packed:
        if batch and sum(p.size for p in batch) + pack.size > _TOKENS:
            yield batch
            batch = []
        batch.append(pack)
    if batch:
        yield batch


def train(data: Path) -> Reader:
    """A reader that saw two thirds of the questions."""
    chance = random.Random(10)
    sets = marked(data)
    packed = {
        name: packs(answers, CONTEXT if name == "ragtruth" else _SHORT) for name, answers in sets.items()
    }
    maker = Maker(packed["ragtruth"], sets["ragtruth"], random.Random(0))
    packed = {name: [p for p in some if fold(p.question)] for name, some in packed.items()}
    others = packed["scifact"] + packed["made"] + packed["clapnq"]
    training = _Training(Reader())
    for number in range(ROUNDS):
        read = [
            Pack(p.contexts, p.read, p.runs + maker.runs(p.contexts), p.question) for p in packed["ragtruth"]
        ]
        some = [pack for i, pack in enumerate(others) if (i + number) % _OTHERS == 0]
        todo = batches(read, chance) + batches(some, chance)
        chance.shuffle(todo)
        training.steps = training.steps or ROUNDS * len(todo)
        sums, started = np.zeros(2), time.time()
        for done, batch in enumerate(todo, start=1):
            sums += training.step(Batch.of(batch))
            if done % 20 == 0 or done == len(todo):
                token, claim = sums / done
                print(f"round {number} {done}/{len(todo)}: loss of a token {token:.4f}, "
                      f"of a claim {claim:.4f}, {time.time() - started:.0f} s", flush=True)  # fmt: skip
    return training.reader


class _Training:
    """AdamW; the rate climbs for a little, then falls like a cosine."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.steps = self._done = 0
        groups = [
            {"params": [p for p in reader.parameters() if p.ndim > 1], "weight_decay": 0.01},
            {"params": [p for p in reader.parameters() if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self._optimizer = torch.optim.AdamW(groups, lr=_RATE, betas=(0.9, 0.98))

    def step(self, batch: Batch) -> tuple[float, float]:
        """Learn from one batch; the mean losses of its tokens and claims."""
        warm = min(1, (self._done + 1) / (_WARM_UP * self.steps))
        cold = 0.5 + 0.5 * math.cos(math.pi * min(1, self._done / self.steps))
        for group in self._optimizer.param_groups:
            group["lr"] = _RATE * (warm * cold)
        token, claim = batch.losses(self.reader)
        self._optimizer.zero_grad()
        (token + claim).backward()
        torch.nn.utils.clip_grad_norm_(self.reader.parameters(), 1.0)
        self._optimizer.step()
        self._done += 1
        return token.item(), claim.item()


def save(reader: Reader, path: Path) -> None:
    """What was trained, as float16."""
    parts: dict[str, Tensor] = {"kinds": reader.kinds, "mix": reader.mix}
    for name, module in (("norm", reader.norm), ("token", reader.token), ("claim", reader.claim)):
        parts |= {f"{name}.{key}": value for key, value in module.named_parameters()}
    for number, layer in enumerate(reader.layers):
        for name, module in [*zip(LINEAR, layer.linear, strict=True), *zip(NORMS, layer.norms, strict=True)]:
            for key, value in module.named_parameters():
                parts[f"encoder.layer.{number}.{name}.{key}"] = value
    save_file({name: np.asarray(value.detach(), np.float16) for name, value in parts.items()}, path)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--output", type=Path, required=True)
    options = arguments.parse_args()
    torch.set_num_threads(1)
    save(train(data_folder()), options.output / "support_reader.safetensors")


if __name__ == "__main__":
    main()
