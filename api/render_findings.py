"""How what was found in documents looks to a person at a terminal."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape

_SHOWN = 12


def print_findings(console: Console, found: Sequence[dict[str, Any]], quarantined: Sequence[str]) -> None:
    """Alarms one by one, kept out or not; of notices how many there are."""
    alarms = [finding for finding in found if finding["severity"] == "alarm"]
    for finding in alarms[:_SHOWN]:
        kept_out = finding["path"] in quarantined
        label = "[red]quarantined[/]" if kept_out else "[yellow]suspicious[/]"
        console.print(
            f"  {label} {escape(finding['path'])}, {escape(finding['place'])}, {finding['kind']}: "
            f"{escape(finding['excerpt'])}"
        )
    if len(alarms) > _SHOWN:
        console.print(f"  [dim]and {len(alarms) - _SHOWN} more (--json lists all)[/]")
    if any(finding["path"] not in quarantined for finding in alarms):
        console.print("  [dim]ingest.quarantine = true keeps such documents out: docs/safety.md[/]")
    if notices := len(found) - len(alarms):
        console.print(f"  [dim]{notices} notice(s) of text that a reader does not see (--json lists them)[/]")
