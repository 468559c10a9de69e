"""The gate as lakeFS asks it: a webhook before a merge into main and before a tag.

It looks a stored verdict up and changes nothing, so lakeFS may ask as often as it likes. Whoever asks knows
the token of the server's settings; what he says besides the commit's id is not believed but read again.
"""

import hmac
from typing import Annotated

from fastapi import APIRouter, Header, HTTPException
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from api.hosting import Host, Hosted
from api.problems import problem
from eval.admission import Admission, admit_merge, admit_tag
from knowledge_base.errors import NotFoundError
from knowledge_base.home import MAIN
from knowledge_base.version_store_lakefs_actions import GATE_ROUTE

_SCHEME = "Bearer "


class Event(BaseModel):
    """The body of lakeFS's webhook, as far as it counts here."""

    model_config = ConfigDict(extra="ignore")

    event_type: str = Field(max_length=100)
    repository_id: str = Field(max_length=200)
    commit_id: str = Field(min_length=1, max_length=200, description="What main would be, or the tag name.")
    branch_id: str = Field(default="", max_length=1000)


def gate_routes(host: Host, token: str | None) -> APIRouter:
    """The route; without a `token` in the server's settings nobody may ask."""
    router = APIRouter()

    @router.post(GATE_ROUTE, response_model=Admission, responses={422: {"description": "Refused, and why."}})
    def gate(event: Event, authorization: Annotated[str, Header(max_length=1000)] = "") -> JSONResponse:
        _require(token, authorization)
        at = _meant(host, event.repository_id)
        if event.event_type == "pre-create-tag":
            said = admit_tag(at.knowledge_base, event.commit_id)
        elif event.event_type == "pre-merge" and event.branch_id == MAIN:
            said = admit_merge(at.knowledge_base, event.commit_id)
        else:
            said = Admission(
                allowed=True, reason="Only main and tags have a gate.", candidate=event.commit_id
            )
        if said.allowed:
            return JSONResponse(said.model_dump())
        refusal = problem(422, "GateRefused", said.reason, "Nothing moved.")
        return JSONResponse({**refusal, **said.model_dump()}, 422, media_type="application/problem+json")

    return router


def _require(token: str | None, authorization: str) -> None:
    if not token:
        raise HTTPException(
            403, "This server has no token for gate webhooks: set PLUMBLINE_GATE_TOKEN for it."
        )
    given = authorization.removeprefix(_SCHEME) if authorization.startswith(_SCHEME) else ""
    if not hmac.compare_digest(given.encode(), token.encode()):
        raise HTTPException(401, "Not the token of this server's PLUMBLINE_GATE_TOKEN.")


def _meant(host: Host, repository: str) -> Hosted:
    for one in host:
        if one.knowledge_base.repository.shared and one.knowledge_base.repository.id == repository:
            return one
    raise NotFoundError(
        "lakeFS repository", repository, hint="This server serves others: see `rag serve --kb`."
    )
