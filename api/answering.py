"""The routes that answer, as one object or as server-sent events, that search, and that keep feedback."""

import json
import logging
from collections.abc import Generator, Iterable, Iterator
from itertools import chain
from typing import Annotated, Any

from anyio import CancelScope
from fastapi import APIRouter
from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool
from starlette.concurrency import run_in_threadpool
from starlette.types import Receive, Scope, Send

from api.access import Reader, Session
from api.problems import problem_of
from api.request_context import answered, unfinished
from knowledge_base.errors import PlumblineError
from knowledge_base.home import MAIN
from rag.answer import Answer, Context, Event, ReleaseRef, Turn
from rag.answer_log import Feedback
from rag.engine import Engine
from rag.filters import CONDITION_PATTERN, parse_conditions

_LOG = logging.getLogger(__name__)

NOT_EMPTY = r"[^\s\x00]"
"""Somewhere in a question: without it, it is one of blanks."""
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

    question: str = Field(min_length=1, max_length=8000, json_schema_extra={"pattern": NOT_EMPTY})
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
        begun = Begun(at, engine, body.question, engine.stream(body.question, body.top_k, **given))
        return EventStream(begun, as_events(begun))

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


class Begun:
    """An answer under way: its events, the first made already.

    What is wrong with a question is an HTTP status yet. The whole answer is recorded; `close` says that there
    is none because nobody waited for it.
    """

    def __init__(
        self, at: Session, engine: Engine, question: str, events: Generator[Event, None, None]
    ) -> None:
        self._at, self._question = at, question
        self.release = engine.release_ref
        self._first, self._events = next(events), events
        self._over = False

    def __iter__(self) -> Iterator[Event]:
        try:
            for event in chain([self._first], self._events):
                if event.event == "done":
                    record(self._at, event.answer)
                    self._over = True
                yield event
        except Exception:
            self._over = True
            raise

    def close(self) -> None:
        """Have no more of it: a language model that is still writing need not go on."""
        self._events.close()
        if not self._over:
            unfinished(self._at.name, self.release.commit, self._question)


class EventStream(StreamingResponse):
    """Server-sent events that no proxy holds back, for as long as somebody reads them."""

    def __init__(self, begun: Begun, lines: Generator[str, None, None]) -> None:
        headers = {
            "Cache-Control": "no-store",
            "X-Accel-Buffering": "no",
            RELEASE_HEADER: begun.release.commit,
        }
        super().__init__(lines, media_type="text/event-stream", headers=headers)
        self._begun, self._lines = begun, lines

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events; afterwards, or when the client has left, close what they are made of."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            with CancelScope(shield=True):
                await run_in_threadpool(self._close)

    def _close(self) -> None:
        self._lines.close()
        self._begun.close()


def as_events(events: Iterable[Event]) -> Generator[str, None, None]:
    """retrieval, text, restart, citations, done; error in place of the last two when it fails."""
    try:
        for event in events:
            if event.event == "done":
                cited = [citation.model_dump(mode="json") for citation in event.answer.citations]
                yield _sent("citations", {"citations": cited})
            yield _sent(event.event, event.model_dump(mode="json", exclude={"event"}))
    except PlumblineError as error:
        yield _sent("error", problem_of(error))


def _sent(name: str, value: Any) -> str:
    return f"event: {name}\ndata: {json.dumps(value, ensure_ascii=False)}\n\n"
