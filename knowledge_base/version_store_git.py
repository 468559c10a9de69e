"""The embedded version store: bare git repositories through libgit2; `git log` and `git show` work on them.

- Metadata are trailers of the commit message, one line a key.
- Files of 1 MiB and more lie beside the objects as Git LFS keeps them, with a pointer in the tree:
  libgit2 would hold each in memory and compress it, which costs seconds for vectors that do not shrink.
- Writes are objects first, then one ref, moved while an OS lock is held that dies with its process.
"""

import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import pygit2

from knowledge_base.durable import disk_errors, exclusive_lock, sync_folder
from knowledge_base.errors import (
    AlreadyExistsError,
    DamagedError,
    HeadMovedError,
    HookFailedError,
    InvalidPathError,
    NoChangesError,
    NotFoundError,
    ProtectedError,
    StorageError,
    UnavailableError,
)
from knowledge_base.version_store import (
    Branch,
    Change,
    Commit,
    CommonPrefix,
    DiffType,
    ObjectInfo,
    Strategy,
    Tag,
    validate_branch_name,
    validate_path,
    validate_repository_name,
    validate_tag_name,
)
from knowledge_base.version_store_git_trees import (
    apply_changes,
    compare_trees,
    find_file,
    merge_trees,
    walk_files,
)

LARGE_FILE_BYTES = 1024 * 1024
DEFAULT_COMMITTER = ("Plumbline", "plumbline@localhost")
_POINTER = re.compile(
    rb"version https://git-lfs\.github\.com/spec/v1\noid sha256:([0-9a-f]{64})\nsize ([0-9]+)\n", re.ASCII
)
_POINTER_START = b"version https://git-lfs.github.com/spec/"
_POINTER_MAX_BYTES = 200
_TRAILER = "Plumbline-"
_TRAILER_LINE = re.compile(r"Plumbline-([^:]+): (.*)")
_PLAIN_KEY = re.compile(r"[A-Za-z0-9_.-]+", re.ASCII)
_OTHER = "Other"
_MARK = "Version"
_SUFFIX = re.compile(r"(.*?)(@\{[^}]*\})?((?:[~^][0-9]*)*)", re.DOTALL)
_HEX = re.compile(r"[0-9a-f]{8,40}", re.ASCII)
_DISK = ("no space", "read-only", "quota", "permission denied", "input/output error", "too many open")
_LOCK_SECONDS = 60.0
_COPY_BYTES = 1024 * 1024

Hook = Callable[[str, str, Commit], None]

pygit2.option(pygit2.enums.Option.SET_OWNER_VALIDATION, False)  # containers often run as another user


@contextlib.contextmanager
def _translated(what: str) -> Iterator[None]:
    """The one place where libgit2's errors become ours."""
    try:
        yield
    except (pygit2.GitError, OSError, KeyError, ValueError, zlib.error) as error:
        text = str(error).lower()
        if any(word in text for word in _DISK) or (isinstance(error, OSError) and error.errno):
            raise StorageError(
                f"The disk refused {what}: {error}.",
                hint="Nothing was published. Free space, then run it again.",
            ) from error
        raise DamagedError(
            f"The repository is damaged: {what}: {error}.",
            hint="Run `rag fsck`; restore it from a clone or backup.",
        ) from error


class _Git(pygit2.Repository):  # type: ignore[misc]
    """libgit2's repository, but one that notices an object file that is cut short.

    libgit2 1.9 never returns from reading one: its inflating loop waits for input that does not come.
    """

    def __init__(self, path: str, flags: Any) -> None:
        super().__init__(path, flags)
        self._whole: set[str] = set()

    def __getitem__(self, key: Any) -> Any:
        name = str(key)
        if name not in self._whole:
            loose = Path(self.path) / "objects" / name[:2] / name[2:]
            with contextlib.suppress(FileNotFoundError):  # then it is in a pack, or its name was shortened
                inflate = zlib.decompressobj()
                inflate.decompress(loose.read_bytes())
                if not inflate.eof:
                    raise ValueError(f"object {name} is cut short")
            self._whole.add(name)
        return super().__getitem__(key)


class GitVersionStore:
    """Bare repositories `<root>/<name>.git`."""

    def __init__(self, root: Path, *, committer: tuple[str, str] = DEFAULT_COMMITTER) -> None:
        self._root = root
        self._committer = committer

    def create_repository(
        self, repository: str, *, default_branch: str = "main", exist_ok: bool = False
    ) -> "GitRepository":
        """Built aside and renamed, so that a repository is there whole or not at all."""
        final = self._path(repository)
        validate_branch_name(default_branch)
        if final.exists():
            if exist_ok:
                return self.get_repository(repository)
            raise AlreadyExistsError(f"Repository {repository!r} exists already.")
        with disk_errors(str(final)):
            self._root.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(prefix=f".{repository}-", dir=self._root))
        try:
            with _translated("creating the repository"):
                git = pygit2.init_repository(str(temporary), bare=True, initial_head=default_branch)
                author = pygit2.Signature(*self._committer)
                message = _format_message("Repository created", {})
                git.create_commit(
                    f"refs/heads/{default_branch}", author, author, message, git.TreeBuilder().write(), []
                )
            with disk_errors(str(final)):
                os.replace(temporary, final)
                sync_folder(self._root)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return self.get_repository(repository)

    def get_repository(self, repository: str) -> "GitRepository":
        """Raises NotFoundError, UnavailableError (there is one, but it cannot be opened)."""
        path = self._path(repository)
        if not path.exists():
            raise NotFoundError("repository", repository)
        return GitRepository(repository, path, self._committer)

    def list_repositories(self, prefix: str = "") -> list[str]:
        """Names in byte order."""
        names = (path.name.removesuffix(".git") for path in self._root.glob("*.git") if path.name[0] != ".")
        return sorted(name for name in names if name.startswith(prefix))

    def delete_repository(self, repository: str) -> None:
        """Renamed first, so that it is gone at once."""
        path = self._path(repository)
        if not path.exists():
            raise NotFoundError("repository", repository)
        with disk_errors(str(path)):
            aside = Path(tempfile.mkdtemp(prefix=f".{repository}-deleted-", dir=self._root))
            os.replace(path, aside / "repository")
            shutil.rmtree(aside)

    def _path(self, repository: str) -> Path:
        return self._root / f"{validate_repository_name(repository)}.git"


class GitRepository:
    """One bare repository; safe to read from several threads."""

    def __init__(self, id: str, path: Path, committer: tuple[str, str]) -> None:
        self.id = id
        self._path = path
        self._committer = committer
        self._threads = threading.local()
        self._hooks: list[tuple[str, Hook]] = []
        self._verified: dict[str, tuple[int, int]] = {}
        try:
            head = self._git.lookup_reference("HEAD").target
            self.default_branch = str(head).removeprefix("refs/heads/")
            self._git.lookup_reference(f"refs/heads/{self.default_branch}")
        except (pygit2.GitError, OSError, KeyError, ValueError, zlib.error) as error:
            raise UnavailableError(
                f"{path} is not a usable repository: {error}.",
                hint="Restore it from a clone or backup (`git clone --bare`); nothing was changed.",
            ) from error

    @property
    def _git(self) -> Any:
        """libgit2's handle of this thread: it must not be shared between threads."""
        if not hasattr(self._threads, "git"):
            self._threads.git = _Git(str(self._path), pygit2.enums.RepositoryOpenFlag.BARE)
        return self._threads.git

    # -- refs ----------------------------------------------------------------------------------

    def resolve(self, ref: str) -> str:
        """Commit id of a ref expression, `main@{2026-11-01}` included."""
        return str(self._commit(ref).id)

    def get_commit(self, ref: str) -> Commit:
        """The commit `ref` names."""
        return _describe(self._commit(ref))

    def create_branch(self, branch: str, source: str) -> Branch:
        """Point a new branch at the commit `source` names."""
        return Branch(branch, self._create_ref("heads", validate_branch_name(branch), source))

    def get_branch(self, branch: str) -> Branch:
        """Raises NotFoundError."""
        return Branch(branch, self._read_ref("heads", branch, "branch"))

    def list_branches(self, prefix: str = "") -> list[Branch]:
        """Branches in byte order."""
        return [Branch(name, commit) for name, commit in self._list_refs("heads", prefix)]

    def delete_branch(self, branch: str) -> None:
        """Raises NotFoundError, ProtectedError."""
        if branch == self.default_branch:
            raise ProtectedError(f"Branch {branch!r} is the default branch and cannot be deleted.")
        self._delete_ref("heads", branch, "branch")

    def create_tag(self, tag: str, ref: str) -> Tag:
        """Give the commit `ref` names a name that never moves."""
        return Tag(tag, self._create_ref("tags", validate_tag_name(tag), ref))

    def get_tag(self, tag: str) -> Tag:
        """Raises NotFoundError."""
        return Tag(tag, self._read_ref("tags", tag, "tag"))

    def list_tags(self, prefix: str = "") -> list[Tag]:
        """Tags in byte order."""
        return [Tag(name, commit) for name, commit in self._list_refs("tags", prefix)]

    def delete_tag(self, tag: str) -> None:
        """Raises NotFoundError."""
        self._delete_ref("tags", tag, "tag")

    def _commit(self, ref: str) -> Any:
        matched = _SUFFIX.fullmatch(ref)
        name, date, steps = matched.groups() if matched else (ref, None, "")
        with _translated(f"reading {ref!r}"):
            commit = self._named(name)
            if commit is None:
                raise NotFoundError(
                    "ref", ref, hint="`rag log` lists the releases; branches and tags work too."
                )
            if date:
                commit = self._at(commit, date[2:-1], ref)
            for step, count in re.findall(r"([~^])([0-9]*)", steps):
                commit = self._step(commit, step, int(count or 1), ref)
            return commit

    def _tree(self, commit: Any) -> Any:
        return self._git[commit.tree_id]

    def _merged(self, base: Any, source: Any, destination: Any, strategy: Strategy | None) -> str:
        trees = (self._tree(base), self._tree(source), self._tree(destination))
        return merge_trees(self._git, *trees, strategy)

    def _base(self, one: Any, other: Any) -> Any:
        self._check_history(one.id, other.id)
        return self._git[self._git.merge_base(one.id, other.id)]

    def _check_history(self, *heads: Any) -> None:
        """Load every ancestor by ourselves before libgit2 walks them (see _Git)."""
        waiting, seen = list(heads), set()
        while waiting:
            commit = waiting.pop()
            if commit not in seen:
                seen.add(commit)
                waiting += self._git[commit].parent_ids

    def _named(self, name: str) -> Any:
        for kind in ("heads", "tags"):
            if re.fullmatch(r"[-.\w]+", name, re.ASCII) and f"refs/{kind}/{name}" in self._git.references:
                return self._git[self._git.references[f"refs/{kind}/{name}"].target]
        if not _HEX.fullmatch(name):
            return None
        try:
            found = self._git[name]
        except (KeyError, ValueError):
            return None
        return found if found.type == pygit2.GIT_OBJECT_COMMIT else None

    def _at(self, commit: Any, date: str, ref: str) -> Any:
        try:
            moment = datetime.fromisoformat(date)
        except ValueError as error:
            raise NotFoundError(
                "ref", ref, hint="Write a date as main@{2026-11-01} or main@{2026-11-01T09:30}."
            ) from error
        if "T" not in date and " " not in date:
            moment = moment.replace(hour=23, minute=59, second=59)  # a day means how it ended
        limit = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
        while commit.commit_time > limit:
            if not commit.parent_ids:
                raise NotFoundError("ref", ref, hint="The history starts later.")
            commit = self._git[commit.parent_ids[0]]
        return commit

    def _step(self, commit: Any, step: str, count: int, ref: str) -> Any:
        hops = [1] * count if step == "~" else [count]
        for parent in hops:
            if not 1 <= parent <= len(commit.parent_ids):
                raise NotFoundError("ref", ref, hint="The history is not that long.")
            commit = self._git[commit.parent_ids[parent - 1]]
        return commit

    def _create_ref(self, kind: str, name: str, source: str) -> str:
        with self._writing():
            if any(f"refs/{taken}/{name}" in self._git.references for taken in ("heads", "tags")):
                raise AlreadyExistsError(f"There is a branch or tag {name!r} already.")
            commit = self.resolve(source)
            with _translated(f"creating {name!r}"):
                self._git.references.create(f"refs/{kind}/{name}", commit)
            return commit

    def _read_ref(self, kind: str, name: str, noun: str) -> str:
        with _translated(f"reading {noun} {name!r}"):
            valid = re.fullmatch(r"[-.\w]+", name, re.ASCII)
            if not valid or f"refs/{kind}/{name}" not in self._git.references:
                raise NotFoundError(noun, name)
            return str(self._git.references[f"refs/{kind}/{name}"].target)

    def _list_refs(self, kind: str, prefix: str) -> list[tuple[str, str]]:
        start = f"refs/{kind}/"
        with _translated("listing refs"):
            names = sorted(name for name in self._git.references if name.startswith(start + prefix))
            return [(name.removeprefix(start), str(self._git.references[name].target)) for name in names]

    def _delete_ref(self, kind: str, name: str, noun: str) -> None:
        with self._writing():
            self._read_ref(kind, name, noun)
            with _translated(f"deleting {noun} {name!r}"):
                self._git.references.delete(f"refs/{kind}/{name}")

    # -- objects -------------------------------------------------------------------------------

    def list_objects(
        self, ref: str, *, prefix: str = "", delimiter: str = "", after: str = ""
    ) -> Iterator[ObjectInfo | CommonPrefix]:
        """Objects in byte order of their paths."""
        tree = self._tree(self._commit(ref))
        last = ""
        for path, blob in self._files(tree, prefix):
            if path.encode() <= after.encode():
                continue
            cut = path.find(delimiter, len(prefix)) if delimiter else -1
            if cut < 0:
                yield self._info(path, blob)
            elif (folder := path[: cut + len(delimiter)]) != last and folder.encode() > after.encode():
                last = folder
                yield CommonPrefix(folder)

    def _files(self, tree: Any, prefix: str) -> list[tuple[str, str]]:
        with _translated("listing objects"):
            return sorted(walk_files(self._git, tree, prefix), key=lambda item: item[0].encode())

    def stat_object(self, ref: str, path: str) -> ObjectInfo:
        """Raises NotFoundError."""
        return self._info(path, self._blob_id(ref, path))

    def get_object(self, ref: str, path: str) -> bytes:
        """Raises NotFoundError, DamagedError."""
        with self.open_object(ref, path) as file:
            return file.read()

    def open_object(self, ref: str, path: str) -> BinaryIO:
        """Small files from memory, large ones from disk after their hash was checked once."""
        return self._open_blob(self._blob_id(ref, path), path)

    def local_path(self, ref: str, path: str) -> Path | None:
        """Where a large file lies; None for small ones."""
        pointer = self._pointer(self._blob_id(ref, path))
        return self._large_path(pointer[0]) if pointer else None

    def _blob_id(self, ref: str, path: str) -> str:
        commit = self._commit(ref)
        with _translated(f"reading {path!r}"):
            blob = find_file(self._git, self._tree(commit), path)
        if blob is None:
            raise NotFoundError("object", path)
        return blob

    def _info(self, path: str, blob: str) -> ObjectInfo:
        pointer = self._pointer(blob)
        with _translated(f"reading {path!r}"):
            return ObjectInfo(path, pointer[1] if pointer else self._git[blob].size, blob)

    def _pointer(self, blob: str) -> tuple[str, int] | None:
        """Hash and size of the large file that a blob stands for."""
        with _translated(f"reading blob {blob}"):
            found = self._git[blob]
            matched = _POINTER.fullmatch(found.data) if found.size <= _POINTER_MAX_BYTES else None
        return (matched[1].decode(), int(matched[2])) if matched else None

    def _open_blob(self, blob: str, path: str) -> BinaryIO:
        pointer = self._pointer(blob)
        if pointer is None:
            with _translated(f"reading {path!r}"):
                return io.BytesIO(self._git[blob].data)
        digest, size = pointer
        large = self._large_path(digest)
        try:
            stat = large.stat()
            if self._verified.get(digest) != (stat.st_size, stat.st_mtime_ns):
                with open(large, "rb") as file:
                    if stat.st_size != size or hashlib.file_digest(file, "sha256").hexdigest() != digest:
                        raise DamagedError(
                            f"{path!r} does not match its hash ({large}).",
                            hint="Run `rag fsck`; restore it from a clone or backup.",
                        )
                self._verified[digest] = (stat.st_size, stat.st_mtime_ns)
            return open(large, "rb")
        except OSError as error:
            raise DamagedError(
                f"{path!r} cannot be read: {error}.",
                hint="Run `rag fsck`; restore it from a clone or backup.",
            ) from error

    def _large_path(self, digest: str) -> Path:
        return self._path / "lfs" / "objects" / digest[:2] / digest[2:4] / digest

    def store(self, content: bytes | BinaryIO | Path) -> str:
        """Write content that no commit names yet; returns its blob id. Raises StorageError."""
        if isinstance(content, Path):
            with open(content, "rb") as file:
                return self.store(file)
        if isinstance(content, bytes):
            content = io.BytesIO(content)
        head = content.read(LARGE_FILE_BYTES)
        # A small file that looks like a pointer is kept as a large one, so that every pointer is ours.
        if len(head) == LARGE_FILE_BYTES or head.startswith(_POINTER_START):
            head = self._store_large(head, content)
        with _translated("storing a file"):
            return str(self._git.create_blob(head))

    def _store_large(self, head: bytes, rest: BinaryIO) -> bytes:
        folder = self._path / "lfs"
        with disk_errors(str(folder)):
            folder.mkdir(exist_ok=True)
            descriptor, name = tempfile.mkstemp(prefix="tmp-", dir=folder)
            try:
                digest, size = hashlib.sha256(), 0
                with os.fdopen(descriptor, "wb") as file:
                    while head:
                        file.write(head)
                        digest.update(head)
                        size += len(head)
                        head = rest.read(_COPY_BYTES)
                    file.flush()
                    os.fsync(file.fileno())
                final = self._large_path(digest.hexdigest())
                final.parent.mkdir(parents=True, exist_ok=True)
                os.replace(name, final)
                sync_folder(final.parent)
            finally:
                Path(name).unlink(missing_ok=True)
        version = "version https://git-lfs.github.com/spec/v1"
        return f"{version}\noid sha256:{digest.hexdigest()}\nsize {size}\n".encode()

    # -- writing -------------------------------------------------------------------------------

    def transact(
        self,
        branch: str,
        *,
        message: str,
        metadata: Mapping[str, str] | None = None,
        if_head: str | None = None,
        allow_empty: bool = False,
    ) -> "GitTransaction":
        """Writes that become one commit when the `with` block ends."""
        return GitTransaction(self, branch, message, dict(metadata or {}), if_head, allow_empty)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Hold the repository's lock; what a killed process left locked is freed."""
        with exclusive_lock(self._path / "plumbline.lock", wait_seconds=_LOCK_SECONDS):
            for stale in (self._path / "refs").rglob("*.lock"):
                stale.unlink(missing_ok=True)
            yield

    def _move(
        self,
        event: str,
        branch: str,
        tree: str,
        parents: list[str],
        message: str,
        metadata: Mapping[str, str],
    ) -> Commit:
        """Write a commit, ask the hooks, move the branch; the caller holds the lock."""
        with _translated("writing a commit"):
            author = pygit2.Signature(*self._committer)
            text = _format_message(message, metadata)
            oid = self._git.create_commit(
                None, author, author, text, tree, [pygit2.Oid(hex=p) for p in parents]
            )
            commit = _describe(self._git[oid])
        for wanted, hook in self._hooks:
            if wanted == event:
                try:
                    hook(event, branch, commit)
                except Exception as error:
                    raise HookFailedError(f"The {event} hook refused: {error}") from error
        with _translated(f"moving branch {branch!r}"):
            self._git.references[f"refs/heads/{branch}"].set_target(oid)
        return commit

    def _finish(self, transaction: "GitTransaction") -> Commit:
        branch = transaction.branch
        with self._writing():
            head = self._commit(self.get_branch(branch).commit_id)
            _require_head(branch, transaction.if_head, str(head.id))
            with _translated("writing the tree"):
                base = self._git[transaction.base_commit_id]
                tree = apply_changes(self._git, self._tree(base), transaction.staged)
                if head.id != base.id:
                    tree = merge_trees(self._git, self._tree(base), self._git[tree], self._tree(head), None)
            if tree == str(head.tree_id) and not transaction.allow_empty:
                raise NoChangesError(f"Nothing would change on branch {branch!r}.")
            return self._move(
                "pre-commit", branch, tree, [str(head.id)], transaction.message, transaction.metadata
            )

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
        """Bring what `source` changed into branch `destination` as one new commit."""
        with self._writing():
            head = self._commit(self.get_branch(destination).commit_id)
            theirs = self._commit(source)
            _require_head(destination, if_head, str(head.id))
            with _translated("merging"):
                base = self._base(theirs, head)
                if base.tree_id == theirs.tree_id:
                    raise NoChangesError(f"{source!r} brings nothing new to {destination!r}.")
                tree = self._merged(base, theirs, head, strategy)
            parents = [str(head.id)] if squash else [str(head.id), str(theirs.id)]
            return self._move("pre-merge", destination, tree, parents, message, metadata or {})

    def revert(self, branch: str, ref: str, *, parent_number: int = 0, message: str | None = None) -> Commit:
        """Undo one commit; a merge commit needs `parent_number` (from 1)."""
        with self._writing():
            head = self._commit(self.get_branch(branch).commit_id)
            target = self._commit(ref)
            if not target.parent_ids or (
                len(target.parent_ids) > 1 and not 1 <= parent_number <= len(target.parent_ids)
            ):
                raise NotFoundError("parent", f"{ref}^{parent_number}", hint="Name the parent to go back to.")
            parent = self._git[target.parent_ids[max(parent_number, 1) - 1]]
            with _translated("reverting"):
                tree = self._merged(target, parent, head, None)
            if tree == str(head.tree_id):
                raise NoChangesError(f"Reverting {ref!r} changes nothing on {branch!r}.")
            title = message or f"Revert {_describe(target).message.splitlines()[0]}"
            return self._move("pre-commit", branch, tree, [str(head.id)], title, {})

    def register_hook(self, event: str, hook: Hook) -> None:
        """Call `hook(event, branch, commit)` before the branch moves; whatever it raises refuses."""
        self._hooks.append((event, hook))

    # -- history -------------------------------------------------------------------------------

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
        """Commits, newest first."""
        last = self.resolve(stop_at) if stop_at else None
        start = self._commit(ref).id
        shown = 0
        with _translated("reading the history"):
            order = pygit2.enums.SortMode.TOPOLOGICAL | pygit2.enums.SortMode.TIME
            self._check_history(start)
            walker = self._git.walk(start, order)
            if first_parent:
                walker.simplify_first_parent()
            for commit in walker:
                wanted = since is None or commit.commit_time >= since
                if wanted and (not (objects or prefixes) or self._touches(commit, objects, prefixes)):
                    yield _describe(commit)
                    shown += 1
                if str(commit.id) == last or shown == amount:
                    return

    def _touches(self, commit: Any, objects: Sequence[str], prefixes: Sequence[str]) -> bool:
        before = self._tree(self._git[commit.parent_ids[0]]) if commit.parent_ids else None
        changed = (path for path, _, _ in compare_trees(self._git, before, self._tree(commit)))
        return any(path in objects or path.startswith(tuple(prefixes)) for path in changed)

    def diff(
        self, left: str, right: str, *, type: DiffType = "three_dot", prefix: str = ""
    ) -> Iterator[Change]:
        """What changed from left to right, in byte order of the paths."""
        ours, theirs = self._commit(left), self._commit(right)
        conflicting: dict[str, str | None] = {}
        with _translated("comparing"):
            before = self._tree(ours)
            if type == "three_dot":
                before = self._tree(self._base(ours, theirs))
                conflicting = {
                    path: new for path, _, new in compare_trees(self._git, before, self._tree(ours))
                }
            found = [
                row
                for row in compare_trees(self._git, before, self._tree(theirs))
                if row[0].startswith(prefix)
            ]
        for path, old, new in sorted(found, key=lambda row: row[0].encode()):
            size = self._info(path, new or old or "").size_bytes
            if path in conflicting and conflicting[path] != new:
                yield Change("conflict", path, size)
            elif path not in conflicting:
                yield Change("added" if old is None else "removed" if new is None else "changed", path, size)

    def find_merge_base(self, source: str, destination: str) -> str:
        """Best common ancestor."""
        with _translated("finding the merge base"):
            return str(self._base(self._commit(source), self._commit(destination)).id)

    # -- care ----------------------------------------------------------------------------------

    def verify(self) -> Iterator[str]:
        """Read every object that a ref reaches and check its hash, large files too."""
        for _, fault in self._reach():
            if fault:
                yield fault

    def gc(self, grace_seconds: float) -> int:
        """Remove loose objects and large files that no ref reaches and that are older than the grace."""
        with self._writing():
            reached = {name for name, fault in self._reach() if not fault}
            limit, freed = time.time() - grace_seconds, 0
            loose = [
                p for p in (self._path / "objects").glob("??/*") if p.parent.name + p.name not in reached
            ]
            large = [p for p in (self._path / "lfs").rglob("*") if p.is_file() and p.name not in reached]
            for path in loose + large:
                with disk_errors(str(path)):
                    stat = path.stat()
                    if stat.st_mtime <= limit:
                        path.unlink()
                        freed += stat.st_size
            return freed

    def _reach(self) -> Iterator[tuple[str, str | None]]:
        """Every object id or large-file hash a ref reaches, with what is wrong with it."""
        seen: set[str] = set()
        waiting: list[str] = []
        for name in list(self._git.references):
            try:
                waiting.append(str(self._git.references[name].target))
            except (pygit2.GitError, KeyError, ValueError) as error:
                yield name, f"ref {name} cannot be read: {error}"
        while waiting:
            oid = waiting.pop()
            if oid in seen:
                continue
            seen.add(oid)
            try:
                found = self._git[oid]
                content = found.read_raw()
            except (pygit2.GitError, KeyError, ValueError, OSError, zlib.error) as error:
                yield oid, f"object {oid} is missing or damaged: {error}"
                continue
            yield oid, None
            if found.type == pygit2.GIT_OBJECT_COMMIT:
                waiting += [str(found.tree_id), *map(str, found.parent_ids)]
            elif found.type == pygit2.GIT_OBJECT_TREE:
                waiting += [str(entry.id) for entry in found]
            elif matched := _POINTER.fullmatch(content):
                yield self._check_large(matched[1].decode())

    def _check_large(self, digest: str) -> tuple[str, str | None]:
        try:
            with open(self._large_path(digest), "rb") as file:
                good = hashlib.file_digest(file, "sha256").hexdigest() == digest
        except OSError as error:
            return digest, f"large file {digest} is missing: {error.strerror}"
        return digest, None if good else f"large file {digest} is damaged"


class GitTransaction:
    """Blobs are written as they come; the commit and the ref at the end of the `with` block."""

    def __init__(
        self,
        repository: GitRepository,
        branch: str,
        message: str,
        metadata: dict[str, str],
        if_head: str | None,
        allow_empty: bool,
    ) -> None:
        self._repository = repository
        self.branch = branch
        self.message = message
        self.metadata = metadata
        self.if_head = if_head
        self.allow_empty = allow_empty
        self.commit: Commit | None = None
        self.staged: dict[str, str | None] = {}
        self._base = repository.get_branch(branch).commit_id
        _require_head(branch, if_head, self._base)

    @property
    def base_commit_id(self) -> str:
        """The head the transaction started from."""
        return self._base

    def upload(self, path: str, content: bytes | BinaryIO | Path) -> ObjectInfo:
        """Stage one object. Raises InvalidPathError, StorageError."""
        blob = self._repository.store(content) if validate_path(path) else ""
        self.staged[path] = blob
        return self._repository._info(path, blob)

    def delete(self, path: str) -> None:
        """Stage the removal of `path`; a missing path is no error."""
        self.staged[validate_path(path)] = None

    def delete_objects(self, paths: Iterable[str]) -> None:
        """Stage the removal of many paths."""
        for path in paths:
            self.delete(path)

    def delete_prefix(self, prefix: str) -> None:
        """Stage the removal of every object whose path starts with `prefix`."""
        committed = [item.path for item in self._repository.list_objects(self._base, prefix=prefix)]
        self.delete_objects({*committed, *(path for path in self.staged if path.startswith(prefix))})

    def exists(self, path: str) -> bool:
        """Whether `path` exists, own writes included."""
        if path in self.staged:
            return self.staged[path] is not None
        try:
            self._repository.stat_object(self._base, path)
        except NotFoundError:
            return False
        return True

    def get_object(self, path: str) -> bytes:
        """Content of `path`, own writes included. Raises NotFoundError."""
        if path not in self.staged:
            return self._repository.get_object(self._base, path)
        blob = self.staged[path]
        if blob is None:
            raise NotFoundError("object", path)
        with self._repository._open_blob(blob, path) as file:
            return file.read()

    def __enter__(self) -> Self:
        """Start of the block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Commit, unless the block raised."""
        if kind is None:
            self.commit = self._repository._finish(self)


def _require_head(branch: str, expected: str | None, actual: str) -> None:
    if expected is not None and expected != actual:
        raise HeadMovedError(branch, expected, actual)


def _format_message(message: str, metadata: Mapping[str, str]) -> str:
    """The message, then one trailer a key; the last trailer marks the block as ours."""
    lines = []
    for key, value in sorted(metadata.items()):
        plain = _PLAIN_KEY.fullmatch(key) and key not in (_OTHER, _MARK)
        content: object = value if plain else {key: value}
        lines.append(f"{_TRAILER}{key if plain else _OTHER}: {_json_line(content)}")
    if "\0" in message:
        raise InvalidPathError("A commit message cannot hold a NUL character.")
    return f"{message}\n\n" + "\n".join([*lines, f"{_TRAILER}{_MARK}: 1"]) + "\n"


def _json_line(value: object) -> str:
    """JSON on one line, readable; escaped throughout only when it could not be written otherwise."""
    text = json.dumps(value, ensure_ascii=False)
    if len(text.splitlines()) > 1 or not text.isprintable():
        return json.dumps(value)
    return text


def _parse_message(text: str) -> tuple[str, dict[str, str]]:
    message, _, block = text.rstrip("\n").rpartition("\n\n")
    lines = [_TRAILER_LINE.fullmatch(line) for line in block.split("\n")]
    last = lines[-1]
    if last is None or last[1] != _MARK or any(line is None for line in lines):
        return text, {}  # a commit that somebody made with git
    metadata: dict[str, str] = {}
    for line in lines[:-1]:
        assert line is not None
        value = json.loads(line[2])
        metadata.update(value if line[1] == _OTHER else {line[1]: value})
    return message, metadata


def _describe(commit: Any) -> Commit:
    message, metadata = _parse_message(commit.message)
    return Commit(
        id=str(commit.id),
        parents=tuple(map(str, commit.parent_ids)),
        committer=commit.committer.name,
        message=message,
        creation_date=commit.commit_time,
        metadata=metadata,
    )
