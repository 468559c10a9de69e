"""How verdicts and golden questions look to a person at a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from api.render import make_console
from api.render_changes import print_changes, print_settings

_COLOURS = {"PASS": "green", "FAIL": "red"}
_SHOWN = 20


def print_verdict(value: Mapping[str, Any]) -> None:
    """What the gate says of a release."""
    console = make_console()
    console.print(_headline(value))
    for reason in value["reasons"]:
        console.print(f"  {escape(reason)}")
    if value["metrics"]:
        console.print(_metrics(value["metrics"]))
        _print_summary(console, value["summary"])
    _print_losses(console, value)


def _print_losses(console: Console, value: Mapping[str, Any]) -> None:
    """The questions that do worse, and how to look at them."""
    losses = value["losses"]
    if not losses:
        return
    console.print("questions that score lower than before:")
    for loss in losses[:_SHOWN]:
        fell = f"{loss['metric']} {_number(loss['baseline'])} -> {_number(loss['candidate'])}"
        console.print(f"  [bold]{escape(loss['id'])}[/]  {fell}")
    if len(losses) > _SHOWN:
        console.print(f"  [dim]and {len(losses) - _SHOWN} more (--json lists all)[/]")
    old, new = value["baseline"][:12], value["candidate"][:12]
    console.print(f"[dim]`rag diff {old} {new}` shows both answers[/]")


def _headline(value: Mapping[str, Any]) -> str:
    colour = _COLOURS.get(value["status"], "yellow")
    against = f" against {value['baseline'][:12]}" if value["baseline"] else ""
    parts = [f"[{colour}]{escape(value['label'])}[/] on {value['questions']} golden question(s){against}"]
    if value["cached"]:
        parts.append("unchanged since it was last evaluated: nothing was asked (--again asks)")
    elif value["questions"]:
        parts.append(f"{value['reused']} of {value['questions'] * value['repetitions']} answers were known")
    if value["changed"]:
        parts.append(f"changed: {', '.join(value['changed'])}")
    return "; ".join(parts)


def _metrics(metrics: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("metric", "candidate", "baseline", "difference [90 %]", "margin", "detectable", "n"):
        table.add_column(escape(name), justify="left" if name == "metric" else "right")
    for metric in metrics:
        low, high = metric["interval"] or (None, None)
        interval = f"{_number(metric['delta'])} [{_number(low)}, {_number(high)}]"
        table.add_row(
            metric["name"],
            _number(metric["candidate"]),
            _number(metric["baseline"]),
            escape(interval if metric["delta"] is not None else "-"),
            _number(metric["margin"]),
            "cannot tell" if (metric["detectable"] or 0) > 1 else _number(metric["detectable"]),
            str(metric["n"]),
        )
    return table


def _print_summary(console: Console, summary: Mapping[str, Mapping[str, Any]]) -> None:
    for release, figures in summary.items():
        told = ", ".join(f"{name} {value:g}" for name, value in figures.items() if value is not None)
        console.print(f"[dim]{release}: {told}[/]")


def _number(value: Any) -> str:
    return "-" if value is None else f"{value:.3f}"


def print_answer_changes(value: Mapping[str, Any]) -> None:
    """Golden questions that two releases answer differently: old and new answer, and why."""
    console = make_console()
    for ref in value["not_evaluated"]:
        console.print(f"[dim]golden questions: {escape(ref)} was not evaluated: `rag eval {escape(ref)}`[/]")
    if value["not_evaluated"]:
        return
    if not value["compared"]:
        console.print("[dim]golden questions: none to compare[/]")
        return
    console.print(f"golden questions: {len(value['changed'])} of {value['compared']} answered differently")
    for change in value["changed"][:_SHOWN]:
        console.print(f"[bold]{escape(change['id'])}[/]  {escape(change['question'])}")
        for side, colour in (("old", "red"), ("new", "green")):
            console.print(f"  [{colour}]{side}[/] {escape(change[side]['answer'])}")
        for metric, score in change["scores"].items():
            console.print(f"  [dim]{metric} {_number(score['from'])} -> {_number(score['to'])}[/]")
        console.print(f"  [dim]why: {escape('; '.join(change['why']))}[/]")
    if len(value["changed"]) > _SHOWN:
        console.print(f"[dim]and {len(value['changed']) - _SHOWN} more (--json lists all)[/]")


def print_verdicts(verdicts: Sequence[Mapping[str, Any]]) -> None:
    """Every kept verdict on one release, in short."""
    console = make_console()
    for verdict in verdicts:
        console.print(_headline({**verdict, "cached": False, "changed": []}))
        for reason in verdict["reasons"][:3]:
            console.print(f"  [dim]{escape(reason)}[/]")


def print_bisection(value: Mapping[str, Any]) -> None:
    """The first bad release, how it was found, and what it changed."""
    console = make_console()
    sign = f"{value['metric']} below {value['below']:.3f}" if value["metric"] else "refused by the gate"
    about = f" of golden question {escape(value['question'])}" if value["question"] else ""
    console.print(f"bad is {sign}{about}; {value['good'][:12]} is good, {value['bad'][:12]} is bad")
    for step in value["steps"]:
        verdict = (
            f"[red]bad [/] {step['commit'][:12]}" if step["bad"] else f"[green]good[/] {step['commit'][:12]}"
        )
        shown = step["verdict"] if not value["metric"] else _number(step["value"])
        console.print(f"  {verdict}  {escape(shown if shown != '-' else 'no lower')}")
    first = value["first_bad"]
    console.print(
        f"[bold]The first bad release is {first['commit'][:12]}[/] of {first['date']} by "
        f"{escape(value['author'])}: {escape(first['message'])}"
    )
    if value["perhaps"]:
        names = ", ".join(commit[:12] for commit in value["perhaps"])
        console.print(f"  [yellow]or one of those whose content gc removed: {names}[/]")
    console.print(
        f"  gate {escape(first['verdict'] or '-')}; changed: {', '.join(value['changed']) or 'nothing'}"
    )
    print_changes(console, value["documents"])
    print_settings(console, value["settings"])
    console.print(f"Next: {'; '.join(value['commands'])}")


def print_golden(rows: Sequence[Mapping[str, Any]]) -> None:
    """Golden questions with their state and where they come from."""
    console = make_console()
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("state", "id", "question", "document", "source"):
        table.add_column(name, overflow="fold")
    for row in rows:
        reason = f" [yellow]{escape(row['reason'])}[/]" if row["reason"] else ""
        colour = {"approved": "green", "stale": "yellow"}.get(row["state"], "dim")
        table.add_row(
            f"[{colour}]{row['state']}[/]",
            escape(row["id"]),
            escape(row["question"]) + reason,
            escape(row["document"] or ("unanswerable" if row["unanswerable"] else "-")),
            escape(row["source"]),
        )
    console.print(table if rows else "None.")
