"""Monitors of the answers that were served: are they supported, given, liked, fast and cheap as before?"""

import math
import statistics
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from eval.drift_statistics import MINIMUM_BLOCKS, MINIMUM_ITEMS, Sample, block_mean
from eval.family import Trend, trend
from eval.findings import Chart, Finding, Section, insufficient, table
from eval.golden import GoldenQuestion
from eval.judge import faithfulness
from eval.metrics import OFFLINE, Asked, DocumentText, Measures, judge_name
from eval.night_inputs import Night, blocks_of
from knowledge_base.documents import sha256_hex
from knowledge_base.errors import NotFoundError, PlumblineError
from knowledge_base.release import JUDGE_PROMPT
from knowledge_base.snapshot import Snapshot
from rag.answer import Answer, Citation
from rag.answer_log import Served
from rag.privacy import redact

JUDGED = 200
"""Answers of each window that the judge reads: a language model is paid for each."""
_TREND_FLOOR = 0.02
_TRENDS = ("faithfulness", "abstention_rate", "golden_faithfulness", "golden_context_recall")


def answers(night: Night) -> Section:
    """Faithfulness of a sample of both windows, and every citation of tonight's answers."""
    told = [one for one in night.asked if not one.answer.abstained]
    if not night.asked:
        why = "no answers were logged"
        return Section(monitor="answers", title="Answers", findings=(insufficient("answers", "all", why),))
    before = [one for one in night.asked_before if not one.answer.abstained]
    new, old = _judged(night, told, "new"), _judged(night, before, "old")
    values: dict[str, float] = {}
    findings: list[Finding] = []
    rows: list[tuple[str, object, object]] = []
    scored = [value for _, value in new]
    if scored:
        values["faithfulness"] = round(statistics.fmean(scored), 6)
    if len(told) and len(scored) < 0.9 * min(len(told), JUDGED):
        said = f"the judge could read only {len(scored)} of {min(len(told), JUDGED)} answers"
        findings.append(Finding(monitor="answers", check="judge", level="blind", said=said))
    findings.append(
        compare(
            "answers",
            "faithfulness",
            _sample(old, new, lambda value: 1 - value),
            "the unsupported share of claims",
            (0.03, 0.1),
            night.seed("faithfulness"),
        )
    )
    findings += _citations(night, told, values)
    judge = judge_name(night.served.settings.judge)
    rows.append(("judge", judge, ""))
    rows.append(("answers judged", len(new), len(old)))
    rows.append(("faithfulness", values.get("faithfulness"), _mean([value for _, value in old])))
    return Section(
        monitor="answers",
        title="Answers",
        findings=tuple(findings),
        tables=(table("Answers", ("figure", "tonight", "reference"), rows),),
        values=values,
    )


def behaviour(night: Night) -> Section:
    """How often there was no answer, one was blocked, a reader against it; how slow and dear it was."""
    if not night.asked:
        why = "no answers were logged"
        return Section(monitor="service", title="Service", findings=(insufficient("service", "all", why),))
    old, new = night.asked_before, night.asked
    values = _figures(new)
    was = _figures(old) if old else {}
    findings = [
        compare(
            "service",
            check.name,
            night.sample(
                [check.figure(one) for one in old],
                [check.figure(one) for one in new],
            ),
            check.what,
            check.floors,
            night.seed(check.name),
        )
        for check in _checks(was)
    ]
    rows = [(name, value, was.get(name)) for name, value in values.items()]
    return Section(
        monitor="service",
        title="Service",
        findings=tuple(findings),
        tables=(table("Figures", ("figure", "tonight", "reference"), rows),),
        values=values,
    )


@dataclass(frozen=True)
class _Check:
    """A figure of every answer: what it is called, how it is read, and the rises that warn and page."""

    name: str
    figure: Callable[[Served], float]
    what: str
    floors: tuple[float, float]


def _checks(was: dict[str, float]) -> tuple[_Check, ...]:
    cost = max(was.get("cost_per_answer", 0.0), 1e-9)
    return (
        _Check("abstention", lambda one: one.answer.abstained, "the share of questions not answered",
(0.05, 0.15)),
        _Check("blocked", was_blocked, "the share of answers of which nothing was let through", (0.02, 0.1)),
        _Check("feedback", lambda one: one.down, "the share of answers that readers were against",
               (0.02, 0.1)),
        _Check("errors", lambda one: bool(one.answer.attempts), "the share of answers with a failed model",
               (0.02, 0.2)),
        _Check("latency", _log_time, "the logarithm of the time to the answer", (math.log(1.5), math.log(3))),
        _Check("cost", lambda one: one.answer.cost, "the cost of an answer", (0.5 * cost, 2 * cost)),
    )  # fmt: skip


def was_blocked(one: Served) -> bool:
    """Whether a model answered, and no sentence of it had the support that it needs."""
    return one.answer.abstained and bool(one.answer.unsupported)


def _log_time(one: Served) -> float:
    """Of the logarithm, so that a few slow answers do not drown the others."""
    return math.log(max(one.answer.timings_ms.get("total", 0.0), 1.0))


def compare(
    monitor: str, check: str, sample: Sample, what: str, floors: tuple[float, float], seed: int
) -> Finding:
    """Whether a figure of tonight's answers is worse (larger) than the reference's."""
    old, new, blocks, new_blocks = sample.counts
    if not sample.sufficient:
        why = (
            f"{what}: {new} answers in {new_blocks} quarters of an hour against {old} in {blocks}; a test "
            f"needs {MINIMUM_ITEMS} in {MINIMUM_BLOCKS} on both sides"
        )
        found = insufficient(monitor, check, why)
        return found.model_copy(update={"n": new, "reference_n": old})
    test = block_mean(sample, seed)
    mean = float(np.mean(sample.items[sample.newer]))
    verb = "rose by" if test.statistic > 0 else "fell by"
    return Finding(
        monitor=monitor,
        check=check,
        said=f"{what} {verb} {abs(test.statistic):.4g} to {mean:.4g}",
        effect=round(test.statistic, 6),
        floor=floors[0],
        page_floor=floors[1],
        p=test.p,
        n=new,
        reference_n=old,
    )


def trends(night: Night, values: dict[str, float]) -> Section:
    """Weighted means of the nights since the reference was accepted, and limits they should keep to."""
    findings, charts = [], []
    since = night.reference.accepted.isoformat()
    nights = [one for one in night.history if one["date"] >= since]
    for name in _TRENDS:
        series = [float(one["values"][name]) for one in nights if name in one["values"]]
        if name not in values:
            continue
        series.append(values[name])
        found = trend(series, _TREND_FLOOR)
        findings.append(_trend(name, found, len(series)))
        if len(series) > 1:
            smoothed = found.smoothed if found else ()
            charts.append(
                Chart(
                    title=name.replace("_", " "),
                    kind="lines",
                    labels=tuple(str(number - len(series) + 1) for number in range(len(series))),
                    series={
                        "night": tuple(series),
                        "weighted mean": (*([None] * (len(series) - len(smoothed))), *smoothed),
                    },
                    low=found.low if found else None,
                    high=found.high if found else None,
                )
            )
    return Section(monitor="trends", title="Trends", findings=tuple(findings), charts=tuple(charts))


def _trend(name: str, found: Trend | None, nights: int) -> Finding:
    if found is None:
        return insufficient("trends", name, f"{name}: {nights} nights; the first twenty set the limits")
    worse = found.smoothed[-1] > found.high if name == "abstention_rate" else found.smoothed[-1] < found.low
    return Finding(
        monitor="trends",
        check=name,
        level="warn" if worse else "ok",
        said=f"{name}: weighted mean {found.smoothed[-1]:.4f}, limits {found.low:.4f} to {found.high:.4f}; "
        f"by chance left once in {found.expected_run:.0f} nights or less often",
        effect=abs(found.smoothed[-1] - found.centre),
        floor=found.high - found.centre,
        n=nights,
    )


def _judged(night: Night, served: Sequence[Served], which: str) -> list[tuple[Served, float]]:
    """Faithfulness of up to JUDGED answers, by the release's judge; those it cannot read are left out."""
    drawn = np.random.default_rng(night.seed(f"judged {which}")).permutation(len(served))[:JUDGED]
    chosen = [served[int(row)] for row in np.sort(drawn)]
    settings = night.served.settings.judge
    if settings.model == OFFLINE:
        scores = [faithfulness(one.answer.answer, [c.text for c in one.answer.contexts]) for one in chosen]
    else:
        prompt = night.served.prompts.get(JUDGE_PROMPT, "")
        measures = Measures(settings, night.engine.embedder, prompt)
        asked = [Asked(_unlabelled(one.answer), one.answer, _no_text) for one in chosen]
        rows = [{score.metric: score.value for score in row} for row in measures.score(asked)]
        scores = [row.get("faithfulness") for row in rows]
    return [(one, score) for one, score in zip(chosen, scores, strict=True) if score is not None]


def _unlabelled(answer: Answer) -> GoldenQuestion:
    return GoldenQuestion(id=answer.id, question=answer.question)


def _no_text(path: str) -> str:
    raise NotFoundError("document", path, hint="Only the passages of the answer are judged.")


def _sample(
    old: Sequence[tuple[Served, float]],
    new: Sequence[tuple[Served, float]],
    worse: Callable[[float], float],
) -> Sample:
    return Sample.of(
        np.array([worse(value) for _, value in old], float),
        blocks_of([one for one, _ in old]),
        np.array([worse(value) for _, value in new], float),
        blocks_of([one for one, _ in new]),
    )


def _citations(night: Night, told: Sequence[Served], values: dict[str, float]) -> list[Finding]:
    """Every citation of tonight's answers, checked against the text of the release that gave it."""
    snapshots: dict[str, Snapshot] = {}
    for commit in sorted({one.answer.release.commit for one in night.asked}):
        with suppress(PlumblineError):
            snapshots[commit] = night.knowledge_base.snapshot(commit)
    known = [one.answer for one in told if one.answer.release.commit in snapshots]
    unknown = sum(one.answer.release.commit not in snapshots for one in night.asked)
    values["unknown_release"] = float(unknown)
    found = [
        statistics.fmean(_verifies(c, a, snapshots[a.release.commit].document_text) for c in a.citations)
        for a in known
        if a.citations
    ]
    for snapshot in snapshots.values():
        snapshot.close()
    if unknown == len(night.asked):
        said = "none of tonight's answers is of a release that still exists"
        return [Finding(monitor="answers", check="citations", level="blind", said=said, n=unknown)]
    if not found:
        return [insufficient("answers", "citations", "tonight's answers hold no citation to check")]
    values["citation_validity"] = round(statistics.fmean(found), 6)
    broken = sum(value < 1 for value in found)
    said = f"a citation of {broken} answer(s) does not verify" if broken else "every citation verifies"
    return [
        Finding(
            monitor="answers",
            check="citations",
            level="page" if broken else "ok",
            said=said,
            effect=1 - values["citation_validity"],
            n=len(found),
        )
    ]


def _verifies(citation: Citation, answer: Answer, document_text: DocumentText) -> bool:
    """Whether the quote stands where it says; the log may have taken personal data out of it."""
    try:
        said = document_text(citation.path)[citation.start : citation.end]
    except NotFoundError:
        return False
    return (
        citation.commit == answer.release.commit
        and sha256_hex(said.encode()) == citation.sha256
        and citation.quote in (said, redact(said))
    )


def _figures(served: Sequence[Served]) -> dict[str, float]:
    given = [one.answer for one in served]
    times = np.array([answer.timings_ms.get("total", 0.0) for answer in given])
    found = {
        "answers": float(len(given)),
        "abstention_rate": statistics.fmean(float(answer.abstained) for answer in given),
        "blocked_rate": statistics.fmean(float(was_blocked(one)) for one in served),
        "negative_feedback_rate": statistics.fmean(float(one.down) for one in served),
        "failed_model_rate": statistics.fmean(float(bool(answer.attempts)) for answer in given),
        "unsupported_sentences": float(sum(len(answer.unsupported) for answer in given)),
        "cost_per_answer": statistics.fmean(answer.cost for answer in given),
        "input_tokens": float(sum(answer.usage.input_tokens for answer in given)),
        "output_tokens": float(sum(answer.usage.output_tokens for answer in given)),
    }
    found |= {f"p{q}_ms": float(np.percentile(times, q)) for q in (50, 95, 99)}
    return {name: round(value, 6) for name, value in found.items()}


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None
