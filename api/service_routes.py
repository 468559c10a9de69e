"""What operators and their machines ask of a server: is it alive, is it ready, look at main now."""

from typing import Literal

import anyio.to_thread
from anyio import CapacityLimiter
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from api.access import ANYONE, Anyone, Reader, who_asks
from api.hosting import Host
from api.keys import Caller
from api.readiness import Probe, Readiness
from rag.answer import ReleaseRef


class Health(BaseModel):
    """What is being served; `stale` when main's newest release could not be opened, with the reason."""

    status: Literal["ok", "stale"]
    release: ReleaseRef
    documents: int
    chunks: int
    detail: str = ""


def service_routes(host: Host) -> APIRouter:
    """The routes."""
    router = APIRouter()
    probe = Probe(host)
    # A thread of its own: asked while every other is busy, it must not wait in their line.
    alone = CapacityLimiter(1)

    @router.get("/healthz")
    def health(at: Anyone) -> Health:
        """Say what is served; without a key, counting only what is open to all."""
        engine, problem = at.engine(), at.hosted.live.problem
        manifest = engine.release.manifest
        return Health(
            status="stale" if problem else "ok",
            release=engine.release_ref,
            documents=manifest.documents,
            chunks=manifest.chunks,
            detail=problem if at.caller.sees_all else "",
        )

    @router.get("/readyz", response_model=Readiness, responses={503: {"model": Readiness}})
    async def ready(request: Request) -> JSONResponse:
        """Say whether requests should be sent here; of which knowledge bases, to whoever may use them."""
        found = await anyio.to_thread.run_sync(lambda: _seen(probe.look(), who_asks(request)), limiter=alone)
        return JSONResponse(found.model_dump(), found.http_status)

    @router.post("/v1/follow", status_code=202)
    def follow(at: Reader) -> dict[str, str]:
        """Look where main is at once: for a webhook after a merge; without it that takes seconds."""
        at.hosted.live.wake()
        return {"served": at.hosted.live.engine().release_ref.commit}

    return router


def _seen(found: Readiness, caller: Caller) -> Readiness:
    """What a caller is told of it: nothing of knowledge bases that they could not ask."""
    theirs = {
        name: checks
        for name, checks in found.knowledge_bases.items()
        if caller != ANYONE and caller.may_use(name)
    }
    return found.model_copy(update={"knowledge_bases": theirs})
