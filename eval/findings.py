"""What a monitor says of one night: findings with their numbers, and the tables and charts behind them."""

from collections.abc import Sequence
from typing import Literal

from knowledge_base.values import Frozen

Level = Literal["ok", "warn", "page", "blind", "insufficient"]
Part = Literal[
    "corpus", "queries", "embedder", "chunker", "retrieval", "prompt", "model", "machine", "unknown"
]
ALARMS = ("warn", "page")


class Cause(Frozen):
    """A part that may have caused an alarm, why it is thought so, and what to run next."""

    part: Part
    evidence: str
    command: str


class Finding(Frozen):
    """One check of one monitor.

    `effect` counts as worse the larger it is; with `p` the check is a test, which alarms only when it is
    significant in the night's family and its effect reaches `floor` (a warning) or `page_floor`. Without
    `p` the monitor has set `level` itself: it compared everything there is.
    """

    monitor: str
    check: str
    said: str
    level: Level = "ok"
    effect: float | None = None
    floor: float = 0.0
    page_floor: float | None = None
    p: float | None = None
    n: int = 0
    reference_n: int = 0
    causes: tuple[Cause, ...] = ()

    @property
    def name(self) -> str:
        """Its name in the night's family."""
        return f"{self.monitor}.{self.check}"

    @property
    def pages_from(self) -> float:
        """The effect from which on it may page."""
        return self.floor if self.page_floor is None else self.page_floor


class Table(Frozen):
    """Rows for people; every cell is text."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


class Chart(Frozen):
    """Series over common labels; `low` and `high` are limits to draw."""

    title: str
    kind: Literal["bars", "lines"]
    labels: tuple[str, ...]
    series: dict[str, tuple[float | None, ...]]
    low: float | None = None
    high: float | None = None


class Section(Frozen):
    """One monitor's part of the report; `values` are its figures, by name, for trends and for Prometheus."""

    monitor: str
    title: str
    findings: tuple[Finding, ...] = ()
    tables: tuple[Table, ...] = ()
    charts: tuple[Chart, ...] = ()
    values: dict[str, float] = {}


def insufficient(monitor: str, check: str, why: str) -> Finding:
    """A check that had too little to go by: neither an alarm nor the all-clear."""
    return Finding(monitor=monitor, check=check, level="insufficient", said=why)


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[object]]) -> Table:
    """A table of cells as people read them."""
    return Table(title=title, head=tuple(head), rows=tuple(tuple(map(cell, row)) for row in rows))


def cell(value: object) -> str:
    """One value as text: a float with at most four decimals, nothing as a dash."""
    if value is None:
        return "–"
    return f"{value:.4f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
