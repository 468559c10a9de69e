"""Signing in with a key, and managing keys."""

from datetime import UTC, datetime, timedelta
from typing import Annotated

from fastapi import APIRouter, Form, Request
from fastapi.responses import RedirectResponse, Response

from api.access import COOKIE, Reader, Visitor
from api.console.pages import PageRoute, inside, page, see
from api.hosting import Host
from api.keys import ROLES, Role

_ENTRIES = 50
_SIGNED_IN = timedelta(hours=12)


def key_pages() -> APIRouter:
    """The routes."""
    router = APIRouter(route_class=PageRoute, include_in_schema=False)
    _add_signing_in(router)
    _add_keys(router)
    return router


def _add_signing_in(router: APIRouter) -> None:
    @router.get("/login")
    def ask_key(request: Request, back: str = "/") -> Response:
        return page(request, None, "login.html", {"back": inside(back)})

    @router.post("/login")
    def sign_in(
        request: Request,
        key: Annotated[str, Form(max_length=200)],
        back: Annotated[str, Form(max_length=9000)] = "/",
    ) -> Response:
        host: Host = request.app.state.host
        host.keys.caller(key.strip())
        reply = RedirectResponse(inside(back), 303)
        # No script can read it, and no other site can make a browser send it.
        reply.set_cookie(
            COOKIE,
            key.strip(),
            max_age=int(_SIGNED_IN.total_seconds()),
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
        return reply

    @router.post("/logout")
    def sign_out(request: Request) -> Response:
        reply = RedirectResponse("/login", 303)
        reply.delete_cookie(COOKIE, httponly=True, samesite="strict")
        return reply


def _add_keys(router: APIRouter) -> None:
    @router.get("/keys")
    def keys(request: Request, at: Reader, visit: Visitor) -> Response:
        found = {"keys": visit.keys.list(), "entries": visit.keys.audit.entries(_ENTRIES), "made": ""}
        return page(request, at, "keys.html", {**found, "roles": ROLES})

    @router.post("/keys")
    def create(
        request: Request,
        at: Reader,
        visit: Visitor,
        name: Annotated[str, Form(max_length=100)],
        role: Annotated[Role, Form()] = "reader",
        groups: Annotated[str, Form(max_length=2000)] = "",
        days: Annotated[int, Form(ge=1, le=3650)] = 365,
    ) -> Response:
        secret, _ = visit.keys.create(
            name.strip(),
            role,
            groups=[group.strip() for group in groups.split(",") if group.strip()],
            expires_at=datetime.now(UTC) + timedelta(days=days),
            by=visit.caller,
        )
        # Shown in this reply and nowhere else, so there is no page to go to.
        found = {"keys": visit.keys.list(), "entries": visit.keys.audit.entries(_ENTRIES), "made": secret}
        return page(request, at, "keys.html", {**found, "roles": ROLES})

    @router.post("/keys/revoke")
    def revoke(
        request: Request, at: Reader, visit: Visitor, id: Annotated[str, Form(pattern="^[0-9a-f]{12}$")]
    ) -> Response:
        visit.keys.revoke(id, by=visit.caller)
        return see(request, at, "/keys")
