"""`rag golden`: the questions that a release must be able to answer."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from api.cli_common import Json, Kb, open_answer_log, open_knowledge_base, print_json
from knowledge_base.errors import UsageError

if TYPE_CHECKING:
    from eval.golden import GoldenQuestion
    from knowledge_base.home import KnowledgeBase

app = typer.Typer(help="Add, import, make, list and review golden questions.", no_args_is_help=True)

_State = Literal["candidate", "approved", "stale", "retired"]
_LOGGED = 1000


@app.command()
def add(
    question: Annotated[str, typer.Argument(help="The question.")],
    answer: Annotated[str | None, typer.Option(help="A reference answer.")] = None,
    document: Annotated[str | None, typer.Option(help="Path that must be retrieved.")] = None,
    quote: Annotated[str | None, typer.Option(help="Text that must stand in a retrieved passage.")] = None,
    unanswerable: Annotated[bool, typer.Option("--unanswerable", help="It must be abstained from.")] = False,
    forbid: Annotated[
        list[str] | None, typer.Option(help="Text that must never stand in the answer.")
    ] = None,
    tag: Annotated[list[str] | None, typer.Option(help="A tag.")] = None,
    name: Annotated[
        str | None, typer.Option("--id", help="Its id (default: made from the question).")
    ] = None,
    replace: Annotated[
        bool,
        typer.Option(
            "--replace", help="Put it in the place of the row that asks the same, whose id it takes."
        ),
    ] = False,
    kb: Kb = None,
    as_json: Json = False,
) -> None:
    """Add an approved question to golden/added.jsonl; the next ingest commits it."""
    from pydantic import ValidationError

    from eval.golden import GoldenQuestion
    from eval.golden_files import GoldenFiles, make_id

    try:
        row = GoldenQuestion(
            id=name or make_id(question),
            question=question,
            answer=answer,
            document=document,
            quote=quote,
            unanswerable=unanswerable,
            forbidden=tuple(forbid or ()),
            tags=tuple(tag or ()),
        )
    except ValidationError as error:
        raise UsageError(error.errors()[0]["msg"].removeprefix("Value error, ") + ".") from error
    knowledge_base = open_knowledge_base(kb)
    if not replace:
        _add(knowledge_base, [row], "added", as_json)
        return
    new = GoldenFiles(knowledge_base).replace(row)
    if as_json:
        print_json({"replaced": new.model_dump(mode="json")})
    else:
        sys.stdout.write(f"{new.id} is replaced; the next ingest commits it.\n")


@app.command("import")
def import_rows(
    path: Annotated[Path, typer.Argument(help="A CSV or JSONL file, with our column names or RAGAS's.")],
    state: Annotated[_State, typer.Option(help="State of the imported rows.")] = "candidate",
    kb: Kb = None,
    as_json: Json = False,
) -> None:
    """Import questions; those that are asked already are left out."""
    from eval.golden_files import read_import

    rows = read_import(path.expanduser(), state)
    _add(open_knowledge_base(kb), rows, "imported", as_json)


@app.command()
def generate(
    source: Annotated[
        Literal["corpus", "model", "log", "feedback"],
        typer.Option(
            "--from", help="Sentences and headings, the judge's model, logged questions, or feedback on them."
        ),
    ] = "corpus",
    number: Annotated[int, typer.Option("--number", "-n", min=1, max=10_000, help="At most so many.")] = 20,
    kb: Kb = None,
    as_json: Json = False,
) -> None:
    """Make candidates for people to review; nothing is asked before it is approved."""
    from api.progress import working
    from eval.golden_files import GoldenFiles

    knowledge_base = open_knowledge_base(kb)
    with working("Making questions", enabled=not as_json):
        # Some of what is made may be known already; a model is not asked for more than is wanted.
        known = 0 if source == "model" else len(GoldenFiles(knowledge_base).rows())
        rows = _make(knowledge_base, source, number + known)
    _add(knowledge_base, rows, "generated", as_json, number)


def _make(knowledge_base: "KnowledgeBase", source: str, number: int) -> "list[GoldenQuestion]":
    from eval.golden_generate import from_corpus, from_feedback, from_log, generate_with_model

    if source in ("log", "feedback"):
        log = open_answer_log(knowledge_base)
        if source == "log":
            return from_log(log.recent(_LOGGED), number)
        return from_feedback(log.feedback(_LOGGED), number)
    if source == "corpus":
        return from_corpus(knowledge_base.snapshot(), number)
    return generate_with_model(knowledge_base, number)


@app.command("list")
def list_rows(
    state: Annotated[_State | None, typer.Option(help="Only rows of this state.")] = None,
    kb: Kb = None,
    as_json: Json = False,
) -> None:
    """List the questions on disk with their state; what main no longer holds shows as stale."""
    rows = [row for row in _described(open_knowledge_base(kb)) if state in (None, row["state"])]
    _print(rows, as_json)


@app.command()
def review(
    ids: Annotated[list[str] | None, typer.Argument(help="Ids to decide on; none to see what waits.")] = None,
    approve: Annotated[bool, typer.Option("--approve", help="Ask them from now on.")] = False,
    retire: Annotated[bool, typer.Option("--retire", help="Never ask them again.")] = False,
    stale: Annotated[
        bool, typer.Option("--stale", help="Do not ask them until somebody mends them.")
    ] = False,
    everything: Annotated[bool, typer.Option("--all", help="All candidates.")] = False,
    kb: Kb = None,
    as_json: Json = False,
) -> None:
    """Approve or retire candidates and stale rows; without a decision, list them."""
    from eval.golden_files import GoldenFiles

    knowledge_base = open_knowledge_base(kb)
    decisions: list[tuple[_State, bool]] = [("approved", approve), ("retired", retire), ("stale", stale)]
    chosen = [state for state, said in decisions if said]
    if len(chosen) > 1:
        raise UsageError("--approve, --retire and --stale exclude each other.")
    waiting = [row for row in _described(knowledge_base) if row["state"] in ("candidate", "stale")]
    if not chosen:
        if ids or everything:
            raise UsageError("Say --approve, --retire or --stale.")
        _print(waiting, as_json)
        return
    named = list(ids or ())
    named += [row["id"] for row in waiting if everything and row["state"] == "candidate"]
    if not named:
        raise UsageError("Name the questions, or say --all.", hint="`rag golden review` lists what waits.")
    changed = GoldenFiles(knowledge_base).set_state(named, chosen[0])
    if as_json:
        print_json({"state": chosen[0], "ids": [row.id for row in changed]})
    else:
        sys.stdout.write(f"{len(changed)} question(s) are {chosen[0]} now; the next ingest commits it.\n")


def _add(
    knowledge_base: "KnowledgeBase",
    rows: "list[GoldenQuestion]",
    name: str,
    as_json: bool,
    limit: int | None = None,
) -> None:
    from eval.golden_files import GoldenFiles, plain

    files = GoldenFiles(knowledge_base)
    known = {plain(row.question) for row in files.rows()}
    added = files.add(rows, name, limit)
    left_out = sum(plain(row.question) in known for row in rows)
    if as_json:
        print_json({"added": [row.model_dump(mode="json") for row in added], "known": left_out})
        return
    new = {row.id for row in added}
    for row in _described(knowledge_base):
        if row["id"] in new:
            reason = f" ({row['reason']})" if row["reason"] else ""
            sys.stdout.write(f"{row['state']:>9}  {row['id']}  {row['question']}{reason}\n")
    said = f", {left_out} asked already (`add --replace` puts a row in another's place)" if left_out else ""
    then = "; the next ingest commits it" if added else ""
    if any(row.state == "candidate" for row in added):
        then += ", and none is asked before `rag golden review --approve`"
    sys.stdout.write(f"{len(added)} question(s) added to golden/{name}.jsonl{said}{then}.\n")


def _described(knowledge_base: "KnowledgeBase") -> list[dict[str, Any]]:
    from eval.golden_files import rows_as_they_stand

    return rows_as_they_stand(knowledge_base, knowledge_base.snapshot().document_text)


def _print(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print_json(rows)
        return
    from api.render_eval import print_golden

    print_golden(rows)
