"""Publishing again what has its verdict already: an earlier release, or the same one in other segments."""

from knowledge_base.errors import (
    CheckFailedError,
    HeadMovedError,
    NoChangesError,
    NotFoundError,
)
from knowledge_base.home import MAIN, KnowledgeBase
from knowledge_base.index import IndexDraft, write_index
from knowledge_base.lifecycle import DRAFT, UNEVALUATED, sweep
from knowledge_base.version_store import Commit, Repository

COMPACTION = "compaction"
ACTIONS = "actions"
"""What `changed` says of a commit that changes no release."""


def rollback(
    knowledge_base: KnowledgeBase,
    ref: str | None = None,
    *,
    branch: str = MAIN,
    expected: str | None = None,
) -> Commit:
    """One new commit on `branch` whose content is that of `ref`.

    Without `ref` it is the release before the one whose content the branch has: rolled back twice, a
    branch is two releases back. `expected` is the commit that the caller takes the branch to be at.

    Raises:
        HeadMovedError: The branch is not at `expected`.
        NotFoundError: No such ref.
        CheckFailedError: `main` never had that content: no gate has let it through.
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
        target = _release_to_go_back_to(repository, ref, branch, head)
        known = standing(repository.get_commit(target))
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


def _release_to_go_back_to(repository: Repository, ref: str | None, branch: str, head: str) -> str:
    """The commit that a rollback brings back. Raises as `rollback` does."""
    target = repository.resolve(ref) if ref else _release_before(repository, head)
    if target is None or not repository.get_commit(target).parents:
        raise NoChangesError(
            f"There is no release before the one on {branch!r}.", hint="`rag log` lists the releases."
        )
    if DRAFT in repository.get_commit(target).metadata:
        raise NotFoundError("release", target[:12], hint="It is a step inside a merge: see `rag log`.")
    if branch == MAIN and not _was_published(repository, target, head):
        raise CheckFailedError(
            f"{ref!r} was never a release of main.",
            hint="`rag log` lists those; `rag promote` takes a candidate there, through the gate.",
        )
    if target == head:
        raise NoChangesError(f"{branch!r} is already at {target[:12]}.", hint="`rag log` lists the releases.")
    return target


def _was_published(repository: Repository, target: str, head: str) -> bool:
    """Whether a commit is on the line of a branch, or is what one step of it promoted or merged.

    Steps that a candidate had behind it are not: only its last was judged.
    """
    line = repository.log(head, first_parent=True)
    return any(target in (commit.id, *commit.parents) for commit in line)


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
