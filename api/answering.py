"""The routes that answer, as one object or as server-sent events, that search, and that keep feedback."""

import json
import logging
from collections.abc import Callable, Iterator
from typing import Annotated, Any

from fastapi import APIRouter
from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool

from api.access import Reader, Session
from api.problems import problem_of
from api.request_context import answered
from knowledge_base.errors import PlumblineError
from knowledge_base.home import MAIN
from rag.answer import Answer, Context, Event, ReleaseRef, Turn
from rag.answer_log import Feedback
from rag.filters import CONDITION_PATTERN, parse_conditions

_LOG = logging.getLogger(__name__)

RELEASE_HEADER = "X-Plumbline-Release"
"""Carries the commit of the release that answered."""


def _refuse_words(value: object) -> object:
    if isinstance(value, bool | str):
        raise ValueError("it is not a number")
    return value


TopK = Annotated[int, Field(ge=1, le=100), BeforeValidator(_refuse_words)]
"""A number as JSON has it: 5 and 5.0, neither "5" nor true."""


class Search(BaseModel):
    """What to search for, in which release, among which passages."""

    model_config = ConfigDict(extra="forbid")

    question: str = Field(min_length=1, max_length=8000, json_schema_extra={"pattern": r"\S"})
    ref: str = Field(default=MAIN, min_length=1, max_length=200)
    top_k: TopK | None = None
    where: list[Annotated[str, Field(json_schema_extra={"pattern": CONDITION_PATTERN})]] = Field(
        default=[], max_length=20, description='Such as "path=guides/*".'
    )


class Question(Search):
    """What to answer, after what was said before."""

    history: list[Turn] = Field(default=[], max_length=50)
    stream: StrictBool = False


class Results(BaseModel):
    """Ranked passages."""

    question: str
    release: ReleaseRef
    results: list[Context]


def answering_routes() -> APIRouter:
    """The routes."""
    router = APIRouter(prefix="/v1")

    # Plain functions: FastAPI runs them in its thread pool, and embedding a question is CPU work.
    @router.post(
        "/query",
        response_model=Answer,
        responses={200: {"content": {"text/event-stream": {}}, "description": "The answer, or its events."}},
    )
    def query(body: Question, at: Reader, response: Response) -> Response | Answer:
        engine = at.engine(body.ref)
        response.headers[RELEASE_HEADER] = engine.release_ref.commit
        given: dict[str, Any] = {"history": body.history, "where": parse_conditions(body.where)}
        if not body.stream:
            answer = engine.ask(body.question, body.top_k, **given)
            record(at, answer)
            return answer
        events = begin(engine.stream(body.question, body.top_k, **given))
        lines = as_events(events, lambda answer: record(at, answer))
        return stream_response(lines, engine.release_ref)

    @router.post("/search")
    def search(body: Search, at: Reader, response: Response) -> Results:
        engine = at.engine(body.ref)
        response.headers[RELEASE_HEADER] = engine.release_ref.commit
        found = engine.search(body.question, body.top_k, parse_conditions(body.where))
        return Results(question=body.question, release=engine.release_ref, results=found)

    @router.get("/answers/{id}")
    def answer_by_id(id: str, at: Reader) -> Answer:
        return at.answer(id)

    @router.post("/answers/{id}/feedback", status_code=204)
    def rate(id: str, body: Feedback, at: Reader) -> None:
        at.answer_log.rate(at.answer(id).id, body)

    return router


def record(at: Session, answer: Answer) -> None:
    """Log and count an answer; a log that fails does not fail the answer."""
    answered(at.name, answer)
    try:
        at.answer_log.append(answer)
    except PlumblineError as error:
        _LOG.warning("answer %s not logged: %s", answer.id, error.message)


def begin(events: Iterator[Event]) -> Iterator[Event]:
    """The same events, the first one made already: what is wrong with a question is an HTTP status yet."""
    first = next(events)

    def all_of_them() -> Iterator[Event]:
        yield first
        yield from events

    return all_of_them()


def stream_response(lines: Iterator[str], release: ReleaseRef) -> StreamingResponse:
    """Server-sent events that no proxy holds back."""
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no", RELEASE_HEADER: release.commit}
    return StreamingResponse(lines, media_type="text/event-stream", headers=headers)


def as_events(events: Iterator[Event], done: Callable[[Answer], None]) -> Iterator[str]:
    """retrieval, text, restart, citations, done; error in place of the last two when it fails."""
    try:
        for event in events:
            if event.event == "done":
                done(event.answer)
                cited = [citation.model_dump(mode="json") for citation in event.answer.citations]
                yield _sent("citations", {"citations": cited})
            yield _sent(event.event, event.model_dump(mode="json", exclude={"event"}))
    except PlumblineError as error:
        yield _sent("error", problem_of(error))


def _sent(name: str, value: Any) -> str:
    return f"event: {name}\ndata: {json.dumps(value, ensure_ascii=False)}\n\n"
