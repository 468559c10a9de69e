"""The answer reader in PyTorch, for training: all-mpnet-base-v2 with a kind for each token and three heads.

MPNet is that of Song et al. 2020, the span and the score of none those of Devlin et al. 2019 for SQuAD 2.0.
All but the tables of words, places and distances is trained.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.training.answer_reader_data import Example
from rag.answer_reader import KINDS, QUESTION, SENTENCE, buckets
from rag.answer_reader_graph import HEADS, LAYERS, LINEAR, WIDTH

_HEAD = WIDTH // HEADS
_DROPOUT = 0.1
_MIXED = 192
_EPSILON = 1e-5
Weights = Mapping[str, NDArray[np.float32]]
_PAD, _HIDDEN = 1, -1e4
_FIRST_PLACE = 2
# Multiplied twice as fast as float32 where the machine knows it; the sums inside are float32 all the same.
_FAST = torch.bfloat16
_POOL = 1 << 24
# A word that was changed is one among many that were not.
_WRONG_WEIGHT, _WRONG_SHARE = 4.0, 0.6
_AT_ONCE = 24


@dataclass(frozen=True)
class Batch:
    """Examples as rectangles (examples, tokens), filled up with padding.

    `starts` and `ends` are 1 where the answer's are, or at [CLS] where nothing answers.
    """

    tokens: Tensor
    kinds: Tensor
    segments: Tensor
    starts: Tensor
    ends: Tensor
    wrong: Tensor
    answered: Tensor
    weights: Tensor

    @classmethod
    def of(cls, examples: Sequence[Example]) -> "Batch":
        """Fill the rectangles."""
        shape = len(examples), max(len(e.wrong) for e in examples)
        tokens, wrong = torch.full(shape, _PAD), torch.full(shape, -1)
        kinds, segments, starts, ends = (torch.zeros(shape, dtype=torch.long) for _ in range(4))
        for row, e in enumerate(examples):
            read, length = e.page, len(e.wrong)
            for table, values in (
                (tokens, read.ids),
                (kinds, read.kinds),
                (segments, read.segments),
                (wrong, e.wrong),
            ):
                table[row, :length] = torch.tensor(values)
            starts[row, e.starts or [0]] = 1
            ends[row, e.ends or [0]] = 1
        answered = torch.tensor([float(bool(e.starts)) for e in examples])
        weights = torch.tensor([e.weight for e in examples])
        return cls(tokens, kinds, segments, starts, ends, wrong, answered, weights)


@dataclass(frozen=True)
class Scores:
    """What the heads say, log-odds all.

    Of each token that it starts or ends the answer and that it was changed, (examples, tokens); of each
    example how far the best spans are above none, that any word was changed, and that anything answers.
    """

    start: Tensor
    end: Tensor
    wrong: Tensor
    span: Tensor
    most_wrong: Tensor
    answers: Tensor


class Dropout:
    """Dropout by a window of a fixed pool of random bits: drawing them anew costs a seventh of a step."""

    def __init__(self, seed: int) -> None:
        self._pool = (torch.rand(_POOL) > _DROPOUT).to(torch.uint8)
        self._chance = random.Random(seed)

    def __call__(self, x: Tensor) -> Tensor:
        """A tenth of `x` set to 0, the rest enlarged."""
        count = x.numel()
        start = self._chance.randrange(_POOL - count)
        kept = self._pool[start : start + count].view(x.shape).to(x.dtype)
        return x * kept.mul_(1 / (1 - _DROPOUT))


def _same(x: Tensor) -> Tensor:
    return x


class Linear(nn.Module):
    """Weights in float32, so that small steps count; the product in the fast format."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight.clone()), nn.Parameter(bias.clone())

    def forward(self, x: Tensor) -> Tensor:
        """`x @ weight.T + bias`."""
        return F.linear(x.to(_FAST), self.weight.to(_FAST), self.bias.to(_FAST))


class Norm(nn.Module):
    """A layer norm in float32."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight.clone()), nn.Parameter(bias.clone())

    def forward(self, x: Tensor) -> Tensor:
        """Each vector with mean 0 and variance 1, scaled and shifted."""
        return F.layer_norm(x, (WIDTH,), self.weight, self.bias, _EPSILON)


class Layer(nn.Module):
    """One layer of MPNet, its queries, keys and values from one product."""

    def __init__(self, base: Weights, number: int) -> None:
        super().__init__()
        self.qkv, self.out, self.up, self.down = (
            Linear(joined(base, number, name, "weight"), joined(base, number, name, "bias"))
            for name in LINEAR
        )
        part = f"encoder.layer.{number}"
        self.n1 = Norm(*_norm(base, f"{part}.attention.LayerNorm"))
        self.n2 = Norm(*_norm(base, f"{part}.output.LayerNorm"))

    def forward(self, x: Tensor, mask: Tensor, drop: Dropout | None) -> Tensor:
        """Vectors (examples, tokens, WIDTH); `mask` is (examples * HEADS, tokens, tokens), to be added."""
        rows, length, _ = x.shape
        dropped = drop or _same
        heads = self.qkv(x).view(rows, length, 3, HEADS, _HEAD).permute(2, 0, 3, 1, 4)
        q, k, v = heads.reshape(3, rows * HEADS, length, _HEAD)
        share = torch.baddbmm(mask, q, k.transpose(1, 2), alpha=_HEAD**-0.5).softmax(-1)
        mixed = (share @ v).view(rows, HEADS, length, _HEAD).transpose(1, 2).reshape(x.shape)
        x = self.n1(x + dropped(self.out(mixed)).float())
        fed = self.down(F.gelu(self.up(x), approximate="tanh"))
        return self.n2(x + dropped(fed).float())


def joined(base: Weights, layer: int, name: str, kind: str) -> Tensor:
    """Weight or bias of one of LINEAR, as the base has it."""
    parts = [base[f"encoder.layer.{layer}.{part}.{kind}"] for part in LINEAR[name]]
    return torch.from_numpy(np.concatenate(parts))


def _norm(base: Weights, name: str) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(base[f"{name}.weight"]), torch.from_numpy(base[f"{name}.bias"])


class Reader(nn.Module):
    """The encoder and its heads."""

    def __init__(self, base: Weights, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        for name, table in (
            ("word", "embeddings.word_embeddings"),
            ("place", "embeddings.position_embeddings"),
            ("near", "encoder.relative_attention_bias"),
        ):
            self.register_buffer(name, torch.from_numpy(base[f"{table}.weight"]), persistent=False)
        self.kinds = nn.Parameter(torch.zeros(KINDS, WIDTH))
        self.norm = Norm(*_norm(base, "embeddings.LayerNorm"))
        self.layers = nn.ModuleList(Layer(base, number) for number in range(LAYERS))
        self.tokens = nn.Linear(WIDTH, 3)
        self.mix = nn.Sequential(
            nn.Linear(3 * WIDTH, _MIXED), nn.GELU(), nn.Dropout(_DROPOUT), nn.Linear(_MIXED, 1)
        )
        self.weigh = nn.Parameter(torch.tensor([0.3, -0.3]))
        for head in (self.tokens, self.mix[0], self.mix[3]):
            nn.init.normal_(head.weight, std=0.02)
            nn.init.zeros_(head.bias)
        self._drop = Dropout(seed)

    def forward(self, batch: Batch) -> Scores:
        """Read the examples."""
        drop = self._drop if self.training else None
        length = batch.tokens.shape[1]
        places = self.place[_FIRST_PLACE : length + _FIRST_PLACE]
        x = self.norm(F.embedding(batch.tokens, self.word) + places + F.embedding(batch.kinds, self.kinds))
        x = drop(x) if drop else x
        hidden = (batch.tokens == _PAD).float().mul(_HIDDEN)[:, None, None, :]
        mask = (self._nearness(length) + hidden).to(_FAST).reshape(-1, length, length)
        for layer in self.layers:
            x = layer(x, mask, drop)
        return self._judged(x, batch.segments == SENTENCE, batch.segments == QUESTION)

    def _nearness(self, length: int) -> Tensor:
        """What attention adds for the distance of two tokens, (1, HEADS, length, length)."""
        near: Tensor = F.embedding(torch.from_numpy(buckets(length)), self.near)
        return near.permute(2, 0, 1)[None]

    def _judged(self, x: Tensor, read: Tensor, asked: Tensor) -> Scores:
        heads = self.tokens(x)
        possible = read.clone()
        possible[:, 0] = True  # [CLS]: there is no answer
        start, end = (heads[..., i].masked_fill(~possible, _HIDDEN) for i in (0, 1))
        wrong = heads[..., 2].masked_fill(~asked, _HIDDEN)
        span = sum(s[:, 1:].logsumexp(1) - s[:, 0] for s in (start, end))
        most = wrong.logsumexp(1)
        share = (start.softmax(1) + end.softmax(1)).masked_fill(~read, 0).detach()
        share = share / (share.sum(1, keepdim=True) + 1e-6)
        question = (x * asked[..., None]).sum(1) / asked.sum(1, keepdim=True).clamp(1)
        whole = self.mix(torch.cat([x[:, 0], question, (share[..., None] * x).sum(1)], 1))[:, 0]
        return Scores(start, end, wrong, span, most, whole + self.weigh[0] * span + self.weigh[1] * most)


def losses(scores: Scores, batch: Batch) -> tuple[Tensor, list[float]]:
    """The loss, and its three parts: of the span, of whether anything answers, of the changed words."""
    span = 0.5 * (_missed(scores.start, batch.starts) + _missed(scores.end, batch.ends))
    answers = F.binary_cross_entropy_with_logits(scores.answers, batch.answered, reduction="none")
    known = batch.wrong >= 0
    wrong = torch.zeros(())
    if known.any():
        labels, weight = batch.wrong[known].float(), torch.tensor(_WRONG_WEIGHT)
        wrong = F.binary_cross_entropy_with_logits(scores.wrong[known], labels, pos_weight=weight)
    total = (batch.weights * (span + answers)).mean() + _WRONG_SHARE * wrong
    return total, [span.mean().item(), answers.mean().item(), wrong.item()]


def _missed(scores: Tensor, right: Tensor) -> Tensor:
    """Negative log-likelihood that one of the right tokens is chosen."""
    return scores.logsumexp(1) - scores.masked_fill(right == 0, _HIDDEN).logsumexp(1)


def predict(reader: Reader, examples: Sequence[Example]) -> NDArray[np.float64]:
    """For each example `span`, `wrong` and `answers` as in rag.answer_reader.Reading, shape (examples, 3)."""
    reader.eval()
    found = np.zeros((len(examples), 3))
    order = sorted(range(len(examples)), key=lambda i: len(examples[i].wrong))
    for start in range(0, len(order), _AT_ONCE):
        some = order[start : start + _AT_ONCE]
        with torch.no_grad():
            scores = reader(Batch.of([examples[i] for i in some]))
        found[some] = torch.stack([scores.span, scores.most_wrong, scores.answers], 1).numpy()
    reader.train()
    return found
