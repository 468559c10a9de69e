"""The HTTP API, put together from its routes."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio.to_thread
from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from api.answering import RELEASE_HEADER, answering_routes
from api.console.routes import console_routes
from api.document_routes import document_routes
from api.edge import REQUEST_HEADER, Edge
from api.evaluation_routes import evaluation_routes
from api.gate_routes import gate_routes
from api.hosting import Host
from api.job_routes import job_routes
from api.key_routes import key_routes
from api.limits import Limited
from api.observe import Metrics, metrics_routes
from api.openai_routes import openai_routes
from api.problems import PROBLEMS, handle_errors
from api.report_routes import report_routes
from api.serve_settings import ServeSettings
from api.service_routes import service_routes
from api.tracing import Tracing
from api.version_routes import version_routes


def create_app(
    host: Host,
    *,
    gate_token: str | None = None,
    settings: ServeSettings | None = None,
    tracing: Tracing | None = None,
) -> FastAPI:
    """The application over the knowledge bases of `host`; `gate_token` is what lakeFS's webhooks send."""
    settings, tracing, metrics = settings or ServeSettings(), tracing or Tracing(), Metrics(host)

    @asynccontextmanager
    async def at_work(app: FastAPI) -> AsyncIterator[None]:
        async with host.at_work(app):
            yield
        await anyio.to_thread.run_sync(tracing.close)

    # No /docs: that page is fetched from a public server. /openapi.json describes the same.
    app = _Application(
        lambda inner: _around(inner, settings, metrics, tracing),
        title="Plumbline",
        version="0.1.0",
        docs_url=None,
        redoc_url=None,
        responses=PROBLEMS,
        lifespan=at_work,
    )
    app.state.host = host
    handle_errors(app)
    app.include_router(answering_routes())
    app.include_router(openai_routes())
    app.include_router(document_routes())
    app.include_router(job_routes())
    app.include_router(key_routes())
    app.include_router(version_routes())
    app.include_router(evaluation_routes())
    app.include_router(report_routes())
    app.include_router(service_routes(host))
    app.include_router(gate_routes(host, gate_token))
    app.include_router(metrics_routes(metrics))
    app.include_router(console_routes())
    return app


def _around(app: ASGIApp, settings: ServeSettings, metrics: Metrics, tracing: Tracing) -> ASGIApp:
    """What every request passes before it reaches a route, and every response after."""
    app = Limited(app, settings, metrics)
    if settings.cors_origins:
        app = CORSMiddleware(
            app,
            allow_origins=settings.cors_origins,
            allow_methods=("GET", "POST", "PUT", "PATCH", "DELETE"),
            allow_headers=("Authorization", "Content-Type", "Idempotency-Key", REQUEST_HEADER),
            expose_headers=(REQUEST_HEADER, RELEASE_HEADER, "Retry-After", "RateLimit", "RateLimit-Policy"),
        )
    return Edge(app, metrics, tracing, log_questions=settings.log_questions)


class _Application(FastAPI):
    """FastAPI keeps middleware inside its handler of unexpected errors; ours must see those replies too."""

    def __init__(self, around: Callable[[ASGIApp], ASGIApp], **given: Any) -> None:
        super().__init__(**given)
        self._around = around

    def build_middleware_stack(self) -> ASGIApp:
        return self._around(super().build_middleware_stack())
