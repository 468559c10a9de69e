"""One bare git repository as a version store sees it.

Writes are objects first, then one ref, moved while an OS lock is held that dies with its process.
"""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from knowledge_base.durable import step
from knowledge_base.errors import (
    DamagedError,
    HeadMovedError,
    NoChangesError,
    NotFoundError,
)
from knowledge_base.version_store import Commit, Hook, Strategy
from knowledge_base.version_store_git_history import (
    describe,
    find_commit,
    merge_base,
    reachable,
    remove_unreachable,
)
from knowledge_base.version_store_git_messages import format_message
from knowledge_base.version_store_git_objects import Committer, signature, translated
from knowledge_base.version_store_git_refs import GitRefs
from knowledge_base.version_store_git_repair import faults_of_refs
from knowledge_base.version_store_git_transaction import GitTransaction
from knowledge_base.version_store_git_trees import apply_changes, kept, merge_trees
from knowledge_base.version_store_rules import ask_hooks, require_head


class GitRepository(GitRefs):
    """One bare repository."""

    def __init__(self, id: str, path: Path, committer: Committer = None) -> None:
        super().__init__(id, path)
        self._committer = committer
        self._hooks: list[tuple[str, Hook]] = []

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
        require_head(branch, if_head, str(base.id))

        def finish(transaction: GitTransaction) -> Commit:
            return self._publish(transaction, branch, if_head, allow_empty)

        return GitTransaction(self._objects, base, finish, message=message, metadata=dict(metadata or {}))

    def _publish(
        self, transaction: GitTransaction, branch: str, if_head: str | None, allow_empty: bool
    ) -> Commit:
        with self._writing():
            head = self._head("heads", branch)
            require_head(branch, if_head, str(head.id))
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
            require_head(destination, if_head, str(head.id))
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
