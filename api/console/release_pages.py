"""Releases: the line of them, one in full, what differs between two, and going back."""

from typing import Annotated, Any

from fastapi import APIRouter, Form, Query, Request
from fastapi.responses import Response

from api import visible
from api.access import Reader, Session, Writer
from api.console.charts import knots
from api.console.pages import PageRoute, page, see
from api.console.text_difference import LINES, compare
from knowledge_base.errors import NotFoundError
from knowledge_base.history import list_branches
from knowledge_base.home import MAIN
from knowledge_base.reopening import reopened
from knowledge_base.republishing import rollback

_PAGE = 40

From = Annotated[str, Query(alias="from", min_length=1, max_length=200)]
Ref = Annotated[str, Query(min_length=1, max_length=200)]
Line = Annotated[int, Query(ge=0)]


def release_pages() -> APIRouter:
    """The routes."""
    router = APIRouter(route_class=PageRoute, include_in_schema=False)
    _add_releases(router)
    _add_differences(router)
    _add_rollback(router)
    return router


def _add_releases(router: APIRouter) -> None:
    @router.get("/releases")
    def releases(
        request: Request,
        at: Reader,
        since: Annotated[str, Query(alias="from", max_length=200)] = MAIN,
        done: str = "",
    ) -> Response:
        repository = at.knowledge_base.repository
        found = visible.releases(at, since, _PAGE + 1)
        main, more = found[:_PAGE], found[_PAGE:]
        branches = _own_releases(at, {entry["commit"] for entry in found}) if since == MAIN else []
        drawn = knots(main, branches)
        values = {
            "knots": drawn,
            "lanes": min(5, 1 + max((knot.lane for knot in drawn), default=0)),
            "older": more[0]["commit"] if more else "",
            "head": repository.resolve(MAIN),
            "first": since == MAIN,
            "done": done,
        }
        return page(request, at, "releases.html", values)

    @router.get("/release")
    def release(request: Request, at: Reader, ref: Ref = MAIN) -> Response:
        described = visible.release(at, ref)
        repository = at.knowledge_base.repository
        head = repository.resolve(MAIN)
        values = {
            "release": described,
            "ref": ref,
            "head": head,
            "candidate": repository.find_merge_base(described["commit"], head) != described["commit"],
        }
        return page(request, at, "release.html", values)


def _add_differences(router: APIRouter) -> None:
    @router.get("/diff")
    def diff(
        request: Request,
        at: Reader,
        left: From,
        to: Ref = MAIN,
    ) -> Response:
        found = visible.difference(at, left, to)
        values = {"found": found, "left": left, "right": to, "refs": at.hosted.live.refs()}
        return page(request, at, "diff.html", values)

    @router.get("/diff/document")
    def document(
        request: Request,
        at: Reader,
        path: Annotated[str, Query(max_length=1024)],
        left: From,
        to: Ref = MAIN,
        before: Annotated[str, Query(max_length=1024)] = "",
        old_line: Line = 0,
        new_line: Line = 0,
    ) -> Response:
        texts = _text(at, left, before or path), _text(at, to, path)
        values = {
            "path": path,
            "before": before,
            "left": left,
            "right": to,
            "part": compare(*texts, (old_line, new_line)),
            "size": LINES,
        }
        return page(request, at, "diff_document.html", values)


def _add_rollback(router: APIRouter) -> None:
    @router.get("/rollback")
    def ask_rollback(request: Request, at: Writer, ref: Ref) -> Response:
        head = at.knowledge_base.repository.resolve(MAIN)
        target = visible.release(at, ref)
        found = visible.difference(at, head, target["commit"])
        opened = reopened(at.knowledge_base, head, target["commit"]) if at.caller.sees_all else []
        values = {"found": found, "target": target, "head": head, "opened": opened}
        return page(request, at, "rollback.html", values)

    @router.post("/rollback")
    def roll_back(
        request: Request,
        at: Writer,
        ref: Annotated[str, Form(min_length=1, max_length=200)],
        expected: Annotated[str, Form(pattern="^[0-9a-f]{40}([0-9a-f]{24})?$")],
        reopen: Annotated[str, Form(max_length=3)] = "",
    ) -> Response:
        at.about.update(ref=ref, reopen=bool(reopen))
        if reopen:
            at.require("admin")
        with visible.reopening(at):
            commit = rollback(at.knowledge_base, ref, expected=expected, reopen=bool(reopen))
        at.about.update(commit=commit.id, content_of=commit.metadata["rollback"])
        at.hosted.live.follow()
        return see(request, at, "/releases", done=commit.id)


def _own_releases(at: Session, main: set[str]) -> list[list[dict[str, Any]]]:
    """The releases of each branch that are not main's, newest first."""
    found = []
    for branch in list_branches(at.knowledge_base.repository):
        own: list[dict[str, Any]] = []
        for entry in visible.releases(at, branch["branch"], _PAGE):
            if entry["commit"] in main:
                break
            own.append(entry)
        # One that was made from a release further down than this page is not drawn.
        if own and own[-1]["parents"][0] in main:
            found.append(own)
    return found


def _text(at: Session, ref: str, path: str) -> str:
    try:
        return at.engine(ref).snapshot.document_text(path)
    except NotFoundError:
        at.knowledge_base.repository.resolve(ref)  # a document may be missing on one side, not the release
        return ""
