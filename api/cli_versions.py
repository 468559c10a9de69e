"""The commands that look at releases and name them: log, show, diff, branch, tag."""

import sys
from typing import Annotated, Literal

import typer

from api.cli_common import Json, Kb, open_knowledge_base, print_json
from knowledge_base.errors import UsageError

app = typer.Typer()


@app.command()
def log(
    ref: Annotated[str, typer.Argument(help="Where to start.")] = "main",
    number: Annotated[int | None, typer.Option("--number", "-n", min=1, help="At most so many.")] = None,
    kb: Kb = None,
    as_json: Json = False,
) -> None:
    """List releases, newest first, with what changed in each; dates are UTC."""
    from api.render import print_log
    from eval.evaluations import list_evaluated

    entries = list_evaluated(open_knowledge_base(kb), ref, number)
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
    from eval.evaluations import describe_evaluated

    knowledge_base = open_knowledge_base(kb)
    if text is not None:
        content = knowledge_base.snapshot(ref).document_text(text)
        if as_json:
            print_json({"path": text, "commit": knowledge_base.repository.resolve(ref), "text": content})
        else:
            sys.stdout.write(content + ("" if content.endswith("\n") else "\n"))
        return
    value = describe_evaluated(knowledge_base, ref)
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
    from eval.compare import compare_releases

    value = compare_releases(open_knowledge_base(kb), left, right)
    if as_json:
        print_json(value)
    else:
        print_difference(value)
        print_answer_changes(value["golden"])


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
    from knowledge_base.home import check_branch

    if delete and name is None:
        raise UsageError(f"--delete needs the name of a {kind}.", hint=f"`rag {kind}` lists them.")
    repository = open_knowledge_base(kb).repository
    if kind == "branch" and name is not None:
        check_branch(name)
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
