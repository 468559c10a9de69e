"""The newest evaluation and the newest nightly report in /metrics, as the version store keeps them."""

import math
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from functools import partial
from typing import Any, get_args

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from api.hosting import Hosted
from eval.evaluations import Evaluations, Kept, Tally
from eval.gate import Status
from eval.nights import SCHEMA_VERSION, Nights, moment
from eval.report_files import STATUSES
from knowledge_base.errors import PlumblineError

_FRESH_SECONDS = 60.0
"""For so long, what was read is told again: nothing here changes more than a few times a day."""


@dataclass(frozen=True)
class _Found:
    """What was read of one knowledge base; without `details` where they count documents that are closed."""

    evaluation: Kept | None = None
    tally: Tally = Tally()
    report: dict[str, Any] | None = None
    details: bool = False


class Results(Collector):
    """Gauges of the newest evaluation and report of each knowledge base, read at most once a minute."""

    def __init__(self, host: Iterable[Hosted]) -> None:
        self._host = host
        self._known: dict[str, tuple[float, _Found]] = {}

    def collect(self) -> Iterator[Metric]:
        """The families."""
        found = {one.name: self._find(one) for one in self._host}
        yield from _of_evaluations(found)
        yield from _of_reports(found)

    def _find(self, one: Hosted) -> _Found:
        read_at, known = self._known.get(one.name, (-math.inf, _Found()))
        if time.monotonic() - read_at > _FRESH_SECONDS:
            with suppress(PlumblineError):  # else what was told before is told again
                known = one.live.ask(partial(_read, one, known.tally))
            self._known[one.name] = (time.monotonic(), known)
        return known


def _read(one: Hosted, tally: Tally) -> _Found:
    repository = one.knowledge_base.repository
    reports = Nights(one.knowledge_base).before(date.max, 1)
    evaluations = Evaluations(repository)
    return _Found(
        next(iter(evaluations.history(None, 1)), None),
        evaluations.count(tally),
        next((report for report in reports if report["schema_version"] == SCHEMA_VERSION), None),
        # Any key may read this page, and those who are told of reports and verdicts may read everything.
        details=not one.restrictions.were(one.live.engine().release_ref.commit),
    )


def _of_evaluations(found: dict[str, _Found]) -> Iterator[Metric]:
    status = GaugeMetricFamily(
        "plumbline_evaluation_status",
        "1 for the status of the newest evaluation, 0 for the others.",
        labels=("kb", "status"),
    )
    kept_at = GaugeMetricFamily(
        "plumbline_evaluation_timestamp_seconds", "When the newest evaluation was kept.", labels=("kb",)
    )
    score = GaugeMetricFamily(
        "plumbline_evaluation_score", "Mean of a metric in the newest evaluation.", labels=("kb", "metric")
    )
    runs = CounterMetricFamily(
        "plumbline_gate_runs", "Evaluations that were ever kept.", labels=("kb", "status")
    )
    for kb, one in found.items():
        if one.evaluation is None:
            continue
        for name in get_args(Status):
            runs.add_metric((kb, name), one.tally.runs.get(name, 0))
        for name in get_args(Status):
            status.add_metric((kb, name), float(name == one.evaluation.verdict.status))
        kept_at.add_metric((kb,), one.evaluation.date.timestamp())
        for metric in one.evaluation.verdict.metrics if one.details else ():
            if metric.candidate is not None:
                score.add_metric((kb, metric.name), metric.candidate)
    yield from (runs, status, kept_at, score)


def _of_reports(found: dict[str, _Found]) -> Iterator[Metric]:
    status = GaugeMetricFamily(
        "plumbline_report_status",
        "Of the newest nightly report: 0 OK, 1 WARN, 2 BLIND, 3 PAGE.",
        labels=("kb",),
    )
    day = GaugeMetricFamily(
        "plumbline_report_day_timestamp_seconds",
        "When the day that the newest nightly report is about began (UTC).",
        labels=("kb",),
    )
    alarm = GaugeMetricFamily(
        "plumbline_report_alarm",
        "1 for each alarm of the newest nightly report.",
        labels=("kb", "monitor", "check", "level"),
    )
    p_value = GaugeMetricFamily(
        "plumbline_report_p_value",
        "Of each test of the newest nightly report, before they are judged together.",
        labels=("kb", "monitor", "check"),
    )
    value = GaugeMetricFamily(
        "plumbline_report_value", "A figure of the newest nightly report.", labels=("kb", "name")
    )
    for kb, one in found.items():
        if (report := one.report) is None:
            continue
        status.add_metric((kb,), STATUSES.index(report["verdict"]))
        day.add_metric((kb,), moment(date.fromisoformat(report["date"])).timestamp())
        for finding in (f for section in report["sections"] if one.details for f in section["findings"]):
            name = (kb, finding["monitor"], finding["check"])
            if finding["level"] in ("warn", "page", "blind"):
                alarm.add_metric((*name, finding["level"]), 1)
            if finding["p"] is not None:
                p_value.add_metric(name, finding["p"])
        for figure, number in report["values"].items() if one.details else ():
            value.add_metric((kb, figure), number)
    yield from (status, day, alarm, p_value, value)
