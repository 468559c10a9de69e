"""What a person at a terminal sees while a command is at work; nothing elsewhere."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console

if TYPE_CHECKING:
    from ingestion.scan import Progress


@contextmanager
def ingest_progress(*, enabled: bool) -> Iterator["Progress"]:
    """A bar for each stage with its rate and the time left, on standard error."""
    from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Any) -> Text:
            return Text(f"{task.speed:.0f}/s" if task.speed else "")

    columns = (
        TextColumn("{task.description:>10}"),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(),
        TimeRemainingColumn(),
    )
    # The file itself: readers of documents have sys.stderr to themselves while they work.
    console = Console(file=sys.stderr)
    with Bars(
        *columns, console=console, transient=True, disable=not enabled or not console.is_terminal
    ) as bars:
        tasks: dict[str, Any] = {}

        def advance(stage: str, done: int, total: int | None) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.advance(tasks[stage], done)

        yield advance


@contextmanager
def working(what: str, *, enabled: bool) -> Iterator[Callable[[str], None]]:
    """A spinner on standard error; the yielded function says what is being done now."""
    console = Console(file=sys.stderr)
    if not enabled or not console.is_terminal:
        yield lambda detail: None
        return
    with console.status(what) as status:
        yield lambda detail: status.update(f"{what}: {detail}")
