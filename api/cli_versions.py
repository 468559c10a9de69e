"""The commands about versions: history, branches, promotion, retention, repair."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from api.cli_common import (
    Json,
    Kb,
    NoGate,
    Reason,
    Ref,
    find_knowledge_base,
    gate_of,
    kept_out,
    make_knowledge_base,
    open_knowledge_base,
    print_json,
)
from knowledge_base.errors import UnavailableError, UsageError

if TYPE_CHECKING:
    from knowledge_base.lifecycle import Landing

app = typer.Typer()


# -- looking -----------------------------------------------------------------------------------


@app.command()
def log(
    ref: Annotated[str, typer.Argument(help="Where to start.")] = "main",
    number: Annotated[int | None, typer.Option("--number", "-n", min=1, help="At most so many.")] = None,
    kb: Kb = None,
    as_json: Json = False,
) -> None:
    """List releases, newest first, with what changed in each; dates are UTC."""
    from api.render import print_log
    from eval.evaluations import label_of
    from knowledge_base.history import list_releases

    knowledge_base = open_knowledge_base(kb)
    entries = list_releases(knowledge_base.repository, ref, number)
    for entry in entries:
        judged = entry["verdict"].startswith("PASS")
        entry["evaluated"] = "" if judged else label_of(knowledge_base, entry["commit"])
    print_json(entries) if as_json else print_log(entries)


@app.command()
def show(
    ref: Annotated[str, typer.Argument(help="Branch, tag or commit.")] = "main",
    text: Annotated[
        str | None, typer.Option(help="Print the extracted text of this document instead.")
    ] = None,
    kb: Kb = None,
    as_json: Json = False,
) -> None:
    """Show one release: its settings, documents, segments and verdicts."""
    from api.render import print_release
    from api.render_eval import print_verdicts
    from eval.evaluations import Evaluations
    from knowledge_base.history import describe_release

    knowledge_base = open_knowledge_base(kb)
    if text is not None:
        content = knowledge_base.snapshot(ref).document_text(text)
        if as_json:
            print_json({"path": text, "commit": knowledge_base.repository.resolve(ref), "text": content})
        else:
            sys.stdout.write(content + ("" if content.endswith("\n") else "\n"))
        return
    value = describe_release(knowledge_base, ref)
    found = Evaluations(knowledge_base.repository).verdicts(knowledge_base.release(ref).answers_digest)
    value["verdicts"] = [verdict.as_json() for verdict in found]
    if as_json:
        print_json(value)
    else:
        print_release(value)
        print_verdicts(value["verdicts"])


@app.command()
def diff(
    left: Annotated[str, typer.Argument(help="The older ref.")],
    right: Annotated[str, typer.Argument(help="The newer ref.")] = "main",
    kb: Kb = None,
    as_json: Json = False,
) -> None:
    """Show what changed from one release to another: documents, chunks, settings, golden answers."""
    from api.render import print_difference
    from api.render_eval import print_answer_changes
    from eval.compare import compare_answers
    from knowledge_base.difference import diff_releases

    knowledge_base = open_knowledge_base(kb)
    found = diff_releases(knowledge_base, left, right)
    answers = compare_answers(knowledge_base, left, right)
    value = {
        "documents": found.documents.as_json(),
        "chunks": found.chunks,
        "settings": found.settings,
        "golden": answers,
    }
    if as_json:
        print_json(value)
    else:
        print_difference(value)
        print_answer_changes(answers)


# -- branches ----------------------------------------------------------------------------------


@app.command()
def branch(
    name: Annotated[str | None, typer.Argument(help="Branch to make; without it, list them.")] = None,
    source: Annotated[str, typer.Argument(help="Where it starts.")] = "main",
    delete: Annotated[bool, typer.Option("--delete", "-d", help="Delete it instead.")] = False,
    kb: Kb = None,
    as_json: Json = False,
) -> None:
    """List, make or delete branches; a branch costs nothing."""
    _refs("branch", name, source, delete, kb, as_json)


@app.command()
def tag(
    name: Annotated[str | None, typer.Argument(help="Tag to make; without it, list them.")] = None,
    ref: Annotated[str, typer.Argument(help="What it names.")] = "main",
    delete: Annotated[bool, typer.Option("--delete", "-d", help="Delete it instead.")] = False,
    kb: Kb = None,
    as_json: Json = False,
) -> None:
    """List, make or delete tags: names for releases that never move."""
    _refs("tag", name, ref, delete, kb, as_json)


def _refs(
    kind: Literal["branch", "tag"], name: str | None, source: str, delete: bool, kb: str | None, as_json: bool
) -> None:
    from api.render import print_refs
    from knowledge_base.history import list_branches, list_tags

    if delete and name is None:
        raise UsageError(f"--delete needs the name of a {kind}.", hint=f"`rag {kind}` lists them.")
    repository = open_knowledge_base(kb).repository
    if name is None:
        found = list_branches(repository) if kind == "branch" else list_tags(repository)
        print_json(found) if as_json else print_refs(found, kind)
    elif delete:
        repository.delete_branch(name) if kind == "branch" else repository.delete_tag(name)
        print_json({"deleted": name}) if as_json else sys.stdout.write(f"Deleted {kind} {name}.\n")
    else:
        make = repository.create_branch if kind == "branch" else repository.create_tag
        commit = make(name, source).commit_id
        print_json({kind: name, "commit": commit}) if as_json else sys.stdout.write(
            f"{kind.capitalize()} {name} is at {commit[:12]}.\n"
        )


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
    kb: Kb = None,
    as_json: Json = False,
) -> None:
    """Make main what it was: one new commit with the content of an earlier release."""
    from knowledge_base.lifecycle import rollback as run

    commit = run(open_knowledge_base(kb), ref)
    if as_json:
        print_json({"commit": commit.id, "content_of": commit.metadata["rollback"]})
    else:
        sys.stdout.write(
            f"main is now {commit.id[:12]}, with the content of {commit.metadata['rollback'][:12]}.\n"
            "plumbline.toml, prompts/ and golden/ on disk stay as they are: `rag status` shows how they "
            "differ, `rag restore` makes them main's.\n"
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


# -- care --------------------------------------------------------------------------------------


@app.command()
def compact(
    branch: Annotated[str, typer.Option(help="Branch whose index to compact.")] = "main",
    everything: Annotated[bool, typer.Option("--all", help="Make one segment of all.")] = False,
    kb: Kb = None,
    as_json: Json = False,
) -> None:
    """Merge segments and drop dead chunks; nothing is embedded, no ranking changes."""
    from api.progress import working
    from knowledge_base.lifecycle import compact as run

    with working("Compacting", enabled=not as_json):
        commit = run(open_knowledge_base(kb), branch, everything=everything)
    value = {"commit": commit.id, "message": commit.message, "embedded": 0}
    print_json(value) if as_json else sys.stdout.write(f"{commit.id[:12]}: {commit.message}.\n")


@app.command()
def gc(
    keep_last: Annotated[
        int | None, typer.Option(min=1, help="Releases of each branch that keep their content.")
    ] = None,
    keep_days: Annotated[
        float | None, typer.Option(min=0, help="Releases younger than so many days keep their content.")
    ] = None,
    keep_tags: Annotated[
        bool, typer.Option("--keep-tags/--no-keep-tags", help="Tagged releases keep their content.")
    ] = True,
    apply: Annotated[bool, typer.Option("--apply", help="Remove it; without, only say what.")] = False,
    kb: Kb = None,
    as_json: Json = False,
) -> None:
    """Free what no release needs; with --keep-last or --keep-days, what older releases hold too."""
    from api.progress import working
    from api.render import print_gc
    from knowledge_base.retention import Retention
    from knowledge_base.retention import gc as run

    rules = Retention(keep_last=keep_last, keep_days=keep_days, keep_tags=keep_tags)
    with working("Collecting", enabled=not as_json):
        found = run(open_knowledge_base(kb), rules, dry_run=not apply)
    print_json({**found.model_dump(), "bytes": found.bytes}) if as_json else print_gc(found)


@app.command()
def fsck(
    repair: Annotated[bool, typer.Option("--repair", help="Restore what can be restored.")] = False,
    backup: Annotated[
        Path | None, typer.Option("--from", help="A copy of .plumbline/knowledge.git to restore from.")
    ] = None,
    kb: Kb = None,
    as_json: Json = False,
) -> None:
    """Check every stored object, release and cache; exit code 1 when anything is damaged."""
    from api.progress import working
    from knowledge_base.integrity import Problem, repair_knowledge_base
    from knowledge_base.integrity import fsck as run

    if backup and not repair:
        raise UsageError("--from goes with --repair.", hint="Without it, nothing is restored.")
    restored = []
    if repair:
        place = find_knowledge_base(kb)
        if isinstance(place, Path):
            restored = repair_knowledge_base(place, backup)
    with working("Checking", enabled=not as_json) as show:
        try:
            problems = list(run(open_knowledge_base(kb), progress=show, repair=repair))
        except UnavailableError as error:  # that is a finding, not a failure to look
            problems = [Problem(where="repository", what=error.message)]
    left = [problem for problem in problems if not problem.repaired]
    if as_json:
        found = [problem.model_dump() for problem in problems]
        print_json({"clean": not left, "restored": restored, "problems": found})
    else:
        sys.stdout.writelines(f"restored: {what}\n" for what in restored)
        sys.stdout.writelines(f"{p.where}: {p.what}{' (repaired)' if p.repaired else ''}\n" for p in problems)
        sys.stdout.write("Clean.\n" if not left else f"{len(left)} problem(s).\n")
    if left:
        raise typer.Exit(1)


@app.command()
def rebuild(ref: Ref = "main", kb: Kb = None, as_json: Json = False) -> None:
    """Build the Chroma collections and postings of a release anew; nothing is embedded."""
    from api.progress import working
    from knowledge_base.integrity import rebuild as run

    with working("Rebuilding", enabled=not as_json):
        passages = run(open_knowledge_base(kb), ref)
    value = {"ref": ref, "passages": passages, "embedded": 0}
    print_json(value) if as_json else sys.stdout.write(f"Rebuilt {passages} passages of {ref}; 0 embedded.\n")
