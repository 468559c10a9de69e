"""What may go: releases beyond the retention rules, caches that nothing serves, content nothing reaches."""

import time
from pathlib import Path

from knowledge_base.errors import PlumblineError
from knowledge_base.home import MAIN, KnowledgeBase
from knowledge_base.lifecycle import sweep
from knowledge_base.release import Frozen, load_release
from knowledge_base.segments import drop_cache
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

    @property
    def bytes(self) -> int:
        """All bytes freed."""
        return self.cache_bytes + self.object_bytes


def gc(knowledge_base: KnowledgeBase, retention: Retention, *, dry_run: bool = True) -> GcReport:
    """Free what no retained release needs.

    Without rules every release is kept and only leftovers go: content that no branch or tag reaches,
    and caches of segments that neither a branch, nor a tag, nor the release before main's uses (a
    cache that is missing is built again when somebody asks that release).

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
        object_bytes = repository.gc(0, expire=expired, dry_run=dry_run)
        idle = _idle_caches(knowledge_base)
        cache_bytes = sum(_size(folder) for folder in idle)
        if not dry_run:
            for folder in idle:
                drop_cache(folder)
    return GcReport(
        dry_run=dry_run,
        retained=len(retained),
        expired=tuple(sorted(expired)),
        caches=tuple(sorted(folder.name for folder in idle)),
        cache_bytes=cache_bytes,
        object_bytes=object_bytes,
    )


def _divide(repository: Repository, retention: Retention, now: float) -> tuple[set[str], set[str]]:
    """(commits that keep their content, commits that lose it)."""
    branches = [branch.commit_id for branch in repository.list_branches()]
    tags = [tag.commit_id for tag in repository.list_tags()]
    everything = {commit.id: commit for head in branches + tags for commit in repository.log(head)}
    if retention.keep_last is None and retention.keep_days is None:
        return set(everything), set()
    kept = {*branches, *(tags if retention.keep_tags else ())}
    for head in branches:
        if retention.keep_last:
            log = repository.log(head, first_parent=True, amount=retention.keep_last)
            kept |= {commit.id for commit in log}
    if retention.keep_days is not None:
        limit = now - retention.keep_days * _DAY
        kept |= {commit.id for commit in everything.values() if commit.creation_date >= limit}
    return kept, set(everything) - kept


def _idle_caches(knowledge_base: KnowledgeBase) -> list[Path]:
    repository = knowledge_base.repository
    refs = [branch.commit_id for branch in repository.list_branches()]
    refs += [tag.commit_id for tag in repository.list_tags()]
    refs += [commit.id for commit in repository.log(MAIN, first_parent=True, amount=2)]
    used: set[str] = set()
    for commit in set(refs):
        try:
            used |= {segment.id for segment in load_release(repository, commit).manifest.segments}
        except PlumblineError:
            continue  # expired: nobody can search it
    if not knowledge_base.cache.exists():
        return []
    # Names with a dot are builds that were killed: no other command is building while we hold the lock,
    # but a reader may be, for less than an hour.
    young = time.time() - 3600
    return [
        folder
        for folder in knowledge_base.cache.iterdir()
        if folder.is_dir()
        and folder.name not in used
        and (not folder.name.startswith(".") or folder.stat().st_mtime < young)
    ]


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
