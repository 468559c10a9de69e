"""A candidate's way onto a branch: publish, merge, promote.

Everything is prepared on a work branch of its own; the last step moves one ref. Killed before it,
the branch is where it was and the work branch is swept by the next command that writes.
"""

import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

from knowledge_base.difference import diff_documents
from knowledge_base.documents import sha256_hex
from knowledge_base.errors import (
    CheckFailedError,
    HeadMovedError,
    NoChangesError,
    OutdatedError,
    PlumblineError,
)
from knowledge_base.home import MAIN, WORK_PREFIX, KnowledgeBase
from knowledge_base.release import DocumentChanges, changed_parts
from knowledge_base.snapshot import Snapshot, count_chunk_changes
from knowledge_base.version_store import Repository

CANDIDATE_PREFIX = "candidate-"
"""Branches that a gate kept out of main, for people to look at."""

DRAFT = "draft"
"""Metadata key of commits between a merge and its index: steps inside a merge, no releases."""

_ABANDONED_SECONDS = 24 * 3600

NO_GATE = "NO-GATE"
UNEVALUATED = "UNEVALUATED"


@dataclass(frozen=True)
class Judgement:
    """What the gate said of a candidate; `override` is why somebody publishes it past the gate."""

    verdict: str
    passed: bool
    detail: dict[str, Any] = field(default_factory=dict)
    override: str = ""


Gate = Callable[[str, str], Judgement]
"""Judges a candidate commit against the commit it would replace."""


@dataclass(frozen=True)
class Landing:
    """Where a candidate ended: on the branch it was meant for, or kept aside by the gate."""

    commit: str
    branch: str
    published: bool
    verdict: str
    gate: dict[str, Any] = field(default_factory=dict)
    documents: DocumentChanges = DocumentChanges()
    chunks: dict[str, int] = field(default_factory=dict)
    changed: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The object of `rag merge --json` and `rag promote --json`."""
        return {
            "commit": self.commit,
            "branch": self.branch,
            "published": self.published,
            "documents": self.documents.as_json(),
            "chunks": self.chunks,
            "embedded": 0,
            "changed": list(self.changed),
            "verdict": self.verdict,
            "gate": self.gate,
        }


def listed_reasons(gate: Mapping[str, Any], verdict: str) -> str:
    """Why a gate said no, a line each, for the end of an error's message."""
    return "".join(f"\n  - {reason}" for reason in gate.get("reasons") or [verdict])


@contextmanager
def work_branch(repository: Repository, head: str) -> Iterator[str]:
    """A branch from `head` that is gone at the end, however the block ends; sweeps older ones.

    The caller holds the writer lock.
    """
    sweep(repository)
    work = f"{WORK_PREFIX}{int(time.time())}-{secrets.token_hex(6)}"
    repository.create_branch(work, head)
    try:
        yield work
    finally:
        # What is published must not be reported as failed for want of tidiness: the next command sweeps.
        with suppress(PlumblineError):
            if any(branch.id == work for branch in repository.list_branches(WORK_PREFIX)):
                repository.delete_branch(work)


def sweep(repository: Repository) -> int:
    """Drop the branches of commands that were killed; the caller holds the writer lock.

    On a store that other machines write to, those of the last day may be theirs and stay.
    """
    repository.sweep()
    stale = repository.list_branches(WORK_PREFIX)
    if repository.shared:
        stale = [branch for branch in stale if _began(branch.id) < time.time() - _ABANDONED_SECONDS]
    for branch in stale:
        repository.delete_branch(branch.id)
    return len(stale)


def _began(work: str) -> int:
    digits = work.removeprefix(WORK_PREFIX).partition("-")[0]
    return int(digits) if digits.isdigit() else 0


def land(
    repository: Repository,
    work: str,
    branch: str,
    *,
    head: str,
    message: str,
    metadata: Mapping[str, str],
    gate: Gate | None,
    squash: bool,
    keep: bool = True,
) -> Landing:
    """Judge `work`, made from `head`, and move `branch` to its content in one commit.

    What the gate refuses is kept on a branch of its own, unless `keep` is false.

    Raises:
        HeadMovedError: `branch` is no longer at `head`; nothing moved.
    """
    judgement = Judgement(NO_GATE if branch == MAIN else UNEVALUATED, True)
    if gate is not None:
        judgement = gate(repository.resolve(work), head)
    if not judgement.passed:
        commit, branch = repository.resolve(work), work
        if keep:
            branch = _keep_candidate(repository, commit, head)
    else:
        commit = repository.merge(
            work,
            branch,
            message=message,
            metadata={**metadata, **_verdict(judgement)},
            squash=squash,
            if_head=head,
        ).id
    return Landing(commit, branch, judgement.passed, judgement.verdict, judgement.detail)


def _verdict(judgement: Judgement) -> dict[str, str]:
    """What a commit says of its judgement, for ever."""
    override = {"override": judgement.override} if judgement.override else {}
    return {"verdict": judgement.verdict, **override}


def override_gate(reason: str) -> Gate:
    """A gate that lets everything through, and leaves `reason` in the log."""
    return lambda candidate, live: Judgement(NO_GATE, True, override=reason)


def _keep_candidate(repository: Repository, commit: str, head: str) -> str:
    """Name a refused candidate by what it holds: the same one, refused every night, is one branch."""
    content = "".join(
        f"{change.type} {change.path} {repository.stat_object(commit, change.path).checksum}\n"
        if change.type != "removed"
        else f"removed {change.path}\n"
        for change in repository.diff(head, commit, type="two_dot")
    )
    branch = CANDIDATE_PREFIX + sha256_hex(f"{head}\n{content}".encode())[:8]
    if not any(known.id == branch for known in repository.list_branches(branch)):
        repository.create_branch(branch, commit)
    return branch


def promote(
    knowledge_base: KnowledgeBase,
    ref: str,
    *,
    gate: Gate | None = None,
    message: str | None = None,
    expected: str | None = None,
) -> Landing:
    """Make `ref`, which was made from the release that main serves, the next release of main.

    Raises:
        OutdatedError: main has moved since `ref` was made from it.
        HeadMovedError: `ref` is no longer the commit `expected`.
        CheckFailedError: The gate refuses; nothing moved.
        NoChangesError: main holds all of `ref` already.
        NotFoundError: There is no such ref.
        LockedError: Another command is writing.
    """
    repository = knowledge_base.repository
    with knowledge_base.writing():
        sweep(repository)
        head, candidate = check_promotable(repository, ref)
        if expected and candidate != expected:
            raise HeadMovedError(ref, expected, candidate)
        landing = describe_and_land(
            knowledge_base, candidate, MAIN, head, message or f"Promote {ref}", gate, keep=False
        )
        if not landing.published:
            raise CheckFailedError(
                f"The gate refuses {ref!r}:{listed_reasons(landing.gate, landing.verdict)}",
                hint=f"Nothing moved. `rag diff main {ref}` compares, `rag eval {ref}` names what lost, "
                f"`rag promote {ref} --no-gate --reason ...` publishes it all the same.",
            )
        if ref.startswith(CANDIDATE_PREFIX):
            with suppress(PlumblineError):  # main has moved: a name left over is no failure
                repository.delete_branch(ref)
        return landing


def check_promotable(repository: Repository, ref: str) -> tuple[str, str]:
    """The commits of main and of `ref`, which was made from it.

    Raises:
        OutdatedError: main has moved since `ref` was made from it.
        NoChangesError: main holds all of `ref` already.
        NotFoundError: There is no such ref.
    """
    head, candidate = repository.resolve(MAIN), repository.resolve(ref)
    base = repository.find_merge_base(candidate, head)
    if base == candidate:
        raise NoChangesError(
            f"main's history holds {ref!r} already.",
            hint="If it was rolled back since, `rag rollback` to the release that took it in brings it back.",
        )
    if base != head:
        raise OutdatedError(
            f"main has moved since {ref!r} was made from {base[:12]}.",
            hint=f"Evaluate it with what is new: `rag merge main --into {ref}`, then promote it again.",
        )
    return head, candidate


def describe_and_land(
    knowledge_base: KnowledgeBase,
    work: str,
    branch: str,
    head: str,
    message: str,
    gate: Gate | None,
    *,
    keep: bool = True,
) -> Landing:
    """`land` with the metadata that the log shows of a release, counted from what differs."""
    repository = knowledge_base.repository
    before, after = knowledge_base.snapshot(head), knowledge_base.snapshot(work)
    documents = diff_documents(repository, head, after.release.commit)
    chunks = count_chunk_changes(before, after)
    changed = changed_parts(before.release, after.release, corpus=bool(documents))
    metadata = release_metadata(documents, chunks, changed, after)
    landing = land(
        repository,
        work,
        branch,
        head=head,
        message=message,
        metadata=metadata,
        gate=gate,
        squash=False,
        keep=keep,
    )
    return replace(landing, documents=documents, chunks=chunks, changed=tuple(changed))


def release_metadata(
    documents: DocumentChanges, chunks: Mapping[str, int], changed: list[str], after: Snapshot
) -> dict[str, str]:
    """What the log shows of a release, as commit metadata."""
    return {
        "changed": ",".join(changed),
        **{f"documents-{verb}": str(count) for verb, count in documents.counts().items()},
        "documents": str(len(after.paths)),
        "chunks-added": str(chunks["added"]),
        "chunks-removed": str(chunks["removed"]),
        "chunks": str(chunks["total"]),
        **({} if after.access.open else {"restricted": "yes"}),
    }


def require_verdict(repository: Repository, commit: str) -> None:
    """Refuse a release of a shared store that Plumbline's gate never let through.

    A lakeFS server moves main for whoever asks it, past the gate too; then the commit has no verdict, and
    what is made of it is unevaluated.

    Raises:
        CheckFailedError: It has none.
    """
    found = repository.get_commit(commit)
    unjudged = found.metadata.get("verdict", UNEVALUATED) == UNEVALUATED
    if repository.shared and found.parents and unjudged:
        raise CheckFailedError(
            f"{commit[:12]} was put on main past the gate: it has no verdict.",
            hint="`rag rollback` brings back the one before it, `rag rollback COMMIT` one further back.",
        )
