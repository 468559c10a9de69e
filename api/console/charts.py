"""Where the marks of the charts go: numbers in, positions out. The templates draw them as SVG."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["good", "bad", "unsure", "none"]

LANE = 20.0
"""Width of a lane in the graph of releases."""
BEAD = 26.0
"""How far below the top of its row the mark of a release is."""


def kind_of(label: str) -> Kind:
    """The tone of a verdict in words: only what passed is good, what nobody knows is unsure."""
    status = label.split(" ")[0].split(",")[0]
    if status == "PASS":
        return "good"
    if status == "FAIL":
        return "bad"
    return "unsure" if status else "none"


@dataclass(frozen=True)
class Knot:
    """One release in the graph.

    `through` are the lanes that pass its row from top to bottom, `above` says whether its own goes up from
    it and `below` whether it goes down, `forks` are the lanes of the branches that were made from it.
    """

    entry: Mapping[str, Any]
    lane: int
    kind: Kind
    live: bool = False
    above: bool = False
    below: bool = True
    through: tuple[int, ...] = ()
    forks: tuple[int, ...] = ()

    @property
    def x(self) -> float:
        """Where its lane is."""
        return self.lane * LANE + LANE / 2


def knots(main: Sequence[Mapping[str, Any]], branches: Iterable[Sequence[Mapping[str, Any]]]) -> list[Knot]:
    """The releases of main, newest first, each after those of the branches that were made from it.

    A branch is its own releases only, newest first.
    """
    forks: dict[str, list[Sequence[Mapping[str, Any]]]] = {}
    for branch in branches:
        if branch:
            forks.setdefault(branch[-1]["parents"][0], []).append(branch)
    found: list[Knot] = []
    for number, entry in enumerate(main):
        lanes: list[int] = []
        for lane, branch in enumerate(forks.get(entry["commit"], ()), 1):
            for step, one in enumerate(branch):
                # The lanes of this release's other branches, and main unless nothing is above.
                through = (*(() if number == 0 else (0,)), *lanes)
                found.append(Knot(one, lane, kind_of(_verdict(one)), above=step > 0, through=through))
            lanes.append(lane)
        found.append(
            Knot(
                entry,
                0,
                kind_of(_verdict(entry)),
                live=number == 0,
                above=number > 0,
                below=number < len(main) - 1,
                forks=tuple(lanes),
            )
        )
    return found


def _verdict(entry: Mapping[str, Any]) -> str:
    return str(
        entry["verdict"] if entry["verdict"].startswith("PASS") else entry["evaluated"] or entry["verdict"]
    )


@dataclass(frozen=True)
class Stick:
    """One metric of a forest plot: its difference, the interval, and the margin as positions."""

    metric: Mapping[str, Any]
    y: float
    kind: Kind
    point: float
    low: float
    high: float
    margin: float | None


@dataclass(frozen=True)
class Forest:
    """A forest plot: a row for each metric that was compared, on one axis."""

    width: float
    height: float
    left: float
    right: float
    zero: float
    sticks: tuple[Stick, ...]
    ticks: tuple[tuple[float, str], ...]


_ROW = 30.0
_LABELS, _FIGURES = 190.0, 150.0


def forest(metrics: Sequence[Mapping[str, Any]], width: float = 860.0) -> Forest | None:
    """Where the differences of compared metrics lie; None when nothing was compared."""
    rows = [metric for metric in metrics if metric["interval"] is not None and metric["delta"] is not None]
    if not rows:
        return None
    values: list[float] = [value for m in rows for value in (*m["interval"], -(m["margin"] or 0.0))]
    reach: float = max(0.02, *(abs(value) for value in values)) * 1.08
    left, right = _LABELS, width - _FIGURES

    def place(value: float) -> float:
        return round(left + (value + reach) / (2 * reach) * (right - left), 1)

    sticks = tuple(
        Stick(
            metric=metric,
            y=_ROW * number + _ROW / 2 + 8,
            kind=_tone(metric),
            point=place(metric["delta"]),
            low=place(metric["interval"][0]),
            high=place(metric["interval"][1]),
            margin=place(-metric["margin"]) if metric["margin"] is not None else None,
        )
        for number, metric in enumerate(rows)
    )
    ticks = tuple((place(value), _tick(value)) for value in _ticks(reach))
    return Forest(width, _ROW * len(rows) + 44, left, right, place(0.0), sticks, ticks)


def _tone(metric: Mapping[str, Any]) -> Kind:
    """Whether a primary metric was shown to be within its margin, worse than it, or neither."""
    if metric["margin"] is None:
        return "none"
    low, high = metric["interval"]
    if metric["delta"] < -metric["margin"] and high < 0:
        return "bad"
    return "unsure" if low < -metric["margin"] else "good"


def _ticks(reach: float) -> list[float]:
    step = next(
        size for size in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, reach) if reach / size <= 3.2
    )
    count = int(reach / step)
    return [number * step for number in range(-count, count + 1)]


def _tick(value: float) -> str:
    return "0" if abs(value) < 1e-9 else f"{value:+.2f}".replace("-", "−")
