"""From p-values to alarms: one night's tests are a family, and its nights a series."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

PAGE_LEVEL = 1 / 365
"""Chance that a night on which nothing changed pages all the same: about one false page a year."""
WARN_LEVEL = 0.05
BASELINE_NIGHTS = 20
"""Nights that set the limits of a trend."""
_LAMBDA = 0.2


def holm(p_values: Mapping[str, float], level: float) -> set[str]:
    """Which of a family are significant with a chance of at most `level` of any false one (Holm, 1979)."""
    found: set[str] = set()
    for place, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: (item[1], item[0]))):
        if p > level / (len(p_values) - place):
            break
        found.add(name)
    return found


def benjamini_hochberg(p_values: Mapping[str, float], rate: float) -> set[str]:
    """Which are significant with an expected share of false ones of at most `rate` (1995)."""
    ordered = sorted(p_values.items(), key=lambda item: (item[1], item[0]))
    last = max((k for k, (_, p) in enumerate(ordered, 1) if p <= rate * k / len(ordered)), default=0)
    return {name for name, _ in ordered[:last]}


@dataclass(frozen=True)
class Trend:
    """An exponentially weighted mean of nightly values, and the limits it should stay within.

    `expected_run` is how many nights pass on average before it leaves them by chance, at least.
    """

    smoothed: tuple[float, ...]
    centre: float
    low: float
    high: float
    expected_run: float

    @property
    def outside(self) -> bool:
        """Whether the last night left the limits."""
        return bool(self.smoothed) and not self.low <= self.smoothed[-1] <= self.high


def trend(values: Sequence[float], floor: float, level: float = PAGE_LEVEL) -> Trend | None:
    """EWMA (Roberts, 1959) of the nights after the first BASELINE_NIGHTS, which set centre and width.

    The limits are those of a prediction: Student's t at `level` a night, widened for the uncertainty of
    the baseline's own mean, and never nearer to the centre than `floor`. None for too few nights.
    """
    if len(values) <= BASELINE_NIGHTS:
        return None
    from scipy.stats import t as student

    base, later = values[:BASELINE_NIGHTS], values[BASELINE_NIGHTS:]
    centre = math.fsum(base) / len(base)
    deviation = math.sqrt(math.fsum((value - centre) ** 2 for value in base) / (len(base) - 1))
    smoothed, last = [], centre
    for value in later:
        last = _LAMBDA * value + (1 - _LAMBDA) * last
        smoothed.append(last)
    share = _LAMBDA / (2 - _LAMBDA) * (1 - (1 - _LAMBDA) ** (2 * len(later)))
    reached = (1 - (1 - _LAMBDA) ** len(later)) ** 2 / len(base)
    width = float(student.ppf(1 - level / 2, len(base) - 1)) * deviation * math.sqrt(share + reached)
    width = max(width, floor)
    return Trend(tuple(smoothed), centre, centre - width, centre + width, 1 / level)
