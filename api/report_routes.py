"""The routes of the nightly reports that the version store keeps."""

from contextlib import suppress
from datetime import date
from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi import Path as InPath
from fastapi.responses import HTMLResponse
from pydantic import BaseModel

from api import visible
from api.access import Session, Writer
from api.dates import Day
from api.job_routes import Limit
from eval.nights import Nights
from knowledge_base.errors import NotFoundError

Night = Annotated[
    str, InPath(pattern="^([0-9]{4}-[0-9]{2}-[0-9]{2}|latest)$", description="2026-11-20 (UTC), or latest.")
]


class ReportEntry(BaseModel):
    """A night's report in a list."""

    date: str
    verdict: str
    action: str
    release: str
    causes: list[str]
    reasons: list[str]


class ReportPage(BaseModel):
    """Reports, newest first; ask again with `after` = `next` for older ones."""

    reports: list[ReportEntry]
    next: str | None


def report_routes() -> APIRouter:
    """The routes."""
    router = APIRouter(prefix="/v1", tags=["reports"])

    @router.get("/reports")
    def list_reports(
        at: Writer,
        after: Annotated[Day | None, Query(description="`next` of the page before.")] = None,
        limit: Limit = 100,
    ) -> ReportPage:
        """List the nightly reports, newest first."""
        visible.check_report(at)
        found = Nights(at.knowledge_base).before(after or date.max, limit + 1)[::-1]
        more = found[limit - 1]["date"] if len(found) > limit else None
        return ReportPage(reports=[ReportEntry.model_validate(one) for one in found[:limit]], next=more)

    @router.get("/reports/{day}")
    def show_report(day: Night, at: Writer) -> dict[str, Any]:
        """Show the report of a night, as report.json has it."""
        return _report(at, day)

    @router.get("/reports/{day}/html", response_class=HTMLResponse)
    def show_page(day: Night, at: Writer) -> HTMLResponse:
        """Show the report of a night as a page for people."""
        from eval.report import Report  # and with it Matplotlib, for those who look at one
        from eval.report_html import render

        stored = _report(at, day)
        report = Report.model_validate({name: stored[name] for name in Report.model_fields if name in stored})
        # Questions and documents are quoted in it: whatever they say, nothing runs and nothing is fetched.
        policy = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:"
        return HTMLResponse(render(report), headers={"Content-Security-Policy": policy})

    return router


def _report(at: Session, day: str) -> dict[str, Any]:
    visible.check_report(at)
    nights, found = Nights(at.knowledge_base), None
    if day == "latest":
        found = next(iter(nights.before(date.max, 1)), None)
    else:
        with suppress(ValueError):  # the 31st of February has no report
            found = nights.of(date.fromisoformat(day))
    if found is None:
        raise NotFoundError("report", day, hint="GET /v1/reports lists them; `rag report` makes one.")
    return found
