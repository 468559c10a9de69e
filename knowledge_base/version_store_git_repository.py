"""One bare git repository as a version store sees it.

Writes are objects first, then one ref, moved while an OS lock is held that dies with its process.
"""

import contextlib
import secrets
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from knowledge_base.durable import exclusive_lock, step, write_bytes
from knowledge_base.errors import (
    AlreadyExistsError,
    DamagedError,
    ExpiredError,
    HeadMovedError,
    NoChangesError,
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
    Hook,
    ObjectInfo,
    Strategy,
    Tag,
    ask_hooks,
)
from knowledge_base.version_store_git_history import (
    describe,
    find_commit,
    merge_base,
    reachable,
    read_ref,
    remove_unreachable,
    walk_commits,
)
from knowledge_base.version_store_git_messages import format_message
from knowledge_base.version_store_git_objects import GIT_ERRORS, Committer, Objects, signature, translated
from knowledge_base.version_store_git_repair import faults_of_refs, free_refs
from knowledge_base.version_store_git_transaction import GitTransaction
from knowledge_base.version_store_git_trees import apply_changes, compare_trees, kept, merge_trees, walk_files

_LOCK_SECONDS = 60.0
_ABANDONED_SECONDS = 60.0


class GitRepository:
    """One bare repository; safe to read from several threads."""

    shared = False

    def __init__(self, id: str, path: Path, committer: Committer = None) -> None:
        self.id = id
        self._path = path
        self._committer = committer
        self._objects = Objects(path)
        self._hooks: list[tuple[str, Hook]] = []
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

    # -- writing -------------------------------------------------------------------------------

    def transact(
        self,
        branch: str,
        *,
        message: str,
        metadata: Mapping[str, str] | None = None,
        if_head: str | None = None,
        allow_empty: bool = False,
    ) -> GitTransaction:
        """Writes that become one commit when the `with` block ends."""
        base = self._head("heads", branch)
        _require_head(branch, if_head, base)

        def finish(transaction: GitTransaction) -> Commit:
            return self._publish(transaction, branch, if_head, allow_empty)

        return GitTransaction(self._objects, base, finish, message=message, metadata=dict(metadata or {}))

    def _publish(
        self, transaction: GitTransaction, branch: str, if_head: str | None, allow_empty: bool
    ) -> Commit:
        with self._writing():
            head = self._head("heads", branch)
            _require_head(branch, if_head, head)
            self._objects.require({blob for blob in transaction.staged.values() if blob})
            with translated("writing the tree", writing=True), step("store folders"):
                git = self._git
                base = git[transaction.base_commit_id]
                tree = apply_changes(git, git[base.tree_id], transaction.staged)
                if head.id != base.id:
                    tree = merge_trees(git, git[base.tree_id], git[tree], git[head.tree_id], None)
            if tree == str(head.tree_id) and not allow_empty:
                raise NoChangesError(f"Nothing would change on branch {branch!r}.")
            text = format_message(transaction.message, transaction.metadata)
            return self._move("pre-commit", branch, tree, [head], text)

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
            head = self._head("heads", destination)
            theirs = find_commit(self._git, source)
            _require_head(destination, if_head, head)
            with translated("merging", writing=True), step("store folders"):
                git = self._git
                base = merge_base(git, theirs, head)
                trees = git[base.tree_id], git[theirs.tree_id], git[head.tree_id]
                tree = merge_trees(git, *trees, strategy)
            if base.tree_id == theirs.tree_id or (squash and tree == str(head.tree_id)):
                raise NoChangesError(f"{source!r} brings nothing new to {destination!r}.")
            parents = [head] if squash else [head, theirs]
            text = format_message(message, metadata or {})
            return self._move("pre-merge", destination, tree, parents, text)

    def revert(self, branch: str, ref: str, *, parent_number: int = 0, message: str | None = None) -> Commit:
        """Undo one commit; a merge commit needs `parent_number` (from 1)."""
        with self._writing():
            head = self._head("heads", branch)
            target = find_commit(self._git, ref)
            parents = target.parent_ids
            number = parent_number or (1 if len(parents) == 1 else 0)
            if not 1 <= number <= len(parents):
                raise NotFoundError("parent", f"{ref}^{number}", hint="Name the parent to go back to.")
            with translated("reverting", writing=True), step("store folders"):
                git = self._git
                trees = git[target.tree_id], git[git[parents[number - 1]].tree_id], git[head.tree_id]
                tree = merge_trees(git, *trees, None)
            if tree == str(head.tree_id):
                raise NoChangesError(f"Reverting {ref!r} changes nothing on {branch!r}.")
            title = describe(target).message.strip().partition("\n")[0] or str(target.id)[:12]
            text = format_message(f"Revert {title}" if message is None else message, {})
            return self._move("pre-commit", branch, tree, [head], text)

    def register_hook(self, event: str, hook: Hook) -> None:
        """Call `hook(event, branch, commit)` before the branch moves; whatever it raises refuses."""
        self._hooks.append((event, hook))

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

    def _move(self, event: str, branch: str, tree: str, parents: list[Any], text: str) -> Commit:
        """Write a commit, ask the hooks, move the branch; the caller holds the lock."""
        git, head = self._git, str(parents[0].id)
        with translated("writing a commit", writing=True), step("store commit"):
            author = signature(git, self._committer)
            oid = git.create_commit(None, author, author, text, tree, [parent.id for parent in parents])
            commit = describe(git[kept(git, oid)])
        ask_hooks(self._hooks, event, branch, commit)
        with translated(f"moving branch {branch!r}", writing=True), step("move branch"):
            reference = git.references[f"refs/heads/{branch}"].resolve()
            if str(reference.target) != head:  # somebody pushed with git, which does not take our lock
                raise HeadMovedError(branch, head, str(reference.target))
            reference.set_target(oid)
        return commit

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

    # -- care ----------------------------------------------------------------------------------

    def sweep(self) -> int:
        """Nothing to do: what a killed transaction staged no ref reaches, and gc collects it."""
        return 0

    def verify(self) -> Iterator[str]:
        """Read every object that a ref reaches and check its hash, large files too."""
        try:
            expired = self._objects.expired()
        except DamagedError as error:
            yield error.message
            return
        yield from faults_of_refs(self._path)
        yield from (fault for _, fault in reachable(self._objects, expired) if fault)

    def gc(self, grace_seconds: float, *, expire: Collection[str] = (), dry_run: bool = False) -> int:
        """Remove loose objects and large files that nothing needs and that are older than the grace."""
        with self._writing():
            heads = {commit for _, commit in self._list_refs("heads", "")}
            expired = (self._objects.expired() | frozenset(expire)) - heads
            return remove_unreachable(self._objects, grace_seconds, expired, dry_run)


def _expired(commit: str) -> ExpiredError:
    return ExpiredError(
        f"The content of {commit[:12]} was removed by gc; only its place in the log is left.",
        hint="`rag log` lists the releases; gc keeps those that --keep-last and --keep-days name.",
    )


def _require_head(branch: str, expected: str | None, actual: Any) -> None:
    if expected is not None and expected != str(actual.id):
        raise HeadMovedError(branch, expected, str(actual.id))
