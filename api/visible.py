"""What callers are told of releases, evaluations and jobs whose documents are not all open to them.

Searching and answering need none of this: there the closed documents are not in the release at all. Logs,
verdicts and jobs were written by somebody who saw everything, so what they say of documents is left out.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from api.access import Session
from api.jobs import Job
from eval.compare import compare_releases
from eval.evaluations import Kept, describe_evaluated, list_evaluated
from eval.gate import Verdict
from eval.golden_files import rows_as_they_stand
from knowledge_base.difference import diff_views
from knowledge_base.errors import ForbiddenError, NotFoundError, ReopensError
from knowledge_base.history import is_restricted

_RULES = "access"
_TOLD_OF_RELEASE = (
    "commit",
    "parents",
    "refs",
    "date",
    "changed",
    "verdict",
    "prompt",
    "embedder",
    "chunker",
)
_TOLD_OF_JOB = ("commit", "branch", "published", "verdict")


def releases(at: Session, ref: str, number: int) -> list[dict[str, Any]]:
    """The log from a ref. Raises NotFoundError."""
    return [log_entry(at, entry) for entry in list_evaluated(at.knowledge_base, ref, number)]


def log_entry(at: Session, entry: dict[str, Any]) -> dict[str, Any]:
    """An entry of the log, or of a branch or tag, without counts and words where documents are closed."""
    if at.caller.sees_all or not is_restricted(at.knowledge_base.repository, entry["commit"]):
        return entry
    empty: dict[str, Any] = {
        "message": "",
        "documents": None,
        "chunks": None,
        "documents_changed": {},
        "chunks_changed": {},
        "override": "",
        "evaluated": "",
    }
    return {**entry, **{key: value for key, value in empty.items() if key in entry}}


def release(at: Session, ref: str) -> dict[str, Any]:
    """One release in full, or what the caller sees of it. Raises NotFoundError, DamagedError."""
    value = describe_evaluated(at.knowledge_base, ref)
    if at.sees_all_of(value["commit"]):
        # What it was compared with may have had closed documents.
        verdicts = [one for one in value["verdicts"] if _may_see(at, one["candidate"], one["baseline"])]
        return {**value, "verdicts": verdicts}
    snapshot = at.engine(value["commit"]).snapshot
    return {
        **{key: value[key] for key in _TOLD_OF_RELEASE},
        **{key: type(kept)() for key, kept in value.items() if key not in _TOLD_OF_RELEASE},
        "settings": {part: keys for part, keys in value["settings"].items() if part != _RULES},
        "documents": len(snapshot.paths),
        "chunks": snapshot.chunk_count,
        "paths": list(snapshot.paths),
    }


def difference(at: Session, left: str, right: str) -> dict[str, Any]:
    """What changed between two releases as the caller sees them. Raises NotFoundError, DamagedError."""
    if at.sees_all_of(left) and at.sees_all_of(right):
        return compare_releases(at.knowledge_base, left, right)
    before, after = at.engine(left).snapshot, at.engine(right).snapshot
    found = diff_views(at.knowledge_base.repository, before, after)
    settings = {key: value for key, value in found.settings.items() if not key.startswith(f"{_RULES}.")}
    return {
        "documents": found.documents.as_json(),
        "chunks": found.chunks,
        "settings": settings,
        "golden": {"compared": 0, "changed": [], "not_evaluated": []},
    }


@contextmanager
def reopening(at: Session) -> Iterator[None]:
    """Refuse what would open closed documents, naming them to those alone who see them.

    Raises ForbiddenError, ReopensError.
    """
    try:
        yield
    except ReopensError as error:
        if at.caller.sees_all:
            raise
        raise ForbiddenError(
            "That release has open what was closed since.", hint="Ask an admin to go back to it."
        ) from error


def evaluations(at: Session, found: Iterable[Kept]) -> list[Kept]:
    """Those that quote nothing that is closed to the caller."""
    return [kept for kept in found if may_see(at, kept.verdict)]


def check_evaluation(at: Session, verdict: Verdict, id: str) -> None:
    """Refuse one that does, as if there were none. Raises NotFoundError."""
    if not may_see(at, verdict):
        raise NotFoundError("evaluation", id)


def check_report(at: Session) -> None:
    """Refuse a report to whoever may not read all that it may quote. Raises NotFoundError."""
    if not at.caller.sees_all and _was_restricted(at):
        raise NotFoundError("report", "latest", hint="There is none that this key may read.")


def may_see(at: Session, verdict: Verdict) -> bool:
    """Whether an evaluation quotes nothing that is closed to the caller."""
    return _may_see(at, verdict.candidate, verdict.baseline)


def _may_see(at: Session, candidate: str, baseline: str) -> bool:
    repository = at.knowledge_base.repository
    main = at.hosted.live.engine().release_ref.commit
    commits = [commit for commit in (main, candidate, baseline) if commit]
    return at.caller.sees_all or not any(is_restricted(repository, commit) for commit in commits)


def golden_rows(at: Session) -> list[dict[str, Any]]:
    """Golden questions; where documents are or were closed, those about one that the caller may read.

    A document that is gone may have been closed, and its questions are still there.
    """
    snapshot = at.engine().snapshot
    rows = rows_as_they_stand(at.knowledge_base, snapshot.document_text)
    if at.caller.sees_all or not _was_restricted(at):
        return rows
    whole = at.sees_all_of()
    return [row for row in rows if (row["document"] in snapshot if row["document"] else whole)]


def _was_restricted(at: Session) -> bool:
    main = at.hosted.live.engine().release_ref.commit
    return at.hosted.restrictions.were(main)


def job(at: Session, one: Job) -> Job:
    """A job; where documents are or were closed, without its words and those that main does not show."""
    if at.caller.sees_all or not _was_restricted(at):
        return one
    seen = at.engine().snapshot
    result = {key: value for key, value in one.result.items() if key in _TOLD_OF_JOB}
    error = one.error and one.error.model_copy(update={"message": "It failed.", "hint": ""})
    paths = tuple(path for path in one.work.paths if path in seen)
    work = one.work.model_copy(update={"paths": paths, "message": None, "override": ""})
    files = tuple(file for file in one.files if file.path in seen)
    return one.model_copy(update={"result": result, "work": work, "files": files, "error": error})
