"""Publishing again what has its verdict already: an earlier release, or the same one in other segments."""

from collections.abc import Callable

from knowledge_base.errors import (
    CheckFailedError,
    HeadMovedError,
    NoChangesError,
    NotFoundError,
    ReopensError,
)
from knowledge_base.home import MAIN, KnowledgeBase
from knowledge_base.index import IndexDraft, write_index
from knowledge_base.lifecycle import DRAFT, UNEVALUATED, require_verdict, sweep
from knowledge_base.reopening import reopened
from knowledge_base.version_store import Commit, Repository

_NAMED = 5
"""How many documents a message names."""

COMPACTION = "compaction"
ACTIONS = "actions"
"""What `changed` says of a commit that changes no release."""


def rollback(
    knowledge_base: KnowledgeBase,
    ref: str | None = None,
    *,
    branch: str = MAIN,
    expected: str | None = None,
    reopen: bool = False,
    planned: Callable[[str, str], None] = lambda head, target: None,
) -> Commit:
    """One new commit on `branch` whose content is that of `ref`.

    Without `ref` it is the release before the one whose content the branch has: rolled back twice, a
    branch is two releases back. `expected` is the commit that the caller takes the branch to be at. What
    was closed since stays so, unless `reopen` says otherwise. Before anything is done `planned` is told the
    commit that the branch is at and the one to go back to.

    Raises:
        ReopensError: `main` would be open to more readers than it is.
        HeadMovedError: The branch is not at `expected`.
        NotFoundError: No such ref.
        CheckFailedError: `main` never had that content, or without a verdict: no gate has let it through.
        ExpiredError: gc removed the content of that release.
        NoChangesError: The branch already has that content, or there is no release before.
        LockedError: Another command is writing.
    """
    repository = knowledge_base.repository
    with knowledge_base.writing():
        sweep(repository)
        head = repository.resolve(branch)
        if expected and head != expected:
            raise HeadMovedError(branch, expected, head)
        target, published = _release_to_go_back_to(repository, ref, branch, head)
        if branch == MAIN and not reopen:
            _check_closed(knowledge_base, head, target)
        planned(head, target)
        known = standing(published)
        known.update(changed="rollback", rollback=target)
        transaction = repository.transact(
            branch, message=f"Roll back to {target[:12]}", metadata=known, if_head=head
        )
        with transaction:
            for change in repository.diff(head, target, type="two_dot"):
                if change.type == "removed":
                    transaction.delete(change.path)
                else:
                    with repository.open_object(target, change.path) as content:
                        transaction.upload(change.path, content)
        assert transaction.commit is not None  # the transaction raises NoChangesError otherwise
        return transaction.commit


def find_rollback(repository: Repository, head: str, target: str) -> Commit | None:
    """The commit that took main from `head` back to `target`, if there is one. Raises NotFoundError."""
    for commit in repository.log(MAIN, first_parent=True):
        if commit.id == head:
            break
        if head in commit.parents[:1]:
            return commit if commit.metadata.get("rollback") == target else None
    return None


def _check_closed(knowledge_base: KnowledgeBase, head: str, target: str) -> None:
    if opened := reopened(knowledge_base, head, target):
        more = f" and {len(opened) - _NAMED} more" if len(opened) > _NAMED else ""
        raise ReopensError(
            f"{target[:12]} has open what was closed since: {', '.join(opened[:_NAMED])}{more}.",
            hint="If that is meant: `rag rollback --reopen`, over HTTP `reopen` by an admin.",
        )


def _release_to_go_back_to(
    repository: Repository, ref: str | None, branch: str, head: str
) -> tuple[str, Commit]:
    """The commit that a rollback brings back, and the one that made it a release. Raises as `rollback`."""
    target = repository.resolve(ref) if ref else _release_before(repository, head)
    if target is None or not repository.get_commit(target).parents:
        raise NoChangesError(
            f"There is no release before the one on {branch!r}.", hint="`rag log` lists the releases."
        )
    if DRAFT in repository.get_commit(target).metadata:
        raise NotFoundError("release", target[:12], hint="It is a step inside a merge: see `rag log`.")
    published = _published(repository, target, head) if branch == MAIN else repository.get_commit(target)
    if published is None:
        raise CheckFailedError(
            f"{ref!r} was never a release of main.",
            hint="`rag log` lists those; `rag promote` takes a candidate there, through the gate.",
        )
    if target == head:
        raise NoChangesError(f"{branch!r} is already at {target[:12]}.", hint="`rag log` lists the releases.")
    if branch == MAIN:
        require_verdict(repository, published.id)
    return target, published


def _published(repository: Repository, target: str, head: str) -> Commit | None:
    """The commit on the line of a branch that is `target`, or that promoted or merged it.

    Steps that a candidate had behind it are not on the line: only its last was judged.
    """
    line = repository.log(head, first_parent=True)
    return next((commit for commit in line if target in (commit.id, *commit.parents[1:])), None)


def _release_before(repository: Repository, head: str) -> str | None:
    """The release before the one whose content `head` has; a compaction changes no content."""
    commit = repository.get_commit(head)
    while commit.parents:
        if target := commit.metadata.get("rollback"):
            commit = repository.get_commit(target)
        elif commit.metadata.get("changed") in (COMPACTION, ACTIONS):
            commit = repository.get_commit(commit.parents[0])
        else:
            return commit.parents[0]
    return None


def compact(knowledge_base: KnowledgeBase, branch: str = MAIN, *, everything: bool = False) -> Commit:
    """Merge segments as after an ingest, or with `everything` all of them into one; embeds nothing.

    The release answers as before and keeps its verdict.

    Raises:
        NoChangesError: The segments are in shape.
        LockedError: Another command is writing.
    """
    repository = knowledge_base.repository
    with knowledge_base.writing():
        sweep(repository)
        head = repository.get_branch(branch).commit_id
        snapshot = knowledge_base.snapshot(head)
        if not (count := len(snapshot.segments)):
            raise NoChangesError(f"Branch {branch!r} holds no segments.")
        segments = list(zip(snapshot.release.manifest.segments, snapshot.segments, strict=True))
        draft = IndexDraft(knowledge_base, snapshot.release, segments)
        dead = sum(not live for live in snapshot.live)
        known = standing(repository.get_commit(head))
        transaction = repository.transact(
            branch, message="Compact", metadata={**known, "changed": COMPACTION}, if_head=head
        )
        with transaction:
            write_index(draft, transaction, everything=everything and (count > 1 or dead > 0))
            transaction.message = f"Compact {count} segment(s) into {len(draft.segments)}"
        assert transaction.commit is not None  # the transaction raises NoChangesError otherwise
        return transaction.commit


def standing(commit: Commit) -> dict[str, str]:
    """What stays true of a release when its content is published again."""
    kept = {
        key: commit.metadata[key]
        for key in ("documents", "chunks", "override", "restricted")
        if key in commit.metadata
    }
    return {**kept, "verdict": commit.metadata.get("verdict", UNEVALUATED)}
