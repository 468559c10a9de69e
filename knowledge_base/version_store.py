"""The version store: a knowledge base's history, in lakeFS's words.

Two backends speak this protocol (embedded git, lakeFS) and one behaviour suite holds both to it:
`tests/test_version_store_behaviour.py`. The unit of change is an atomic transaction: writes are
staged, become ONE commit, and the branch moves to it; readers see the old commit or the new one.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Literal, Protocol, Self

from knowledge_base.errors import MissingExtraError

Strategy = Literal["source-wins", "dest-wins"]
DiffType = Literal["three_dot", "two_dot"]


@dataclass(frozen=True)
class Commit:
    """One commit: `creation_date` in whole seconds since 1970, `metadata` text to text."""

    id: str
    parents: tuple[str, ...]
    committer: str
    message: str
    creation_date: int
    metadata: Mapping[str, str] = field(default_factory=dict)


Hook = Callable[[str, str, Commit], None]
"""Called as `hook(event, branch, commit)`; whatever it raises refuses."""


@dataclass(frozen=True)
class Branch:
    """A movable name for a commit."""

    id: str
    commit_id: str


@dataclass(frozen=True)
class Tag:
    """An immutable name for a commit."""

    id: str
    commit_id: str


@dataclass(frozen=True)
class ObjectInfo:
    """One object of a commit; `checksum` compares objects of one store only, it is no content hash."""

    path: str
    size_bytes: int
    checksum: str


@dataclass(frozen=True)
class CommonPrefix:
    """Stands for every object below `path` when a listing uses a delimiter."""

    path: str


@dataclass(frozen=True)
class Change:
    """One path that differs between two commits."""

    type: Literal["added", "removed", "changed", "conflict"]
    path: str
    size_bytes: int


class Transaction(Protocol):
    """Writes that become one commit when the `with` block ends, or nothing when it raises."""

    message: str
    metadata: dict[str, str]
    commit: Commit | None
    """The new commit, after the block."""

    @property
    def base_commit_id(self) -> str:
        """The commit the transaction started from."""
        ...

    def upload(self, path: str, content: bytes | BinaryIO | Path) -> ObjectInfo:
        """Stage one object, replacing what was at `path`. Raises InvalidPathError, StorageError."""
        ...

    def delete(self, path: str) -> None:
        """Stage the removal of `path`; a missing path is no error."""
        ...

    def delete_objects(self, paths: Iterable[str]) -> None:
        """Stage the removal of many paths."""
        ...

    def delete_prefix(self, prefix: str) -> None:
        """Stage the removal of every object whose path starts with `prefix`."""
        ...

    def exists(self, path: str) -> bool:
        """Whether `path` exists, own writes included."""
        ...

    def get_object(self, path: str) -> bytes:
        """Content of `path`, own writes included. Raises NotFoundError."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Repository(Protocol):
    """One repository. A branch name always means its head commit; staged data is never visible."""

    id: str
    default_branch: str
    shared: bool
    """Whether other machines write to it too: what looks left over may be in use."""

    @property
    def identity(self) -> str:
        """Tells this repository from every other one, however it is reached."""
        ...

    def resolve(self, ref: str) -> str:
        """Commit id of a branch, tag, commit id (or unique prefix), `x~N`, `x^N`. Raises NotFoundError."""
        ...

    def get_commit(self, ref: str) -> Commit:
        """The commit `ref` names. Raises NotFoundError."""
        ...

    def create_branch(self, branch: str, source: str) -> Branch:
        """Raises AlreadyExistsError, InvalidNameError, NotFoundError."""
        ...

    def get_branch(self, branch: str) -> Branch:
        """Raises NotFoundError."""
        ...

    def list_branches(self, prefix: str = "") -> list[Branch]:
        """Branches in byte order of their names."""
        ...

    def delete_branch(self, branch: str) -> None:
        """Raises NotFoundError, ProtectedError (the default branch)."""
        ...

    def create_tag(self, tag: str, ref: str) -> Tag:
        """Tags never move: an existing one is AlreadyExistsError even for the same target."""
        ...

    def get_tag(self, tag: str) -> Tag:
        """Raises NotFoundError."""
        ...

    def list_tags(self, prefix: str = "") -> list[Tag]:
        """Tags in byte order of their names."""
        ...

    def delete_tag(self, tag: str) -> None:
        """Raises NotFoundError."""
        ...

    def list_objects(
        self, ref: str, *, prefix: str = "", delimiter: str = "", after: str = ""
    ) -> Iterator[ObjectInfo | CommonPrefix]:
        """Objects in byte order of their paths, `after` exclusive."""
        ...

    def stat_object(self, ref: str, path: str) -> ObjectInfo:
        """Raises NotFoundError."""
        ...

    def get_object(self, ref: str, path: str) -> bytes:
        """Raises NotFoundError, DamagedError."""
        ...

    def open_object(self, ref: str, path: str) -> BinaryIO:
        """A seekable binary file. Raises NotFoundError, DamagedError."""
        ...

    def local_path(self, ref: str, path: str) -> Path | None:
        """Where the bytes lie on this machine's disk, if they do: a shortcut for memory mapping."""
        ...

    def transact(
        self,
        branch: str,
        *,
        message: str,
        metadata: Mapping[str, str] | None = None,
        if_head: str | None = None,
        allow_empty: bool = False,
    ) -> Transaction:
        """Start a transaction.

        On exit it raises NoChangesError (nothing differs and not `allow_empty`), HeadMovedError
        (`if_head` given and the branch is elsewhere), MergeConflictError (another transaction
        changed the same paths first); then the branch has not moved.
        """
        ...

    def log(
        self,
        ref: str,
        *,
        objects: Sequence[str] = (),
        prefixes: Sequence[str] = (),
        first_parent: bool = False,
        since: int | None = None,
        stop_at: str | None = None,
        amount: int | None = None,
    ) -> Iterator[Commit]:
        """Commits, newest first. `stop_at` (a ref) is included; `since` in seconds since 1970."""
        ...

    def diff(
        self, left: str, right: str, *, type: DiffType = "three_dot", prefix: str = ""
    ) -> Iterator[Change]:
        """What changed from left to right; three_dot counts from their merge base and marks conflicts."""
        ...

    def find_merge_base(self, source: str, destination: str) -> str:
        """Commit id of the best common ancestor."""
        ...

    def merge(
        self,
        source: str,
        destination: str,
        *,
        message: str,
        metadata: Mapping[str, str] | None = None,
        strategy: Strategy | None = None,
        squash: bool = False,
        if_head: str | None = None,
    ) -> Commit:
        """Merge whole files into branch `destination`; always a new commit, never a fast-forward.

        Raises:
            MergeConflictError: Both sides changed a path and no `strategy` says who wins.
            NoChangesError: The source adds nothing.
            HeadMovedError: `if_head` is not the destination's head.
            HookFailedError: A hook refused.
        """
        ...

    def revert(self, branch: str, ref: str, *, parent_number: int = 0, message: str | None = None) -> Commit:
        """A new commit on `branch` that undoes `ref`. Raises MergeConflictError, NoChangesError."""
        ...

    def register_hook(self, event: str, hook: Hook) -> None:
        """Call `hook(event, branch, commit)` on `pre-commit` or `pre-merge`; what it raises refuses."""
        ...

    def sweep(self) -> int:
        """Drop what transactions that were killed left behind; returns how many there were."""
        ...

    def verify(self) -> Iterator[str]:
        """Yield a sentence for everything damaged or missing in the store itself."""
        ...

    def gc(self, grace_seconds: float, *, expire: Collection[str] = (), dry_run: bool = False) -> int:
        """Remove what no ref reaches and is older than the grace period; returns the bytes freed.

        Files that only the commits `expire` hold go too; those commits stay in the log and reading
        them raises ExpiredError. The head of a branch never expires.

        Raises:
            DamagedError: Something reachable is damaged; nothing was removed.
            UnsupportedError: The backend collects by rules of its own.
        """
        ...


class VersionStore(Protocol):
    """A place that holds repositories."""

    def create_repository(
        self, repository: str, *, default_branch: str = "main", exist_ok: bool = False
    ) -> Repository:
        """A new repository has one commit with an empty tree. Raises AlreadyExistsError, InvalidNameError."""
        ...

    def get_repository(self, repository: str) -> Repository:
        """Raises NotFoundError, UnavailableError."""
        ...

    def repair_repository(
        self,
        repository: str,
        *,
        default_branch: str = "main",
        backup: Path | None = None,
        spares: Iterable[bytes] = (),
    ) -> list[str]:
        """Restore what can be; a line for each thing that was.

        `backup` is a copy of the repository, `spares` are contents that lost objects may have had.

        Raises:
            NotFoundError: There is no such repository, or the backup is none.
            UnsupportedError: The backend repairs itself.
        """
        ...

    def list_repositories(self, prefix: str = "") -> list[str]:
        """Repository names in byte order."""
        ...

    def delete_repository(self, repository: str) -> None:
        """Raises NotFoundError."""
        ...


LAKEFS = "lakefs://"


def open_version_store(url: str, cache: Path | None = None, storage: str | None = None) -> VersionStore:
    """Open the store a URL names: a folder for embedded git, `lakefs://` for the lakeFS server.

    The server's address and credentials are those of lakeFS's own tools. `cache` is a folder where
    what was fetched from a server is kept, `storage` where new repositories keep their objects.

    Raises:
        MissingExtraError: The lakefs package is not installed.
        UnauthorizedError: No lakeFS credentials are configured.
    """
    if not url.startswith(LAKEFS):
        from knowledge_base.version_store_git import GitVersionStore

        return GitVersionStore(Path(url))
    try:
        from knowledge_base.version_store_lakefs import LakeFSVersionStore
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("lakefs", "lakefs_sdk", "yaml", "urllib3"):
            raise
        raise MissingExtraError(
            "lakeFS needs the lakefs package.", hint="pip install 'plumbline[lakefs]'"
        ) from error
    return LakeFSVersionStore(cache=cache, storage=storage)
