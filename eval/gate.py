"""May a candidate replace what is live? Pure: scores in, verdict out."""

from collections.abc import Mapping
from typing import Any, Literal

from eval.metrics import METRICS, METRICS_VERSION, Scores
from knowledge_base.release import Frozen

Status = Literal["PASS", "FAIL", "INCOMPLETE", "UNEVALUATED"]

MARGINS: Mapping[str, float] = {
    "faithfulness": 0.05,
    "context_recall": 0.03,
    "reciprocal_rank": 0.05,
    "abstention": 0.05,
}
"""How much worse a primary metric's mean may become."""

MINIMUM_COVERAGE = 0.98
_RESAMPLES = 2000


class MetricVerdict(Frozen):
    """One metric of candidate and baseline on the questions both were measured on.

    `delta` is the mean paired difference, `interval` its 95 % bootstrap interval.
    """

    name: str
    candidate: float | None
    baseline: float | None
    delta: float | None
    interval: tuple[float, float] | None
    n: int


class Verdict(Frozen):
    """What the gate says, and why."""

    status: Status
    reasons: tuple[str, ...]
    metrics: tuple[MetricVerdict, ...]
    questions: int
    candidate: str
    baseline: str
    golden: str
    metrics_version: str = METRICS_VERSION

    @property
    def publishable(self) -> bool:
        """Whether the candidate may go live. Without golden questions it may; the log says unevaluated."""
        return self.status in ("PASS", "UNEVALUATED")

    def as_json(self) -> dict[str, Any]:
        """Plain values for `--json` and the log."""
        return self.model_dump(mode="json")


def judge(
    candidate: Scores, baseline: Scores | None, *, golden: str, margins: Mapping[str, float] = MARGINS
) -> Verdict:
    """Compare a candidate's scores with the baseline's on the same questions.

    A primary metric fails when its mean falls by more than its margin and the whole interval of the
    paired difference lies below zero: worse, and credibly so. An invalid citation always fails.
    """
    metrics = tuple(_compare(name, candidate, baseline) for name in METRICS)
    reasons = [
        f"{m.name} fell by {-m.delta:.3f} (95 % interval {m.interval[0]:.3f} to {m.interval[1]:.3f}, n={m.n})"
        for m in metrics
        if m.name in margins
        and m.delta is not None
        and m.interval is not None
        and m.delta < -margins[m.name]
        and m.interval[1] < 0
    ]
    if any(value < 1 for value in candidate.values("citation_validity").values()):
        reasons.append("a citation does not verify")
    status: Status = "FAIL" if reasons else "PASS"
    failed = candidate.failures
    if candidate.rows and 1 - len(failed) / len(candidate.rows) < MINIMUM_COVERAGE:
        status = "INCOMPLETE"
        reasons += [f"{key}: {reason}" for key, reason in list(failed.items())[:3]]
    if not candidate.rows:
        status, reasons = "UNEVALUATED", ["there are no golden questions (golden/*.jsonl)"]
    return Verdict(
        status=status,
        reasons=tuple(reasons),
        metrics=metrics if candidate.rows else (),
        questions=len(candidate.rows),
        candidate=candidate.commit,
        baseline=baseline.commit if baseline else "",
        golden=golden,
    )


def _compare(name: str, candidate: Scores, baseline: Scores | None) -> MetricVerdict:
    new = candidate.values(name)
    old = baseline.values(name) if baseline else {}
    paired = sorted(new.keys() & old.keys())
    differences = [new[key] - old[key] for key in paired]
    return MetricVerdict(
        name=name,
        candidate=_mean(list(new.values())),
        baseline=_mean(list(old.values())),
        delta=_mean(differences),
        interval=bootstrap_interval(differences),
        n=len(paired) if baseline else len(new),
    )


def _mean(values: list[float]) -> float | None:
    return round(sum(values) / len(values), 6) if values else None


def bootstrap_interval(differences: list[float]) -> tuple[float, float] | None:
    """95 % percentile interval of the mean, by 2,000 seeded resamples; None for fewer than two values."""
    if len(differences) < 2:
        return None
    import numpy as np

    values = np.array(differences)
    draws = np.random.default_rng(0).integers(0, len(values), (_RESAMPLES, len(values)))
    low, high = np.percentile(values[draws].mean(axis=1), [2.5, 97.5])
    return round(float(low), 6), round(float(high), 6)
