"""Two-sample tests whose unit is the block: the session, quarter of an hour or document that items share.

Items of one block are alike, so a test that shuffles items alarms on nothing. All tests here shuffle
whole blocks. They are pure and seeded: the same arrays give the same p-value.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Items = NDArray[np.float32] | NDArray[np.float64]
Blocks = NDArray[np.int64]

RESAMPLES = 9_999
_FIRST_RESAMPLES = 999
_CLEAR = 0.1
"""With p above it after the first resamples, the others could change no verdict."""
_EQUAL = 1e-12
_BATCH = 500
_FOLDS = 5
_RIDGE = 0.01
"""Penalty of the domain classifier, for each item that it is trained on; of unit vectors."""
MINIMUM_ITEMS, MINIMUM_BLOCKS = 50, 10
"""Below one of them on either side there is no test."""
ITEMS_A_BLOCK = 5
"""More items of one block add less than they cost: they are alike."""
ITEMS_A_SIDE = 2_000


@dataclass(frozen=True)
class Sample:
    """Reference and newer items together: values (n,) or unit vectors (n, d), the block of each, its side."""

    items: Items
    blocks: Blocks
    newer: NDArray[np.bool_]

    @classmethod
    def of(cls, reference: Items, blocks: Blocks, newer: Items, newer_blocks: Blocks) -> "Sample":
        """Join two samples; equal block numbers of the two sides are different blocks."""
        old, new = (np.unique(given, return_inverse=True)[1] for given in (blocks, newer_blocks))
        first_new = int(old.max(initial=-1)) + 1
        return cls(
            np.concatenate([reference, newer]),
            np.concatenate([old, new + first_new]).astype(np.int64),
            np.arange(len(reference) + len(newer)) >= len(reference),
        )

    @property
    def counts(self) -> tuple[int, int, int, int]:
        """(reference items, newer items, reference blocks, newer blocks)."""
        old, new = self.blocks[~self.newer], self.blocks[self.newer]
        return len(old), len(new), len(np.unique(old)), len(np.unique(new))

    @property
    def sufficient(self) -> bool:
        """Whether both sides hold enough to test at all."""
        old, new, blocks, newer_blocks = self.counts
        return min(old, new) >= MINIMUM_ITEMS and min(blocks, newer_blocks) >= MINIMUM_BLOCKS

    def take(self, rows: NDArray[np.int64]) -> "Sample":
        """Some of the rows."""
        return Sample(self.items[rows], self.blocks[rows], self.newer[rows])

    def thinned(self, seed: int, per_side: int = ITEMS_A_SIDE) -> NDArray[np.int64]:
        """Rows to test: at most ITEMS_A_BLOCK of a block and `per_side` of a side, drawn by blocks."""
        random = np.random.default_rng(seed)
        size = int(self.blocks.max(initial=-1)) + 1
        # Blocks in random order, the items of each in random order.
        order = np.lexsort((random.random(len(self.blocks)), random.permutation(size)[self.blocks]))
        _, starts, lengths = _runs(self.blocks[order])
        place = np.arange(len(order)) - np.repeat(starts, lengths)
        order = order[place < ITEMS_A_BLOCK]
        sides = [order[self.newer[order] == newer][:per_side] for newer in (False, True)]
        return np.sort(np.concatenate(sides))


@dataclass(frozen=True)
class Test:
    """What a test found: its statistic, its p-value, and the upper 99.5 % point of chance."""

    statistic: float
    p: float
    chance: float


def block_mmd(sample: Sample, seed: int, resamples: int = RESAMPLES) -> Test:
    """Maximum mean discrepancy of two samples of vectors, tested by permuting whole blocks.

    Squared MMD with a Gaussian kernel whose width is the median distance (Gretton et al., 2012), without
    the pairs inside a block, which say how alike a block is and not how alike the samples are.
    """
    order, starts, sizes, newer = _by_block(sample)
    items = sample.items[order].astype(np.float32)
    squared = np.maximum((items * items).sum(1)[:, None] + (items * items).sum(1) - 2 * (items @ items.T), 0)
    width = float(np.median(squared[np.triu_indices(len(items), 1)])) or 1.0
    kernel = np.exp(squared / -width)
    between = np.add.reduceat(np.add.reduceat(kernel, starts, 0), starts, 1).astype(np.float64)
    np.fill_diagonal(between, 0)
    rows, total = between.sum(1), between.sum()

    def statistic(labels: Floats) -> Floats:
        inside = ((labels @ between) * labels).sum(1)
        across = labels @ rows - inside
        outside = total - 2 * across - inside
        new, new_pairs = labels @ sizes, labels @ sizes**2
        old, old_pairs = sizes.sum() - new, (sizes**2).sum() - new_pairs
        found: Floats = (
            inside / (new**2 - new_pairs) + outside / (old**2 - old_pairs) - 2 * across / (new * old)
        )
        return found

    return _permute(statistic, newer, seed, resamples)


def block_mean(sample: Sample, seed: int, resamples: int = RESAMPLES) -> Test:
    """How much larger the newer mean is, tested one-sided by permuting whole blocks."""
    order, starts, sizes, newer = _by_block(sample)
    sums = np.add.reduceat(sample.items[order].astype(np.float64), starts)

    def statistic(labels: Floats) -> Floats:
        new, items = labels @ sums, labels @ sizes
        found: Floats = new / items - (sums.sum() - new) / (sizes.sum() - items)
        return found

    return _permute(statistic, newer, seed, resamples)


@dataclass(frozen=True)
class Classified(Test):
    """A domain classifier's AUC (`statistic`), its 95 % interval, and how new each row looks."""

    interval: tuple[float, float]
    scores: Floats


def domain_classifier(sample: Sample, seed: int, resamples: int = RESAMPLES) -> Classified:
    """How well a linear classifier tells the newer vectors from the reference's, on blocks it has not seen.

    Regularised least squares, whose predictions are linear in the labels: so every permutation of
    blocks is fitted anew for the price of a product. The blocks of a fold are drawn without regard to
    their side. The interval is a bootstrap over blocks of the scores as they are.
    """
    order, starts, sizes, newer = _by_block(sample)
    items = sample.items[order].astype(np.float64)
    block = np.repeat(np.arange(len(starts)), sizes.astype(int))
    fold = np.random.default_rng(seed).permutation(len(starts))[block] % _FOLDS
    folds = [_Fold.of(items, fold == number) for number in range(_FOLDS) if (fold == number).any()]

    def statistic(labels: Floats) -> Floats:
        wide = labels[:, block]
        wins, pairs = np.zeros(len(labels)), np.zeros(len(labels))
        for part in folds:
            new = wide[:, part.rows]
            ranks = np.argsort(np.argsort(part.scores(wide), axis=1), axis=1) + 1.0
            count = new.sum(1)
            wins += (ranks * new).sum(1) - count * (count + 1) / 2
            pairs += count * (len(part.rows) - count)
        found: Floats = wins / np.maximum(pairs, 1)
        return found

    found = _permute(statistic, newer, seed, resamples)
    wide = newer[None, block]
    scores = np.empty(len(items))
    for part in folds:
        scores[part.rows] = part.scores(wide)[0]
    interval = _auc_interval(scores, fold, wide[0], starts, seed)
    back = np.empty(len(items))
    back[order] = scores
    return Classified(found.statistic, found.p, found.chance, interval, back)


@dataclass(frozen=True)
class _Fold:
    """One fold of the cross-fit: which rows it scores, and what turns the others' labels into scores."""

    rows: NDArray[np.int64]
    train: NDArray[np.int64]
    hat: Floats

    @classmethod
    def of(cls, items: Floats, here: NDArray[np.bool_]) -> "_Fold":
        train = np.flatnonzero(~here)
        centre = items[train].mean(0)
        known = items[train] - centre
        weights = np.linalg.solve(
            known.T @ known + _RIDGE * len(train) * np.eye(items.shape[1]), (items[here] - centre).T
        )
        return cls(np.flatnonzero(here), train, (known @ weights).astype(np.float64))

    def scores(self, labels: Floats) -> Floats:
        """Scores of the fold's rows for each vector of labels, shape (len(labels), rows)."""
        found: Floats = labels[:, self.train] @ self.hat
        return found


def _auc_interval(
    scores: Floats, fold: NDArray[np.int64], newer: Floats, starts: NDArray[np.int64], seed: int
) -> tuple[float, float]:
    same = fold[:, None] == fold
    wins = ((scores[:, None] > scores) + 0.5 * (scores[:, None] == scores)) * same
    sides = newer[:, None] * (1 - newer)

    def summed(values: Items | NDArray[np.bool_]) -> Floats:
        by_block: Floats = np.add.reduceat(np.add.reduceat(values * sides, starts, 0), starts, 1)
        return by_block

    won, pairs = summed(wins), summed(same)
    drawn = np.random.default_rng(seed).multinomial(
        len(starts), np.full(len(starts), 1 / len(starts)), size=_FIRST_RESAMPLES
    )
    aucs = ((drawn @ won) * drawn).sum(1) / np.maximum(((drawn @ pairs) * drawn).sum(1), 1e-9)
    low, high = np.percentile(aucs, [2.5, 97.5])
    return float(low), float(high)


def paired_loss(differences: Floats, groups: Blocks, seed: int, resamples: int = RESAMPLES) -> Test:
    """How much lower the newer values are (newer minus reference, by question), one-sided.

    The signs of whole groups are flipped, which under no change are as likely one way as the other.
    """
    sums = np.bincount(groups, weights=-differences)
    sums = sums[sums != 0]
    observed = float(-differences.mean()) if len(differences) else 0.0
    if not len(sums):
        return Test(observed, 1.0, 0.0)
    random = np.random.default_rng(seed)
    flipped = (random.integers(0, 2, (resamples, len(sums))) * 2 - 1) @ sums / len(differences)
    hits = int((flipped >= observed - _EQUAL).sum())
    return Test(observed, (1 + hits) / (resamples + 1), float(np.quantile(flipped, 0.995)))


def _permute(statistic: Callable[[Floats], Floats], newer: Floats, seed: int, resamples: int) -> Test:
    """A p-value of (1 + permutations as extreme) / (1 + permutations); stops early when it is clear.

    Those that equal what was observed count half, the mid-p value of Lancaster (1961): rare events have few
    different values, and counted whole a test at 5 % would alarm in 1 or 2 % of the nights.
    """
    observed = float(statistic(newer[None, :])[0])
    random = np.random.default_rng(seed)
    found: list[Floats] = []
    hits, done = 0.0, 0
    for size in _batches(resamples):
        labels = random.permuted(np.broadcast_to(newer, (size, len(newer))), axis=1)
        found.append(statistic(labels))
        hits += float((found[-1] > observed + _EQUAL).sum() + (found[-1] >= observed - _EQUAL).sum()) / 2
        done += size
        if done >= _FIRST_RESAMPLES and (1 + hits) / (1 + done) > _CLEAR:
            break
    return Test(observed, (1 + hits) / (1 + done), float(np.quantile(np.concatenate(found), 0.995)))


def _batches(resamples: int) -> Iterator[int]:
    while resamples > 0:
        yield min(_BATCH, resamples)
        resamples -= _BATCH


def _by_block(
    sample: Sample,
) -> tuple[NDArray[np.int64], NDArray[np.int64], Floats, Floats]:
    """(rows sorted by block, where each block starts, its size, 1.0 where it is newer)."""
    order = np.argsort(sample.blocks, kind="stable")
    first, starts, lengths = _runs(sample.blocks[order])
    del first
    return order, starts, lengths.astype(np.float64), sample.newer[order][starts].astype(np.float64)


def _runs(values: Blocks) -> tuple[Blocks, NDArray[np.int64], NDArray[np.int64]]:
    """(value, start, length) of each run of equal values."""
    starts = np.flatnonzero(np.r_[True, values[1:] != values[:-1]]) if len(values) else np.empty(0, np.int64)
    return values[starts], starts, np.diff(np.r_[starts, len(values)])
