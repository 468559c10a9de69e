"""The routes of jobs, and how other routes start one."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Query, Response
from fastapi import Path as InPath
from pydantic import BaseModel, ConfigDict

from api import visible
from api.access import Session, Writer
from api.idempotency import Claim, fingerprint
from api.jobs import ID, Job, State, Work
from knowledge_base.errors import NotFoundError

JobId = Annotated[str, InPath(pattern=ID, description="As in the job's `id`.")]
Limit = Annotated[int, Query(ge=1, le=1000, description="At most so many.")]


class Asked(BaseModel):
    """The base of request bodies: a misspelt member is refused."""

    model_config = ConfigDict(extra="forbid")


class JobPage(BaseModel):
    """Jobs, newest first; ask again with `after` = `next` for older ones."""

    jobs: list[Job]
    next: str | None


def job_routes() -> APIRouter:
    """The routes."""
    router = APIRouter(prefix="/v1", tags=["jobs"])

    @router.get("/jobs")
    def list_jobs(
        at: Writer,
        state: Annotated[State | None, Query(description="Only jobs in this state.")] = None,
        after: Annotated[str | None, Query(pattern=ID, description="`next` of the page before.")] = None,
        limit: Limit = 100,
    ) -> JobPage:
        """List uploads, deletions, evaluations and promotions of the last week."""
        found = look_at_all(at, limit + 1, state=state, after=after)
        return JobPage(jobs=found[:limit], next=found[limit - 1].id if len(found) > limit else None)

    @router.get("/jobs/{id}")
    def show_job(id: JobId, at: Writer) -> Job:
        """Show how far a job is, or how it ended."""
        return look(at, id)

    @router.post("/jobs/{id}/retry", status_code=202)
    def retry_job(id: JobId, at: Writer, response: Response) -> Job:
        """Run a failed or interrupted job again; one that passes the gate by needs an admin again."""
        return accepted(at, retry(at, id), response)

    return router


def look(at: Session, id: str) -> Job:
    """A job as the caller may see it; by the time that they see it done, what it published is served.

    Raises NotFoundError.
    """
    return _shown(at, [at.jobs.get(id)])[0]


def look_at_all(at: Session, most: int, *, state: State | None = None, after: str | None = None) -> list[Job]:
    """Up to `most` jobs older than `after`, newest first, each as `look` shows it."""
    found: list[Job] = []
    for name in at.jobs.ids():
        if after is not None and name >= after:
            continue
        with suppress(NotFoundError):  # removed since it was listed
            job = at.jobs.get(name)
            if state in (None, job.state):
                found.append(job)
        if len(found) == most:
            break
    return _shown(at, found)


def _shown(at: Session, jobs: Sequence[Job]) -> list[Job]:
    if any(job.state == "done" for job in jobs):
        at.hosted.live.follow()
    return [visible.job(at, job) for job in jobs]


def start_job(
    at: Session,
    claim: Claim,
    work: Work,
    response: Response,
    spool: Path | None = None,
    *,
    content: Sequence[str] = (),
    check: Callable[[], object] = lambda: None,
) -> Job:
    """Queue a job, or find the one that the same Idempotency-Key started.

    `spool` holds what was uploaded, `content` the hashes of it; `check` raises what is wrong already.

    Raises:
        BusyError: Too many wait already.
        KeyReusedError: The key came with another request before.
    """
    asked = fingerprint(work=work.model_dump(), content=content)
    known = claim.known(asked)
    if known is not None:
        try:
            return accepted(at, at.jobs.get(known["job"]), response)
        except NotFoundError:
            pass  # the server was killed between the two steps below
    check()
    if work.kind == "promote":  # not part of the fingerprint: the same request may come again later
        work = work.model_copy(update={"expected": at.knowledge_base.repository.resolve(work.ref)})
    if spool is None:
        with at.jobs.receiving() as empty:
            return _submit(at, claim, work, response, empty, asked)
    return _submit(at, claim, work, response, spool, asked)


def _submit(at: Session, claim: Claim, work: Work, response: Response, spool: Path, asked: str) -> Job:
    claim.keep(asked, {"job": at.jobs.id_of(spool)})
    job = at.jobs.submit(work, spool)
    at.runner.wake()
    return accepted(at, job, response)


def retry(at: Session, id: str) -> Job:
    """Queue a failed or interrupted job again, for whoever might start it.

    Raises NotFoundError, JobStateError, ForbiddenError.
    """
    if at.jobs.get(id).work.override:
        at.require("admin")
    job = at.jobs.retry(id)
    at.runner.wake()
    return job


def accepted(at: Session, job: Job, response: Response) -> Job:
    """The job, and where to ask for it."""
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    return visible.job(at, job)
