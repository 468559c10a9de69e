"""The HTTP API: POST /v1/query, POST /v1/search, GET /healthz; errors are problem+json (RFC 9457)."""

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from api.serving import Live
from knowledge_base.errors import NotFoundError, PlumblineError, UsageError
from knowledge_base.home import MAIN
from rag.answer import Answer, Context, ReleaseRef
from rag.answer_log import AnswerLog

_LOG = logging.getLogger(__name__)


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
    """What is being served."""

    status: str
    release: ReleaseRef
    documents: int
    chunks: int


def create_app(live: Live, answer_log: AnswerLog) -> FastAPI:
    """The application over one knowledge base."""
    app = FastAPI(title="Plumbline", version="0.1.0")

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
            status="ok", release=engine.release_ref, documents=manifest.documents, chunks=manifest.chunks
        )

    @app.exception_handler(PlumblineError)
    def failed(request: Request, error: PlumblineError) -> JSONResponse:
        status = 404 if isinstance(error, NotFoundError) else 400 if isinstance(error, UsageError) else 503
        return _problem(status, type(error).__name__, error.message, error.hint)

    @app.exception_handler(RequestValidationError)
    def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "body")
        return _problem(
            422, "InvalidRequest", f"{where}: {first['msg']}" if where else str(first["msg"]), "See /docs."
        )

    return app


def _problem(status: int, kind: str, detail: str, hint: str) -> JSONResponse:
    body: dict[str, Any] = {
        "type": f"urn:plumbline:{kind}",
        "title": kind,
        "status": status,
        "detail": detail,
        "hint": hint,
    }
    return JSONResponse(body, status, media_type="application/problem+json")
