"""How results look to a person at a terminal."""

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from api.render_changes import SHOWN, print_changes, print_settings, setting
from api.render_findings import print_findings

if TYPE_CHECKING:
    from ingestion.scan import IngestResult
    from knowledge_base.lifecycle import Landing
    from knowledge_base.retention import GcReport
    from rag.answer import Answer, Citation, Context

_AROUND = 300
_NOTHING = "Nothing found: `rag status` counts the documents; --where takes a folder as path=guides/*."
_UNFOLDED = 100_000


def make_console() -> Console:
    """A console for standard output."""
    # What goes into a file or a pipe is not folded: a row stays a line.
    width = None if sys.stdout.isatty() else _UNFOLDED
    return Console(highlight=False, soft_wrap=True, width=width)


def print_table(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows of plain values, one a line."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in columns:
        table.add_column(column.replace("_", " "), overflow="fold")
    for row in rows:
        table.add_row(*(escape(_plain(row[column])) for column in columns))
    make_console().print(table if rows else "None.")


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={_plain(one)}" for key, one in value.items())
    if isinstance(value, list | tuple):
        return " ".join(map(str, value))
    return "-" if value is None else str(value)


def print_ingest(result: "IngestResult") -> None:
    """What an ingest did."""
    console = make_console()
    documents = result.documents
    if result.dry_run:
        console.print("[bold]Plan[/] (nothing was changed)")
        print_changes(console, documents.as_json())
    counts = {**documents.counts(), "unchanged": result.unchanged, "failed": len(result.failed)}
    if result.quarantined:
        counts["quarantined"] = len(result.quarantined)
    if any(counts.values()):  # settings alone are ingested without a path
        console.print("documents  " + ", ".join(f"{count} {verb}" for verb, count in counts.items()))
    for path, reason in result.failed:
        console.print(f"  [yellow]skipped[/] {escape(path)}: {escape(reason)}")
    print_findings(console, [f for i in result.inspections for f in i.as_json()], result.quarantined)
    embedding = f"{result.embedded} embedded, {result.reused} reused from earlier releases"
    if result.dry_run:
        console.print(f"texts      {embedding}")
        return
    chunks = result.chunks
    console.print(
        f"chunks     {chunks['added']} added, {chunks['removed']} removed, {chunks['total']} in all"
    )
    shared = chunks["added"] - result.embedded - result.reused
    if shared > 0:
        embedding += f"; {shared} of the added chunks have the text of another one, and its vector"
    console.print(f"vectors    {embedding}")
    if not result.changed and not chunks["total"]:
        console.print("Nothing is ingested yet: `rag ingest PATH...`.")
    elif not result.changed:
        console.print(f"Nothing to publish: {result.branch} is up to date ({result.seconds:.1f} s).")
    elif result.published:
        console.print(
            f"[green]Published[/] {result.commit[:12]} on {result.branch}: gate {result.verdict}, "
            f"{_bytes(result.bytes_written)} written, {result.seconds:.1f} s."
        )


def print_status(value: Mapping[str, Any]) -> None:
    """What differs from main."""
    console = make_console()
    release = value["release"]
    console.print(f"{value['root']}: main at {release['commit'][:12]}")
    console.print(f"{value['documents']} documents, {value['chunks']} chunks")
    new = not value["documents"] and "sources" not in value
    if not new:  # of which every prompt and every golden question is added
        print_settings(console, value["settings"])
        print_changes(console, {**value["files"], "renamed": []})
    same = not value["settings"] and not any(value["files"].values())
    if "sources" in value:
        sources = value["sources"]
        print_changes(console, sources)
        console.print(f"{sources['unchanged']} unchanged")
        for failure in sources["failed"]:
            console.print(
                f"  [yellow]cannot be read[/] {escape(failure['path'])}: {escape(failure['reason'])}"
            )
        print_findings(console, value["findings"], sources["quarantined"])
        same = same and not any(sources[verb] for verb in ("added", "changed", "deleted", "renamed"))
    if same:
        what = (
            "Nothing differs." if "sources" in value else "Settings, prompts and golden questions are main's."
        )
        console.print(what)
    elif new:
        console.print(
            "Nothing is ingested yet: `rag ingest PATH...`; it commits the prompts and golden/ too."
        )


def print_answer(answer: "Answer", *, text: bool = True) -> None:
    """An answer with its sources; without its `text` when that has been streamed."""
    console = make_console()
    if text:
        style = "yellow" if answer.abstained else "bold"
        console.print(f"[{style}]{escape(answer.answer)}[/]")
    for citation in answer.citations:
        console.print(
            f"  [cyan]\\[{citation.marker}][/] {escape(citation.path)} "
            f"[dim]characters {citation.start} to {citation.end}, support {citation.support:.2f}[/]"
        )
    for conflict in answer.conflicts:
        console.print(
            f"  [yellow]disagrees with \\[{conflict.marker}][/] {escape(conflict.path)}: "
            f"{escape(' '.join(conflict.quote.split()))}"
        )
    for left in answer.unsupported:
        verb = "unsupported" if left.flagged else "left out, unsupported"
        console.print(f"  [yellow]{verb}[/] [dim]({left.support:.2f})[/] {escape(left.sentence)}")
    for part in answer.unanswered:
        console.print(f"  [yellow]no supported answer to[/] {escape(part)}")
    if answer.abstained and not answer.contexts:
        console.print(f"[dim]{_NOTHING}[/]")
    if answer.abstained and answer.contexts:
        searched = " | ".join(query for query in answer.queries if query != answer.question)
        nearest = list(dict.fromkeys(context.path for context in answer.contexts))[:3]
        console.print(
            f"[dim]Searched{escape(': ' + searched) if searched else ''}; nearest, but no answer:[/]"
        )
        for path in nearest:
            console.print(f"  [dim]{escape(path)}[/]")
    for attempt in answer.attempts:
        console.print(f"[yellow]{escape(attempt.model)} failed:[/] {escape(attempt.error)}")
    console.print(f"[dim]{escape(_footing(answer))}[/]")


def _footing(answer: "Answer") -> str:
    parts = [
        f"release {answer.release.commit[:12]}",
        f"model {answer.model}",
        f"{answer.timings_ms.get('total', 0.0):.0f} ms",
    ]
    if answer.usage.input_tokens or answer.usage.output_tokens:
        parts.append(f"{answer.usage.input_tokens} + {answer.usage.output_tokens} tokens")
    if answer.cost:
        parts.append(f"cost {answer.cost:.4f}")
    return ", ".join(parts)


def print_source(citation: "Citation", text: str) -> None:
    """A cited document around its quote, which stands out."""
    console = make_console()
    before = text[max(0, citation.start - _AROUND) : citation.start]
    after = text[citation.end : citation.end + _AROUND]
    console.print(f"[cyan]{escape(citation.path)}[/] [dim]at {citation.commit[:12]}[/]")
    console.print(f"{escape(before)}[reverse]{escape(citation.quote)}[/]{escape(after)}")


def print_results(results: Sequence["Context"]) -> None:
    """Ranked passages."""
    console = make_console()
    for number, result in enumerate(results, 1):
        where = " > ".join(result.heading) or (f"page {result.page}" if result.page else "")
        console.print(
            f"[bold]{number}.[/] [cyan]{escape(result.path)}[/] {escape(where)} "
            f"[dim]{result.start} to {result.end}, score {result.score:.3f}[/]"
        )
        text = " ".join(result.text.split())
        console.print("   " + escape(text[:280] + ("..." if len(text) > 280 else "")))
    if not results:
        console.print(_NOTHING)


def print_log(entries: Sequence[Mapping[str, Any]]) -> None:
    """Releases, newest first."""
    console = make_console()
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("commit", "date (UTC)", "documents", "chunks", "gate", "changed", "message"):
        table.add_column(
            name, justify="right" if name in ("documents", "chunks") else "left", overflow="fold"
        )
    for entry in entries:
        refs = f" [green]({', '.join(map(escape, entry['refs']))})[/]" if entry["refs"] else ""
        table.add_row(
            f"[yellow]{entry['commit'][:12]}[/]{refs}",
            _minute(entry["date"]),
            f"{entry['documents']}{_delta(entry['documents_changed'])}",
            f"{entry['chunks']}{_delta(entry['chunks_changed'])}",
            _gate(entry),
            ", ".join(entry["changed"]),
            escape(entry["message"].splitlines()[0] if entry["message"] else ""),
        )
    console.print(table if entries else "No releases yet: run `rag ingest PATH...`.")


def print_prompts(rows: Sequence[Mapping[str, Any]]) -> None:
    """Prompts with what they are for."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("prompt", "hash", "examples", "description"):
        table.add_column(name, overflow="fold", justify="right" if name == "examples" else "left")
    for row in rows:
        table.add_row(
            f"[green]{escape(row['name'])}[/]", row["hash"], str(row["examples"]), escape(row["description"])
        )
    make_console().print(table if rows else "No prompts yet: `rag init` writes them.")


def print_refs(rows: Sequence[Mapping[str, str]], kind: str) -> None:
    """Branches or tags."""
    console = make_console()
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in (kind, "commit", "date", "message"):
        table.add_column(name, overflow="fold")
    for row in rows:
        first = escape(row["message"].splitlines()[0]) if row["message"] else ""
        table.add_row(f"[green]{escape(row[kind])}[/]", row["commit"][:12], _minute(row["date"]), first)
    console.print(table if rows else f"No {kind} yet: make one with `rag {kind} NAME`.")


def print_landing(landing: "Landing") -> None:
    """What a merge or promotion did."""
    console = make_console()
    print_changes(console, landing.documents.as_json())
    chunks = landing.chunks
    console.print(
        f"chunks     {chunks['added']} added, {chunks['removed']} removed, {chunks['total']} in all"
    )
    console.print("vectors    0 embedded")
    if landing.published:
        console.print(
            f"[green]Published[/] {landing.commit[:12]} on {escape(landing.branch)}: gate {landing.verdict}."
        )


def print_gc(report: "GcReport") -> None:
    """What gc freed or would free."""
    console = make_console()
    verb = "would free" if report.dry_run else "freed"
    console.print(f"{report.retained} commit(s) keep their content, {len(report.expired)} lose it")
    console.print(
        f"{verb} {_bytes(report.bytes)}: {_bytes(report.object_bytes)} of objects, "
        f"{_bytes(report.cache_bytes)} in {len(report.caches)} cache(s)"
    )
    if report.dry_run:
        console.print("Nothing was removed: say --apply to remove it.")


def print_release(value: Mapping[str, Any]) -> None:
    """One release in full."""
    console = make_console()
    refs = f" ({', '.join(value['refs'])})" if value["refs"] else ""
    console.print(
        f"[yellow]{value['commit']}[/]{escape(refs)}\n{value['date']}  gate {value['verdict'] or '-'}"
        + (f": {escape(value['override'])}" if value["override"] else "")
    )
    console.print(escape(value["message"]))
    console.print(
        f"\n{value['documents']} documents, {value['chunks']} chunks, {len(value['segments'])} segment(s)"
    )
    for segment in value["segments"]:
        buried = f", {len(segment['tombstones'])} tombstones" if segment["tombstones"] else ""
        console.print(
            f"  {segment['id'][:12]}  {segment['documents']} documents, {segment['passages']} passages, "
            f"{_bytes(segment['bytes'])}{buried}"
        )
    for part, keys in value["settings"].items():
        console.print(
            f"{part:>10}  " + escape(", ".join(f"{key} = {setting(val)}" for key, val in keys.items()))
        )
    for path in value["paths"][:SHOWN]:
        console.print(f"  {escape(path)}")
    if len(value["paths"]) > SHOWN:
        console.print(f"  [dim]and {len(value['paths']) - SHOWN} more (--json lists all)[/]")
    print_findings(console, value["findings"], ())
    print_findings(console, value["quarantined"], [found["path"] for found in value["quarantined"]])


def print_difference(value: Mapping[str, Any]) -> None:
    """What changed between two releases."""
    console = make_console()
    print_changes(console, value["documents"], limit=None)
    chunks = value["chunks"]
    console.print(f"chunks: {chunks['added']} added, {chunks['removed']} removed, {chunks['total']} in all")
    print_settings(console, value["settings"])
    if not any(value["documents"].values()) and not value["settings"]:
        console.print("No difference.")


def _gate(entry: Mapping[str, Any]) -> str:
    """What the gate said, why it was passed by, and what an evaluation said since."""
    said = escape(entry["verdict"])
    if entry["override"]:
        said += f": {escape(entry['override'])}"
    return said + (f" [dim](later {entry['evaluated']})[/]" if entry.get("evaluated") else "")


def _delta(changes: Mapping[str, int]) -> str:
    signs = {"added": "+", "changed": "~", "deleted": "-", "removed": "-", "renamed": ">"}
    shown = " ".join(f"{signs[verb]}{count}" for verb, count in changes.items() if count)
    return f" [dim]{shown}[/]" if shown else ""


def _minute(date: str) -> str:
    return date[:16].replace("T", " ")


def _bytes(count: float) -> str:
    if count < 1000:
        return f"{count:.0f} B"
    for unit in ("kB", "MB"):
        count /= 1000
        if count < 1000:
            return f"{count:.1f} {unit}"
    return f"{count / 1000:.1f} GB"
