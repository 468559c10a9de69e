"""The commands that keep a knowledge base in shape: compact, gc, fsck, rebuild."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from api.cli_common import Json, Kb, Ref, find_knowledge_base, open_knowledge_base, print_json
from knowledge_base.errors import NoChangesError, UnavailableError, UsageError

app = typer.Typer()


@app.command()
def compact(
    branch: Annotated[str, typer.Option(help="Branch whose index to compact.")] = "main",
    everything: Annotated[bool, typer.Option("--all", help="Make one segment of all.")] = False,
    kb: Kb = None,
    as_json: Json = False,
) -> None:
    """Merge segments and drop dead chunks; nothing is embedded, no ranking changes."""
    from api.progress import working
    from knowledge_base.republishing import compact as run

    knowledge_base = open_knowledge_base(kb)
    try:
        with working("Compacting", enabled=not as_json):
            commit = run(knowledge_base, branch, everything=everything)
    except NoChangesError:  # what a nightly job finds most nights is no failure
        value = {"commit": None, "message": "Nothing to compact", "embedded": 0}
        print_json(value) if as_json else sys.stdout.write(f"Nothing to compact on {branch}.\n")
        return
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
