"""What may go: releases beyond the retention rules, caches that nothing serves, content nothing reaches."""

import os
import time
from contextlib import suppress
from pathlib import Path

from knowledge_base.durable import remove_folder
from knowledge_base.errors import PlumblineError
from knowledge_base.home import MAIN, KnowledgeBase, release_branches
from knowledge_base.lifecycle import sweep
from knowledge_base.release import load_release
from knowledge_base.segments import drop_cache
from knowledge_base.values import Frozen
from knowledge_base.vectors import abandoned_journals
from knowledge_base.version_store import Repository

_DAY = 86_400


class Retention(Frozen):
    """Which releases keep their content besides the newest of each branch; None for all of them."""

    keep_last: int | None = None
    keep_days: float | None = None
    keep_tags: bool = True


class GcReport(Frozen):
    """What gc removed, or with `dry_run` would remove."""

    dry_run: bool
    retained: int
    expired: tuple[str, ...]
    caches: tuple[str, ...]
    cache_bytes: int
    object_bytes: int
    collections: tuple[str, ...] = ()
    """Chroma collections on a server; how much they weigh it does not tell."""

    @property
    def bytes(self) -> int:
        """All bytes freed."""
        return self.cache_bytes + self.object_bytes


def gc(knowledge_base: KnowledgeBase, retention: Retention, *, dry_run: bool = True) -> GcReport:
    """Free what no retained release needs.

    Without rules every release is kept and only leftovers go: content that no branch or tag reaches,
    caches of segments that neither a branch, nor a tag, nor the release before main's uses (a cache that
    is missing is built again when somebody asks that release), and vectors of embedding runs that were
    killed and that nobody went on with for a week.

    Raises:
        DamagedError: Something reachable is damaged; nothing was removed.
        LockedError: Another command is writing.
        StorageError: The disk refused.
    """
    repository = knowledge_base.repository
    with knowledge_base.writing():
        if not dry_run:
            sweep(repository)
        retained, expired = _divide(repository, retention, time.time())
        object_bytes = 0
        if expired or not repository.shared:  # a shared store frees by rules of its own
            object_bytes = repository.gc(0, expire=expired, dry_run=dry_run)
        used = _used_segments(knowledge_base)
        idle = _idle_caches(knowledge_base, used)
        collections = knowledge_base.index.idle(used) if knowledge_base.index else []
        journals = abandoned_journals(knowledge_base, time.time())
        cache_bytes = sum(_size(folder) for folder in (*idle, *journals))
        if not dry_run:
            for folder in idle:
                drop_cache(folder)
            for folder in journals:
                remove_folder(folder)
            if knowledge_base.index:
                knowledge_base.index.drop(collections)
    return GcReport(
        dry_run=dry_run,
        retained=len(retained),
        expired=tuple(sorted(expired)),
        caches=tuple(sorted(folder.name for folder in (*idle, *journals))),
        cache_bytes=cache_bytes,
        object_bytes=object_bytes,
        collections=tuple(collections),
    )


def _divide(repository: Repository, retention: Retention, now: float) -> tuple[set[str], set[str]]:
    """(commits that keep their content, commits that lose it)."""
    branches = [branch.commit_id for branch in release_branches(repository)]
    tags = [tag.commit_id for tag in repository.list_tags()]
    everything = {commit.id: commit for head in branches + tags for commit in repository.log(head)}
    if retention.keep_last is None and retention.keep_days is None:
        return set(everything), set()
    kept = {*branches, *(tags if retention.keep_tags else ())}
    # The first commit of all holds nothing, and the branch of the evaluations begins at it.
    kept |= {commit.id for commit in everything.values() if not commit.parents}
    for head in branches:
        if retention.keep_last:
            log = repository.log(head, first_parent=True, amount=retention.keep_last)
            kept |= {commit.id for commit in log}
    if retention.keep_days is not None:
        limit = now - retention.keep_days * _DAY
        kept |= {commit.id for commit in everything.values() if commit.creation_date >= limit}
    return kept, set(everything) - kept


def _used_segments(knowledge_base: KnowledgeBase) -> set[str]:
    """Ids of the segments that a branch, a tag or the release before main's has."""
    repository = knowledge_base.repository
    refs = [branch.commit_id for branch in release_branches(repository)]
    refs += [tag.commit_id for tag in repository.list_tags()]
    refs += [commit.id for commit in repository.log(MAIN, first_parent=True, amount=2)]
    used: set[str] = set()
    for commit in set(refs):
        try:
            used |= {segment.id for segment in load_release(repository, commit).manifest.segments}
        except PlumblineError:
            continue  # expired: nobody can search it
    return used


def _idle_caches(knowledge_base: KnowledgeBase, used: set[str]) -> list[Path]:
    if not knowledge_base.cache.exists():
        return []
    folders = [folder for folder in knowledge_base.cache.iterdir() if folder.is_dir()]
    return [folder for folder in folders if folder.name not in used and not _in_the_making(folder)]


def _in_the_making(folder: Path) -> bool:
    """Whether a reader may be building it: no other command is while we hold the lock.

    What has a dot in front of its name and is older than an hour was left by one that was killed.
    """
    try:
        return folder.name.startswith(".") and folder.stat().st_mtime > time.time() - 3600
    except FileNotFoundError:
        return True  # and has just been renamed


def _size(folder: Path) -> int:
    """Bytes of all files; readers make and remove some meanwhile."""
    total = 0
    for here, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                total += os.stat(os.path.join(here, name)).st_size
    return total
