"""`rag answers`: what the answer log of a knowledge base holds, taken out or deleted."""

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from api.cli_common import Json, Kb, open_answer_log, open_knowledge_base, print_json
from knowledge_base.errors import UsageError

_MOST_DAYS = 36_500  # further back there are no dates to compare with

app = typer.Typer(help="Export or delete logged answers.", rich_markup_mode=None)


@app.command()
def export(
    file: Annotated[Path, typer.Argument(help="Parquet file to write; one that is there is replaced.")],
    kb: Kb = None,
    as_json: Json = False,
) -> None:
    """Write answers and feedback to a Parquet file."""
    from rag.answer_export import export_parquet

    if file.is_dir() or not file.parent.is_dir():
        raise UsageError(f"{file} is no place for a file.", hint="Name a file in a folder that exists.")
    written = export_parquet(open_answer_log(open_knowledge_base(kb)), file)
    done = {"file": str(file), "answers": written}
    print_json(done) if as_json else sys.stdout.write(f"{written} answers in {file}\n")


@app.command()
def forget(
    days: Annotated[
        int | None, typer.Option(min=0, max=_MOST_DAYS, help="Delete answers older than this many days.")
    ] = None,
    mentioning: Annotated[
        str, typer.Option(help="Delete answers in which these words stand, whatever their case.")
    ] = "",
    kb: Kb = None,
    as_json: Json = False,
) -> None:
    """Delete old answers, or those that mention somebody, and their feedback for good."""
    if (days is None) == (not mentioning.strip()):
        raise UsageError("Say --days or --mentioning.", hint="For example: rag answers forget --days 90")
    log = open_answer_log(open_knowledge_base(kb))
    done: dict[str, object] = {}
    if days is not None:
        before = datetime.now(UTC) - timedelta(days=days)
        done = {"deleted": (deleted := log.forget(before)), "before": before.isoformat()}
    else:
        done = {"deleted": (deleted := log.forget_mentioning(mentioning.strip()))}
    print_json(done) if as_json else sys.stdout.write(f"{deleted} answers deleted\n")
