"""What every page of the console has: frame, links, headers, and errors that are pages too."""

import hashlib
import re
from collections.abc import Callable, Coroutine, Mapping
from datetime import datetime
from functools import cache, partial
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, RedirectResponse
from fastapi.routing import APIRoute
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from starlette.exceptions import HTTPException

from api.access import Session, Visit, is_own_origin
from api.console.charts import kind_of
from api.console.naming import named
from api.problems import problem_of
from knowledge_base.errors import ForbiddenError, PlumblineError, UnauthenticatedError

STATIC = Path(__file__).with_name("static")
_POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; "
    "frame-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_MARKER = re.compile(r"\[(\d{1,3})\]")
_THEME = "plumbline_theme"
THEMES = ("auto", "light", "dark")

_Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class PageRoute(APIRoute):
    """A route whose errors are pages, and which no other site can make a browser post to."""

    def get_route_handler(self) -> _Handler:
        """The handler within that guard."""
        handle = super().get_route_handler()

        async def guarded(request: Request) -> Response:
            try:
                if request.method == "POST":
                    check_same_origin(request)
                return await handle(request)
            except PlumblineError as error:
                problem = problem_of(error)
                if isinstance(error, UnauthenticatedError) and request.method == "GET":
                    back = urlencode({"back": f"{request.url.path}?{request.url.query}"})
                    return RedirectResponse(f"/login?{back}", 303)
                return error_page(request, problem["status"], error.message, error.hint)
            except RequestValidationError as error:
                first = error.errors()[0]
                return error_page(request, 422, f"{first['loc'][-1]}: {first['msg']}.", "")
            except HTTPException as error:
                return error_page(request, error.status_code, str(error.detail), "")

        return guarded


def check_same_origin(request: Request) -> None:
    """Refuse what another site made a browser send, by the headers that no page can forge.

    Raises ForbiddenError.
    """
    # Old browsers send Origin only, and over plain HTTP all do; a client that sends neither is no browser.
    site = request.headers.get("sec-fetch-site")
    same = site in ("same-origin", "none") if site is not None else is_own_origin(request)
    if not same:
        raise ForbiddenError(
            "Another site made your browser send this.", hint="Open the console itself and try again there."
        )


def page(
    request: Request, at: Session | None, template: str, values: Mapping[str, object], status: int = 200
) -> HTMLResponse:
    """A page in its frame; `at` is None where it is about no knowledge base."""
    context: dict[str, object] = {
        "at": at,
        "kb": at.name if at else "",
        "link": _linker(request, at),
        "named": partial(named, at) if at else None,
        **values,
    }
    context["theme"] = request.cookies.get(_THEME, "auto")
    context["request_path"] = request.url.path
    context["here"] = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    context["served"] = at.engine() if at else None
    context["bases"] = [one.name for one in Visit(request.app.state.host, at.caller)] if at else []
    return HTMLResponse(environment().get_template(template).render(context), status, HEADERS)


def error_page(request: Request, status: int, message: str, hint: str) -> HTMLResponse:
    """What went wrong and what to do next, as a page."""
    return page(request, None, "error.html", {"message": message, "hint": hint, "code": status}, status)


def see(request: Request, at: Session | None, path: str, /, **query: Any) -> RedirectResponse:
    """To another page after a form was sent: reloading that one sends nothing again."""
    return RedirectResponse(_linker(request, at)(path, **query), 303)


def inside(address: str) -> str:
    """The path and query of an address: a form or a link must not lead to another site."""
    try:
        place = urlsplit(address)
    except ValueError:  # such as //[
        return "/"
    path = "/" + place.path.lstrip("/\\")
    return path + (f"?{place.query}" if place.query else "")


def _linker(request: Request, at: Session | None) -> Callable[..., str]:
    """Makes links that stay in the knowledge base that the page is about."""
    kb = {"kb": request.query_params["kb"]} if at is not None and request.query_params.get("kb") else {}

    def link(path: str, /, fragment: str = "", **query: Any) -> str:
        # `from` and the like are keywords in Python: a template writes `from_`.
        wanted = {
            key.rstrip("_"): str(value) for key, value in query.items() if value is not None and value != ""
        }
        asked = urlencode({**kb, **wanted})
        return path + (f"?{asked}" if asked else "") + (f"#{fragment}" if fragment else "")

    return link


@cache
def environment() -> Environment:
    """The templates. Everything is escaped; a name that is not there is an error."""
    made = Environment(
        loader=PackageLoader("api.console"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(
        short=lambda commit: commit[:10],
        when=_when,
        figure=_figure,
        kind=kind_of,
        cited=_cited,
        plural=_plural,
        setting=_setting,
        day=_day,
        capitalize_first=lambda text: text[:1].upper() + text[1:],
    )
    made.globals["asset"] = _asset
    return made


@cache
def _asset(name: str) -> str:
    """The address of a static file; it changes with the content, so browsers may keep it."""
    digest = hashlib.sha256((STATIC / name).read_bytes()).hexdigest()[:12]
    return f"/static/{name}?{digest}"


def _when(date: str | datetime) -> Markup:
    at = datetime.fromisoformat(date) if isinstance(date, str) else date
    return Markup('<time datetime="{}">{} {}</time>').format(
        at.isoformat(), f"{at.day} {at:%b %Y}", f"{at:%H:%M}"
    )


def _figure(value: Any, digits: int = 3) -> str:
    if value is None:
        return "–"
    return f"{value:.{digits}f}".replace("-", "−") if isinstance(value, float) else f"{value}"


def _day(date: str) -> str:
    at = datetime.fromisoformat(date)
    return f"{at.day} {at:%b %Y}"


def _setting(value: Any) -> str:
    """The value of a setting as plumbline.toml's readers know it, not as Python writes it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        value = [f"{key} {_setting(one)}" for key, one in value.items()]
    if isinstance(value, list | tuple):
        value = ", ".join(map(str, value))
    return "–" if value in ("", None) else str(value)


def _plural(count: int, word: str) -> str:
    return f"{count:,} {word}{'' if count == 1 else 's'}"


def _cited(text: str, citations: Mapping[int, str]) -> Markup:
    """The text of an answer, its markers turned into links to the quoted passages."""
    parts, last = [], 0
    for found in _MARKER.finditer(text):
        target = citations.get(int(found[1]))
        if target is None:
            continue
        parts.append(escape(text[last : found.start()].rstrip()))
        parts.append(
            Markup('<a class="cite" href="#{}" title="Source {}">{}</a>').format(target, found[1], found[1])
        )
        last = found.end()
    return Markup("").join([*parts, escape(text[last:])])


def keep_theme(reply: Response, theme: str) -> None:
    """Remember which of the two looks a reader wants."""
    reply.set_cookie(_THEME, theme, max_age=31_536_000, httponly=True, samesite="strict")
