"""Evaluations and the nightly report: how good the releases are."""

from collections.abc import Mapping, Sequence
from datetime import date
from typing import Annotated, Any

from fastapi import APIRouter, Form, Query, Request
from fastapi.responses import Response

from api import visible
from api.access import Reader, Session, Writer
from api.console.charts import forest
from api.console.pages import PageRoute, page, see
from api.dates import Day
from api.job_routes import start_job
from api.jobs import Work
from eval.evaluations import Evaluations
from eval.gate import Verdict
from eval.nights import Nights
from eval.scores import Row
from knowledge_base.errors import NotFoundError
from knowledge_base.home import MAIN

_PAGE = 30
_NIGHTS = 60

Ref = Annotated[str, Query(max_length=200)]
Chosen = Annotated[str, Form(min_length=1, max_length=200)]


def evaluation_pages() -> APIRouter:
    """The routes."""
    router = APIRouter(route_class=PageRoute, include_in_schema=False)
    _add_evaluations(router)
    _add_report(router)
    return router


# -- evaluations -------------------------------------------------------------------------------


def _add_evaluations(router: APIRouter) -> None:
    @router.get("/evaluations")
    def evaluations(
        request: Request, at: Reader, after: Annotated[str | None, Query(max_length=64)] = None
    ) -> Response:
        found = Evaluations(at.knowledge_base.repository).history(after, _PAGE + 1)
        more = found[_PAGE - 1].id if len(found) > _PAGE else ""
        values = {"kept": visible.evaluations(at, found[:_PAGE]), "more": more, "refs": at.hosted.live.refs()}
        return page(request, at, "evaluations.html", values)

    @router.get("/evaluation")
    def evaluation(
        request: Request,
        at: Reader,
        id: Annotated[str, Query(max_length=64)] = "",
        ref: Ref = MAIN,
        against: Ref = "",
    ) -> Response:
        kept = Evaluations(at.knowledge_base.repository)
        if id:
            verdict, when = kept.evaluation(id).verdict, kept.evaluation(id).date
            new, old = kept.rows_at(id, verdict.candidate_digest), kept.rows_at(id, verdict.baseline_digest)
        else:
            verdict, when = _chosen(at, ref, against), None
            new, old = kept.rows(verdict.candidate_digest), kept.rows(verdict.baseline_digest)
        visible.check_evaluation(at, verdict, id or ref[:16])
        told = verdict.as_json()
        primary = [metric["name"] for metric in told["metrics"] if metric["margin"] is not None]
        values = {"verdict_": told, "when": when, "forest": forest(told["metrics"]), "primary": primary}
        values["rows"] = _compared(new, old, primary)
        return page(request, at, "evaluation.html", values)

    @router.post("/evaluations")
    def start(request: Request, at: Writer, ref: Chosen, baseline: Chosen) -> Response:
        repository = at.knowledge_base.repository
        at.about.update(ref=ref, baseline=baseline)
        work = Work(kind="evaluate", ref=ref, baseline=baseline)
        with at.claim(None) as claim:
            job = start_job(
                at,
                claim,
                work,
                Response(),
                check=lambda: [repository.resolve(one) for one in (ref, baseline)],
            )
        return see(request, at, "/job", id=job.id)


def _chosen(at: Session, ref: str, against: str) -> Verdict:
    """The kept verdict on a ref: against that baseline where there is one, else any."""
    release = at.knowledge_base.release(ref)
    found = Evaluations(at.knowledge_base.repository).verdicts(release.answers_digest, release.commit)
    if not found:
        raise NotFoundError("evaluation", ref[:16], hint="Start one on the page of evaluations.")
    return next((one for one in found if against and one.baseline == against), found[-1])


def _compared(new: Sequence[Row], old: Sequence[Row], metrics: Sequence[str]) -> list[dict[str, Any]]:
    """Each golden question with its values before and after, the greatest loss first."""
    before = {row.id: row for row in old if not row.repetition}
    found = []
    for row in new:
        if row.repetition:
            continue
        values, known = _values(row), _values(before[row.id]) if row.id in before else {}
        pairs = {name: (known.get(name), values.get(name)) for name in metrics}
        changes = [b - a for a, b in pairs.values() if a is not None and b is not None]
        found.append({"row": row, "pairs": pairs, "worst": min(changes, default=0.0)})
    return sorted(found, key=lambda one: (one["worst"], one["row"].id))


def _values(row: Row) -> Mapping[str, float | None]:
    return {score.metric: score.value for score in row.scores}


# -- the nightly report ------------------------------------------------------------------------


def _add_report(router: APIRouter) -> None:
    @router.get("/report")
    def report(request: Request, at: Writer, day: Annotated[Day | None, Query()] = None) -> Response:
        visible.check_report(at)
        nights = Nights(at.knowledge_base)
        history = nights.before(date.max, _NIGHTS)[::-1]
        shown = nights.of(day) if day else next(iter(history), None)
        if day and shown is None:
            raise NotFoundError("report", day.isoformat(), hint="The page of reports lists them.")
        return page(request, at, "report.html", {"report": shown, "history": history})
