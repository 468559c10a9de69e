"""Errors as problem+json (RFC 9457)."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.routing import Match

from api.request_context import REQUEST_ID
from knowledge_base.errors import (
    AlreadyExistsError,
    BusyError,
    DirtyBranchError,
    ExpiredError,
    ForbiddenError,
    HeadMovedError,
    HookFailedError,
    IncompatibleError,
    JobStateError,
    KeyInUseError,
    KeyReusedError,
    LockedError,
    MergeConflictError,
    MissingExtraError,
    NoChangesError,
    NotFoundError,
    OutdatedError,
    PlumblineError,
    ProtectedError,
    UnauthenticatedError,
)

_CONFLICTS = (
    AlreadyExistsError,
    DirtyBranchError,
    HeadMovedError,
    HookFailedError,
    IncompatibleError,
    JobStateError,
    KeyInUseError,
    LockedError,
    MergeConflictError,
    NoChangesError,
    OutdatedError,
    ProtectedError,
)
_STATUSES = {
    UnauthenticatedError: 401,
    ForbiddenError: 403,
    NotFoundError: 404,
    ExpiredError: 410,
    BusyError: 429,
    MissingExtraError: 503,
    KeyReusedError: 422,
    **dict.fromkeys(_CONFLICTS, 409),
}
_METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")
_OPENAI = ("/v1/chat/completions", "/v1/models")
_BY_EXIT_CODE = {1: 409, 2: 400}


class Problem(BaseModel):
    """What went wrong, as RFC 9457 puts it; `hint` says what to do next."""

    type: str
    title: str
    status: int
    detail: str
    hint: str
    request_id: str


_PROBLEM = {"content": {"application/problem+json": {"schema": Problem.model_json_schema()}}}
PROBLEMS: dict[int | str, dict[str, Any]] = {
    "4XX": {"description": "The request cannot be carried out as it is.", **_PROBLEM},
    "5XX": {
        "description": "Something that the server depends on failed, or it has too much to do.",
        **_PROBLEM,
    },
}
"""What OpenAPI says of errors, for every route."""


def handle_errors(app: FastAPI) -> None:
    """Give every error of the application the one shape."""

    @app.exception_handler(PlumblineError)
    def failed(request: Request, error: PlumblineError) -> JSONResponse:
        return _response(request, problem_of(error))

    @app.exception_handler(RequestValidationError)
    def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        body = problem(422, "InvalidRequest", _say(error.errors()[0]), "See /openapi.json.")
        return _response(request, body)

    @app.exception_handler(StarletteHTTPException)
    def refused(request: Request, error: StarletteHTTPException) -> JSONResponse:
        title = HTTPStatus(error.status_code).phrase.replace(" ", "")
        # The headers too: 405 has to say what is allowed, 401 how to authenticate, 429 when to come back.
        headers = dict(error.headers or {})
        if error.status_code == 405:
            headers["Allow"] = ", ".join(_allowed(request))
        body = problem(error.status_code, title, str(error.detail), "See /openapi.json.")
        return _response(request, body, headers)

    @app.exception_handler(Exception)
    def broken(request: Request, error: Exception) -> JSONResponse:
        # Starlette raises it again after this reply, so the traceback is in the server's log.
        body = problem(500, "InternalError", "Something went wrong in the server.", "Its log says what.")
        return _response(request, body)


def _allowed(request: Request) -> list[str]:
    """What may be done with an address; Starlette names the methods of the first route that fits alone."""
    return [
        method
        for method in _METHODS
        if any(r.matches({**request.scope, "method": method})[0] == Match.FULL for r in request.app.routes)
    ]


def problem_of(error: PlumblineError) -> dict[str, Any]:
    """The problem that one of our errors is to the caller."""
    status = _STATUSES.get(type(error), _BY_EXIT_CODE.get(error.exit_code, 503))
    return problem(status, type(error).__name__, error.message, error.hint)


def problem(status: int, kind: str, detail: str, hint: str) -> dict[str, Any]:
    """The members of a problem+json body."""
    return {
        "type": f"urn:plumbline:{kind}",
        "title": kind,
        "status": status,
        "detail": detail,
        "hint": hint,
        "request_id": REQUEST_ID.get(),
    }


def openai_error(body: Mapping[str, Any]) -> dict[str, Any]:
    """A problem as clients of OpenAI's protocol look for it, under `error`."""
    message = " ".join(filter(None, (body["detail"], body["hint"])))
    return {"message": message, "type": body["title"], "param": None, "code": body["status"]}


def _say(error: Mapping[str, Any]) -> str:
    if error["type"] == "json_invalid":
        return f"The body is not valid JSON: {error['ctx']['error']}."
    if error["loc"] == ("body",) and isinstance(error["input"], bytes):
        return "The body is not sent as JSON: set the header Content-Type: application/json."
    where = ".".join(str(part) for part in error["loc"] if part != "body")
    return f"{where}: {error['msg']}" if where else str(error["msg"])


def _response(
    request: Request, body: dict[str, Any], headers: Mapping[str, str] | None = None
) -> JSONResponse:
    if request.url.path.startswith(_OPENAI):
        body = {**body, "error": openai_error(body)}
    if body["status"] == 401:
        headers = {**(headers or {}), "WWW-Authenticate": 'Bearer realm="plumbline"'}
    return JSONResponse(body, body["status"], headers, media_type="application/problem+json")
