"""The report for machines and for mail: ten lines of text, JUnit XML, Prometheus's text format, a webhook."""

import json
import re
import urllib.error
import urllib.request
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from knowledge_base.errors import UnavailableError, UsageError

if TYPE_CHECKING:
    from eval.report import Report

_ALARMS_TOLD = 5
_WIDTH = 200
_WEBHOOK_SECONDS = 10.0
STATUSES = ("OK", "WARN", "BLIND", "PAGE")
"""In the order of their numbers in Prometheus."""
_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def as_text(report: "Report") -> str:
    """Ten lines at most: the verdict, what was compared, the alarms, what to do."""
    alarms = report.alarms
    compared = f"release {report.release[:12]} against {report.reference.release[:12]}"
    lines = [
        f"{report.verdict}  Plumbline, night of {report.date}",
        f"{compared}; {_sizes(report)}",
        f"Next: {report.action}",
    ]
    lines += [f"[{alarm.level}] {alarm.name}: {alarm.said}" for alarm in alarms[:_ALARMS_TOLD]]
    if len(alarms) > _ALARMS_TOLD:
        lines.append(f"and {len(alarms) - _ALARMS_TOLD} more alarms in report.html")
    lines.append(f"{report.tests} tests; a night without a change pages once in {1 / report.page_level:.0f}")
    return "".join(" ".join(line.split())[:_WIDTH] + "\n" for line in lines)


def _sizes(report: "Report") -> str:
    values = report.values
    names = (("documents", "documents"), ("questions", "questions"), ("reference_questions", "before"))
    told = [f"{values[name]:.0f} {label}" for name, label in names if name in values]
    return ", ".join(told) or "nothing counted"


def as_junit(report: "Report") -> str:
    """A test case for each finding: alarms fail, what could not run is an error, too little is skipped."""
    tags = {"page": "failure", "warn": "failure", "blind": "error", "insufficient": "skipped"}
    suite = ElementTree.Element("testsuite", name="plumbline", timestamp=f"{report.date}T00:00:00")
    counts = {"tests": 0, "failure": 0, "error": 0, "skipped": 0}
    for finding in report.findings:
        case = ElementTree.SubElement(
            suite, "testcase", classname=finding.monitor, name=finding.check, time="0"
        )
        counts["tests"] += 1
        if tag := tags.get(finding.level):
            counts[tag] += 1
            causes = "".join(f"\n{c.part}: {c.evidence}: {c.command}" for c in finding.causes)
            told = ElementTree.SubElement(case, tag, message=_clean(finding.said))
            if tag != "skipped":
                told.set("type", finding.level)
                told.text = _clean(causes.strip())
    for name, number in counts.items():
        suite.set({"failure": "failures", "error": "errors"}.get(name, name), str(number))
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def as_prometheus(report: "Report") -> str:
    """Every figure as a gauge, for the textfile collector of node_exporter."""
    lines = [
        "# HELP plumbline_report_status 0 OK, 1 WARN, 2 BLIND, 3 PAGE.",
        "# TYPE plumbline_report_status gauge",
        f"plumbline_report_status {STATUSES.index(report.verdict)}",
        "# HELP plumbline_report_alarm 1 for each alarm of the night.",
        "# TYPE plumbline_report_alarm gauge",
    ]
    lines += [
        f'plumbline_report_alarm{{monitor="{a.monitor}",check="{a.check}",level="{a.level}"}} 1'
        for a in report.alarms
    ]
    lines += ["# HELP plumbline_report_value A figure of the night.", "# TYPE plumbline_report_value gauge"]
    lines += [f'plumbline_report_value{{name="{name}"}} {value}' for name, value in report.values.items()]
    return "\n".join(lines) + "\n"


def post(report: "Report", url: str) -> None:
    """Send the ten lines to a chat's webhook, as `{"text": ...}`.

    Raises:
        UsageError: The URL is not http or https.
        UnavailableError: The webhook did not take it.
    """
    if not url.startswith(("http://", "https://")):
        raise UsageError("The webhook is no http or https URL.", hint="Copy it from the chat's settings.")
    body = json.dumps({"text": as_text(report)}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    try:
        urllib.request.urlopen(request, timeout=_WEBHOOK_SECONDS).close()
    except (OSError, ValueError) as error:
        # The URL itself is a secret: it is not repeated.
        reason: object = type(error).__name__
        if isinstance(error, urllib.error.HTTPError):
            reason = error.code
            error.close()
        raise UnavailableError(
            f"The webhook did not take the report: {reason}.", hint="The report itself is written."
        ) from error


def _clean(text: str) -> str:
    return _NO_XML.sub("\ufffd", text)
