"""May a candidate replace what is live? Pure: scores in, verdict out."""

from collections.abc import Iterable, Mapping, Sequence
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
    """One metric of candidate and baseline, both over the `n` questions that both were measured on.

    `delta` is the mean paired difference, `interval` its 95 % bootstrap interval; `unpaired` counts
    the questions that only one of the two has a value for. Without a baseline, the candidate alone.
    """

    name: str
    candidate: float | None
    baseline: float | None
    delta: float | None
    interval: tuple[float, float] | None
    n: int
    unpaired: int = 0


class Loss(Frozen):
    """One question that the candidate does worse on than the baseline."""

    id: str
    metric: str
    candidate: float
    baseline: float


class Verdict(Frozen):
    """What the gate says, and why; `losses` are listed whatever the status, the worst first."""

    status: Status
    reasons: tuple[str, ...]
    metrics: tuple[MetricVerdict, ...]
    losses: tuple[Loss, ...] = ()
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
    candidate: Scores,
    baseline: Scores | None,
    *,
    golden: str,
    margins: Mapping[str, float] = MARGINS,
    obstacle: str = "",
    warnings: Sequence[str] = (),
) -> Verdict:
    """Compare a candidate's scores with the baseline's on the same questions.

    A primary metric fails when its mean falls by more than its margin and the whole interval of the
    paired difference lies below zero: worse, and credibly so. An invalid citation always fails.
    `obstacle` says why there is no baseline although there should be one; `warnings` are reasons that
    do not change the status.
    """
    metrics = tuple(_compare(name, candidate, baseline) for name in METRICS)
    worse = _credibly_worse(metrics, margins)
    if any(value < 1 for value in candidate.values("citation_validity").values()):
        worse.append("a citation does not verify")
    missing = _missing(candidate, "") + (_missing(baseline, " of the release before") if baseline else [])
    if obstacle:
        missing.append(obstacle)
    status: Status = "FAIL" if worse else "INCOMPLETE" if missing else "PASS"
    losses = _losses(candidate, baseline, margins) if baseline else ()
    reasons = worse + missing + _describe(losses)
    if status == "PASS" and baseline is None:
        reasons.append("nothing to compare with: the first scores of these golden questions")
    if not candidate.rows:
        status, reasons = "UNEVALUATED", ["there are no golden questions (golden/*.jsonl)"]
    reasons += warnings
    return Verdict(
        status=status,
        reasons=tuple(reasons),
        metrics=metrics if candidate.rows else (),
        losses=losses,
        questions=len(candidate.rows),
        candidate=candidate.commit,
        baseline=baseline.commit if baseline else "",
        golden=golden,
    )


def _credibly_worse(metrics: Iterable[MetricVerdict], margins: Mapping[str, float]) -> list[str]:
    return [
        f"{m.name} fell by {-m.delta:.3f} (95 % interval {m.interval[0]:.3f} to {m.interval[1]:.3f}, n={m.n})"
        for m in metrics
        if m.name in margins
        and m.delta is not None
        and m.interval is not None
        and m.delta < -margins[m.name]
        and m.interval[1] < 0
    ]


def _missing(scores: Scores, whose: str) -> list[str]:
    """What failed to be measured, when that is too much to judge by."""
    failed = scores.failures
    if not scores.rows or 1 - len(failed) / len(scores.rows) >= MINIMUM_COVERAGE:
        return []
    shown = [f"{key}: {reason}" for key, reason in list(failed.items())[:3]]
    return [f"{len(failed)} of {len(scores.rows)} questions{whose} could not be scored", *shown]


def _losses(candidate: Scores, baseline: Scores, margins: Mapping[str, float]) -> tuple[Loss, ...]:
    found = []
    for name in margins:
        old = baseline.values(name)
        found += [
            Loss(id=key, metric=name, candidate=value, baseline=old[key])
            for key, value in candidate.values(name).items()
            if key in old and value < old[key]
        ]
    found.sort(key=lambda loss: (loss.candidate - loss.baseline, loss.id, loss.metric))
    return tuple(found)


def _describe(losses: Iterable[Loss]) -> list[str]:
    names = list(dict.fromkeys(loss.id for loss in losses))
    if not names:
        return []
    shown = ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")
    return [f"{len(names)} question(s) score lower than before: {shown}"]


def _compare(name: str, candidate: Scores, baseline: Scores | None) -> MetricVerdict:
    new = candidate.values(name)
    old = baseline.values(name) if baseline else {}
    paired = sorted(new.keys() & old.keys() if baseline else new)
    differences = [new[key] - old[key] for key in paired] if baseline else []
    return MetricVerdict(
        name=name,
        candidate=_mean([new[key] for key in paired]),
        baseline=_mean([old[key] for key in paired]) if baseline else None,
        delta=_mean(differences),
        interval=bootstrap_interval(differences),
        n=len(paired),
        unpaired=len(new.keys() ^ old.keys()) if baseline else 0,
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
