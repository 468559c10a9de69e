"""The nightly report: every monitor runs, their tests are judged as one family, alarms get causes."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any, Literal

from eval import monitors_answers, monitors_embedder, monitors_questions, monitors_release, monitors_retrieval
from eval.attribution import Facts, attribute
from eval.family import PAGE_LEVEL, WARN_LEVEL, benjamini_hochberg, holm
from eval.findings import Finding, Section
from eval.night_inputs import Night
from eval.nights import SCHEMA_VERSION, Nights, Reference
from eval.report_files import as_junit, as_prometheus, as_text
from eval.report_html import render
from knowledge_base.durable import write_bytes
from knowledge_base.errors import PlumblineError
from knowledge_base.home import MAIN, KnowledgeBase
from knowledge_base.values import Frozen
from rag.answer_log import AnswerLog

Status = Literal["OK", "WARN", "PAGE", "BLIND"]
_MEASURING = {"retrieval", "queries", "answers", "service"}

MONITORS: Mapping[str, Callable[[Night], Section]] = {
    "changes": monitors_release.changes,
    "corpus": monitors_release.corpus,
    "embedder": monitors_embedder.canary,
    "retrieval": monitors_retrieval.retrieval,
    "queries": monitors_questions.questions,
    "answers": monitors_answers.answers,
    "service": monitors_answers.behaviour,
    "housekeeping": monitors_release.housekeeping,
}
"""Every monitor, in the order in which somebody who was woken asks."""


class Report(Frozen):
    """What report.json holds. `verdict` is the gravest finding; BLIND is a monitor that could not run."""

    schema_version: int = SCHEMA_VERSION
    date: str
    verdict: Status
    reasons: tuple[str, ...]
    action: str
    release: str
    previous: str
    reference: Reference
    sections: tuple[Section, ...]
    values: dict[str, float]
    tests: int
    page_level: float = PAGE_LEVEL
    warn_level: float = WARN_LEVEL

    @property
    def exit_code(self) -> int:
        """0 when all is well, 1 when somebody should look."""
        return 0 if self.verdict == "OK" else 1

    @property
    def findings(self) -> list[Finding]:
        """Those of all monitors, in order."""
        return [finding for section in self.sections for finding in section.findings]

    @property
    def alarms(self) -> list[Finding]:
        """What somebody should look at, the gravest first."""
        order = ("page", "blind", "warn")
        return sorted((f for f in self.findings if f.level in order), key=lambda f: order.index(f.level))

    @property
    def causes(self) -> list[str]:
        """The likeliest cause of each alarm, each once, the gravest alarm's first."""
        return list(dict.fromkeys(alarm.causes[0].part for alarm in self.alarms if alarm.causes))

    def as_json(self) -> dict[str, Any]:
        """Plain values, as report.json and `--json` give them."""
        return {**self.model_dump(mode="json"), "causes": self.causes}


def write_report(
    knowledge_base: KnowledgeBase, answer_log: AnswerLog, output: Path, *, day: date, ref: str = MAIN
) -> Report:
    """Measure the night of `day` (UTC), keep it in the history, and write its files into `output`.

    Run again for the same day on the same inputs, it writes the same bytes.

    Raises:
        NotFoundError: No such ref.
        StorageError: The folder or the history cannot be written.
    """
    night = Night.of(knowledge_base, answer_log, day, ref)
    try:
        report = conclude(night, run_monitors(night))
    finally:
        night.close()
    publish(knowledge_base, report, output)
    return report


def publish(knowledge_base: KnowledgeBase, report: Report, output: Path) -> None:
    """Write a report's files into `output`, and keep it in the history. Raises StorageError."""
    content = (json.dumps(report.as_json(), indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
    files = {
        "report.json": content,
        "report.html": render(report).encode(),
        "report.txt": as_text(report).encode(),
        "junit.xml": as_junit(report).encode(),
        "plumbline.prom": as_prometheus(report).encode(),
    }
    for name, written in files.items():
        write_bytes(output / name, written)
    Nights(knowledge_base).keep(date.fromisoformat(report.date), content)


def run_monitors(night: Night, names: Iterable[str] = MONITORS) -> list[Section]:
    """What each monitor of that name finds, in order; all of them by default."""
    return [_guarded(name, MONITORS[name], night) for name in names]


def conclude(night: Night, measured: Sequence[Section]) -> Report:
    """The report of one night: every monitor's section, their tests judged together, causes named."""
    sections = list(measured)
    values = {name: value for section in sections for name, value in section.values.items()}
    sections.insert(-1, monitors_answers.trends(night, values))
    findings = [finding for section in sections for finding in section.findings]
    if all(f.level == "insufficient" or f.n == 0 for f in findings if f.monitor in _MEASURING):
        said = "nothing was measured: there are no golden questions and too few logged answers"
        findings.append(Finding(monitor="changes", check="nothing", level="blind", said=said))
    tests = {finding.name: finding.p for finding in findings if finding.p is not None}
    findings = attribute(judge_family(findings), Facts.of(night))
    named = {section.monitor: section for section in sections}
    grouped = tuple(
        section.model_copy(update={"findings": tuple(f for f in findings if _home(f, named) == name)})
        for name, section in named.items()
    )
    return _summed_up(night, grouped, values, len(tests))


def _home(finding: Finding, sections: Mapping[str, Section]) -> str:
    """The section that shows a finding."""
    elsewhere = {"golden_answers": "retrieval", "golden_rows": "housekeeping", "self_test": "housekeeping"}
    return finding.monitor if finding.monitor in sections else elsewhere[finding.monitor]


def _guarded(name: str, monitor: Callable[[Night], Section], night: Night) -> Section:
    """A monitor's section; what it cannot do is a finding of its own, never silence."""
    try:
        return monitor(night)
    except PlumblineError as error:
        said = f"could not run: {error.message} {error.hint}".strip()
    except Exception as error:  # noqa: BLE001 - one monitor that fails must not hide what the others say
        said = f"could not run: {type(error).__name__}: {error}"
    blind = Finding(monitor=name, check="ran", level="blind", said=said)
    return Section(monitor=name, title=name.capitalize(), findings=(blind,))


def judge_family(findings: list[Finding]) -> list[Finding]:
    """Set the level of every test: PAGE by Holm, WARN by Benjamini-Hochberg, neither below its floor."""
    p_values = {finding.name: finding.p for finding in findings if finding.p is not None}
    pages, warns = holm(p_values, PAGE_LEVEL), benjamini_hochberg(p_values, WARN_LEVEL)
    judged = []
    for finding in findings:
        effect = finding.effect or 0.0
        if finding.p is not None and effect >= finding.floor and finding.name in pages | warns:
            grave = finding.name in pages and effect >= finding.pages_from
            finding = finding.model_copy(update={"level": "page" if grave else "warn"})
        judged.append(finding)
    return judged


def _summed_up(night: Night, sections: tuple[Section, ...], values: dict[str, float], tests: int) -> Report:
    last = night.last_release
    made = Report(
        date=night.day.isoformat(),
        verdict="OK",
        reasons=(),
        action="",
        release=night.served.commit,
        previous=last if night.history else "",
        reference=night.reference,
        sections=sections,
        values={name: round(value, 6) for name, value in sorted(values.items())},
        tests=tests,
    )
    levels = {alarm.level for alarm in made.alarms}
    verdict: Status = (
        "PAGE" if "page" in levels else "BLIND" if "blind" in levels else "WARN" if levels else "OK"
    )
    return made.model_copy(
        update={
            "verdict": verdict,
            "reasons": tuple(f"{alarm.name}: {alarm.said}" for alarm in made.alarms),
            "action": _action(made),
        }
    )


def _action(report: Report) -> str:
    """What to do next: the likeliest cause of the gravest alarm."""
    for alarm in report.alarms:
        if alarm.causes:
            cause = alarm.causes[0]
            return f"{cause.part}: {cause.command}"
    if any(alarm.level == "blind" for alarm in report.alarms):
        return "make the monitor run that could not"
    return "look at the warnings" if report.alarms else "nothing to do"
