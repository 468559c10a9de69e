"""Jobs: work that a request starts and does not wait for, one at a time for each knowledge base.

    .plumbline/jobs/<id>/job.json     what to do, how far it is, how it ended
    .plumbline/jobs/<id>/files/<n>    uploaded bytes of the n-th path, until they are published
    .plumbline/jobs/<id>.damaged/     one whose job.json is none, left for people to look at
    .plumbline/jobs/lock              held by the process that runs a job

A job runs in a process of its own, which ends with the server: what goes wrong there, be it a crash in a
native library, does not take down what serves. A job that says `running` while nobody holds the lock was
killed; it is `interrupted` then, and as nothing is published before an ingest's last step, it can be retried.
"""

import logging
import re
import secrets
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from knowledge_base.durable import exclusive_lock, publish_folder, remove_folder, write_bytes
from knowledge_base.errors import BusyError, JobStateError, LockedError, NotFoundError
from knowledge_base.home import MAIN, KnowledgeBase
from knowledge_base.version_store import LAKEFS

Kind = Literal["upload", "delete", "ingest", "evaluate", "promote"]
Said = Literal["added", "changed", "unchanged", "deleted", "quarantined", "failed"]
State = Literal["queued", "running", "done", "failed", "interrupted"]

ID = r"^[0-9]{8}T[0-9]{6}-[0-9a-f]{8}$"
_QUEUE_LIMIT = 100
_KEPT = timedelta(days=7)
_ABANDONED = timedelta(days=1)
_RETRY_SECONDS = 10.0
_RECORD = "job.json"
_KEPT_SO_LONG = "GET /v1/jobs lists them; they are kept a week."

_LOG = logging.getLogger(__name__)


class Work(BaseModel):
    """What a job is to do. `paths` are the documents it uploads or deletes, `override` passes the gate.

    `expected` is the commit that `ref` was when a promotion was asked for: nothing later is published by it.
    """

    model_config = ConfigDict(frozen=True)

    kind: Kind
    branch: str = MAIN
    paths: tuple[str, ...] = ()
    message: str | None = None
    override: str = ""
    ref: str = MAIN
    expected: str | None = None
    baseline: str = MAIN
    again: bool = False


class Progress(BaseModel):
    """How far a job is in its current stage; `total` is 0 when nobody can say."""

    stage: str
    done: int = 0
    total: int = 0


class FileVerdict(BaseModel):
    """What became of one document."""

    path: str
    verdict: Said
    reason: str = ""


class Failure(BaseModel):
    """Why a job failed, as the command line's `--json` says it."""

    type: str
    message: str
    hint: str = ""


class Job(BaseModel):
    """One job. `result` is what the command of the same name prints with `--json`."""

    model_config = ConfigDict(frozen=True)

    id: str
    state: State = "queued"
    work: Work
    created: datetime
    started: datetime | None = None
    finished: datetime | None = None
    attempt: int = 1
    progress: Progress | None = None
    files: tuple[FileVerdict, ...] = ()
    result: dict[str, Any] = Field(default={})
    error: Failure | None = None

    def ended(self, state: State, **facts: Any) -> "Job":
        """The same job, over."""
        return self.model_copy(
            update={"state": state, "finished": datetime.now(UTC), "progress": None, **facts}
        )


class Jobs:
    """The jobs of one knowledge base. Safe to use from several threads and several servers."""

    def __init__(self, knowledge_base: KnowledgeBase) -> None:
        self._place = (
            f"{LAKEFS}{knowledge_base.repository.id}" if knowledge_base.detached else str(knowledge_base.root)
        )
        self.folder = knowledge_base.folder / "jobs"
        self.lock = self.folder / "lock"
        self._submitting = threading.Lock()

    # -- asking --------------------------------------------------------------------------------

    def get(self, id: str) -> Job:
        """One job as it is now. Raises NotFoundError."""
        job = self._read(id)
        return self._settled(job) if job.state == "running" else job

    def ids(self) -> list[str]:
        """Every job's id, newest first."""
        found = (path.parent.name for path in self.folder.glob(f"*/{_RECORD}"))
        return sorted((name for name in found if re.fullmatch(ID, name)), reverse=True)

    def queued(self) -> list[Job]:
        """The jobs that wait, oldest first."""
        jobs = []
        for name in reversed(self.ids()):
            try:
                job = self._read(name)
            except NotFoundError:
                continue  # tidied away since
            if job.state == "queued":
                jobs.append(job)
        return jobs

    # -- starting ------------------------------------------------------------------------------

    @staticmethod
    def id_of(spool: Path) -> str:
        """The id of the job that `submit` makes of a folder."""
        return spool.name.removesuffix(".tmp")

    @contextmanager
    def receiving(self) -> Iterator[Path]:
        """A folder for what is being uploaded, gone at the end unless `submit` has taken it."""
        name = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(4)}.tmp"
        spool = self.folder / name
        files_in(spool).mkdir(parents=True)
        try:
            yield spool
        finally:
            remove_folder(spool)

    def submit(self, work: Work, spool: Path | None = None) -> Job:
        """Put a job at the end of the queue, with the uploaded files of `spool`.

        Raises:
            BusyError: Too many wait already.
            StorageError: The disk refused; there is no such job.
        """
        if spool is None:
            with self.receiving() as empty:
                return self.submit(work, empty)
        with self._submitting:
            if len(self.queued()) >= _QUEUE_LIMIT:
                raise BusyError(
                    f"{_QUEUE_LIMIT} jobs wait already.", hint="GET /v1/jobs shows them; try again later."
                )
            self._tidy()
            job = Job(id=self.id_of(spool), work=work, created=datetime.now(UTC))
            write_bytes(spool / _RECORD, job.model_dump_json().encode())
            publish_folder(spool, self.folder / job.id)
        return job

    def retry(self, id: str) -> Job:
        """Queue a failed or interrupted job again. Raises NotFoundError, JobStateError."""
        with self._submitting:
            job = self.get(id)
            if job.state not in ("failed", "interrupted"):
                raise JobStateError(
                    f"Job {id} is {job.state}.", hint="Only a failed or interrupted one can be retried."
                )
            waiting = Job(id=id, work=job.work, created=job.created, attempt=job.attempt + 1)
            self.write(waiting)
        return waiting

    # -- for the process that runs one ------------------------------------------------------------

    def file(self, id: str, number: int) -> Path:
        """Where the bytes of a job's n-th path lie."""
        return files_in(self.folder / id) / str(number)

    def write(self, job: Job) -> None:
        """Keep a job as it is now; with `done` its files go. Raises StorageError."""
        write_bytes(self.folder / job.id / _RECORD, job.model_dump_json().encode())
        if job.state == "done":
            remove_folder(files_in(self.folder / job.id))

    def command(self, id: str) -> list[str]:
        """The command line of the process that runs a job."""
        # -P: a package called `api` in the folder that the server was started from must not be taken.
        return [sys.executable, "-P", "-m", "api.job_process", self._place, id]

    def _read(self, id: str) -> Job:
        if not re.fullmatch(ID, id):
            raise NotFoundError("job", id, hint=_KEPT_SO_LONG)
        try:
            job = Job.model_validate_json((self.folder / id / _RECORD).read_bytes())
            if job.id != id:
                raise ValueError(f"it is the record of {job.id}")
            return job
        except (FileNotFoundError, NotADirectoryError) as error:
            raise NotFoundError("job", id, hint=_KEPT_SO_LONG) from error
        except ValueError as error:  # what pydantic raises is one too
            self._set_aside(id, error)
            raise NotFoundError("job", id, hint=_KEPT_SO_LONG) from error

    def _set_aside(self, id: str, error: ValueError) -> None:
        """Keep a job whose record is none out of the queue, which it would stop, with all that it holds."""
        aside = self.folder / f"{id}.damaged"
        with suppress(FileNotFoundError):  # another thread has set it aside
            (self.folder / id).rename(aside)
            reason = " ".join(str(error).split())[:300]
            _LOG.error("job %s has no valid record and is set aside as %s: %s", id, aside, reason)

    def _settled(self, job: Job) -> Job:
        """The job, interrupted when whoever ran it is gone."""
        try:
            with exclusive_lock(self.lock):
                job = self._read(job.id)
                if job.state == "running":
                    job = job.ended("interrupted", error=_INTERRUPTED)
                    self.write(job)
        except LockedError:
            pass  # at work
        return job

    def _tidy(self) -> None:
        """Remove jobs that ended a week ago, and uploads that never became one."""
        now = datetime.now(UTC)
        for path in self.folder.glob("*.tmp"):
            with suppress(FileNotFoundError):  # another upload ended meanwhile
                if datetime.fromtimestamp(path.stat().st_mtime, UTC) < now - _ABANDONED:
                    remove_folder(path)
        for name in self.ids():
            with suppress(NotFoundError):  # another server tidied it away
                if _moment(name) < now - _KEPT and self.get(name).state not in ("queued", "running"):
                    remove_folder(self.folder / name)


_INTERRUPTED = Failure(
    type="Interrupted",
    message="The process that ran the job is gone.",
    hint="Nothing was published half. POST /v1/jobs/ID/retry runs it again.",
)


def files_in(folder: Path) -> Path:
    """Where the uploaded files of a job's folder lie."""
    return folder / "files"


def _moment(id: str) -> datetime:
    return datetime.strptime(id[:15], "%Y%m%dT%H%M%S").replace(tzinfo=UTC)


class Runner:
    """Runs the queued jobs of one knowledge base, one after the other, each in a process of its own.

    `after` is called when one has ended: main may be elsewhere.
    """

    def __init__(self, jobs: Jobs, after: Callable[[], None] = lambda: None) -> None:
        self._jobs = jobs
        self._after = after
        self._wake = threading.Event()
        self._stopping = False
        self._child: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._run, name="jobs", daemon=True)

    def start(self) -> None:
        """Begin, with what an earlier server left in the queue."""
        self._thread.start()

    def wake(self) -> None:
        """There is a new job."""
        self._wake.set()

    def stop(self) -> None:
        """End, interrupting the job under way."""
        self._stopping = True
        self._wake.set()
        child = self._child
        if child is not None and child.stdin is not None:
            child.stdin.close()  # that is how it learns that the server is gone
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._stopping:
            self._wake.clear()
            try:
                waiting = self._jobs.queued()
                if waiting:
                    self._run_one(waiting[0])
                    continue
            except Exception:  # noqa: BLE001 - a full disk, no memory for a process: it must not end the queue
                _LOG.exception("a job could not be run; it is tried again in %g seconds", _RETRY_SECONDS)
                self._wake.wait(_RETRY_SECONDS)
                continue
            self._wake.wait()

    def _run_one(self, begun: Job) -> None:
        # Kept open and never written to: it closes with this process, however that ends.
        with subprocess.Popen(
            self._jobs.command(begun.id), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
        ) as child:
            self._child = child
            if self._stopping and child.stdin is not None:
                child.stdin.close()
            code = child.wait()
            self._child = None
        self._after()
        job = self._jobs.get(begun.id)  # `running` becomes `interrupted`
        if job == begun and not self._stopping:
            # It never began. Left in the queue, it would be tried for ever.
            failure = Failure(
                type="JobProcessError",
                message=f"The process for the job ended with code {code} before it began.",
                hint="The server's log says why.",
            )
            self._jobs.write(job.ended("failed", error=failure))
