"""A release's life after it is written: publish, roll back, compare, check, rebuild."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress

from knowledge_base.documents import sha256_hex
from knowledge_base.errors import NoChangesError, NotFoundError, PlumblineError
from knowledge_base.home import MAIN, KnowledgeBase
from knowledge_base.release import (
    DOCUMENTS_PREFIX,
    DocumentChanges,
    Frozen,
    load_release,
    order_paths,
    settings_difference,
)
from knowledge_base.renames import find_renames
from knowledge_base.segments import SEGMENTS_PREFIX, TABLES, segment_id
from knowledge_base.snapshot import Snapshot, count_chunk_changes
from knowledge_base.version_store import Commit, Repository

WORK_PREFIX = "ingest-"
"""Branches of ingests under way; those of killed ones are swept by the next."""

CANDIDATE_PREFIX = "candidate-"
"""Branches that a gate kept out of main, for people to look at."""


def publish(
    repository: Repository,
    work: str,
    branch: str,
    *,
    expected: str,
    metadata: Mapping[str, str],
    message: str,
) -> Commit:
    """Move `branch` to the content of the branch `work` in one commit, then drop `work`.

    Raises:
        HeadMovedError: `branch` is no longer at `expected`, which `work` was made from.
    """
    commit = repository.merge(work, branch, message=message, metadata=metadata, squash=True, if_head=expected)
    repository.delete_branch(work)
    return commit


def keep_candidate(repository: Repository, work: str) -> str:
    """Keep what the gate refused under a name of its own; returns the branch name."""
    commit = repository.resolve(work)
    name = f"{CANDIDATE_PREFIX}{commit[:8]}"
    repository.create_branch(name, commit)
    repository.delete_branch(work)
    return name


def sweep(repository: Repository) -> int:
    """Drop the branches of ingests that were killed; the caller holds the writer lock."""
    stale = repository.list_branches(WORK_PREFIX)
    for branch in stale:
        repository.delete_branch(branch.id)
    return len(stale)


def rollback(knowledge_base: KnowledgeBase, ref: str | None = None, *, branch: str = MAIN) -> Commit:
    """One new commit on `branch` whose content is that of `ref` (the release before when None).

    Raises:
        NotFoundError: No such ref, or there is no release before.
        NoChangesError: The branch already has that content.
        LockedError: Another command is writing.
    """
    repository = knowledge_base.repository
    with knowledge_base.writing():
        head = repository.resolve(branch)
        if ref is None and not repository.get_commit(f"{branch}~1").parents:
            raise NoChangesError(
                f"There is no release before the one on {branch!r}.", hint="`rag log` lists the releases."
            )
        target = repository.resolve(ref or f"{branch}~1")
        if not load_release(repository, target).manifest.version or target == head:
            raise NoChangesError(
                f"{branch!r} is already at {target[:12]}.", hint="`rag log` lists the releases."
            )
        known = dict(repository.get_commit(target).metadata)
        known.update(changed="rollback", rollback=target, verdict=known.get("verdict", "UNEVALUATED"))
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
        if transaction.commit is None:  # pragma: no cover - the transaction would have raised
            raise NoChangesError(f"{branch!r} already has the content of {target[:12]}.")
        return transaction.commit


# -- comparing ---------------------------------------------------------------------------------


class ReleaseDifference(Frozen):
    """What changed from one release to another."""

    documents: DocumentChanges
    chunks: dict[str, int]
    settings: dict[str, dict[str, object]]


def diff_documents(repository: Repository, left: str, right: str) -> DocumentChanges:
    """Documents added, changed, deleted and renamed from `left` to `right`, as `git diff -M` tells them."""
    changes: dict[str, list[str]] = {"added": [], "removed": [], "changed": []}
    for change in repository.diff(left, right, type="two_dot", prefix=DOCUMENTS_PREFIX):
        changes[change.type].append(change.path)

    def read_old(path: str) -> bytes:
        return repository.get_object(left, path)

    def read_new(path: str) -> bytes:
        return repository.get_object(right, path)

    renamed = find_renames(
        {path: sha256_hex(read_old(path)) for path in changes["removed"]},
        {path: sha256_hex(read_new(path)) for path in changes["added"]},
        read_old,
        read_new,
    )
    return document_changes(
        changes["added"], changes["changed"], changes["removed"], renamed, strip=DOCUMENTS_PREFIX
    )


def document_changes(
    added: list[str],
    changed: list[str],
    deleted: list[str],
    renamed: list[tuple[str, str]],
    *,
    strip: str = "",
) -> DocumentChanges:
    """Sort paths into a DocumentChanges: what was renamed is neither added nor deleted."""
    old = {pair[0] for pair in renamed}
    new = {pair[1] for pair in renamed}

    def clean(path: str) -> str:
        return path.removeprefix(strip)

    return DocumentChanges(
        added=order_paths(clean(path) for path in added if path not in new),
        changed=order_paths(map(clean, changed)),
        deleted=order_paths(clean(path) for path in deleted if path not in old),
        renamed=tuple((clean(before), clean(after)) for before, after in renamed),
    )


def diff_releases(knowledge_base: KnowledgeBase, left: str, right: str) -> ReleaseDifference:
    """What changed from ref `left` to ref `right`. Raises NotFoundError, DamagedError."""
    repository = knowledge_base.repository
    left, right = repository.resolve(left), repository.resolve(right)
    before, after = knowledge_base.snapshot(left), knowledge_base.snapshot(right)
    return ReleaseDifference(
        documents=diff_documents(repository, left, right),
        chunks=count_chunk_changes(before, after),
        settings=settings_difference(before.release, after.release),
    )


# -- checking ----------------------------------------------------------------------------------


class Problem(Frozen):
    """Something fsck found: `where` names a commit, segment or file."""

    where: str
    what: str


def fsck(
    knowledge_base: KnowledgeBase, *, progress: Callable[[str], None] = lambda _: None
) -> Iterator[Problem]:
    """Check the repository, every release that a branch or tag reaches, and the caches of main.

    Yields a Problem for everything damaged; a missing cache is no problem, it is rebuilt on use.
    """
    repository = knowledge_base.repository
    progress("repository objects")
    broken = False
    for fault in repository.verify():
        broken = True
        yield Problem(where="repository", what=fault)
    if broken:
        return  # what follows would only repeat it
    checked: set[str] = set()
    refs = [branch.id for branch in repository.list_branches()] + [tag.id for tag in repository.list_tags()]
    for commit in {commit.id: commit for ref in refs for commit in repository.log(ref)}.values():
        progress(f"release {commit.id[:12]}")
        yield from _check_release(knowledge_base, commit.id, checked)
    progress("caches of main")
    with suppress(NotFoundError):
        snapshot = knowledge_base.snapshot(MAIN)
        for segment in snapshot.segments:
            if (knowledge_base.cache / segment.id).exists() and (torn := segment.check_cache()):
                yield Problem(
                    where=f"cache/{segment.id}", what=f"{torn}; it is rebuilt on use or by `rag rebuild`"
                )


def _check_release(knowledge_base: KnowledgeBase, commit: str, checked: set[str]) -> Iterator[Problem]:
    repository = knowledge_base.repository
    try:
        release = load_release(repository, commit)
        for ref in release.manifest.segments:
            if ref.id in checked:
                continue
            checked.add(ref.id)
            tables = {
                name: repository.get_object(commit, f"{SEGMENTS_PREFIX}{ref.id}/{name}") for name in TABLES
            }
            if segment_id(tables) != ref.id:
                yield Problem(where=f"segment {ref.id}", what="its content does not match its id")
        if release.manifest.segments:
            yield from _check_snapshot(repository, knowledge_base.snapshot(commit))
    except PlumblineError as error:
        yield Problem(where=f"release {commit[:12]}", what=error.message)


def _check_snapshot(repository: Repository, snapshot: Snapshot) -> Iterator[Problem]:
    commit, manifest = snapshot.release.commit, snapshot.release.manifest
    stored = {
        item.path.removeprefix(DOCUMENTS_PREFIX)
        for item in repository.list_objects(commit, prefix=DOCUMENTS_PREFIX)
    }
    for path in sorted(stored.symmetric_difference(snapshot.paths)):
        yield Problem(where=f"release {commit[:12]}", what=f"document {path!r} is not in both tree and index")
    if (len(snapshot.paths), snapshot.chunk_count) != (manifest.documents, manifest.chunks):
        yield Problem(where=f"release {commit[:12]}", what="the manifest's counts are wrong")


def rebuild(knowledge_base: KnowledgeBase, ref: str = MAIN) -> int:
    """Build the caches of a release anew from its parquet; returns how many passages, none embedded.

    Raises:
        DamagedError: A segment of the release cannot be read.
        LockedError: Another command is writing.
    """
    with knowledge_base.writing():
        snapshot = knowledge_base.snapshot(ref)
        for segment in snapshot.segments:
            segment.rebuild()
        snapshot.close()
        return sum(len(segment.passage_hashes) for segment in snapshot.segments)
