"""The process that runs one job: `python -m api.job_process KNOWLEDGE_BASE JOB`."""

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from api.cli_common import gate_of, open_knowledge_base
from api.jobs import Failure, FileVerdict, Job, Jobs, Progress, Said
from api.settings import silence
from knowledge_base.durable import exclusive_lock
from knowledge_base.errors import PlumblineError
from knowledge_base.home import KnowledgeBase

_PATIENCE_SECONDS = 24 * 3600.0
"""How long a job waits for another job or command: nobody sits in front of it."""
_TOLD_EVERY_SECONDS = 0.5


def main(place: str, id: str) -> None:
    """Run one job and keep how it ended."""
    silence()
    threading.Thread(target=_end_with_the_server, daemon=True).start()
    knowledge_base = open_knowledge_base(place)
    knowledge_base.lock_seconds = _PATIENCE_SECONDS
    jobs = Jobs(knowledge_base)
    with exclusive_lock(jobs.lock, wait_seconds=_PATIENCE_SECONDS):
        job = jobs.get(id)
        if job.state == "queued":  # else another server's process has run it meanwhile
            job = job.model_copy(update={"state": "running", "started": datetime.now(UTC)})
            jobs.write(job)
            jobs.write(_run(knowledge_base, jobs, job))


def _end_with_the_server() -> None:
    os.read(0, 1)  # not sys.stdin: its lock would be in the way of an ordinary end
    # As if killed: an ingest leaves nothing half-published, and what it has embedded is not lost.
    os._exit(1)


def _run(knowledge_base: KnowledgeBase, jobs: Jobs, job: Job) -> Job:
    try:
        files, result = _WORK[job.work.kind](knowledge_base, jobs, job)
    except PlumblineError as error:
        return job.ended(
            "failed", error=Failure(type=type(error).__name__, message=error.message, hint=error.hint)
        )
    except Exception as error:  # noqa: BLE001 - the edge: whatever it was, the job has ended and says so
        traceback.print_exc()
        message = f"Internal error: {type(error).__name__}."
        return job.ended("failed", error=Failure(type="InternalError", message=message, hint="See the log."))
    return job.ended("done", files=files, result=result)


_Outcome = tuple[tuple[FileVerdict, ...], dict[str, Any]]


def _ingest(knowledge_base: KnowledgeBase, jobs: Jobs, job: Job) -> _Outcome:
    """Upload, delete, or commit the working copy: all three are an ingest."""
    from ingestion.pipeline import IngestOptions, IngestResult, ingest
    from ingestion.sources import named_sources

    work = job.work
    uploaded = work.paths if work.kind == "upload" else ()
    sources = named_sources([(path, jobs.file(job.id, n)) for n, path in enumerate(uploaded)])
    result: IngestResult = ingest(
        knowledge_base,
        sources,
        IngestOptions(
            branch=work.branch, message=work.message, delete=work.paths if work.kind == "delete" else ()
        ),
        gate=gate_of(knowledge_base, work.branch, bool(work.override), work.override),
        progress=_Teller(jobs, job).tell,
    )
    return _verdicts(work.paths, result.as_json()["documents"]), result.as_json()


def _verdicts(paths: tuple[str, ...], documents: dict[str, Any]) -> tuple[FileVerdict, ...]:
    failed = {item["path"]: item["reason"] for item in documents["failed"]}
    told: dict[str, Said] = dict.fromkeys(failed, "failed")
    for said in ("added", "changed", "deleted", "quarantined"):
        told.update(dict.fromkeys(documents[said], said))
    return tuple(
        FileVerdict(path=path, verdict=told.get(path, "unchanged"), reason=failed.get(path, ""))
        for path in paths
    )


def _evaluate(knowledge_base: KnowledgeBase, jobs: Jobs, job: Job) -> _Outcome:
    from eval.evaluate import evaluate_release

    _Teller(jobs, job).tell("evaluate", 0, None)
    verdict = evaluate_release(knowledge_base, job.work.ref, job.work.baseline, again=job.work.again)
    return (), verdict.as_json()


def _promote(knowledge_base: KnowledgeBase, jobs: Jobs, job: Job) -> _Outcome:
    from knowledge_base.lifecycle import promote

    _Teller(jobs, job).tell("evaluate", 0, None)
    work = job.work
    gate = gate_of(knowledge_base, "main", bool(work.override), work.override)
    return (), promote(
        knowledge_base, work.ref, gate=gate, message=work.message, expected=work.expected
    ).as_json()


_WORK: dict[str, Callable[[KnowledgeBase, Jobs, Job], _Outcome]] = {
    "upload": _ingest,
    "delete": _ingest,
    "ingest": _ingest,
    "evaluate": _evaluate,
    "promote": _promote,
}


class _Teller:
    """Keeps how far a job is, a few times a second at most."""

    def __init__(self, jobs: Jobs, job: Job) -> None:
        self._jobs, self._job = jobs, job
        self._now = Progress(stage="")
        self._told = 0.0

    def tell(self, stage: str, done: int, total: int | None) -> None:
        new = stage != self._now.stage
        before = 0 if new else self._now.done
        self._now = Progress(stage=stage, done=before + done, total=total or 0)
        if new or time.monotonic() - self._told > _TOLD_EVERY_SECONDS:
            self._jobs.write(self._job.model_copy(update={"progress": self._now}))
            self._told = time.monotonic()


if __name__ == "__main__":
    main(*sys.argv[1:])
