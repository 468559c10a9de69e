"""Promotion: what the gate says of a candidate, and taking it to main, through the gate or past it."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Form, Query, Request
from fastapi.responses import Response

from api import visible
from api.access import Session, Writer
from api.console.pages import PageRoute, page, see
from api.version_routes import Promotion, start_promotion
from eval.admission import admit
from eval.evaluations import Evaluations
from knowledge_base.errors import HeadMovedError, NoChangesError, OutdatedError, UsageError
from knowledge_base.home import MAIN
from knowledge_base.lifecycle import check_promotable

Said = Literal["yes", "no", "unknown"]
Commit = Annotated[str, Form(pattern="^[0-9a-f]{40}([0-9a-f]{24})?$")]


@dataclass(frozen=True)
class GateSays:
    """The gate's standing verdict on a candidate against what main serves; "unknown" while there is none.

    `verdict` has its figures and reasons, unless they are closed to the caller; `measured_again` says that
    promoting measures what this one could not.
    """

    said: Said
    label: str = ""
    verdict: dict[str, Any] | None = None
    measured_again: bool = False


def gate_says(at: Session, ref: str) -> GateSays:
    """Look the verdict up; nothing is measured. Raises NotFoundError, SettingsError."""
    admission = admit(at.knowledge_base, ref)
    if not admission.judged:
        return GateSays("unknown")
    kept = Evaluations(at.knowledge_base.repository)
    verdict = kept.verdict(admission.candidate_digest, admission.live_digest)
    told = verdict.as_json() if verdict and visible.may_see(at, verdict) else None
    return GateSays(
        "yes" if admission.allowed else "no",
        admission.verdict,
        told,
        measured_again=verdict is not None and verdict.status == "INCOMPLETE",
    )


def promotion_pages() -> APIRouter:
    """The routes."""
    router = APIRouter(route_class=PageRoute, include_in_schema=False)
    _add_question(router)
    _add_promotion(router)
    return router


def _add_question(router: APIRouter) -> None:
    @router.get("/promote")
    def ask_promotion(
        request: Request, at: Writer, ref: Annotated[str, Query(min_length=1, max_length=200)]
    ) -> Response:
        repository = at.knowledge_base.repository
        target, live = repository.resolve(ref), repository.resolve(MAIN)
        obstacle = None
        try:
            check_promotable(repository, ref)
        except (NoChangesError, OutdatedError) as error:
            obstacle = error
        values = {
            "ref": ref,
            "target": target,
            "live": live,
            "obstacle": obstacle,
            "gate": gate_says(at, target),
            "found": visible.difference(at, live, target),
        }
        return page(request, at, "promote.html", values)


def _add_promotion(router: APIRouter) -> None:
    @router.post("/promote")
    def promote(
        request: Request,
        at: Writer,
        ref: Annotated[str, Form(min_length=1, max_length=200)],
        expected: Commit,
        live: Commit,
        message: Annotated[str, Form(max_length=2000)] = "",
        way: Annotated[Literal["gate", "override"], Form()] = "gate",
        reason: Annotated[str, Form(max_length=500)] = "",
    ) -> Response:
        if way == "override":
            at.require("admin")
            if not reason.strip():
                raise UsageError("Past the gate needs a reason.", hint="Say why; the log keeps it for ever.")
        for name, decided_on in ((ref, expected), (MAIN, live)):
            now = at.knowledge_base.repository.resolve(name)
            if now != decided_on:
                raise HeadMovedError(name, decided_on, now)
        override = reason.strip() if way == "override" else ""
        asked = Promotion(ref=ref, message=message.strip() or None, override=override)
        job = start_promotion(at, None, asked, Response())
        return see(request, at, "/job", id=job.id)
