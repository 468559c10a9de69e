"""Documents and the jobs that change them."""

from collections.abc import Iterable
from functools import partial
from pathlib import PurePosixPath
from typing import Annotated

from fastapi import APIRouter, Form, Query, Request
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool

from api.access import Reader, Session, Writer
from api.console.pages import PageRoute, page, see
from api.console.promotion_pages import GateSays, gate_says
from api.job_routes import look, look_at_all, retry, start_job
from api.jobs import Job, Work, files_in
from api.uploads import receive_files
from knowledge_base.errors import CheckFailedError, NotFoundError, PlumblineError
from knowledge_base.home import MAIN

_PAGE = 100
_JOBS = 50
_FOLDERS = 200

Ref = Annotated[str, Query(min_length=1, max_length=200)]
Path = Annotated[str, Query(min_length=1, max_length=1024)]
Place = Annotated[int, Query(ge=0)]


def document_pages() -> APIRouter:
    """The routes."""
    router = APIRouter(route_class=PageRoute, include_in_schema=False)
    _add_reading(router)
    _add_changes(router)
    _add_jobs(router)
    return router


def _add_reading(router: APIRouter) -> None:
    @router.get("/documents")
    def documents(
        request: Request,
        at: Reader,
        ref: Ref = MAIN,
        find: Annotated[str, Query(max_length=1024)] = "",
        after: Annotated[str, Query(max_length=1024)] = "",
    ) -> Response:
        snapshot = at.engine(ref).snapshot
        paths = sorted((path for path in snapshot.hashes() if find.lower() in path.lower()), key=str.encode)
        rest = [path for path in paths if path.encode() > after.encode()]
        shown = [(path, snapshot.titles(path)) for path in rest[:_PAGE]]
        values = {
            "shown": shown,
            "total": len(paths),
            "ref": ref,
            "find": find,
            "more": shown[-1][0] if len(rest) > _PAGE else "",
            "refs": at.hosted.live.refs(),
            "folders": _folders(paths),
        }
        return page(request, at, "documents.html", values)

    @router.get("/document")
    def document(
        request: Request, at: Reader, path: Path, ref: Ref = MAIN, start: Place = 0, end: Place = 0
    ) -> Response:
        engine = at.engine(ref)
        text = engine.snapshot.document_text(path)
        start, end = min(start, len(text)), min(max(start, end), len(text))
        parts = (text[:start], text[start:end], text[end:])
        title = engine.snapshot.titles(path)
        values = {
            "path": path,
            "ref": ref,
            "title": title,
            "commit": engine.release_ref.commit,
            "parts": parts,
        }
        return page(request, at, "document.html", values)


def _add_changes(router: APIRouter) -> None:
    @router.post("/documents")
    async def upload(request: Request, at: Writer) -> Response:
        with at.claim(None) as claim, at.jobs.receiving() as spool:
            files = await receive_files(request, files_in(spool), prefix_field="folder")
            work = Work(kind="upload", paths=tuple(file.path for file in files))
            at.about.update(paths=list(work.paths))
            content = [file.sha256 for file in files]
            run = partial(start_job, at, claim, work, Response(), spool, content=content)
            job = await run_in_threadpool(run)
        return see(request, at, "/job", id=job.id)

    @router.post("/document/delete")
    def delete(request: Request, at: Writer, path: Annotated[str, Form(max_length=1024)]) -> Response:
        at.about.update(path=path)
        if path not in at.engine().snapshot:
            raise NotFoundError("document", path, hint="It may be deleted already.")
        with at.claim(None) as claim:
            job = start_job(at, claim, Work(kind="delete", paths=(path,)), Response())
        return see(request, at, "/job", id=job.id)


def _add_jobs(router: APIRouter) -> None:
    @router.get("/jobs")
    def jobs(request: Request, at: Writer) -> Response:
        return page(request, at, "jobs.html", {"jobs": look_at_all(at, _JOBS)})

    @router.get("/job")
    def job(request: Request, at: Writer, id: Annotated[str, Query(max_length=40)]) -> Response:
        found = look(at, id)
        return page(request, at, "job.html", {"job": found, "refusal": _refusal(at, found)})

    @router.post("/job/retry")
    def run_again(request: Request, at: Writer, id: Annotated[str, Form(max_length=40)]) -> Response:
        at.about.update(id=id)
        retry(at, id)
        return see(request, at, "/job", id=id)


def _folders(paths: Iterable[str]) -> list[str]:
    """The folders that documents are in, to choose from."""
    folders = {folder.as_posix() for path in paths for folder in PurePosixPath(path).parents}
    return sorted(folders - {"."})[:_FOLDERS]


def _refusal(at: Session, job: Job) -> GateSays | None:
    """What the gate says of the candidate that it kept out, if it says so still."""
    if job.work.kind != "promote" or job.error is None or job.error.type != CheckFailedError.__name__:
        return None
    try:
        found = gate_says(at, job.work.ref)
    except PlumblineError:  # the candidate is gone since
        return None
    return found if found.said == "no" else None
