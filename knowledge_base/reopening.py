"""What going back to an older release would open that releases since have closed."""

from collections.abc import Iterator

from knowledge_base.errors import PlumblineError
from knowledge_base.home import KnowledgeBase
from knowledge_base.version_store import Commit, Repository

_TAKES_AWAY = ("documents-deleted", "documents-renamed")


def reopened(knowledge_base: KnowledgeBase, head: str, target: str) -> list[str]:
    """Patterns of `[access]` and paths that `target` leaves open to more readers than later releases do.

    A document that `head` holds no more counts as the release before its deletion had it; where that release
    is gone, it counts as closed.

    Args:
        knowledge_base: Both are releases of its main.
        head: The commit that main is at.
        target: The commit to go back to.

    Raises:
        DamagedError: One of the two releases cannot be read.
    """
    since = list(_since(knowledge_base.repository, head, target))
    if not any("restricted" in commit.metadata for commit in since):
        return []
    now, old = knowledge_base.snapshot(head), knowledge_base.snapshot(target)
    found = {path for path in old.paths if old.access.opens(path, now.access)}
    gone = {path for path in old.paths if path not in now} - found
    for release in _before_deletions(knowledge_base.repository, since, target):
        if not gone:
            break
        try:
            held = knowledge_base.snapshot(release)
        except PlumblineError:
            found |= gone
            break
        there = {path for path in gone if path in held}
        found |= {path for path in there if old.access.opens(path, held.access)}
    # Older releases hold documents that neither of the two does: today's patterns close them there.
    return [f'"{pattern}"' for pattern in old.access.loosened(now.access)] + sorted(found)


def _since(repository: Repository, head: str, target: str) -> Iterator[Commit]:
    """The commits of a line after the one that made `target` its release, newest first."""
    for commit in repository.log(head, first_parent=True):
        if target in (commit.id, *commit.parents[1:]):
            return
        yield commit


def _before_deletions(repository: Repository, since: list[Commit], target: str) -> Iterator[str]:
    """The restricted releases that the next one took documents away from, newest first."""
    for commit in since:
        taken = "rollback" in commit.metadata or any(commit.metadata.get(k, "0") != "0" for k in _TAKES_AWAY)
        before = next(iter(commit.parents), target)
        if taken and before != target and "restricted" in repository.get_commit(before).metadata:
            yield before
