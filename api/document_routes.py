"""The routes of documents: list, read, upload, delete."""

from functools import partial
from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Query, Request, Response
from fastapi import Path as InPath
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool
from starlette.convertors import PathConvertor, register_url_convertor

from api.access import Reader, Session, Writer
from api.idempotency import IdempotencyKey
from api.job_routes import Asked, Limit, start_job
from api.jobs import Job, Work, files_in
from api.uploads import MAX_PREFIX, UPLOAD_BODY, receive_files
from knowledge_base.errors import NotFoundError
from knowledge_base.home import MAIN
from knowledge_base.release import DOCUMENTS_PREFIX
from rag.answer import ReleaseRef
from rag.engine import Engine

Ref = Annotated[str, Query(min_length=1, max_length=200, description="Branch, tag, commit or main@{date}.")]
Branch = Annotated[str, Query(min_length=1, max_length=100, description="Branch to publish on.")]
Message = Annotated[str | None, Query(min_length=1, max_length=2000, description="Say what this release is.")]
DocumentPath = Annotated[str, InPath(min_length=1, max_length=1024, description="Path of the document.")]


class _Document(PathConvertor):
    """The rest of a URL's path; Starlette's own leaves out the end of a line, and finds another document."""

    regex = r"[\s\S]+"


register_url_convertor("document", _Document())


class DocumentEntry(BaseModel):
    """A document in a list."""

    path: str
    title: str
    sha256: str


class DocumentPage(BaseModel):
    """Documents by path; ask again with `after` = `next` for more."""

    release: ReleaseRef
    documents: list[DocumentEntry]
    total: int
    next: str | None


class DocumentText(BaseModel):
    """The extracted text of a document, or a part of it: what citations count in."""

    path: str
    release: ReleaseRef
    start: int
    end: int
    text: str


class Ingest(Asked):
    """What to publish the files on disk as."""

    branch: str = Field(default=MAIN, min_length=1, max_length=100)
    message: str | None = Field(default=None, min_length=1, max_length=2000)


def document_routes() -> APIRouter:
    """The routes."""
    router = APIRouter(prefix="/v1", tags=["documents"])
    _add_reading(router)
    _add_files(router)
    _add_changes(router)
    _add_working_copy(router)
    return router


def _add_reading(router: APIRouter) -> None:
    @router.get("/documents")
    def list_documents(
        at: Reader,
        ref: Ref = MAIN,
        prefix: Annotated[str, Query(max_length=1024, description="Only paths that start so.")] = "",
        after: Annotated[str, Query(max_length=1024, description="`next` of the page before.")] = "",
        limit: Limit = 100,
    ) -> DocumentPage:
        """List the documents of a release by path."""
        engine = at.engine(ref)
        hashes = engine.snapshot.hashes()
        paths = sorted((path for path in hashes if path.startswith(prefix)), key=str.encode)
        rest = [path for path in paths if path.encode() > after.encode()]
        page = [
            DocumentEntry(path=path, title=engine.snapshot.titles(path), sha256=hashes[path])
            for path in rest[:limit]
        ]
        more = page[-1].path if len(rest) > limit else None
        return DocumentPage(release=engine.release_ref, documents=page, total=len(paths), next=more)

    @router.get("/documents/{path:document}")
    def read_document(
        path: DocumentPath,
        at: Reader,
        ref: Ref = MAIN,
        start: Annotated[int, Query(ge=0)] = 0,
        end: Annotated[int | None, Query(ge=0)] = None,
    ) -> DocumentText:
        """Read the text of a document that citations count in."""
        engine = at.engine(ref)
        text = engine.snapshot.document_text(path)
        last = len(text) if end is None else end
        if not start <= last <= len(text):
            hint = f"The text has {len(text)} characters."
            raise NotFoundError("part of the document", f"{path}[{start}:{last}]", hint=hint)
        return DocumentText(
            path=path, release=engine.release_ref, start=start, end=last, text=text[start:last]
        )


def _add_files(router: APIRouter) -> None:
    @router.get(
        "/files/{path:document}",
        response_class=Response,
        responses={200: {"content": {"application/octet-stream": {}}, "description": "Its bytes."}},
    )
    def download_document(path: DocumentPath, at: Reader, ref: Ref = MAIN) -> Response:
        """Download a document as it was ingested, byte for byte."""
        engine = _find(at, ref, path)
        commit = engine.release_ref.commit
        content = at.knowledge_base.repository.get_object(commit, DOCUMENTS_PREFIX + path)
        # Whatever the file is, a browser must keep it and not show it: it may be a page with a script.
        name = quote(path.rsplit("/", 1)[-1], safe="")
        headers = {
            "Content-Disposition": f"attachment; filename*=UTF-8''{name}",
            "Content-Security-Policy": "sandbox; default-src 'none'",
            "X-Content-Type-Options": "nosniff",
        }
        return Response(content, media_type="application/octet-stream", headers=headers)


def _add_changes(router: APIRouter) -> None:
    @router.post("/documents", status_code=202, openapi_extra=UPLOAD_BODY)
    async def upload_documents(
        request: Request,
        response: Response,
        at: Writer,
        branch: Branch = MAIN,
        prefix: Annotated[
            str, Query(max_length=MAX_PREFIX, description="Put in front of every filename.")
        ] = "",
        message: Message = None,
        key: IdempotencyKey = None,
    ) -> Job:
        """Upload documents: those whose path is there are replaced, all others stay."""
        with at.claim(key) as claim, at.jobs.receiving() as spool:
            files = await receive_files(request, files_in(spool), prefix)
            work = Work(
                kind="upload", branch=branch, message=message, paths=tuple(file.path for file in files)
            )
            at.about.update(branch=branch, paths=list(work.paths))
            content = [file.sha256 for file in files]
            return await run_in_threadpool(
                partial(start_job, at, claim, work, response, spool, content=content)
            )

    @router.delete("/documents/{path:document}", status_code=202)
    def delete_document(
        path: DocumentPath,
        at: Writer,
        response: Response,
        branch: Branch = MAIN,
        message: Message = None,
        key: IdempotencyKey = None,
    ) -> Job:
        """Delete a document from the next release; older releases keep it."""
        work = Work(kind="delete", branch=branch, message=message, paths=(path,))
        with at.claim(key) as claim:
            # One that is not there is refused at once, not by a job.
            # Asked of the branch itself: what is served may lag behind it by a moment.
            repository = at.knowledge_base.repository
            return start_job(
                at,
                claim,
                work,
                response,
                check=lambda: _find(at, repository.resolve(branch), path),
            )


def _add_working_copy(router: APIRouter) -> None:
    @router.post("/ingest", status_code=202)
    def publish_working_copy(body: Ingest, at: Writer, response: Response, key: IdempotencyKey = None) -> Job:
        """Commit plumbline.toml, prompts and golden questions as they are on disk, as `rag ingest` does."""
        work = Work(kind="ingest", branch=body.branch, message=body.message)
        with at.claim(key) as claim:
            return start_job(at, claim, work, response)


def _find(at: Session, ref: str, path: str) -> Engine:
    """The release that holds a document. Raises NotFoundError."""
    engine = at.engine(ref)
    if path not in engine.snapshot:
        raise NotFoundError("document", path, hint="GET /v1/documents lists them.")
    return engine
