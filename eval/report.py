"""The nightly report: what changed, golden results, recent answers. It has no drift tests yet."""

import html
import json
import statistics
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from eval.case import release_before
from eval.evaluate import evaluate_release
from eval.gate import Verdict
from eval.judge import faithfulness
from eval.metrics import citation_validity
from knowledge_base.difference import diff_releases
from knowledge_base.durable import write_bytes
from knowledge_base.errors import NotFoundError, PlumblineError
from knowledge_base.home import MAIN, KnowledgeBase
from knowledge_base.lifecycle import NO_GATE
from knowledge_base.release import Frozen
from knowledge_base.snapshot import Snapshot
from rag.answer import Answer
from rag.answer_log import AnswerLog
from rag.support import JUDGE

SCHEMA_VERSION = 1
RECENT_ANSWERS = 200
FAITHFULNESS_FLOOR = 0.9
"""Mean faithfulness of recent answers below which the report warns."""


class Report(Frozen):
    """What report.json holds; BLIND means that something could not be measured, which is never fine."""

    schema_version: int = SCHEMA_VERSION
    date: str
    verdict: Literal["OK", "WARN", "BLIND"]
    reasons: tuple[str, ...]
    release: str
    previous: str
    changes: dict[str, Any]
    golden: dict[str, Any]
    answers: dict[str, Any]

    @property
    def exit_code(self) -> int:
        """0 when all is well, 1 when somebody should look."""
        return 0 if self.verdict == "OK" else 1


def write_report(
    knowledge_base: KnowledgeBase, answer_log: AnswerLog, output: Path, *, now: datetime
) -> Report:
    """Measure what is live and write report.html and report.json into `output`.

    Changes are counted from the release that the report.json already there speaks of; a report of the
    same day and release is made again instead, so that running it twice changes nothing.

    Raises:
        StorageError: The folder cannot be written.
    """
    release = knowledge_base.repository.resolve(MAIN)
    date = now.date().isoformat()
    previous = _previous(output / "report.json", knowledge_base, release, date)
    reasons: list[str] = []
    blind: list[str] = []
    changes: dict[str, Any] = {}
    if previous and previous != release:
        found = diff_releases(knowledge_base, previous, release)
        changes = {"documents": found.documents.as_json(), "chunks": found.chunks, "settings": found.settings}
    golden: dict[str, Any] = {}
    try:
        verdict = evaluate_release(knowledge_base, MAIN, previous or MAIN)
        golden = verdict.model_copy(update={"cached": False}).as_json()  # a second run writes the same bytes
        if verdict.status in ("FAIL", "INCONCLUSIVE"):
            reasons += verdict.reasons
        elif verdict.status == "INCOMPLETE":
            blind += verdict.reasons
        reasons += _ungated(knowledge_base, release, verdict)
    except PlumblineError as error:
        blind.append(f"golden questions: {error.message}")
    answers: dict[str, Any] = {}
    try:
        answers = summarize(answer_log.recent(RECENT_ANSWERS), knowledge_base)
        if answers["faithfulness"] is not None and answers["faithfulness"] < FAITHFULNESS_FLOOR:
            reasons.append(f"faithfulness of recent answers is {answers['faithfulness']:.3f}")
        if answers["citation_validity"] is not None and answers["citation_validity"] < 1:
            reasons.append("a citation of a recent answer does not verify")
        if answers["n"] and answers["unknown_release"] == answers["n"]:
            blind.append("recent answers: none of them is of a release that still exists")
        if not answers["n"] and not golden.get("questions"):
            blind.append("nothing was measured: there are no golden questions and no logged answers")
    except PlumblineError as error:
        blind.append(f"recent answers: {error.message}")
    report = Report(
        date=date,
        verdict="BLIND" if blind else "WARN" if reasons else "OK",
        reasons=tuple(blind + reasons),
        release=release,
        previous=previous,
        changes=changes,
        golden=golden,
        answers=answers,
    )
    write_bytes(output / "report.html", render(report).encode())
    write_bytes(
        output / "report.json", (json.dumps(report.model_dump(), indent=2, sort_keys=True) + "\n").encode()
    )
    return report


def _ungated(knowledge_base: KnowledgeBase, release: str, verdict: Verdict) -> list[str]:
    """What to say of a release that was published past the gate; `verdict` is the report's own."""
    if knowledge_base.repository.get_commit(release).metadata.get("verdict") != NO_GATE:
        return []
    before = release_before(knowledge_base, release)
    told = f"{release[:12]} was published without the gate ({NO_GATE})"
    if not before or not verdict.golden:
        return [f"{told}, and there is nothing to judge it by"]
    if verdict.baseline != before:
        verdict = evaluate_release(knowledge_base, release, before)
    compared = f"{told}; against {before[:12]}, the release before, it is a {verdict.status}"
    return [": ".join([compared, "; ".join(verdict.reasons)]) if verdict.reasons else compared]


def _previous(path: Path, knowledge_base: KnowledgeBase, release: str, date: str) -> str:
    try:
        last = json.loads(path.read_text(encoding="utf-8"))
        same = (last["release"], last["date"]) == (release, date)
        commit = str(last["previous"] if same else last["release"])
        return knowledge_base.repository.resolve(commit) if commit else ""
    except (OSError, ValueError, KeyError, TypeError, NotFoundError):
        return ""  # no report yet, or one of another knowledge base


def summarize(answers: list[Answer], knowledge_base: KnowledgeBase) -> dict[str, Any]:
    """Faithfulness, citation validity, abstention and latency of logged answers."""
    given = [answer for answer in answers if not answer.abstained]
    faithful = [faithfulness(a.answer, [c.text for c in a.contexts]) for a in given]
    snapshots = _snapshots(knowledge_base, {answer.release.commit for answer in answers})
    known = [a for a in given if a.release.commit in snapshots]
    valid = [citation_validity(a, snapshots[a.release.commit].document_text) for a in known]
    times = sorted(answer.timings_ms.get("total", 0.0) for answer in answers)
    return {
        "judge": JUDGE,
        "n": len(answers),
        "unknown_release": sum(answer.release.commit not in snapshots for answer in answers),
        "faithfulness": _mean([value for value in faithful if value is not None]),
        "citation_validity": _mean([value for value in valid if value is not None]),
        "abstention_rate": _mean([float(answer.abstained) for answer in answers]),
        "p50_ms": round(statistics.median(times), 2) if times else None,
        "p95_ms": round(times[min(len(times) - 1, int(0.95 * len(times)))], 2) if times else None,
    }


def _snapshots(knowledge_base: KnowledgeBase, commits: set[str]) -> dict[str, Snapshot]:
    """Those commits that still exist: a candidate's branch may have been dropped since it answered."""
    found = {}
    for commit in sorted(commits):
        with suppress(NotFoundError):
            found[commit] = knowledge_base.snapshot(commit)
    return found


def _mean(values: list[float]) -> float | None:
    return round(statistics.fmean(values), 4) if values else None


_SHOWN = 200

_STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; margin: .5rem 0 1.5rem; }
th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid #8884; overflow-wrap: anywhere; }
meter { width: 8rem; }
.verdict { font-size: 1.6rem; font-weight: 700; }
.OK { color: #2a8a4a; } .WARN { color: #b26a00; } .BLIND { color: #b3261e; }
"""


def render(report: Report) -> str:
    """The page: no script, nothing fetched, every text escaped."""
    reasons = "".join(f"<li>{html.escape(reason)}</li>" for reason in report.reasons)
    parts = [
        f"<p class='verdict {report.verdict}'>{report.verdict}</p><ul>{reasons}</ul>",
        f"<p>Release <code>{report.release[:12]}</code> on main, {report.date}.</p>",
        "<h2>What changed</h2>",
        _changes(report),
        "<h2>Golden questions</h2>",
        _golden(report.golden),
        "<h2>Recent answers</h2>",
        _table(("measure", "value", ""), [(k, _text(v), _meter(k, v)) for k, v in report.answers.items()]),
    ]
    return (
        "<!doctype html><html lang='en'><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width'>"
        f"<title>Nightly report {report.date}</title><style>{_STYLE}</style>"
        f"<h1>Nightly report</h1>{''.join(parts)}</html>\n"
    )


def _changes(report: Report) -> str:
    if not report.previous:
        return "<p>This is the first report here: there is nothing to compare with.</p>"
    if not report.changes:
        return f"<p>Nothing since the last report (<code>{report.previous[:12]}</code>).</p>"
    rows = [
        (verb, f"{row['from']} → {row['to']}" if isinstance(row, dict) else row, "")
        for verb, paths in report.changes["documents"].items()
        for row in paths[:_SHOWN]
    ]
    rows += [
        (verb, f"and {len(paths) - _SHOWN} more; report.json lists them all", "")
        for verb, paths in report.changes["documents"].items()
        if len(paths) > _SHOWN
    ]
    rows += [
        ("setting", f"{key}: {c['from']} → {c['to']}", "") for key, c in report.changes["settings"].items()
    ]
    return _table(("change", "what", ""), rows)


def _golden(golden: dict[str, Any]) -> str:
    if not golden.get("questions"):
        return "<p>There are no golden questions in it: put some into golden/*.jsonl, then ingest.</p>"
    rows = []
    for m in golden["metrics"]:
        value = f"{_text(m['candidate'])} (was {_text(m['baseline'])}, n={m['n']})"
        rows.append((m["name"], value, _meter(m["name"], m["candidate"])))
    told = "".join(f"<li>{html.escape(reason)}</li>" for reason in golden["reasons"])
    return f"<p>{golden['status']} on {golden['questions']} questions.</p><ul>{told}</ul>" + _table(
        ("metric", "value", ""), rows
    )


def _table(head: tuple[str, ...], rows: list[tuple[str, str, str]]) -> str:
    top = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    body = "".join(
        f"<tr><td>{html.escape(a)}</td><td>{html.escape(b)}</td><td>{c}</td></tr>" for a, b, c in rows
    )
    return f"<table><tr>{top}</tr>{body}</table>"


def _text(value: Any) -> str:
    return "-" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


def _meter(name: str, value: Any) -> str:
    share = isinstance(value, float) and 0 <= value <= 1 and not name.endswith("ms")
    return f"<meter min='0' max='1' value='{value}'></meter>" if share else ""
