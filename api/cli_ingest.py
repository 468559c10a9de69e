"""The commands that hold sources against the knowledge base: ingest and status."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from api.cli_common import Json, Kb, NoGate, Reason, gate_of, kept_out, open_knowledge_base, print_json
from knowledge_base.errors import CheckFailedError

if TYPE_CHECKING:
    from ingestion.scan import IngestResult

app = typer.Typer()

Prefix = Annotated[str, typer.Option(help="Put the documents below this path.")]
Exclude = Annotated[list[str] | None, typer.Option(help="Skip paths that match this gitignore pattern.")]
Paths = Annotated[
    list[str] | None,
    typer.Argument(help="Folders, files, quoted globs, or - for standard input; none to apply new settings."),
]
Branch = Annotated[str, typer.Option(help="Branch to bring up to date; made from main if missing.")]
Prune = Annotated[bool, typer.Option("--prune", help="Delete documents that the sources no longer hold.")]
AllowEmpty = Annotated[
    bool, typer.Option("--allow-empty", help="With --prune: even when the sources hold nothing.")
]
Reindex = Annotated[bool, typer.Option("--reindex", help="Make the index anew from the stored documents.")]


@app.command()
def ingest(
    paths: Paths = None,
    branch: Branch = "main",
    prune: Prune = False,
    allow_empty: AllowEmpty = False,
    reindex: Reindex = False,
    prefix: Prefix = "",
    exclude: Exclude = None,
    stdin_name: Annotated[str, typer.Option(help="Document path of standard input.")] = "stdin.txt",
    max_mb: Annotated[int, typer.Option(min=1, help="Skip files larger than this many megabytes.")] = 100,
    message: Annotated[str | None, typer.Option("--message", "-m", help="Say what this release is.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan, change nothing.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Fail when any file cannot be read.")] = False,
    no_gate: NoGate = False,
    reason: Reason = "",
    kb: Kb = None,
    as_json: Json = False,
) -> None:
    """Read, split, embed, commit, gate and publish what changed."""
    from api.progress import ingest_progress
    from ingestion.pipeline import ingest as run
    from ingestion.scan import MEGABYTE, IngestOptions
    from ingestion.sources import list_sources

    knowledge_base = open_knowledge_base(kb)
    stdin = (stdin_name, sys.stdin.buffer.read()) if "-" in (paths or []) else None
    sources = list_sources(paths or [], prefix=prefix, stdin=stdin, exclude=exclude or [])
    options = IngestOptions(
        branch=branch,
        prune=prune,
        allow_empty=allow_empty,
        reindex=reindex,
        dry_run=dry_run,
        strict=strict,
        max_bytes=max_mb * MEGABYTE,
        message=message,
    )
    gate = gate_of(knowledge_base, branch, no_gate, reason)
    with ingest_progress(enabled=not as_json) as progress:
        result = run(knowledge_base, sources, options, gate=gate, progress=progress)
    _print_result(result, as_json)


def _print_result(result: "IngestResult", as_json: bool) -> None:
    from api.render import print_ingest

    print_json(result.as_json()) if as_json else print_ingest(result)
    if result.changed and not result.published and not result.dry_run:
        kept_out(result, as_json)
    if result.failed and not result.unchanged and not result.documents and not result.changed:
        if as_json:
            raise typer.Exit(1)
        raise CheckFailedError("None of the files could be read.", hint="The reasons are above.")


@app.command()
def status(
    paths: Annotated[list[str] | None, typer.Argument(help="Sources to hold against main.")] = None,
    prune: Annotated[
        bool, typer.Option("--prune", help="Count what the sources no longer hold as deleted.")
    ] = False,
    prefix: Prefix = "",
    exclude: Exclude = None,
    kb: Kb = None,
    as_json: Json = False,
) -> None:
    """Show what the next ingest would change: settings, prompts, golden questions; with PATHs, documents."""
    from api.render import print_status
    from knowledge_base.history import working_difference

    knowledge_base = open_knowledge_base(kb)
    live = knowledge_base.release()
    value = {
        "root": str(knowledge_base.root),
        "release": {"ref": "main", "commit": live.commit},
        "documents": live.manifest.documents,
        "chunks": live.manifest.chunks,
        **working_difference(knowledge_base, live),
    }
    if paths:
        from ingestion.pipeline import ingest as run
        from ingestion.scan import IngestOptions
        from ingestion.sources import list_sources

        sources = list_sources(paths, prefix=prefix, exclude=exclude or [])
        plan = run(knowledge_base, sources, IngestOptions(prune=prune, allow_empty=True, dry_run=True))
        value["sources"], value["findings"] = plan.as_json()["documents"], plan.as_json()["findings"]
    print_json(value) if as_json else print_status(value)
