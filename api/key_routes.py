"""The routes of keys and of the audit log, for admins of the whole server."""

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from fastapi import Path as InPath
from pydantic import BaseModel, ConfigDict, Field

from api.access import Visitor
from api.audit import Entry
from api.dates import Moment
from api.keys import Key, Role
from knowledge_base.access import GROUP

_LARGEST = 2**63 - 1
"""The largest number that a database compares with."""
_KEY_ID = "^[0-9a-f]{12}$"
_Group = Annotated[str, Field(pattern=f"^{GROUP}$")]


class NewKey(BaseModel):
    """A key to make; no `knowledge_bases` means all of the server."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1, max_length=100)
    role: Role = "reader"
    groups: list[_Group] = Field(default=[], max_length=100)
    knowledge_bases: list[Annotated[str, Field(min_length=1, max_length=200)]] = Field(
        default=[], max_length=100
    )
    expires_at: Moment | None = None


class ShownKey(BaseModel):
    """A key without its secret: `prefix` is how it begins."""

    id: str
    prefix: str
    name: str
    role: Role
    state: str
    groups: list[str]
    knowledge_bases: list[str]
    created_at: datetime
    created_by: str
    expires_at: datetime | None
    revoked_at: datetime | None
    used_at: datetime | None


class MadeKey(ShownKey):
    """A new key; `key` is shown this once."""

    key: str


class AuditPage(BaseModel):
    """What was done, newest first; ask again with `before` = `next` for older rows."""

    entries: list[Entry]
    next: int | None


def key_routes() -> APIRouter:
    """The routes."""
    router = APIRouter(prefix="/v1", tags=["keys"])

    @router.get("/keys")
    def list_keys(visit: Visitor) -> list[ShownKey]:
        """List every key that was ever created, newest first."""
        return [_shown(key) for key in visit.keys.list()]

    @router.post("/keys", status_code=201)
    def create_key(body: NewKey, visit: Visitor, response: Response) -> MadeKey:
        """Create a key. Its secret is in this reply and nowhere else."""
        response.headers["Cache-Control"] = "no-store"
        secret, key = visit.keys.create(**body.model_dump(), by=visit.caller)
        return MadeKey.model_validate({**_shown(key).model_dump(), "key": secret})

    @router.delete("/keys/{id}")
    def revoke_key(id: Annotated[str, InPath(pattern=_KEY_ID)], visit: Visitor) -> ShownKey:
        """Revoke a key for good; from the next request on it opens nothing."""
        return _shown(visit.keys.revoke(id, by=visit.caller))

    @router.get("/audit")
    def read_audit(
        visit: Visitor,
        before: Annotated[
            int | None, Query(ge=1, le=_LARGEST, description="`next` of the page before.")
        ] = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    ) -> AuditPage:
        """Read who changed what, newest first."""
        found = visit.keys.audit.entries(limit + 1, before)
        return AuditPage(entries=found[:limit], next=found[limit - 1].id if len(found) > limit else None)

    return router


def _shown(key: Key) -> ShownKey:
    values: dict[str, Any] = key.as_json()
    return ShownKey.model_validate(values)
