"""The HTTP API, put together from its routes."""

from fastapi import FastAPI, HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.answering import answering_routes
from api.console.routes import console_routes
from api.document_routes import document_routes
from api.evaluation_routes import evaluation_routes
from api.gate_routes import gate_routes
from api.hosting import Host
from api.job_routes import job_routes
from api.openai_routes import openai_routes
from api.problems import PROBLEMS, handle_errors
from api.service_routes import service_routes
from api.uploads import MAX_UPLOAD_BYTES
from api.version_routes import version_routes

_MAX_BODY_BYTES = 256 * 1024


def create_app(host: Host, *, gate_token: str | None = None) -> FastAPI:
    """The application over the knowledge bases of `host`; `gate_token` is what lakeFS's webhooks send."""
    # No /docs: that page is fetched from a public server. /openapi.json describes the same.
    app = FastAPI(
        title="Plumbline",
        version="0.1.0",
        docs_url=None,
        redoc_url=None,
        responses=PROBLEMS,
        lifespan=host.at_work,
    )
    app.state.host = host
    app.add_middleware(_BodyLimit)
    handle_errors(app)
    app.include_router(answering_routes())
    app.include_router(openai_routes())
    app.include_router(document_routes())
    app.include_router(job_routes())
    app.include_router(version_routes())
    app.include_router(evaluation_routes())
    app.include_router(service_routes(host))
    app.include_router(gate_routes(host, gate_token))
    app.include_router(console_routes())
    return app


class _BodyLimit:
    """Refuses a body as soon as it is longer than any question may be, before it fills the memory."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        received = 0
        uploads = scope.get("path") in ("/v1/documents", "/documents")
        limit = MAX_UPLOAD_BYTES if uploads else _MAX_BODY_BYTES

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                raise HTTPException(413, f"The body is longer than {limit} bytes.")
            return message

        await self._app(scope, counted, send)
