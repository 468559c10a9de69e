"""The HTTP API: POST /v1/query, POST /v1/search, GET /healthz; errors are problem+json (RFC 9457)."""

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Literal

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.serving import Live
from knowledge_base.errors import NotFoundError, PlumblineError
from knowledge_base.home import MAIN
from rag.answer import Answer, Context, ReleaseRef
from rag.answer_log import AnswerLog

_LOG = logging.getLogger(__name__)
_MAX_BODY_BYTES = 256 * 1024


class Question(BaseModel):
    """Body of both endpoints."""

    model_config = ConfigDict(extra="forbid")

    question: str = Field(min_length=1, max_length=8000)
    ref: str = Field(default=MAIN, min_length=1, max_length=200)
    top_k: int | None = Field(default=None, ge=1, le=100)


class Results(BaseModel):
    """Ranked passages."""

    question: str
    release: ReleaseRef
    results: list[Context]


class Health(BaseModel):
    """What is being served; `stale` when main's newest release could not be opened, with the reason."""

    status: Literal["ok", "stale"]
    release: ReleaseRef
    documents: int
    chunks: int
    detail: str = ""


def create_app(live: Live, answer_log: AnswerLog) -> FastAPI:
    """The application over one knowledge base."""
    # No /docs: that page is fetched from a public server. /openapi.json describes the same.
    app = FastAPI(title="Plumbline", version="0.1.0", docs_url=None, redoc_url=None)
    app.add_middleware(_BodyLimit)
    _handle_errors(app)

    # Plain functions: FastAPI runs them in its thread pool, and embedding a question is CPU work.
    @app.post("/v1/query")
    def query(body: Question) -> Answer:
        answer = live.engine(body.ref).ask(body.question, body.top_k)
        try:
            answer_log.append(answer)
        except PlumblineError as error:
            _LOG.warning("answer %s not logged: %s", answer.id, error.message)
        return answer

    @app.post("/v1/search")
    def search(body: Question) -> Results:
        engine = live.engine(body.ref)
        return Results(
            question=body.question,
            release=engine.release_ref,
            results=engine.search(body.question, body.top_k),
        )

    @app.get("/healthz")
    def health() -> Health:
        engine = live.engine()
        manifest = engine.release.manifest
        return Health(
            status="stale" if live.problem else "ok",
            release=engine.release_ref,
            documents=manifest.documents,
            chunks=manifest.chunks,
            detail=live.problem,
        )

    return app


class _BodyLimit:
    """Refuses a body as soon as it is longer than any question may be, before it fills the memory."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > _MAX_BODY_BYTES:
                raise HTTPException(413, f"The body is longer than {_MAX_BODY_BYTES} bytes.")
            return message

        await self._app(scope, counted, send)


def _handle_errors(app: FastAPI) -> None:
    @app.exception_handler(PlumblineError)
    def failed(request: Request, error: PlumblineError) -> JSONResponse:
        status = 404 if isinstance(error, NotFoundError) else 400 if error.exit_code == 2 else 503
        return _problem(status, type(error).__name__, error.message, error.hint)

    @app.exception_handler(RequestValidationError)
    def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return _problem(422, "InvalidRequest", _say(error.errors()[0]), "See /openapi.json.")

    @app.exception_handler(StarletteHTTPException)
    def refused(request: Request, error: StarletteHTTPException) -> JSONResponse:
        title = HTTPStatus(error.status_code).phrase
        return _problem(error.status_code, title.replace(" ", ""), str(error.detail), "See /openapi.json.")

    @app.exception_handler(Exception)
    def broken(request: Request, error: Exception) -> JSONResponse:
        # Starlette raises it again after this reply, so the traceback is in the server's log.
        return _problem(500, "InternalError", "Something went wrong in the server.", "Its log says what.")


def _say(error: Mapping[str, Any]) -> str:
    if error["type"] == "json_invalid":
        return f"The body is not valid JSON: {error['ctx']['error']}."
    if error["loc"] == ("body",) and isinstance(error["input"], bytes):
        return "The body is not sent as JSON: set the header Content-Type: application/json."
    where = ".".join(str(part) for part in error["loc"] if part != "body")
    return f"{where}: {error['msg']}" if where else str(error["msg"])


def _problem(status: int, kind: str, detail: str, hint: str) -> JSONResponse:
    body: dict[str, Any] = {
        "type": f"urn:plumbline:{kind}",
        "title": kind,
        "status": status,
        "detail": detail,
        "hint": hint,
    }
    return JSONResponse(body, status, media_type="application/problem+json")
