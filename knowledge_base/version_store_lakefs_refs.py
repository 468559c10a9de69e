"""The refs, objects and history of one lakeFS repository: everything but landing a change."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from lakefs_sdk import BranchCreation, TagCreation

from knowledge_base.errors import (
    AlreadyExistsError,
    HookFailedError,
    NotFoundError,
    ProtectedError,
    UnavailableError,
)
from knowledge_base.naming import RESERVED_BRANCH_PREFIX, validate_branch_name, validate_tag_name
from knowledge_base.object_cache import ObjectCache
from knowledge_base.ref_expressions import parse_ref, too_far_back, unknown_ref
from knowledge_base.version_store import Branch, Change, Commit, CommonPrefix, DiffType, ObjectInfo, Tag
from knowledge_base.version_store_lakefs_client import HOOK_SECONDS, Client
from knowledge_base.version_store_lakefs_history import describe, hook_report, newest_first
from knowledge_base.version_store_lakefs_objects import RESERVED, Objects


class LakeFSRefs:
    """Commits are immutable, so what is asked about one is asked once; names are asked every time."""

    def __init__(self, client: Client, record: Any, cache: ObjectCache) -> None:
        self.id: str = record.id
        self.default_branch: str = record.default_branch
        # Not the server's address, which people write in several ways: where the objects lie.
        self.identity = f"{record.storage_namespace} {record.creation_date}"
        self._client = client
        self._api = client.api
        self._objects = Objects(client, self.id, self.identity, cache)

    # -- refs ----------------------------------------------------------------------------------

    def resolve(self, ref: str) -> str:
        """Commit id of a ref expression; of a full id that is cached, without asking the server."""
        expression = parse_ref(ref)
        commit = self._named(expression.name, ref)
        if expression.until is not None:
            commit = self._at(commit, expression.until, ref)
        for step, count in expression.steps:
            if step == "~":
                behind = list(self.log(commit.id, first_parent=True, amount=count + 1)) if count else [commit]
                if len(behind) <= count:
                    raise too_far_back(ref)
                commit = behind[count]
            elif count > len(commit.parents):
                raise too_far_back(ref)
            elif count:
                commit = self._named(commit.parents[count - 1], ref)
        return commit.id

    def get_commit(self, ref: str) -> Commit:
        """The commit `ref` names."""
        commit = self.resolve(ref)
        return self._named(commit, commit)

    def _named(self, name: str, ref: str) -> Commit:
        kept = self._objects.cache.fact(f"{self.identity} commit {name}") if len(name) == 64 else None
        if kept is not None:
            return describe(kept)
        seen = f"{self.identity} last seen {name}"
        try:
            found = self._client.call(self._api.commits_api.get_commit, self.id, name)
        except NotFoundError as error:
            raise unknown_ref(ref) from error
        except UnavailableError as error:
            if last := self._objects.cache.fact(seen):
                error.hint = (
                    f"{name} was last seen at {last[:12]}: `--ref {last}` reads what is cached of it."
                )
            raise
        if name != found.id and self._objects.cache.fact(seen) != found.id:
            self._objects.cache.keep_fact(seen, found.id)
        return self._keep(found)

    def _keep(self, found: Any) -> Commit:
        record = {
            "id": found.id,
            "parents": found.parents,
            "committer": found.committer,
            "message": found.message,
            "creation_date": found.creation_date,
            "metadata": found.metadata or {},
        }
        key = f"{self.identity} commit {found.id}"
        if self._objects.cache.fact(key) is None:
            self._objects.cache.keep_fact(key, record)
        return describe(record)

    def _at(self, commit: Commit, limit: float, ref: str) -> Commit:
        for earlier in self.log(commit.id, first_parent=True):
            if earlier.creation_date <= limit:
                return earlier
        raise NotFoundError("ref", ref, hint="The history starts later.")

    def create_branch(self, branch: str, source: str) -> Branch:
        """Point a new branch at the commit `source` names."""
        return self._make_branch(validate_branch_name(branch), self.resolve(source))

    def _make_branch(self, branch: str, commit: str, *, hidden: bool = False) -> Branch:
        wanted = BranchCreation(name=branch, source=commit, hidden=hidden)
        try:
            self._client.once(
                self._api.branches_api.create_branch,
                self.id,
                wanted,
                done=lambda: self._head_or_none(branch) == commit or None,
                missing=("ref", commit),
            )
        except AlreadyExistsError as error:
            raise AlreadyExistsError(f"There is a branch or tag {branch!r} already.") from error
        return Branch(branch, commit)

    def _head_or_none(self, branch: str) -> str | None:
        try:
            return self.get_branch(branch).commit_id
        except NotFoundError:
            return None

    def get_branch(self, branch: str) -> Branch:
        """Raises NotFoundError."""
        missing = ("branch", branch)
        found = self._client.call(self._api.branches_api.get_branch, self.id, branch, missing=missing)
        return Branch(found.id, found.commit_id)

    def list_branches(self, prefix: str = "") -> list[Branch]:
        """Branches in byte order, without those of transactions under way."""
        function = self._api.branches_api.list_branches
        pages = self._client.pages(function, self.id, prefix=prefix)
        found = [Branch(item.id, item.commit_id) for page in pages for item in page]
        return [branch for branch in found if not branch.id.startswith(RESERVED_BRANCH_PREFIX)]

    def delete_branch(self, branch: str) -> None:
        """Raises NotFoundError, ProtectedError."""
        if branch == self.default_branch:
            raise ProtectedError(f"Branch {branch!r} is the default branch and cannot be deleted.")
        missing = ("branch", branch)
        self._client.once(
            self._api.branches_api.delete_branch,
            self.id,
            branch,
            done=lambda: self._head_or_none(branch) is None or None,
            missing=missing,
        )

    def create_tag(self, tag: str, ref: str) -> Tag:
        """Give the commit `ref` names a name that never moves."""
        wanted = TagCreation(id=validate_tag_name(tag), ref=self.resolve(ref))
        try:
            self._client.once(
                self._api.tags_api.create_tag,
                self.id,
                wanted,
                done=lambda: self._tagged_or_none(tag) == wanted.ref or None,
                seconds=HOOK_SECONDS,
                missing=("ref", ref),
            )
        except AlreadyExistsError as error:
            raise AlreadyExistsError(f"There is a branch or tag {tag!r} already.") from error
        except HookFailedError as error:
            hook_report(self._client, self.id, error)
            raise
        return Tag(tag, wanted.ref)

    def _tagged_or_none(self, tag: str) -> str | None:
        try:
            return self.get_tag(tag).commit_id
        except NotFoundError:
            return None

    def get_tag(self, tag: str) -> Tag:
        """Raises NotFoundError."""
        found = self._client.call(self._api.tags_api.get_tag, self.id, tag, missing=("tag", tag))
        return Tag(found.id, found.commit_id)

    def list_tags(self, prefix: str = "") -> list[Tag]:
        """Tags in byte order."""
        pages = self._client.pages(self._api.tags_api.list_tags, self.id, prefix=prefix)
        return [Tag(item.id, item.commit_id) for page in pages for item in page]

    def delete_tag(self, tag: str) -> None:
        """Raises NotFoundError."""
        self._client.once(
            self._api.tags_api.delete_tag,
            self.id,
            tag,
            done=lambda: self._tagged_or_none(tag) is None or None,
            missing=("tag", tag),
        )

    # -- objects -------------------------------------------------------------------------------

    def list_objects(
        self, ref: str, *, prefix: str = "", delimiter: str = "", after: str = ""
    ) -> Iterator[ObjectInfo | CommonPrefix]:
        """Objects in byte order of their paths, `after` exclusive."""
        return self._objects.walk(self.resolve(ref), prefix=prefix, delimiter=delimiter, after=after)

    def stat_object(self, ref: str, path: str) -> ObjectInfo:
        """Raises NotFoundError."""
        return self._objects.find(self.resolve(ref), path)

    def get_object(self, ref: str, path: str) -> bytes:
        """Raises NotFoundError, DamagedError."""
        with self.open_object(ref, path) as file:
            return file.read()

    def open_object(self, ref: str, path: str) -> BinaryIO:
        """A seekable file, read from the local cache. Raises NotFoundError, DamagedError."""
        return self._objects.open(self.resolve(ref), path)

    def local_path(self, ref: str, path: str) -> Path | None:
        """None: what is cached on this machine may go at any time, so nobody may rely on its place."""
        return None

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
        """Commits, newest first.

        Paths are compared here: the server leaves merge commits out of a log by path, and orders
        commits of the same second by their ids.
        """
        start, last = self.resolve(ref), self.resolve(stop_at) if stop_at else None
        shown = 0
        wanted = amount if amount is not None and first_parent and not (objects or prefixes) else 1000
        if amount == 0:
            return
        for commit in newest_first(self._walk(start, first_parent, max(wanted, 1)), start, first_parent):
            if amount is not None and shown >= amount:
                return
            recent = since is None or commit.creation_date >= since
            if recent and (not (objects or prefixes) or self._touches(commit, objects, prefixes)):
                yield commit
                shown += 1
            if commit.id == last:
                return

    def _walk(self, start: str, first_parent: bool, amount: int) -> Iterator[Commit]:
        function, missing = self._api.refs_api.log_commits, ("ref", start)
        for page in self._client.pages(
            function, self.id, start, first_parent=first_parent, amount=amount, missing=missing
        ):
            for item in page:
                yield self._keep(item)

    def _touches(self, commit: Commit, objects: Sequence[str], prefixes: Sequence[str]) -> bool:
        if not commit.parents:
            return False
        for prefix in {*objects, *prefixes}:
            changes = self.diff(commit.parents[0], commit.id, type="two_dot", prefix=prefix)
            if any(prefix in prefixes or change.path == prefix for change in changes):
                return True
        return False

    def diff(
        self, left: str, right: str, *, type: DiffType = "three_dot", prefix: str = ""
    ) -> Iterator[Change]:
        """What changed from left to right, in byte order of the paths."""
        left, right = self.resolve(left), self.resolve(right)
        function = self._api.refs_api.diff_refs
        for page in self._client.pages(
            function, self.id, left, right, type=type, prefix=prefix, missing=("ref", f"{left}..{right}")
        ):
            for item in page:
                if not item.path.startswith(RESERVED):
                    yield Change(item.type, item.path, item.size_bytes or 0)

    def find_merge_base(self, source: str, destination: str) -> str:
        """Best common ancestor."""
        one, other = self.resolve(source), self.resolve(destination)
        function = self._api.refs_api.find_merge_base
        found = self._client.call(function, self.id, one, other, missing=("ref", f"{one}, {other}"))
        return str(found.base_commit_id)
