"""Paired differences with their uncertainty: questions of one document are not independent."""

import hashlib
import math
from collections import defaultdict
from collections.abc import Hashable, Mapping
from dataclasses import dataclass

_RESAMPLES = 10_000
_BLOCK = 1_000
_Z_LEVEL, _Z_POWER = 1.645, 0.842
"""Normal quantiles of a one-sided 5 % level and of 80 % power."""


@dataclass(frozen=True)
class Estimate:
    """A mean difference, its 90 % interval, and the smallest loss the sample could show.

    The lower end is the one-sided 95 % bound that non-inferiority is judged by. `detectable` is the loss
    that would be told from none with 80 % power; a sample in which nothing differs is given the
    uncertainty of one question that does.
    """

    mean: float
    low: float
    high: float
    detectable: float
    n: int
    groups: int


def estimate(differences: Mapping[str, float], groups: Mapping[str, str], seed: str) -> Estimate | None:
    """Mean of paired differences by question, with a cluster bootstrap over `groups` (question to group).

    Whole groups are drawn with replacement and the percentiles of 10,000 such means taken; a question
    without a group is one of its own. The seed makes the result repeatable. Clustering and paired
    differences after Miller, "Adding Error Bars to Evals" (2024). None without differences.
    """
    if not differences:
        return None
    import numpy as np

    members: dict[Hashable, list[float]] = defaultdict(list)
    for key, value in differences.items():
        members[groups.get(key) or (key,)].append(value)
    sums = np.array([sum(values) for values in members.values()])
    counts = np.array([len(values) for values in members.values()], float)
    total, size = len(differences), len(members)
    mean = float(sums.sum() / total)
    random = np.random.default_rng(int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "big"))
    means = np.empty(_RESAMPLES)
    for start in range(0, _RESAMPLES, _BLOCK):
        drawn = random.integers(0, size, (_BLOCK, size))
        means[start : start + _BLOCK] = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.percentile(means, [5, 95])
    return Estimate(
        mean=round(mean, 6),
        low=round(float(low), 6),
        high=round(float(high), 6),
        detectable=round((_Z_LEVEL + _Z_POWER) * max(float(means.std()), _one_question(total)), 6),
        n=total,
        groups=size,
    )


def _one_question(total: int) -> float:
    """Standard error of a mean of `total` differences of which one is 1 and the others 0."""
    share = 1 / total
    return math.sqrt(share * (1 - share) / total) if total > 1 else 1.0
