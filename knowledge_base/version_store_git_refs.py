"""The refs, objects and history of one bare git repository: everything but landing a change."""

import contextlib
import secrets
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from knowledge_base.durable import exclusive_lock, step, write_bytes
from knowledge_base.errors import (
    AlreadyExistsError,
    DamagedError,
    ExpiredError,
    NotFoundError,
    ProtectedError,
    UnavailableError,
)
from knowledge_base.naming import validate_branch_name, validate_tag_name
from knowledge_base.version_store import (
    Branch,
    Change,
    Commit,
    CommonPrefix,
    DiffType,
    ObjectInfo,
    Tag,
)
from knowledge_base.version_store_git_history import (
    describe,
    find_commit,
    merge_base,
    read_ref,
    walk_commits,
)
from knowledge_base.version_store_git_objects import GIT_ERRORS, Objects, translated
from knowledge_base.version_store_git_repair import free_refs
from knowledge_base.version_store_git_trees import compare_trees, walk_files

_LOCK_SECONDS = 60.0
_ABANDONED_SECONDS = 60.0


class GitRefs:
    """What a bare repository holds; safe to read from several threads."""

    shared = False

    def __init__(self, id: str, path: Path) -> None:
        self.id = id
        self._path = path
        self._objects = Objects(path)
        try:
            head = self._git.lookup_reference("HEAD").target
            self.default_branch = str(head).removeprefix("refs/heads/")
            self._git.lookup_reference(f"refs/heads/{self.default_branch}")
        except GIT_ERRORS as error:
            raise UnavailableError(
                f"{path} is not a usable repository: {error}.",
                hint="Restore it from a clone or backup (`git clone --bare`); nothing was changed.",
            ) from error

    @property
    def _git(self) -> Any:
        return self._objects.git

    @property
    def identity(self) -> str:
        """A random name, kept beside the repository from when it is first asked for."""
        path = self._path / "plumbline-identity"
        if not path.exists():
            with self._writing():
                if not path.exists():
                    write_bytes(path, secrets.token_hex(16).encode())
        return path.read_text()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Hold the repository's lock; what a killed process left locked is freed."""
        with exclusive_lock(self._path / "plumbline.lock", wait_seconds=_LOCK_SECONDS):
            free_refs(self._path)
            packed = self._path / "packed-refs.lock"
            with contextlib.suppress(FileNotFoundError):  # a young one may be a running `git gc`
                if packed.stat().st_mtime < time.time() - _ABANDONED_SECONDS:
                    packed.unlink()
            yield

    # -- refs ----------------------------------------------------------------------------------

    def resolve(self, ref: str) -> str:
        """Commit id of a ref expression, `main@{2026-11-01}` included."""
        return str(find_commit(self._git, ref).id)

    def get_commit(self, ref: str) -> Commit:
        """The commit `ref` names."""
        return describe(find_commit(self._git, ref))

    def create_branch(self, branch: str, source: str) -> Branch:
        """Point a new branch at the commit `source` names."""
        return Branch(branch, self._create_ref("heads", validate_branch_name(branch), source))

    def get_branch(self, branch: str) -> Branch:
        """Raises NotFoundError."""
        return Branch(branch, str(self._head("heads", branch).id))

    def list_branches(self, prefix: str = "") -> list[Branch]:
        """Branches in byte order."""
        return [Branch(name, commit) for name, commit in self._list_refs("heads", prefix)]

    def delete_branch(self, branch: str) -> None:
        """Raises NotFoundError, ProtectedError."""
        if branch == self.default_branch:
            raise ProtectedError(f"Branch {branch!r} is the default branch and cannot be deleted.")
        self._delete_ref("heads", branch)

    def create_tag(self, tag: str, ref: str) -> Tag:
        """Give the commit `ref` names a name that never moves."""
        return Tag(tag, self._create_ref("tags", validate_tag_name(tag), ref))

    def get_tag(self, tag: str) -> Tag:
        """Raises NotFoundError."""
        return Tag(tag, str(self._head("tags", tag).id))

    def list_tags(self, prefix: str = "") -> list[Tag]:
        """Tags in byte order."""
        return [Tag(name, commit) for name, commit in self._list_refs("tags", prefix)]

    def delete_tag(self, tag: str) -> None:
        """Raises NotFoundError."""
        self._delete_ref("tags", tag)

    def _head(self, kind: str, name: str) -> Any:
        noun = "branch" if kind == "heads" else "tag"
        with translated(f"reading {noun} {name!r}"):
            commit = read_ref(self._git, kind, name)
        if commit is None:
            raise NotFoundError(noun, name)
        return commit

    def _list_refs(self, kind: str, prefix: str) -> list[tuple[str, str]]:
        start = f"refs/{kind}/"
        with translated("listing refs"):
            names = sorted(
                name.removeprefix(start) for name in self._git.references if name.startswith(start)
            )
            found = [(name, read_ref(self._git, kind, name)) for name in names if name.startswith(prefix)]
        return [(name, str(commit.id)) for name, commit in found if commit is not None]

    def _create_ref(self, kind: str, name: str, source: str) -> str:
        with self._writing():
            commit = self.resolve(source)
            if commit in self._objects.expired():
                raise _expired(commit)  # gc takes whatever a branch is at for whole
            with translated(f"creating {name!r}", writing=True), step("create ref"):
                if any(f"refs/{taken}/{name}" in self._git.references for taken in ("heads", "tags")):
                    raise AlreadyExistsError(f"There is a branch or tag {name!r} already.")
                self._git.references.create(f"refs/{kind}/{name}", commit)
            return commit

    def _delete_ref(self, kind: str, name: str) -> None:
        with self._writing():
            self._head(kind, name)
            with translated(f"deleting {name!r}", writing=True), step("delete ref"):
                self._git.references.delete(f"refs/{kind}/{name}")

    # -- objects -------------------------------------------------------------------------------

    def list_objects(
        self, ref: str, *, prefix: str = "", delimiter: str = "", after: str = ""
    ) -> Iterator[ObjectInfo | CommonPrefix]:
        """Objects in byte order of their paths."""
        commit = find_commit(self._git, ref)
        with translated("listing objects"):
            files = list(walk_files(self._git, self._git[commit.tree_id], prefix))
        last = ""
        for path, blob in files:
            if path.encode() <= after.encode():
                continue
            cut = path.find(delimiter, len(prefix)) if delimiter else -1
            if cut < 0:
                with self._expiring(commit):
                    yield self._objects.info(path, blob)
            elif (folder := path[: cut + len(delimiter)]) != last and folder.encode() > after.encode():
                last = folder
                yield CommonPrefix(folder)

    def stat_object(self, ref: str, path: str) -> ObjectInfo:
        """Raises NotFoundError."""
        commit = find_commit(self._git, ref)
        with self._expiring(commit):
            return self._objects.info(path, self._objects.find(commit, path))

    def get_object(self, ref: str, path: str) -> bytes:
        """Raises NotFoundError, DamagedError."""
        with self.open_object(ref, path) as file:
            return file.read()

    def open_object(self, ref: str, path: str) -> BinaryIO:
        """Small files from memory, large ones from disk after their hash was checked once."""
        commit = find_commit(self._git, ref)
        with self._expiring(commit):
            return self._objects.open(self._objects.find(commit, path), path)

    def local_path(self, ref: str, path: str) -> Path | None:
        """Where a large file lies, its hash checked once; None for small ones. Raises DamagedError."""
        commit = find_commit(self._git, ref)
        with self._expiring(commit):
            return self._objects.local_path(self._objects.find(commit, path), path)

    @contextlib.contextmanager
    def _expiring(self, *commits: Any) -> Iterator[None]:
        """What cannot be read because gc removed it is not damage."""
        try:
            yield
        except DamagedError as error:
            gone = self._objects.expired().intersection(str(commit.id) for commit in commits)
            if not gone:
                raise
            raise _expired(min(gone)) from error

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
        start = find_commit(self._git, ref)
        shown = 0
        with translated("reading the history"):
            for commit in walk_commits(self._git, start, first_parent=first_parent):
                if amount is not None and shown >= amount:
                    return
                wanted = since is None or commit.commit_time >= since
                if wanted and (not (objects or prefixes) or self._touches(commit, objects, prefixes)):
                    yield describe(commit)
                    shown += 1
                if str(commit.id) == last:
                    return

    def _touches(self, commit: Any, objects: Sequence[str], prefixes: Sequence[str]) -> bool:
        git = self._git
        before = git[git[commit.parent_ids[0]].tree_id] if commit.parent_ids else None
        changed = (path for path, _, _ in compare_trees(git, before, git[commit.tree_id]))
        return any(path in objects or path.startswith(tuple(prefixes)) for path in changed)

    def diff(
        self, left: str, right: str, *, type: DiffType = "three_dot", prefix: str = ""
    ) -> Iterator[Change]:
        """What changed from left to right, in byte order of the paths."""
        git = self._git
        ours, theirs = find_commit(git, left), find_commit(git, right)
        with translated("comparing"):
            base = merge_base(git, ours, theirs) if type == "three_dot" else ours
            before = git[base.tree_id]
            mine = {path: new for path, _, new in compare_trees(git, before, git[ours.tree_id])}
            found = [
                row for row in compare_trees(git, before, git[theirs.tree_id]) if row[0].startswith(prefix)
            ]
        for path, old, new in sorted(found, key=lambda row: row[0].encode()):
            with self._expiring(base, ours, theirs):
                size = self._objects.info(path, new or old or "").size_bytes
            if path not in mine:
                yield Change("added" if old is None else "removed" if new is None else "changed", path, size)
            elif mine[path] != new:
                yield Change("conflict", path, size)

    def find_merge_base(self, source: str, destination: str) -> str:
        """Best common ancestor. Raises NotFoundError (unrelated histories)."""
        one, other = find_commit(self._git, source), find_commit(self._git, destination)
        with translated("finding the merge base"):
            return str(merge_base(self._git, one, other).id)


def _expired(commit: str) -> ExpiredError:
    return ExpiredError(
        f"The content of {commit[:12]} was removed by gc; only its place in the log is left.",
        hint="`rag log` lists the releases; gc keeps those that --keep-last and --keep-days name.",
    )
