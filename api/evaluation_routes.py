"""The routes of evaluations and golden questions."""

from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Response
from fastapi import Path as InPath
from pydantic import BaseModel, ConfigDict, Field, StrictBool, ValidationError

from api import visible
from api.access import Reader, Writer
from api.answering import NOT_EMPTY
from api.idempotency import IdempotencyKey
from api.job_routes import Asked, Limit, start_job
from api.jobs import Job, Work
from eval.evaluations import Evaluations, Kept
from eval.gate import Status
from eval.golden import GoldenQuestion, State
from eval.golden_files import GoldenFiles, make_id
from eval.scores import Row
from knowledge_base.errors import AlreadyExistsError, UsageError
from knowledge_base.home import MAIN

COMMIT = "^[0-9a-f]{40}([0-9a-f]{24})?$"


class EvaluationEntry(BaseModel):
    """An evaluation in a list: what was compared with what, and the verdict."""

    id: str
    date: datetime
    status: Status
    label: str
    candidate: str
    baseline: str
    questions: int
    reasons: list[str]


class EvaluationPage(BaseModel):
    """Evaluations, newest first; ask again with `after` = `next` for older ones."""

    evaluations: list[EvaluationEntry]
    next: str | None


class Evaluation(EvaluationEntry):
    """One evaluation: the whole verdict, and every golden question with its answer and scores."""

    verdict: dict[str, Any]
    rows: list[Row]


class Evaluate(Asked):
    """What to evaluate, and against what; `again` even when this very comparison is known."""

    ref: str = Field(default=MAIN, min_length=1, max_length=200)
    baseline: str = Field(default=MAIN, min_length=1, max_length=200)
    again: StrictBool = False


class GoldenEntry(GoldenQuestion):
    """A golden question as it stands; `reason` says why a stale one is."""

    reason: str = ""


class GoldenPage(BaseModel):
    """Golden questions by id; ask again with `after` = `next` for more."""

    questions: list[GoldenEntry]
    total: int
    next: str | None


class NewQuestion(Asked):
    """A golden question to add; people review candidates before they are asked."""

    # What GoldenQuestion checks, in words that a client's validator understands.
    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [
                {"properties": {"unanswerable": {"const": False}}},
                {"properties": {name: {"enum": [None, ""]} for name in ("answer", "document", "quote")}},
            ]
        }
    )

    question: str = Field(min_length=1, max_length=8000, pattern=NOT_EMPTY)
    id: str | None = Field(default=None, pattern="^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    answer: str | None = Field(default=None, max_length=8000)
    document: str | None = Field(default=None, max_length=1024)
    quote: str | None = Field(default=None, max_length=8000)
    unanswerable: StrictBool = False
    forbidden: tuple[str, ...] = Field(default=(), max_length=100)
    tags: tuple[str, ...] = Field(default=(), max_length=100)
    state: Literal["candidate", "approved"] = "candidate"


class Review(Asked):
    """A decision on golden questions."""

    ids: list[str] = Field(min_length=1, max_length=1000)
    state: Literal["approved", "retired", "stale"]


class Reviewed(BaseModel):
    """The golden questions that were decided on."""

    ids: list[str]
    state: State


def evaluation_routes() -> APIRouter:
    """The routes."""
    router = APIRouter(prefix="/v1", tags=["evaluations"])
    _add_evaluations(router)
    _add_golden(router)
    return router


def _add_evaluations(router: APIRouter) -> None:
    @router.get("/evaluations")
    def list_evaluations(
        at: Reader,
        after: Annotated[str | None, Query(pattern=COMMIT, description="`next` of the page before.")] = None,
        limit: Limit = 100,
    ) -> EvaluationPage:
        """List evaluations, newest first."""
        found = Evaluations(at.knowledge_base.repository).history(after, limit + 1)
        more = found[limit - 1].id if len(found) > limit else None
        seen = visible.evaluations(at, found[:limit])
        return EvaluationPage(evaluations=[_entry(one) for one in seen], next=more)

    @router.get("/evaluations/{id}")
    def show_evaluation(id: Annotated[str, InPath(min_length=1, max_length=64)], at: Reader) -> Evaluation:
        """Show a verdict with every answer and score that it rests on."""
        kept = Evaluations(at.knowledge_base.repository)
        found = kept.evaluation(id)
        visible.check_evaluation(at, found.verdict, id)
        rows = kept.rows_at(id, found.verdict.candidate_digest)
        return Evaluation(**_entry(found).model_dump(), verdict=found.verdict.as_json(), rows=list(rows))

    @router.post("/evaluations", status_code=202)
    def start_evaluation(body: Evaluate, at: Writer, response: Response, key: IdempotencyKey = None) -> Job:
        """Start a job that asks a release its golden questions and compares it with another."""
        repository = at.knowledge_base.repository
        at.about.update(body.model_dump())
        with at.claim(key) as claim:
            work = Work(kind="evaluate", ref=body.ref, baseline=body.baseline, again=body.again)
            refs = (body.ref, body.baseline)
            return start_job(
                at, claim, work, response, check=lambda: [repository.resolve(ref) for ref in refs]
            )


def _entry(kept: Kept) -> EvaluationEntry:
    return EvaluationEntry(
        id=kept.id,
        date=kept.date,
        label=kept.verdict.label,
        **kept.verdict.model_dump(include={"status", "candidate", "baseline", "questions", "reasons"}),
    )


def _add_golden(router: APIRouter) -> None:
    @router.get("/golden")
    def list_golden(
        at: Reader,
        state: Annotated[State | None, Query(description="Only rows of this state.")] = None,
        after: Annotated[str, Query(max_length=200, description="`next` of the page before.")] = "",
        limit: Limit = 100,
    ) -> GoldenPage:
        """List the golden questions of the working copy; what main no longer holds shows as stale."""
        found = visible.golden_rows(at)
        chosen = sorted(
            (row for row in found if state in (None, row["state"])), key=lambda row: str(row["id"])
        )
        rest = [row for row in chosen if row["id"] > after]
        more = rest[limit - 1]["id"] if len(rest) > limit else None
        page = [GoldenEntry.model_validate(row) for row in rest[:limit]]
        return GoldenPage(questions=page, total=len(chosen), next=more)

    @router.post("/golden", status_code=201)
    def add_golden(body: NewQuestion, at: Writer) -> GoldenQuestion:
        """Add a golden question to the working copy; the next ingest commits it."""
        values = body.model_dump(exclude={"id"}) | {"id": body.id or make_id(body.question), "source": "api"}
        try:
            row = GoldenQuestion.model_validate(values)
        except ValidationError as error:
            raise UsageError(error.errors()[0]["msg"].removeprefix("Value error, ") + ".") from error
        at.about.update(ids=[row.id])
        added = GoldenFiles(at.knowledge_base).add([row], "added")
        if not added:
            raise AlreadyExistsError("This question is asked already.", hint="GET /v1/golden lists them.")
        return added[0]

    @router.post("/golden/review")
    def review_golden(body: Review, at: Writer) -> Reviewed:
        """Approve, retire or set aside golden questions; the next ingest commits it."""
        at.about.update(body.model_dump())
        changed = GoldenFiles(at.knowledge_base).set_state(body.ids, body.state)
        return Reviewed(ids=[row.id for row in changed], state=body.state)
