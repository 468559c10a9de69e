"""The golden set: what waits for somebody, deciding on it, publishing it."""

from typing import Annotated, Literal

from fastapi import APIRouter, Form, Query, Request
from fastapi.responses import Response

from api import visible
from api.access import Reader, Writer
from api.console.pages import PageRoute, page, see
from api.job_routes import start_job
from api.jobs import Work
from eval.golden import State
from eval.golden_files import GoldenFiles
from knowledge_base.errors import UsageError

_QUESTIONS = 100
_STATES: tuple[State, ...] = ("candidate", "stale", "approved", "retired")

Decision = Literal["approved", "retired"]


def golden_pages() -> APIRouter:
    """The routes."""
    router = APIRouter(route_class=PageRoute, include_in_schema=False)
    _add_reading(router)
    _add_decisions(router)
    return router


def _add_reading(router: APIRouter) -> None:
    @router.get("/golden")
    def golden(
        request: Request,
        at: Reader,
        state: Annotated[str, Query(max_length=20)] = "",
        start: Annotated[int, Query(ge=0)] = 0,
        chosen: Annotated[Literal["all", ""], Query()] = "",
        done: Annotated[int, Query(ge=0)] = 0,
        became: Annotated[State | None, Query()] = None,
    ) -> Response:
        rows = visible.golden_rows(at)
        counts = {name: sum(row["state"] == name for row in rows) for name in _STATES}
        # What waits for somebody comes first.
        wanted = state if state in counts else next((s for s in _STATES[:2] if counts[s]), "approved")
        found = [row for row in rows if row["state"] == wanted]
        values = {
            "rows": found[start : start + _QUESTIONS],
            "start": start,
            "more": start + _QUESTIONS if len(found) > start + _QUESTIONS else 0,
            "counts": counts,
            "state": wanted,
            "chosen": chosen == "all",
            "done": done,
            "became": became,
        }
        return page(request, at, "golden.html", values)


def _add_decisions(router: APIRouter) -> None:
    @router.post("/golden")
    def review(
        request: Request,
        at: Writer,
        state: Annotated[Decision, Form()],
        id: Annotated[list[str], Form(max_length=1000)] = [],  # noqa: B006 - FastAPI copies it
        only: Annotated[str, Query(max_length=200)] = "",
        back: Annotated[str, Form(max_length=20)] = "",
    ) -> Response:
        """Decide on the ticked questions, or on the one whose own button was pressed."""
        ids = [only] if only else id
        if not ids:
            raise UsageError("No question is ticked.", hint="Go back and tick those that you decide on.")
        at.about.update(ids=ids, state=state)
        changed = GoldenFiles(at.knowledge_base).set_state(ids, state)
        return see(request, at, "/golden", state=back, done=len(changed), became=state)

    @router.post("/golden/publish")
    def publish(request: Request, at: Writer) -> Response:
        work = Work(kind="ingest", message="Golden questions reviewed")
        with at.claim(None) as claim:
            job = start_job(at, claim, work, Response())
        return see(request, at, "/job", id=job.id)
