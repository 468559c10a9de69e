"""The commands that judge releases: eval, and bisect, which finds the one that broke something."""

import sys
from typing import Annotated

import typer

from api.cli_common import Json, Kb, open_knowledge_base, print_json

app = typer.Typer()


@app.command("eval")
def evaluate(
    ref: Annotated[str, typer.Argument(help="Release to evaluate.")] = "main",
    baseline: Annotated[str, typer.Option(help="Release to compare with.")] = "main",
    again: Annotated[bool, typer.Option("--again", help="Even when this very comparison is known.")] = False,
    kb: Kb = None,
    as_json: Json = False,
) -> None:
    """Score a release on the golden questions; exit code 1 unless it is shown to be no worse."""
    from api.progress import working
    from api.render_eval import print_verdict
    from eval.evaluate import evaluate_release
    from eval.golden_files import uncommitted_golden

    knowledge_base = open_knowledge_base(kb)
    with working("Evaluating", enabled=not as_json):
        verdict = evaluate_release(knowledge_base, ref, baseline, again=again)
    print_json(verdict.as_json()) if as_json else print_verdict(verdict.as_json())
    if not as_json and (waiting := uncommitted_golden(knowledge_base)):
        sys.stderr.write(
            f"Not committed yet, so not asked: {', '.join(waiting)}. `rag ingest` commits them.\n"
        )
    if not verdict.publishable:
        raise typer.Exit(1)


@app.command()
def bisect(
    question: Annotated[
        str | None, typer.Argument(help="Id of a golden question that scores lower than it did.")
    ] = None,
    good: Annotated[
        str | None,
        typer.Option(
            help="A release without the fault (default: the nightly report's reference, "
            "or the last release before BAD that the gate passed)."
        ),
    ] = None,
    bad: Annotated[str, typer.Option(help="A release with it.")] = "main",
    metric: Annotated[str | None, typer.Option(help="What fell: context_recall, faithfulness, ...")] = None,
    below: Annotated[
        float | None, typer.Option(help="Bad is less than this (default: halfway from GOOD to BAD).")
    ] = None,
    kb: Kb = None,
    as_json: Json = False,
) -> None:
    """Find the release that broke a golden question, a metric or, without either, the gate's verdict."""
    from api.progress import working
    from api.render_eval import print_bisection
    from eval.bisect import Symptom
    from eval.bisect import bisect as run

    with working("Bisecting", enabled=not as_json) as show:
        found = run(open_knowledge_base(kb), Symptom(question, metric, below), good, bad, show)
    print_json(found.as_json()) if as_json else print_bisection(found.as_json())
