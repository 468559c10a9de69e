"""One lakeFS repository as a version store sees it.

lakeFS has one staging area for each branch, shared by everybody, and no way to move a branch only if
it is where it was expected. So nothing is ever staged on a branch that people use: a transaction writes
to a hidden branch of its own and lands as ONE squash merge that carries the message and metadata. The
head is checked before the merge and again in the merge's parents; a merge that landed on another head
than promised is undone by a revert.
"""

import secrets
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from typing import Any

from lakefs_sdk import CommitCreation, Merge, MergeResult, RevertCreation

from knowledge_base.errors import (
    AlreadyExistsError,
    DirtyBranchError,
    MergeConflictError,
    NoChangesError,
    NotFoundError,
    PlumblineError,
    UnsupportedError,
)
from knowledge_base.naming import RESERVED_BRANCH_PREFIX
from knowledge_base.object_cache import ObjectCache
from knowledge_base.version_store import Commit, Hook, ObjectInfo, Strategy
from knowledge_base.version_store_lakefs_client import HOOK_SECONDS, Client
from knowledge_base.version_store_lakefs_history import (
    TRANSACTION,
    hook_report,
    refuse_merge_clashes,
    to_metadata,
)
from knowledge_base.version_store_lakefs_objects import describe_content, in_parallel
from knowledge_base.version_store_lakefs_refs import LakeFSRefs
from knowledge_base.version_store_lakefs_transaction import LakeFSTransaction
from knowledge_base.version_store_rules import ask_hooks, require_head

_ABANDONED_SECONDS = 24 * 3600
_RECENT = 50
"""How many of a branch's newest commits are searched for a transaction whose answer was lost."""


class LakeFSRepository(LakeFSRefs):
    """One repository on one server; safe to use from several threads."""

    shared = True

    def __init__(self, client: Client, record: Any, cache: ObjectCache) -> None:
        super().__init__(client, record, cache)
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
    ) -> LakeFSTransaction:
        """Writes that become one commit when the `with` block ends."""
        base = self.get_branch(branch).commit_id
        require_head(branch, if_head, base)

        def finish(transaction: LakeFSTransaction) -> Commit:
            return self._publish(transaction, branch, if_head, allow_empty)

        return LakeFSTransaction(
            self._objects,
            base,
            self._open_work,
            self._drop_work,
            finish,
            message=message,
            metadata=dict(metadata or {}),
        )

    def _open_work(self, base: str) -> str:
        # The time in the name is all that tells, later, how long ago its process was killed.
        name = f"{RESERVED_BRANCH_PREFIX}{int(time.time())}-{secrets.token_hex(6)}"
        return self._make_branch(name, base, hidden=True).id

    def _drop_work(self, branch: str) -> None:
        with suppress(PlumblineError):  # what is published is not failed for want of tidiness
            self.delete_branch(branch)

    def _publish(
        self, transaction: LakeFSTransaction, branch: str, if_head: str | None, allow_empty: bool
    ) -> Commit:
        require_head(branch, if_head, self.get_branch(branch).commit_id)
        if not transaction.staged and not allow_empty:
            raise NoChangesError(f"Nothing would change on branch {branch!r}.")
        transaction.settle()
        text = to_metadata(transaction.message, transaction.metadata)
        try:
            work = self._commit(transaction.branch, transaction.base_commit_id, text, allow_empty)
        except NoChangesError as error:
            raise NoChangesError(f"Nothing would change on branch {branch!r}.") from error
        return self._land(
            "pre-commit",
            work,
            branch,
            text,
            base=transaction.base_commit_id,
            squash=True,
            if_head=if_head,
            allow_empty=allow_empty,
        )

    def _commit(self, work: str, base: str, text: tuple[str, dict[str, str]], allow_empty: bool) -> Commit:
        """Commit what a hidden branch has staged; nobody else writes there."""
        # Without the transaction id: with it, this and the commit that lands would have one id.
        metadata = {key: value for key, value in text[1].items() if key != TRANSACTION}
        wanted = CommitCreation(message=text[0], metadata=metadata, allow_empty=allow_empty)

        def done() -> Any:
            head = self.get_branch(work).commit_id
            return (
                self._client.call(self._api.commits_api.get_commit, self.id, head) if head != base else None
            )

        function, missing = self._api.commits_api.commit, ("branch", work)
        return self._keep(self._client.once(function, self.id, work, wanted, done=done, missing=missing))

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
        text = to_metadata(message, metadata or {})
        return self._land(
            "pre-merge",
            self.get_commit(source),
            destination,
            text,
            base="",
            squash=squash,
            if_head=if_head,
            strategy=strategy,
        )

    def _land(
        self,
        event: str,
        source: Commit,
        branch: str,
        text: tuple[str, dict[str, str]],
        *,
        base: str,
        squash: bool,
        if_head: str | None,
        strategy: Strategy | None = None,
        allow_empty: bool = False,
    ) -> Commit:
        """Merge `source`, whose content is `base`'s and more, into a branch as one commit, or raise."""
        head = self.get_branch(branch).commit_id
        require_head(branch, if_head, head)
        if head != base:
            self._refuse_merge(source.id, head, branch, strategy, squash and not allow_empty)
        ask_hooks(self._hooks, event, branch, source)
        wanted = Merge(
            message=text[0],
            metadata=text[1],
            strategy=strategy or "",
            squash_merge=squash,
            allow_empty=allow_empty,
        )
        try:
            commit = self._merge(source.id, branch, wanted)
        except AlreadyExistsError as error:  # 409: somebody changed the same paths since we looked
            now = self.get_branch(branch).commit_id
            require_head(branch, if_head, now)
            raise MergeConflictError(self._conflicts(now, source.id)) from error
        except NoChangesError as error:
            raise NoChangesError(f"{source.id[:12]} brings nothing new to {branch!r}.") from error
        if commit.parents[0] != head:
            self._require_as_promised(commit, source.id, branch, if_head, strategy)
        return commit

    def _refuse_merge(
        self, source: str, head: str, branch: str, strategy: Strategy | None, must_change: bool
    ) -> None:
        theirs = list(self.diff(head, source))
        conflicts = [change.path for change in theirs if change.type == "conflict"]
        if conflicts and strategy is None:
            raise MergeConflictError(conflicts)
        if must_change and not theirs:
            raise NoChangesError(f"Nothing would change on branch {branch!r}.")
        refuse_merge_clashes(theirs, lambda: self.diff(source, head), strategy)

    def _conflicts(self, head: str, source: str) -> list[str]:
        return [change.path for change in self.diff(head, source) if change.type == "conflict"]

    def _merge(self, source: str, branch: str, wanted: Merge) -> Commit:
        """One merge request; an answer that was lost is looked for in the branch's newest commits."""

        def done() -> MergeResult | None:
            page = self._client.call(
                self._api.refs_api.log_commits, self.id, branch, amount=_RECENT, limit=True
            )
            ours = [item.id for item in page.results if item.metadata.get(TRANSACTION) == transaction]
            return MergeResult(reference=ours[-1]) if ours else None

        transaction = wanted.metadata[TRANSACTION]
        try:
            merged = self._client.once(
                self._api.refs_api.merge_into_branch,
                self.id,
                source,
                branch,
                merge=wanted,
                done=done,
                seconds=HOOK_SECONDS,
                missing=("branch", branch),
            )
        except PlumblineError as error:
            hook_report(self._client, self.id, error)
            raise
        return self._named(merged.reference, merged.reference)

    def _require_as_promised(
        self, commit: Commit, source: str, branch: str, if_head: str | None, strategy: Strategy | None
    ) -> None:
        """Somebody moved the branch between the last look and the merge: keep it only if it may stand."""
        before = commit.parents[0]
        try:
            require_head(branch, if_head, before)
            refuse_merge_clashes(list(self.diff(before, source)), lambda: self.diff(source, before), strategy)
        except PlumblineError:
            self.revert(
                branch, commit.id, parent_number=1, message=f"Undo {commit.id[:12]}: it came too late"
            )
            raise

    def revert(self, branch: str, ref: str, *, parent_number: int = 0, message: str | None = None) -> Commit:
        """Undo one commit; a merge commit needs `parent_number` (from 1)."""
        head, target = self.get_branch(branch).commit_id, self.get_commit(ref)
        number = parent_number or (1 if len(target.parents) == 1 else 0)
        if not 1 <= number <= len(target.parents):
            raise NotFoundError("parent", f"{ref}^{number}", hint="Name the parent to go back to.")
        title = target.message.strip().partition("\n")[0] or target.id[:12]
        text = to_metadata(f"Revert {title}" if message is None else message, {})
        wanted = RevertCreation(ref=target.id, parent_number=number)
        work = self._open_work(head)
        try:
            self._client.once(
                self._api.branches_api.revert_branch,
                self.id,
                work,
                wanted,
                done=lambda: self.get_branch(work).commit_id != head or None,
            )
            undone = self.get_commit(work)
            return self._land("pre-commit", undone, branch, text, base="", squash=True, if_head=None)
        except NoChangesError as error:
            raise NoChangesError(f"Reverting {ref!r} changes nothing on {branch!r}.") from error
        except AlreadyExistsError as error:
            parent = target.parents[number - 1]
            sides = [(target.id, parent), (target.id, head), (head, parent)]
            changed = [{change.path for change in self.diff(*side, type="two_dot")} for side in sides]
            raise MergeConflictError(sorted(set.intersection(*changed))) from error
        finally:
            self._drop_work(work)

    def commit_reserved(
        self, path: str, content: bytes, *, message: str, metadata: Mapping[str, str]
    ) -> Commit | None:
        """Commit one of lakeFS's own files on the default branch; None when it is there as it is.

        The one commit that is made on the branch itself: an action file that came by a merge would be
        asked about its own merge, before anybody can answer. Raises DirtyBranchError when somebody has
        staged something there, which it would commit too.
        """
        branch, info = self.default_branch, describe_content(path, content)
        head = self.get_branch(branch).commit_id
        function, arguments = self._api.objects_api.stat_object, (self.id, head, path)
        with suppress(NotFoundError):
            if self._client.call(function, *arguments).checksum == info.checksum:
                return None
        staged = self._client.call(self._api.branches_api.diff_branch, self.id, branch, amount=1)
        if staged.results:
            raise DirtyBranchError(f"{staged.results[0].path!r} is staged on {branch!r} and not committed.")
        self._objects.upload(branch, info, content)
        return self._commit(branch, head, to_metadata(message, metadata), False)

    def register_hook(self, event: str, hook: Hook) -> None:
        """Call `hook(event, branch, commit)` in this process, with the commit that would be merged.

        It binds this process alone; what binds everybody is an action file in the repository.
        """
        self._hooks.append((event, hook))

    # -- care ----------------------------------------------------------------------------------

    def sweep(self) -> int:
        """Drop hidden branches of transactions that began more than a day ago."""
        function = self._api.branches_api.list_branches
        pages = self._client.pages(function, self.id, prefix=RESERVED_BRANCH_PREFIX, show_hidden=True)
        stale = []
        for name in (item.id for page in pages for item in page):
            began = name.removeprefix(RESERVED_BRANCH_PREFIX).partition("-")[0]
            if began.isdigit() and int(began) < time.time() - _ABANDONED_SECONDS:
                stale.append(name)
        for name in stale:
            self._drop_work(name)
        return len(stale)

    def verify(self) -> Iterator[str]:
        """Read every object of every branch and tag and check its hash, cached ones on this machine.

        The content of older commits is the server's to keep; `fsck` reads what their releases need.
        """
        for digest in self._objects.cache.damaged():
            yield f"cached object {digest[:16]} was damaged; it is fetched again when needed"
        refs = [(ref.commit_id, ref.id) for ref in self.list_branches()]
        heads = dict(refs + [(ref.commit_id, ref.id) for ref in self.list_tags()])
        seen: dict[str, tuple[str, ObjectInfo]] = {}
        for commit in heads:
            for info in self._objects.walk(commit):
                if isinstance(info, ObjectInfo):
                    seen.setdefault(f"{info.checksum} {info.size_bytes}", (commit, info))
        faults: list[str] = []

        def read(found: tuple[str, ObjectInfo]) -> None:
            commit, info = found
            try:
                self._objects.open(commit, info.path).close()
            except PlumblineError as error:
                faults.append(f"{info.path} of {heads[commit]}: {error.message}")

        in_parallel(read, seen.values())
        yield from sorted(faults)

    def gc(self, grace_seconds: float, *, expire: Collection[str] = (), dry_run: bool = False) -> int:
        """Raises UnsupportedError: lakeFS frees objects by rules of its own."""
        raise UnsupportedError(
            "lakeFS frees objects by its own garbage collection, not through Plumbline.",
            hint="Set its rules (`lakectl gc set-config`) and run its collector.",
        )
