"""The console's routes, put together from its pages."""

from typing import Annotated

from fastapi import APIRouter, Form, Request
from fastapi.responses import FileResponse, RedirectResponse, Response
from starlette.exceptions import HTTPException

from api.console.ask_pages import ask_pages
from api.console.document_pages import document_pages
from api.console.evaluation_pages import evaluation_pages
from api.console.golden_pages import golden_pages
from api.console.key_pages import key_pages
from api.console.pages import STATIC, THEMES, PageRoute, inside, keep_theme
from api.console.promotion_pages import promotion_pages
from api.console.release_pages import release_pages

_ASSETS = {"app.css": "text/css", "app.js": "text/javascript", "mark.svg": "image/svg+xml"}


def console_routes() -> APIRouter:
    """Every page."""
    router = APIRouter(include_in_schema=False)
    router.include_router(_frame())
    router.include_router(ask_pages())
    router.include_router(release_pages())
    router.include_router(promotion_pages())
    router.include_router(evaluation_pages())
    router.include_router(golden_pages())
    router.include_router(document_pages())
    router.include_router(key_pages())
    return router


def _frame() -> APIRouter:
    router = APIRouter(route_class=PageRoute, include_in_schema=False)

    @router.get("/static/{name}")
    def asset(name: str) -> Response:
        if name not in _ASSETS:
            raise HTTPException(404, "There is no such file.")
        # Its address holds a hash of its content: a browser need not ask again.
        headers = {
            "Cache-Control": "public, max-age=31536000, immutable",
            "X-Content-Type-Options": "nosniff",
        }
        return FileResponse(STATIC / name, media_type=_ASSETS[name], headers=headers)

    @router.post("/theme")
    def theme(
        request: Request, theme: Annotated[str, Form()], back: Annotated[str, Form(max_length=9000)] = "/"
    ) -> Response:
        reply = RedirectResponse(inside(back), 303)
        keep_theme(reply, theme if theme in THEMES else THEMES[0])
        return reply

    return router
