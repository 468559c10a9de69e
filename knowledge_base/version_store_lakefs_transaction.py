"""A transaction on lakeFS: a hidden branch of its own takes the writes, a few at a time in parallel."""

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from knowledge_base.errors import NotFoundError
from knowledge_base.naming import validate_path
from knowledge_base.version_store import Commit, ObjectInfo
from knowledge_base.version_store_lakefs_client import PARALLEL
from knowledge_base.version_store_lakefs_objects import (
    Objects,
    clash,
    describe_content,
    folders_above,
    read_all,
)

_WAITING = 4 * PARALLEL


class LakeFSTransaction:
    """Staged writes by path, None for a removal; `finish` makes them one commit.

    `open_branch` makes the hidden branch when the first write comes, `drop_branch` removes it.
    """

    def __init__(
        self,
        objects: Objects,
        base: str,
        open_branch: Callable[[str], str],
        drop_branch: Callable[[str], None],
        finish: Callable[["LakeFSTransaction"], Commit],
        *,
        message: str,
        metadata: dict[str, str],
    ) -> None:
        self._objects = objects
        self._base = base
        self._open_branch, self._drop_branch, self._finish = open_branch, drop_branch, finish
        self.message = message
        self.metadata = metadata
        self.commit: Commit | None = None
        self.staged: dict[str, ObjectInfo | None] = {}
        self._branch = ""
        self._pool: ThreadPoolExecutor | None = None
        self._running: dict[str, Future[None]] = {}

    @property
    def base_commit_id(self) -> str:
        """The head the transaction started from."""
        return self._base

    @property
    def branch(self) -> str:
        """The hidden branch that takes the writes."""
        if not self._branch:
            self._branch = self._open_branch(self._base)
        return self._branch

    # -- writing -------------------------------------------------------------------------------

    def upload(self, path: str, content: bytes | BinaryIO | Path) -> ObjectInfo:
        """Stage one object; what goes wrong on the way may be raised by a later call."""
        validate_path(path)
        data = read_all(content)
        info = describe_content(path, data)
        if path not in self.staged and self._objects.holds(self._base, info):
            return info
        branch = self.branch
        if self._pool is None:
            self._pool = ThreadPoolExecutor(PARALLEL, thread_name_prefix="lakefs-upload")
        if path in self._running:  # of two writes to one path the last one counts
            self._running.pop(path).result()
        while len(self._running) >= _WAITING:
            self._running.pop(next(iter(self._running))).result()
        self._objects.cache.keep(info, data)
        self._running[path] = self._pool.submit(self._objects.upload, branch, info, data)
        self.staged[path] = info
        return info

    def delete(self, path: str) -> None:
        """Stage the removal of `path`; a missing path is no error."""
        self.staged[validate_path(path)] = None

    def delete_objects(self, paths: Iterable[str]) -> None:
        """Stage the removal of many paths; none when one of them is invalid."""
        self.staged.update(dict.fromkeys(map(validate_path, list(paths))))

    def delete_prefix(self, prefix: str) -> None:
        """Stage the removal of every object whose path starts with `prefix`."""
        committed = [item.path for item in self._objects.walk(self._base, prefix=prefix)]
        own = [path for path in self.staged if path.startswith(prefix)]
        self.staged.update(dict.fromkeys([*committed, *own]))

    def settle(self) -> None:
        """Wait until every write is staged on the server. Raises InvalidPathError, VersionStoreError."""
        written = self.written
        for path in written:
            for folder in folders_above(path):
                if self.staged.get(folder) is not None:
                    raise clash(folder)
        for future in self._running.values():
            future.result()
        self._running.clear()
        removed = [path for path, info in self.staged.items() if info is None]
        if removed:
            self._objects.delete(self.branch, removed)
        if written:
            self._objects.refuse_clashes(self.branch, written)

    @property
    def written(self) -> list[str]:
        """Paths of the objects it adds or replaces."""
        return [path for path, info in self.staged.items() if info is not None]

    # -- reading -------------------------------------------------------------------------------

    def exists(self, path: str) -> bool:
        """Whether `path` exists, own writes included."""
        if path in self.staged:
            return self.staged[path] is not None
        try:
            self._objects.find(self._base, path)
        except NotFoundError:
            return False
        return True

    def get_object(self, path: str) -> bytes:
        """Content of `path`, own writes included. Raises NotFoundError."""
        if path not in self.staged:
            with self._objects.open(self._base, path) as file:
                return file.read()
        info = self.staged[path]
        if info is None:
            raise NotFoundError("object", path)
        if path in self._running:
            self._running.pop(path).result()
        with self._objects.cache.open(info, lambda: self._objects.fetch(self.branch, info)) as file:
            return file.read()

    # -- the block -----------------------------------------------------------------------------

    def __enter__(self) -> Self:
        """Start of the block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Commit, unless the block raised; the hidden branch goes either way."""
        try:
            if kind is None:
                self.commit = self._finish(self)
        finally:
            if self._pool is not None:
                self._pool.shutdown(cancel_futures=True)
            if self._branch:
                self._drop_branch(self._branch)
