"""The rules that every version store keeps in the same way: hooks, expected heads, the order of a log."""

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

from knowledge_base.errors import HeadMovedError, HookFailedError
from knowledge_base.version_store import Commit, Hook

Id = TypeVar("Id")


def ask_hooks(hooks: Iterable[tuple[str, Hook]], event: str, branch: str, commit: Commit) -> None:
    """Call those hooks that wait for `event`. Raises HookFailedError."""
    for wanted, hook in hooks:
        if wanted != event:
            continue
        try:
            hook(event, branch, commit)
        except HookFailedError:
            raise
        except Exception as error:  # foreign code: whatever it raises is its no
            raise HookFailedError(f"The {event} hook refused: {error}") from error


def require_head(branch: str, expected: str | None, actual: str) -> None:
    """Refuse when a branch is not where its writer read it. Raises HeadMovedError."""
    if expected is not None and expected != actual:
        raise HeadMovedError(branch, expected, actual)


def in_log_order(start: Id, parents: Mapping[Id, Sequence[Id]], dates: Mapping[Id, int]) -> Iterator[Id]:
    """Commits reachable from `start`, newest first, parents after all their children.

    `parents` and `dates` hold all of them; of two with one date the one that stands first there comes first.
    """
    children = dict.fromkeys(parents, 0)
    for named in parents.values():
        for parent in named:
            children[parent] += 1
    place = {commit: number for number, commit in enumerate(parents)}
    ready: list[tuple[int, int, Id]] = [(-dates[start], 0, start)]
    while ready:
        commit = heapq.heappop(ready)[2]
        yield commit
        for parent in parents[commit]:
            children[parent] -= 1
            if not children[parent]:
                heapq.heappush(ready, (-dates[parent], place[parent], parent))
