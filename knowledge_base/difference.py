"""How two releases differ: documents as `git diff -M` tells them, chunks, settings."""

from knowledge_base.documents import sha256_hex
from knowledge_base.home import KnowledgeBase
from knowledge_base.release import DOCUMENTS_PREFIX, DocumentChanges, order_paths, settings_difference
from knowledge_base.renames import find_renames
from knowledge_base.snapshot import Snapshot, count_chunk_changes
from knowledge_base.values import Frozen
from knowledge_base.version_store import Repository

_KINDS = {(False, True): "added", (True, False): "removed", (True, True): "changed"}
"""What became of a document that differs, by whether it is seen before and after."""


class ReleaseDifference(Frozen):
    """What changed from one release to another."""

    documents: DocumentChanges
    chunks: dict[str, int]
    settings: dict[str, dict[str, object]]


def diff_documents(
    repository: Repository,
    left: str,
    right: str,
    seen: tuple[Snapshot, Snapshot] | None = None,
) -> DocumentChanges:
    """Documents added, changed, deleted and renamed from `left` to `right`, as `git diff -M` tells them.

    With `seen`, the documents of each that count, the others are not looked at.
    """
    changes: dict[str, list[str]] = {"added": [], "removed": [], "changed": []}
    for change in repository.diff(left, right, type="two_dot", prefix=DOCUMENTS_PREFIX):
        kind: str | None = change.type
        if seen:
            path = change.path.removeprefix(DOCUMENTS_PREFIX)
            kind = _KINDS.get((path in seen[0], path in seen[1]))
        if kind:
            changes[kind].append(change.path)

    def read_old(path: str) -> bytes:
        return repository.get_object(left, path)

    def read_new(path: str) -> bytes:
        return repository.get_object(right, path)

    renamed: list[tuple[str, str]] = []
    if changes["removed"] and changes["added"]:  # else nothing is read
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
    before, after = knowledge_base.snapshot(left), knowledge_base.snapshot(right)
    repository = knowledge_base.repository
    return _difference(before, after, diff_documents(repository, before.release.commit, after.release.commit))


def diff_views(repository: Repository, before: Snapshot, after: Snapshot) -> ReleaseDifference:
    """What changed from one release to another for somebody who sees a part of their documents."""
    seen = (before, after)
    return _difference(
        *seen, diff_documents(repository, before.release.commit, after.release.commit, seen=seen)
    )


def _difference(before: Snapshot, after: Snapshot, documents: DocumentChanges) -> ReleaseDifference:
    return ReleaseDifference(
        documents=documents,
        chunks=count_chunk_changes(before, after),
        settings=settings_difference(before.release, after.release),
    )
