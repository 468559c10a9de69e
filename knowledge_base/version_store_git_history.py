"""Reading refs and history of a bare repository: ref expressions, logs, merge bases, missing content."""

import hashlib
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pygit2

from knowledge_base.durable import disk_errors, remove_file
from knowledge_base.errors import DamagedError, NotFoundError
from knowledge_base.ref_expressions import parse_ref, too_far_back, unknown_ref
from knowledge_base.version_store import Commit
from knowledge_base.version_store_git_messages import parse_message
from knowledge_base.version_store_git_objects import GIT_ERRORS, Git, Objects, read_pointer, translated
from knowledge_base.version_store_rules import in_log_order

_NAME = re.compile(r"[-.\w]{1,200}", re.ASCII)
_PREFIX = re.compile(r"[0-9a-f]{4,40}", re.ASCII)


def find_commit(git: Any, ref: str) -> Any:
    """The commit of a branch, tag, id or prefix, with `~N`, `^N` and `@{date}` behind it.

    Raises:
        NotFoundError: Nothing has that name, or the history does not reach so far.
    """
    expression = parse_ref(ref)
    with translated(f"reading {ref!r}"):
        commit = _named(git, expression.name)
        if commit is None:
            raise unknown_ref(ref)
        if expression.until is not None:
            commit = _at(git, commit, expression.until, ref)
        for step, count in expression.steps:
            for _ in range(count if step == "~" else min(count, 1)):
                parent = 1 if step == "~" else count
                if parent > len(commit.parent_ids):
                    raise too_far_back(ref)
                commit = git[commit.parent_ids[parent - 1]]
        return commit


def read_ref(git: Any, kind: str, name: str) -> Any:
    """The commit a branch or tag leads to, through symbolic refs and annotated tags; None without one."""
    if not _NAME.fullmatch(name) or ".." in name or name.endswith((".", ".lock")) or name[0] == ".":
        return None  # libgit2 calls those an error
    if f"refs/{kind}/{name}" not in git.references:
        return None
    found = git[git.references[f"refs/{kind}/{name}"].resolve().target]
    while found.type == pygit2.GIT_OBJECT_TAG:
        found = git[found.target]
    return found if found.type == pygit2.GIT_OBJECT_COMMIT else None


def describe(commit: Any) -> Commit:
    """What a commit says, in the protocol's words."""
    message, metadata = parse_message(commit.message)
    return Commit(
        id=str(commit.id),
        parents=tuple(map(str, commit.parent_ids)),
        committer=commit.committer.name,
        message=message,
        creation_date=commit.commit_time,
        metadata=metadata,
    )


def _named(git: Any, name: str) -> Any:
    for kind in ("heads", "tags"):
        if (commit := read_ref(git, kind, name)) is not None:
            return commit
    if not _PREFIX.fullmatch(name):
        return None
    try:
        found = git[git.expand_id(name)]
    except KeyError:
        return None
    except ValueError as error:
        if "ambiguous" in str(error):
            return None
        raise
    return found if found.type == pygit2.GIT_OBJECT_COMMIT else None


def _at(git: Any, commit: Any, limit: float, ref: str) -> Any:
    while commit.commit_time > limit:
        if not commit.parent_ids:
            raise NotFoundError("ref", ref, hint="The history starts later.")
        commit = git[commit.parent_ids[0]]
    return commit


def walk_commits(git: Any, start: Any, *, first_parent: bool) -> Iterator[Any]:
    """Newest first, parents after all their children; reads no further than asked on first parents."""
    if first_parent:
        yield start
        while start.parent_ids:
            start = git[start.parent_ids[0]]
            yield start
        return
    commits = _ancestors(git, start)
    parents = {oid: commit.parent_ids for oid, commit in commits.items()}
    dates = {oid: commit.commit_time for oid, commit in commits.items()}
    yield from (commits[oid] for oid in in_log_order(start.id, parents, dates))


def _ancestors(git: Any, start: Any) -> dict[Any, Any]:
    waiting, found = [start.id], {}
    while waiting:
        oid = waiting.pop()
        if oid not in found:
            found[oid] = git[oid]
            waiting += found[oid].parent_ids
    return found


def merge_base(git: Any, one: Any, other: Any) -> Any:
    """Best common ancestor. Raises NotFoundError (unrelated histories)."""
    for head in (one, other):
        _ancestors(git, head)  # libgit2 walks by itself and would hang on a damaged commit: see Git
    base = git.merge_base(one.id, other.id)
    if base is None:
        raise NotFoundError("merge base", f"{one.id}..{other.id}", hint="The two histories are unrelated.")
    return git[base]


def reachable(objects: Objects, expired: frozenset[str] = frozenset()) -> Iterator[tuple[str, str | None]]:
    """Every object id and large-file hash that a ref reaches, with what is wrong with it.

    Of an `expired` commit only the commit and its folders count, not its files.
    """
    git = Git(objects.folder)  # a used handle would answer from its cache
    seen: set[str] = set()
    waiting: list[str] = []
    hollow: list[str] = []
    for name in _ref_names(objects.folder, git):
        try:
            waiting.append(str(git.references[name].resolve().target))
        except GIT_ERRORS as error:
            yield name, f"ref {name} cannot be read: {error}"
    while waiting or hollow:
        shallow = not waiting  # folders of expired commits come last: by then all that counts is seen
        oid = hollow.pop() if shallow else waiting.pop()
        if oid in seen:
            continue
        seen.add(oid)
        try:
            found = git[oid]
            below = _links(found)
            found.read_raw()  # libgit2 knows the empty tree by heart, and does not look for its file
            pointer = read_pointer(found) if found.type == pygit2.GIT_OBJECT_BLOB else None
        except GIT_ERRORS as error:
            yield oid, f"object {oid} is missing or damaged: {error}"
            continue
        yield oid, None
        if shallow:
            hollow += [str(entry.id) for entry in found if entry.type == pygit2.GIT_OBJECT_TREE]
        elif oid in expired:
            hollow.append(str(found.tree_id))
            waiting += map(str, found.parent_ids)
        else:
            waiting += below
        if pointer and pointer[0] not in seen:
            seen.add(pointer[0])
            yield pointer[0], _large_fault(objects, pointer[0])


def _ref_names(folder: Path, git: Any) -> set[str]:
    """Also the refs that libgit2 leaves out of its list because their file is damaged."""
    loose = (path for path in (folder / "refs").rglob("*") if path.is_file() and path.suffix != ".lock")
    return {*git.references, *(path.relative_to(folder).as_posix() for path in loose)}


def _links(found: Any) -> list[str]:
    if found.type == pygit2.GIT_OBJECT_COMMIT:
        return [str(found.tree_id), *map(str, found.parent_ids)]
    if found.type == pygit2.GIT_OBJECT_TREE:
        return [str(entry.id) for entry in found if entry.type != pygit2.GIT_OBJECT_COMMIT]
    return [str(found.target)] if found.type == pygit2.GIT_OBJECT_TAG else []


def _large_fault(objects: Objects, digest: str) -> str | None:
    try:
        with open(objects.large_path(digest), "rb") as file:
            good = hashlib.file_digest(file, "sha256").hexdigest() == digest
    except OSError as error:
        return f"large file {digest} is missing: {error.strerror}"
    return None if good else f"large file {digest} is damaged"


def remove_unreachable(objects: Objects, grace_seconds: float, expired: frozenset[str], dry_run: bool) -> int:
    """Delete loose objects and large files that nothing needs; the caller holds the writer lock.

    Raises:
        DamagedError: Something reachable is damaged: what lies behind it would look unreachable.
        StorageError: The disk refused.
    """
    reached: set[str] = set()
    for name, fault in reachable(objects, expired):
        if fault:
            raise DamagedError(f"Nothing was removed: {fault}.", hint="Repair it first: see `rag fsck`.")
        reached.add(name)
    store = objects.folder / "objects"
    found = [path for path in store.glob("??/*") if path.parent.name + path.name not in reached]
    found += [path for path in store.glob("tmp_object_*") if path.is_file()]
    found += [p for p in (objects.folder / "lfs").rglob("*") if p.is_file() and p.name not in reached]
    if not dry_run and expired != objects.expired():
        objects.expire(expired)  # first: a release that lost a file must say so, not look damaged
    limit, freed = time.time() - grace_seconds, 0
    for path in found:
        with disk_errors(str(path)):
            stat = path.stat()
            if stat.st_mtime <= limit:
                freed += stat.st_size
                if not dry_run:
                    remove_file(path)
    return freed
