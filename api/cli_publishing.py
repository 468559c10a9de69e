"""The commands that move what serves: merge, promote, rollback; and restore and copy."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from api.cli_common import (
    Json,
    Kb,
    NoGate,
    Reason,
    gate_of,
    kept_out,
    make_knowledge_base,
    open_knowledge_base,
    print_json,
)
from knowledge_base.errors import UsageError

if TYPE_CHECKING:
    from knowledge_base.lifecycle import Landing

app = typer.Typer()


@app.command()
def merge(
    source: Annotated[str, typer.Argument(help="Branch, tag or commit to merge.")],
    into: Annotated[str, typer.Option(help="Branch that takes the changes.")] = "main",
    source_wins: Annotated[
        bool, typer.Option("--source-wins", help="On a conflict take the source's files.")
    ] = False,
    dest_wins: Annotated[bool, typer.Option("--dest-wins", help="On a conflict keep the branch's.")] = False,
    message: Annotated[str | None, typer.Option("--message", "-m", help="Say what this is.")] = None,
    no_gate: NoGate = False,
    reason: Reason = "",
    kb: Kb = None,
    as_json: Json = False,
) -> None:
    """Bring what a branch changed into another, index included; nothing is embedded."""
    from knowledge_base.merging import merge as run

    if source_wins and dest_wins:
        raise UsageError("--source-wins and --dest-wins exclude each other.")
    knowledge_base = open_knowledge_base(kb)
    landing = run(
        knowledge_base,
        source,
        into,
        strategy="source-wins" if source_wins else "dest-wins" if dest_wins else None,
        gate=gate_of(knowledge_base, into, no_gate, reason),
        message=message,
    )
    _print_landing(landing, as_json)


@app.command()
def promote(
    ref: Annotated[str, typer.Argument(help="Branch, tag or commit that was made from main.")],
    message: Annotated[str | None, typer.Option("--message", "-m", help="Say what this is.")] = None,
    no_gate: NoGate = False,
    reason: Reason = "",
    kb: Kb = None,
    as_json: Json = False,
) -> None:
    """Make a candidate the release that main serves, if the gate lets it."""
    from knowledge_base.lifecycle import promote as run

    knowledge_base = open_knowledge_base(kb)
    landing = run(knowledge_base, ref, gate=gate_of(knowledge_base, "main", no_gate, reason), message=message)
    _print_landing(landing, as_json)


def _print_landing(landing: "Landing", as_json: bool) -> None:
    from api.render import print_landing

    print_json(landing.as_json()) if as_json else print_landing(landing)
    if not landing.published:
        kept_out(landing, as_json)


@app.command()
def rollback(
    ref: Annotated[
        str | None, typer.Argument(help="Release to go back to (default: the one before).")
    ] = None,
    reopen: Annotated[
        bool, typer.Option("--reopen", help="Also when it has open what was closed since.")
    ] = False,
    kb: Kb = None,
    as_json: Json = False,
) -> None:
    """Make main what it was: one new commit with the content of an earlier release."""
    from knowledge_base.release import committed_files
    from knowledge_base.republishing import rollback as run

    knowledge_base = open_knowledge_base(kb)
    commit = run(knowledge_base, ref, reopen=reopen)
    if as_json:
        print_json({"commit": commit.id, "content_of": commit.metadata["rollback"]})
        return
    sys.stdout.write(
        f"main is now {commit.id[:12]}, with the content of {commit.metadata['rollback'][:12]}.\n"
    )
    if knowledge_base.working_files() != committed_files(knowledge_base.repository, commit.id):
        sys.stdout.write(
            "plumbline.toml, prompts/ and golden/ on disk are not main's now, and the next ingest would "
            "publish them again: `rag status` shows how they differ, `rag restore` makes them main's.\n"
        )


@app.command()
def restore(
    ref: Annotated[str, typer.Argument(help="Release to take them from.")] = "main",
    kb: Kb = None,
    as_json: Json = False,
) -> None:
    """Write plumbline.toml, prompts/ and golden/ as a release has them; the old ones get a ~."""
    changed = open_knowledge_base(kb).restore(ref)
    if as_json:
        print_json({"ref": ref, "changed": changed})
    else:
        sys.stdout.writelines(f"{path} is that of {ref}; the old one is {path}~\n" for path in changed)
        sys.stdout.write("" if changed else f"Nothing differs from {ref}.\n")


@app.command()
def copy(
    source: Annotated[str, typer.Argument(help="Folder or lakefs://REPOSITORY to copy from.")],
    destination: Annotated[str, typer.Argument(help="New folder or lakefs://REPOSITORY.")],
    index: Annotated[
        str | None, typer.Option(help="Chroma server for the copy's vectors (default: PLUMBLINE_INDEX).")
    ] = None,
    storage: Annotated[
        str | None, typer.Option(help="Where a new lakeFS repository keeps its objects: s3://...")
    ] = None,
    as_json: Json = False,
) -> None:
    """Copy a knowledge base with its history to another store, and compare the two; nothing is embedded."""
    from api.progress import ingest_progress
    from knowledge_base.copying import copy_knowledge_base, take_working_files

    original = open_knowledge_base(source)
    made, new = make_knowledge_base(destination, storage, index)
    with ingest_progress(enabled=not as_json) as progress:
        report = copy_knowledge_base(original, made, progress)
    if new:
        take_working_files(made)
    if as_json:
        print_json({"source": source, "destination": destination, **report.model_dump(), "verified": True})
    else:
        sys.stdout.write(
            f"Copied {report.commits} commits, {report.branches} branches, {report.tags} tags "
            f"to {destination}.\nRead back and equal: {report.objects} contents, {report.bytes:,} bytes; "
            f"{report.passages} passages of main indexed, 0 embedded.\n"
        )
