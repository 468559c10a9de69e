"""`rag report` and `rag simulate`: the nightly report, what it compares with, and a rehearsal of it."""

import sys
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from api.cli_common import Json, Kb, open_answer_log, open_knowledge_base, print_json
from knowledge_base.errors import UsageError

if TYPE_CHECKING:
    from eval.report import Report

app = typer.Typer()
simulating = typer.Typer()
Day = Annotated[str, typer.Option("--date", help="The day to report on: today, yesterday, 2026-11-20 (UTC).")]


@app.callback(invoke_without_command=True)
def report(
    context: typer.Context,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the report's files.")] = Path(
        "report"
    ),
    day: Day = "today",
    webhook: Annotated[str, typer.Option(help="Chat webhook to send the ten lines to, unless OK.")] = "",
    kb: Kb = None,
    as_json: Json = False,
) -> None:
    """Write the nightly report; exit code 1 when it raises an alarm."""
    if context.invoked_subcommand is not None:
        return
    from api.progress import working
    from eval.report import write_report
    from eval.report_files import as_text, post

    knowledge_base = open_knowledge_base(kb)
    if output.exists() and not output.is_dir():
        raise UsageError(f"{output} is not a folder.", hint="Name a folder for the report.")
    when = _day(day)
    ref = "main" if when >= _today() else f"main@{{{when.isoformat()}}}"
    with working("Reporting", enabled=not as_json):
        log = open_answer_log(knowledge_base)
        made = write_report(knowledge_base, log, output, day=when, ref=ref)
    if as_json:
        print_json(made.as_json())
    else:
        sys.stdout.write(as_text(made) + f"{output / 'report.html'}\n")
    if webhook and made.exit_code:
        post(made, webhook)
    if made.exit_code:
        raise typer.Exit(made.exit_code)


@app.command()
def accept(
    reason: Annotated[str, typer.Option(help="Why this is normal now; it stays in the log.")],
    ref: Annotated[str, typer.Option("--ref", help="The release that is normal.")] = "main",
    day: Day = "today",
    days: Annotated[int, typer.Option(min=1, max=365, help="Days of questions up to that day.")] = 28,
    kb: Kb = None,
    as_json: Json = False,
) -> None:
    """Make a release and the questions of the last days the reference of later nights."""
    from eval.nights import Nights

    made = Nights(open_knowledge_base(kb)).accept(ref, _day(day), reason, days)
    if as_json:
        print_json(made.model_dump(mode="json"))
    else:
        sys.stdout.write(
            f"Reports after {made.accepted} compare with {made.release[:12]} and the questions of "
            f"{made.since} to {made.until}.\n"
        )


@app.command("list")
def list_nights(
    number: Annotated[int, typer.Option("--number", "-n", min=1, help="At most so many.")] = 30,
    kb: Kb = None,
    as_json: Json = False,
) -> None:
    """List the reports that were made, newest first."""
    from eval.nights import Nights

    found = Nights(open_knowledge_base(kb)).before(_today() + timedelta(days=1), number)[::-1]
    if as_json:
        keys = ("date", "verdict", "causes", "reasons", "release", "action")
        print_json([{key: night[key] for key in keys} for night in found])
        return
    for night in found:
        told = f"{', '.join(night['causes'])}: {night['reasons'][0]}" if night["reasons"] else ""
        sys.stdout.write(f"{night['date']}  {night['verdict']:5}  {night['release'][:12]}  {told[:100]}\n")


@simulating.command()
def simulate(
    output: Annotated[Path, typer.Argument(help="New folder for the copy and the reports.")],
    days: Annotated[int, typer.Option(min=1, max=366, help="How many days.")] = 14,
    questions: Annotated[int, typer.Option(min=1, help="Questions a day.")] = 100,
    drift: Annotated[
        list[str] | None,
        typer.Option(
            help="DAY:KIND[:SHARE]; questions: topic, typos, language, truncated, chatty; "
            "releases: embedder, documents, prompt."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Another seed is another rehearsal.")] = 0,
    kb: Kb = None,
    as_json: Json = False,
) -> None:
    """Rehearse the nightly report on a copy: days of made-up traffic with drifts of your choice."""
    from eval.simulate import Drift, Rehearsal, copy_of, rehearse, usual_questions
    from rag.answer_log import AnswerLog

    if output.exists() and any(output.iterdir() if output.is_dir() else [output]):
        raise UsageError(f"{output} is not empty.", hint="Name a new folder.")
    chosen = [Drift.parse(text) for text in drift or []]
    copy = copy_of(open_knowledge_base(kb), output.resolve() / "kb")
    log = AnswerLog(f"sqlite:///{output.resolve() / 'answers.sqlite'}")
    first = _today() - timedelta(days=days - 1)
    rehearsal = Rehearsal(copy, log, usual_questions(copy), first, questions, seed)
    put_in = {one.day: one.kind for one in chosen}

    def told(number: int, report: "Report") -> None:
        if not as_json:
            said = (
                f"put in: {put_in.get(number, 'nothing'):10} found: {', '.join(report.causes) or 'nothing'}"
            )
            sys.stdout.write(f"day {number:3}  {report.verdict:5}  {said}\n")
            sys.stdout.flush()

    reports = rehearse(rehearsal, days, chosen, output, told)
    if as_json:
        rows = [
            {"day": day, "drift": put_in.get(day), "verdict": report.verdict, "causes": report.causes}
            for day, report in enumerate(reports, 1)
        ]
        print_json(rows)
    else:
        sys.stdout.write(f"The reports are {output}/day-01/report.html and so on.\n")


def _today() -> date:
    return datetime.now(UTC).date()


def _day(text: str) -> date:
    if text in ("today", "yesterday"):
        return _today() - timedelta(days=int(text == "yesterday"))
    try:
        found = date.fromisoformat(text)
    except ValueError:
        raise UsageError(f"{text!r} is no day.", hint="Write today, yesterday or 2026-11-20.") from None
    if found > _today():
        raise UsageError(f"{found} has not been yet.", hint="Write today, yesterday or 2026-11-20.")
    return found
