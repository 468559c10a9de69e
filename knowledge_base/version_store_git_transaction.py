"""A transaction of the embedded store: content is stored as it comes, published at the end of the block."""

from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from knowledge_base.errors import NotFoundError
from knowledge_base.naming import validate_path
from knowledge_base.version_store import Commit, ObjectInfo
from knowledge_base.version_store_git_objects import Objects, translated
from knowledge_base.version_store_git_trees import walk_files


class GitTransaction:
    """Staged blobs by path; `finish` makes them one commit."""

    def __init__(
        self,
        objects: Objects,
        base: Any,
        finish: Callable[["GitTransaction"], Commit],
        *,
        message: str,
        metadata: dict[str, str],
    ) -> None:
        self._objects = objects
        self._base = str(base.id)
        self._finish = finish
        self.message = message
        self.metadata = metadata
        self.commit: Commit | None = None
        self.staged: dict[str, str | None] = {}

    @property
    def base_commit_id(self) -> str:
        """The head the transaction started from."""
        return self._base

    def upload(self, path: str, content: bytes | BinaryIO | Path) -> ObjectInfo:
        """Stage one object. Raises InvalidPathError, StorageError."""
        validate_path(path)
        blob = self._objects.store(content)
        self.staged[path] = blob
        return self._objects.info(path, blob)

    def delete(self, path: str) -> None:
        """Stage the removal of `path`; a missing path is no error."""
        self.staged[validate_path(path)] = None

    def delete_objects(self, paths: Iterable[str]) -> None:
        """Stage the removal of many paths; none when one of them is invalid."""
        self.staged.update(dict.fromkeys(map(validate_path, list(paths))))

    def delete_prefix(self, prefix: str) -> None:
        """Stage the removal of every object whose path starts with `prefix`."""
        git = self._objects.git
        with translated(f"listing {prefix!r}"):
            committed = [path for path, _ in walk_files(git, git[git[self._base].tree_id], prefix)]
        own = [path for path in self.staged if path.startswith(prefix)]
        self.staged.update(dict.fromkeys([*committed, *own]))

    def exists(self, path: str) -> bool:
        """Whether `path` exists, own writes included."""
        try:
            self._blob(path)
        except NotFoundError:
            return False
        return True

    def get_object(self, path: str) -> bytes:
        """Content of `path`, own writes included. Raises NotFoundError."""
        with self._objects.open(self._blob(path), path) as file:
            return file.read()

    def _blob(self, path: str) -> str:
        if path not in self.staged:
            with translated(f"reading {path!r}"):
                base = self._objects.git[self._base]
            return self._objects.find(base, path)
        blob = self.staged[path]
        if blob is None:
            raise NotFoundError("object", path)
        return blob

    def __enter__(self) -> Self:
        """Start of the block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Commit, unless the block raised."""
        if kind is None:
            self.commit = self._finish(self)
