"""The HTTP API, put together from its routes."""

from typing import Annotated

from fastapi import FastAPI, HTTPException, Query
from pydantic import BaseModel
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.access import Reader
from api.answering import answering_routes
from api.gate_routes import gate_routes
from api.hosting import Host
from api.openai_routes import openai_routes
from api.problems import handle_errors
from api.service_routes import following, service_routes
from knowledge_base.errors import UsageError
from knowledge_base.home import MAIN
from rag.answer import ReleaseRef

_MAX_BODY_BYTES = 256 * 1024


class DocumentText(BaseModel):
    """The extracted text of a document, or a part of it: what citations count in."""

    path: str
    release: ReleaseRef
    start: int
    end: int
    text: str


def create_app(host: Host, *, gate_token: str | None = None) -> FastAPI:
    """The application over the knowledge bases of `host`; `gate_token` is what lakeFS's webhooks send."""
    # No /docs: that page is fetched from a public server. /openapi.json describes the same.
    app = FastAPI(title="Plumbline", version="0.1.0", docs_url=None, redoc_url=None, lifespan=following(host))
    app.state.host = host
    app.add_middleware(_BodyLimit)
    handle_errors(app)
    app.include_router(answering_routes())
    app.include_router(openai_routes())
    app.include_router(service_routes(host))
    app.include_router(gate_routes(host, gate_token))

    @app.get("/v1/documents/{path:path}")
    def document(
        path: str,
        at: Reader,
        ref: Annotated[str, Query(max_length=200)] = MAIN,
        start: Annotated[int, Query(ge=0)] = 0,
        end: Annotated[int | None, Query(ge=0)] = None,
    ) -> DocumentText:
        engine = at.engine(ref)
        text = engine.snapshot.document_text(path)
        last = len(text) if end is None else end
        if not start <= last <= len(text):
            raise UsageError(
                f"{path} has {len(text)} characters: there is no {start} to {last}.",
                hint="Leave out start and end.",
            )
        return DocumentText(
            path=path, release=engine.release_ref, start=start, end=last, text=text[start:last]
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
