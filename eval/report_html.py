"""The report as one page: no script, nothing fetched, every text escaped, for screen, dark and print."""

import html
from typing import TYPE_CHECKING

from eval.findings import Chart, Finding, Section, Table, cell
from eval.report_charts import draw

if TYPE_CHECKING:
    from eval.report import Report

_STYLE = """
:root { color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif; }
body { max-width: 64rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; margin: .5rem 0 1.2rem; font-size: .93rem; }
caption { text-align: left; font-weight: 600; padding: .3rem 0; }
th, td { text-align: left; padding: .25rem .6rem; border-bottom: 1px solid #8884; overflow-wrap: anywhere; }
th { font-weight: 600; }
svg { max-width: 100%; height: auto; }
summary { cursor: pointer; }
.verdict { font-size: 1.8rem; font-weight: 700; margin: 0; }
.OK, .ok { color: #1d7a3a; } .WARN, .warn { color: #a65f00; }
.PAGE, .BLIND, .page, .blind { color: #b3261e; } .insufficient { color: #777; }
@media (prefers-color-scheme: dark) {
  .OK, .ok { color: #6fcf8e; } .WARN, .warn { color: #e8b265; }
  .PAGE, .BLIND, .page, .blind { color: #ff8a80; } .insufficient { color: #aaa; }
}
@media print { body { max-width: none; margin: 0; } section { break-inside: avoid; } }
"""
_HEAD = ("", "check", "what was found", "effect", "alarms from", "p", "n", "of the reference")


def render(report: "Report") -> str:
    """The whole page."""
    reference = report.reference
    span = f"{reference.since} to {reference.until}" if reference.until else f"{reference.since} on"
    summary = (
        ("Release served", report.release[:12]),
        ("Last report's", report.previous[:12] or "none: this is the first"),
        ("Reference", f"{reference.release[:12]}, questions of {span}"),
        ("Accepted", f"{reference.accepted} {reference.by}: {reference.reason}".strip()),
        ("Tests", f"{report.tests}, judged together (Holm); a night without a change pages once in "
                  f"{1 / report.page_level:.0f} and is warned of with a chance of {report.warn_level:.0%}"),
        ("Next", report.action),
    )  # fmt: skip
    rows = "".join(f"<tr><th>{_text(name)}</th><td>{_text(value)}</td></tr>" for name, value in summary)
    parts = [
        f"<p class='verdict {report.verdict}'>{report.verdict}</p>",
        f"<table>{rows}</table>",
        _alarms(report.alarms),
        *map(_section, report.sections),
    ]
    return (
        "<!doctype html><html lang='en'><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width'>"
        f"<title>{report.verdict}: nightly report {report.date}</title><style>{_STYLE}</style>"
        f"<h1>Nightly report, {report.date}</h1>{''.join(parts)}"
        "<p>How to read this: docs/report.md of Plumbline.</p></html>\n"
    )


def _alarms(alarms: list[Finding]) -> str:
    if not alarms:
        return ""
    rows = []
    for alarm in alarms:
        causes = "<br>".join(
            f"<b>{_text(c.part)}</b>: {_text(c.evidence)}<br><code>{_text(c.command)}</code>"
            for c in alarm.causes[:3]
        )
        rows.append(
            f"<tr><td class='{alarm.level}'>{alarm.level}</td><td>{_text(alarm.name)}</td>"
            f"<td>{_text(alarm.said)}</td><td>{causes or '–'}</td></tr>"
        )
    head = (
        "<tr><th></th><th>alarm</th><th>what was found</th><th>likely causes, the likeliest first</th></tr>"
    )
    return f"<h2>Alarms</h2><table>{head}{''.join(rows)}</table>"


def _section(section: Section) -> str:
    rows = "".join(
        f"<tr><td class='{f.level}'>{f.level}</td>"
        + "".join(
            f"<td>{_text(value)}</td>"
            for value in (f.check, f.said, cell(f.effect), cell(f.floor or None), cell(f.p),
                          f.n or "", f.reference_n or "")
        )
        + "</tr>"
        for f in section.findings
    )  # fmt: skip
    head = "".join(f"<th>{_text(name)}</th>" for name in _HEAD)
    parts = [f"<h2>{_text(section.title)}</h2>", f"<table><tr>{head}</tr>{rows}</table>"]
    parts += [_chart(chart) for chart in section.charts]
    parts += [_table(one) for one in section.tables if one.rows]
    return f"<section>{''.join(parts)}</section>"


def _chart(chart: Chart) -> str:
    """The drawing, and its numbers in a table under it."""
    rows = tuple(
        (label, *(cell(values[place]) for values in chart.series.values()))
        for place, label in enumerate(chart.labels)
    )
    numbers = _table(Table(title=chart.title, head=("", *chart.series), rows=rows))
    return (
        f"<figure><figcaption>{_text(chart.title)}</figcaption>{draw(chart)}"
        f"<details><summary>The numbers</summary>{numbers}</details></figure>"
    )


def _table(one: Table) -> str:
    head = "".join(f"<th>{_text(name)}</th>" for name in one.head)
    rows = "".join(
        "<tr>" + "".join(f"<td>{_text(value)}</td>" for value in row) + "</tr>" for row in one.rows
    )
    return f"<table><caption>{_text(one.title)}</caption><tr>{head}</tr>{rows}</table>"


def _text(value: object) -> str:
    return html.escape(str(value))
