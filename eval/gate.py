"""May a candidate replace what is live? Pure: scores in, verdict out."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from eval.bootstrap import Estimate, estimate
from eval.scores import Scores
from knowledge_base.configuration import GateSettings
from knowledge_base.values import Frozen

Status = Literal["PASS", "FAIL", "INCONCLUSIVE", "INCOMPLETE"]
NO_GOLDEN_SET = "no golden set"

ZERO_TOLERANCE: Mapping[str, str] = {
    "citation_validity": "a citation does not verify",
    "schema": "an answer is not well-formed",
    "canary": "an answer holds a text that must never be in one",
}
"""Metrics of which a single value below 1 fails a candidate, with or without a baseline."""

MINIMUM_COVERAGE = 0.98
_NAMED = 5


class MetricVerdict(Frozen):
    """One metric of candidate and baseline, both over the `n` questions that both were measured on.

    `delta` is the mean paired difference, `interval` its 90 % bootstrap interval over `groups` documents,
    `margin` how much worse a primary metric may be, `detectable` the smallest loss that so many questions
    would show (80 % power; above 1 they cannot tell); `unpaired` counts the questions that only one of the
    two has a value for. Without a baseline, the candidate alone.
    """

    name: str
    candidate: float | None
    baseline: float | None
    delta: float | None
    interval: tuple[float, float] | None
    n: int
    groups: int = 0
    unpaired: int = 0
    margin: float | None = None
    detectable: float | None = None

    @property
    def inferior(self) -> bool:
        """Worse by more than the margin, and credibly worse at all."""
        return (
            self.margin is not None
            and self.delta is not None
            and self.interval is not None
            and self.delta < -self.margin
            and self.interval[1] < 0
        )

    @property
    def unsettled(self) -> bool:
        """Neither shown to be worse, nor shown to be no worse than the margin allows."""
        return (
            self.margin is not None
            and self.interval is not None
            and self.interval[0] < -self.margin
            and not self.inferior
        )


class Loss(Frozen):
    """One question that the candidate does worse on than the baseline."""

    id: str
    metric: str
    candidate: float
    baseline: float


class Verdict(Frozen):
    """What the gate says, and why; `losses` are listed whatever the status, the worst first.

    `candidate_digest` and `baseline_digest` name what decides the answers of the two releases, wherever
    they are committed; `changed` which parts differ; `rules` names questions, judge and margins. `reused`
    counts answers that were taken from an earlier evaluation, `cached` says that the whole verdict was.
    `summary` holds figures of a whole set (latency, tokens, cost, abstention) by release.
    """

    status: Status
    reasons: tuple[str, ...]
    metrics: tuple[MetricVerdict, ...] = ()
    losses: tuple[Loss, ...] = ()
    questions: int = 0
    candidate: str = ""
    baseline: str = ""
    candidate_digest: str = ""
    baseline_digest: str = ""
    golden: str = ""
    judge: str = ""
    rules: str = ""
    changed: tuple[str, ...] = ()
    repetitions: int = 1
    reused: int = 0
    cached: bool = False
    summary: dict[str, dict[str, float | None]] = {}

    @property
    def publishable(self) -> bool:
        """Whether the candidate may go live: what is not known fails closed."""
        return self.status == "PASS"

    @property
    def label(self) -> str:
        """The verdict in the log: its status, and what it could not rest on."""
        return self.status if self.golden else f"{self.status} ({NO_GOLDEN_SET})"

    def as_json(self) -> dict[str, Any]:
        """Plain values for `--json` and the log."""
        return {**self.model_dump(mode="json"), "label": self.label}


def judge(
    candidate: Scores,
    baseline: Scores | None,
    *,
    golden: str,
    rules: GateSettings | None = None,
    faults: Sequence[str] = (),
    obstacle: str = "",
    warnings: Sequence[str] = (),
    repetitions: int = 1,
) -> Verdict:
    """Compare a candidate's scores with the baseline's on the same questions.

    Every primary metric must be shown to be no worse than its margin (non-inferiority at a one-sided
    5 % level; all of them must be, which as an intersection-union test needs no correction for their
    number, Berger 1982). It is FAIL when one is worse than that and credibly worse at all, INCONCLUSIVE
    when the questions cannot tell, INCOMPLETE when too much could not be measured. A metric of the
    zero-tolerance tier fails by a single answer, as do `faults` found elsewhere. `obstacle` says why
    there is no baseline although there should be one; `warnings` are reasons that do not change the
    status.
    """
    rules = rules or GateSettings()
    metrics = tuple(_compare(name, candidate, baseline, rules) for name in _names(candidate))
    broken = [*faults, *_broken(candidate)]
    missing = _not_measured(candidate, baseline) + ([obstacle] if obstacle else [])
    worse = [_tell(metric, "fell by") for metric in metrics if metric.inferior]
    unsettled = [_tell(metric, "may have fallen: by") for metric in metrics if metric.unsettled]
    status = _status(broken, missing, worse, unsettled)
    losses = _losses(candidate, baseline, rules.margins) if baseline else ()
    reasons = broken + missing + worse + unsettled + _describe(losses)
    if status == "PASS" and baseline is None:
        reasons.append("nothing to compare with: the first scores of these golden questions")
    return Verdict(
        status=status,
        reasons=(*reasons, *_blind_spots(metrics), *warnings),
        metrics=metrics,
        losses=losses,
        questions=candidate.questions,
        candidate=candidate.commit,
        baseline=baseline.commit if baseline else "",
        candidate_digest=candidate.digest,
        baseline_digest=baseline.digest if baseline else "",
        golden=golden,
        judge=candidate.judge,
        repetitions=repetitions,
        reused=candidate.reused,
    )


def _status(
    broken: Sequence[str], missing: Sequence[str], worse: Sequence[str], unsettled: Sequence[str]
) -> Status:
    """The first of what was found decides, the gravest first."""
    if broken:
        return "FAIL"
    if missing:
        return "INCOMPLETE"
    if worse:
        return "FAIL"
    return "INCONCLUSIVE" if unsettled else "PASS"


def _names(scores: Scores) -> list[str]:
    """Every metric of the rows, in the order they were measured in."""
    return list(dict.fromkeys(score.metric for row in scores.rows for score in row.scores))


def _broken(candidate: Scores) -> list[str]:
    """What the zero-tolerance tier found, with the questions it found it in."""
    found = []
    for metric, said in ZERO_TOLERANCE.items():
        ids = [key for key, value in candidate.values(metric).items() if value < 1]
        if ids:
            found.append(f"{said}: {_shown(ids)}")
    return found


def _not_measured(candidate: Scores, baseline: Scores | None) -> list[str]:
    """What is missing to compare the two."""
    if baseline is None:
        return _missing(candidate, "")
    missing = _missing(candidate, "") + _missing(baseline, " of the release before")
    if baseline.judge != candidate.judge:
        missing.append("the two releases were scored by different judges")
    return missing


def _missing(scores: Scores, whose: str) -> list[str]:
    """What failed to be measured, when that is too much to judge by."""
    failed = scores.failures
    if not scores.rows or 1 - len(failed) / scores.questions >= MINIMUM_COVERAGE:
        return []
    shown = [f"{key}: {reason}" for key, reason in list(failed.items())[:3]]
    return [f"{len(failed)} of {scores.questions} questions{whose} could not be scored", *shown]


def _tell(metric: MetricVerdict, verb: str) -> str:
    low, high = metric.interval or (0.0, 0.0)
    return (
        f"{metric.name} {verb} {-(metric.delta or 0):.3f} (margin {metric.margin:g}, 90 % interval "
        f"{low:.3f} to {high:.3f}, n={metric.n})"
    )


def _blind_spots(metrics: Iterable[MetricVerdict]) -> list[str]:
    """What so few questions cannot show."""
    blind = [
        f"{m.name}: {m.detectable:.2f}" if m.detectable <= 1 else f"{m.name}: cannot tell"
        for m in metrics
        if m.margin is not None and m.detectable is not None and m.detectable > m.margin
    ]
    if not blind:
        return []
    return [f"too few golden questions to show a loss the size of the margin; detectable: {', '.join(blind)}"]


def _losses(candidate: Scores, baseline: Scores, margins: Iterable[str]) -> tuple[Loss, ...]:
    found = []
    for name in dict.fromkeys((*margins, *ZERO_TOLERANCE)):
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
    return [f"{len(names)} question(s) score lower than before: {_shown(names)}"] if names else []


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (" ..." if len(names) > _NAMED else "")


def _compare(name: str, candidate: Scores, baseline: Scores | None, rules: GateSettings) -> MetricVerdict:
    new = candidate.values(name)
    old = baseline.values(name) if baseline else {}
    paired = sorted(new.keys() & old.keys() if baseline else new)
    found: Estimate | None = None
    if baseline:
        # Of the digests, not the commits: the same two contents get the same verdict, wherever they lie.
        seed = f"{name} {baseline.digest} {candidate.digest}"
        found = estimate({key: new[key] - old[key] for key in paired}, candidate.groups, seed)
    margin = rules.margins.get(name)
    return MetricVerdict(
        name=name,
        candidate=_mean([new[key] for key in paired]),
        baseline=_mean([old[key] for key in paired]) if baseline else None,
        delta=found.mean if found else None,
        interval=(found.low, found.high) if found else None,
        n=len(paired),
        groups=found.groups if found else 0,
        unpaired=len(new.keys() ^ old.keys()) if baseline else 0,
        margin=margin,
        detectable=found.detectable if found and margin is not None else None,
    )


def _mean(values: list[float]) -> float | None:
    return round(sum(values) / len(values), 6) if values else None
