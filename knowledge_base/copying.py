"""Copying a knowledge base with its history into another store: git to lakeFS and back.

Commits are made again in order, parents first, each with its message, metadata and every byte of its
content. Their ids and dates are the new store's; the old ones are kept as metadata. A copy that was
killed goes on where it stopped.
"""

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime

from knowledge_base.documents import sha256_hex
from knowledge_base.durable import remove_file, write_bytes
from knowledge_base.errors import (
    AlreadyExistsError,
    DamagedError,
    ExpiredError,
    NoChangesError,
    PlumblineError,
)
from knowledge_base.home import MAIN, WORK_PREFIX, KnowledgeBase
from knowledge_base.lifecycle import DRAFT
from knowledge_base.release import committed_files
from knowledge_base.values import Frozen
from knowledge_base.version_store import Commit, ObjectInfo, Repository, Transaction

COPIED_FROM = "copied-from"
COPIED_DATE = "copied-date"
_COPY_PREFIX = "plumbline-copy-"

Progress = Callable[[str, int, int | None], None]


class CopyReport(Frozen):
    """What was copied; `objects` are distinct contents, each read from both stores and compared."""

    commits: int
    branches: int
    tags: int
    objects: int
    bytes: int
    passages: int
    expired: int
    """Commits of which only the place in the log is left, in the source too."""


def copy_knowledge_base(
    source: KnowledgeBase,
    destination: KnowledgeBase,
    progress: Progress = lambda stage, done, total: None,
) -> CopyReport:
    """Copy every branch and tag with their history, build main's index, and compare all of it.

    Raises:
        AlreadyExistsError: The destination holds something that is no copy of the source.
        DamagedError: What the destination gives back differs.
        LockedError: Another command is writing to one of the two.
    """
    with source.writing(), destination.writing():
        copier = _Copier(source.repository, destination.repository, progress)
        copier.copy_commits()
        copier.copy_names()
        objects, size = copier.compare()
        passages = 0
        for segment in destination.snapshot(MAIN).segments:
            progress("index", 1, None)
            segment.rebuild()
            fault = segment.check_cache() if len(segment.passage_hashes) else None
            if fault := fault or segment.check_index():
                raise DamagedError(f"The index of the copy: {fault}.", hint="Run the command again.")
            passages += len(segment.passage_hashes)
    return CopyReport(
        commits=len(copier.order),
        branches=len(copier.branches),
        tags=len(copier.tags),
        objects=objects,
        bytes=size,
        passages=passages,
        expired=len(copier.hollow),
    )


def take_working_files(made: KnowledgeBase) -> None:
    """Give a working copy that was just made the files of main instead of the defaults."""
    committed = committed_files(made.repository, made.repository.resolve(MAIN))
    for path in made.working_files():
        if path not in committed:
            remove_file(made.root / path)
    for path, content in committed.items():
        write_bytes(made.root / path, content)


class _Copier:
    """One copy; a class only because the steps share these."""

    def __init__(self, source: Repository, destination: Repository, progress: Progress) -> None:
        self.source, self.destination, self.progress = source, destination, progress
        self._seen: dict[tuple[str, str, int], tuple[str, int]] = {}
        self.branches = {
            branch.id: branch.commit_id
            for branch in source.list_branches()
            if not branch.id.startswith((WORK_PREFIX, _COPY_PREFIX))
        }
        self.tags = {tag.id: tag.commit_id for tag in source.list_tags()}
        self.order = self._parents_first()
        self.line = [commit.id for commit in source.log(MAIN, first_parent=True)]
        self.made = self._made_before()
        self.hollow = {
            commit.id
            for commit in self.order
            if commit.parents and commit.id in self.made and self._expired(commit)
        }
        """Commits whose content gc removed: their place in the log is copied, content there is none."""

    def _parents_first(self) -> list[Commit]:
        commits: dict[str, Commit] = {}
        for head in dict.fromkeys([*self.branches.values(), *self.tags.values()]):
            for commit in reversed(list(self.source.log(head))):
                commits.setdefault(commit.id, commit)
        return list(commits.values())

    def _made_before(self) -> dict[str, str]:
        """Commit of the destination by the one it is the copy of."""
        known = {commit.id for commit in self.order}
        made: dict[str, str] = {}
        for branch in self.destination.list_branches():
            for commit in self.destination.log(branch.commit_id):
                origin = commit.metadata.get(COPIED_FROM, "")
                if origin in known:
                    made[origin] = commit.id
                elif commit.parents and DRAFT not in commit.metadata:
                    raise AlreadyExistsError(
                        f"The destination holds {commit.id[:12]}, which is no copy of the source.",
                        hint="Copy into a folder or repository that is new.",
                    )
                elif not commit.parents:
                    root = commit.id
        # The first commit of a repository is the store's own: empty, and there already.
        made.update({commit.id: root for commit in self.order if not commit.parents})
        return made

    # -- commits -------------------------------------------------------------------------------

    def copy_commits(self) -> None:
        """Make every commit that is not there yet; those of main's line on main itself."""
        for commit in self.order:
            self.progress("copy", 1, len(self.order))
            if commit.id not in self.made:
                parent = self.made[commit.parents[0]]
                if commit.id in self.line:
                    self.made[commit.id] = self._copy(commit, MAIN)
                else:
                    self.made[commit.id] = self._copy(commit, self._branch_at(parent))

    def _branch_at(self, commit: str) -> str:
        """A branch of this copy that ends at a commit; it also keeps what is copied reachable."""
        for branch in self.destination.list_branches(_COPY_PREFIX):
            if branch.commit_id == commit:
                return branch.id
        return self.destination.create_branch(f"{_COPY_PREFIX}{secrets.token_hex(6)}", commit).id

    def _copy(self, commit: Commit, branch: str) -> str:
        if len(commit.parents) == 1 or self._expired(commit):
            return self._change(commit, branch, self._metadata(commit))
        return self._copy_merge(commit, branch)

    def _expired(self, commit: Commit) -> bool:
        try:
            self._hashes(self.source, commit.id)
        except ExpiredError:
            return True
        return False

    def _metadata(self, commit: Commit) -> dict[str, str]:
        date = datetime.fromtimestamp(commit.creation_date, UTC).isoformat()
        # What names another commit (a rollback's target) names its copy.
        metadata = {key: self.made.get(value, value) for key, value in commit.metadata.items()}
        origin = {COPIED_FROM: commit.id, COPIED_DATE: commit.metadata.get(COPIED_DATE, date)}
        return {**metadata, **origin}

    def _change(self, commit: Commit, branch: str, metadata: dict[str, str]) -> str:
        """One commit on `branch` that makes its content, a copy of the first parent's, that of `commit`."""
        transaction = self.destination.transact(
            branch, message=commit.message, metadata=metadata, allow_empty=True
        )
        with transaction:
            self._write(transaction, commit.id, self._changes(commit))
        assert transaction.commit is not None  # allow_empty: there always is one
        return transaction.commit.id

    def _changes(self, commit: Commit) -> dict[str, bool]:
        """Paths that differ from the first parent's copy, and whether `commit` has them."""
        try:
            if commit.parents[0] not in self.hollow:
                changes = self.source.diff(commit.parents[0], commit.id, type="two_dot")
                return {change.path: change.type != "removed" for change in changes}
            return self._difference(commit.id, self.made[commit.parents[0]])
        except ExpiredError:
            try:
                return self._difference(commit.id, self.made[commit.parents[0]])
            except ExpiredError:
                self.hollow.add(commit.id)
                return {}

    def _write(self, transaction: Transaction, commit: str, changes: dict[str, bool]) -> None:
        for path, present in changes.items():
            if present:
                with self.source.open_object(commit, path) as content:
                    transaction.upload(path, content)
            else:
                transaction.delete(path)

    def _copy_merge(self, commit: Commit, branch: str) -> str:
        """A merge commit: the content is put together on a side branch, then merged as it is.

        No store takes a commit with given parents and given content, but a merge of what descends from
        the branch's head has exactly the content of what is merged.
        """
        metadata, parent = self._metadata(commit), self.made[commit.parents[0]]
        with self._side(parent) as side:
            with suppress(NoChangesError):
                self.destination.merge(
                    self.made[commit.parents[1]],
                    side,
                    message=commit.message,
                    metadata={DRAFT: "content follows"},
                    strategy="dest-wins",
                )
            if changes := self._difference(commit.id, side):
                draft = {DRAFT: "content of the merge"}
                with self.destination.transact(side, message=commit.message, metadata=draft) as transaction:
                    self._write(transaction, commit.id, changes)
            try:
                merged = self.destination.merge(side, branch, message=commit.message, metadata=metadata)
                return merged.id
            except NoChangesError:
                return self._change(commit, branch, metadata)

    @contextmanager
    def _side(self, commit: str) -> Iterator[str]:
        side = self.destination.create_branch(f"{_COPY_PREFIX}{secrets.token_hex(6)}", commit).id
        try:
            yield side
        finally:
            with suppress(PlumblineError):
                self.destination.delete_branch(side)

    def _difference(self, commit: str, ref: str) -> dict[str, bool]:
        """Paths whose content differs, and whether the source has them."""
        wanted, there = self._hashes(self.source, commit), self._hashes(self.destination, ref)
        return {path: path in wanted for path in {*wanted, *there} if wanted.get(path) != there.get(path)}

    # -- names ---------------------------------------------------------------------------------

    def copy_names(self) -> None:
        """Branches and tags, then away with the branches of the copy itself."""
        branches = {branch.id for branch in self.destination.list_branches()}
        for name, commit in self.branches.items():
            if name not in branches:
                self.destination.create_branch(name, self.made[commit])
        tags = {tag.id for tag in self.destination.list_tags()}
        for name, commit in self.tags.items():
            if name not in tags:
                self.destination.create_tag(name, self.made[commit])
        for branch in self.destination.list_branches(_COPY_PREFIX):
            self.destination.delete_branch(branch.id)

    # -- comparing -----------------------------------------------------------------------------

    def compare(self) -> tuple[int, int]:
        """Read every content of every commit from both stores; returns how many, and their bytes.

        Raises DamagedError.
        """
        for kind, names, listed in (
            ("branch", self.branches, self.destination.list_branches()),
            ("tag", self.tags, self.destination.list_tags()),
        ):
            if {name: self.made[commit] for name, commit in names.items()} != {
                name.id: name.commit_id for name in listed
            }:
                raise DamagedError(f"The copy has other {kind} names.", hint="Run the command again.")
        for commit in self.order:
            self.progress("compare", 1, len(self.order))
            copied = self.destination.get_commit(self.made[commit.id])
            same = not commit.parents or (copied.message, copied.metadata) == (
                commit.message,
                self._metadata(commit),
            )
            if not same or (commit.id not in self.hollow and self._difference(commit.id, copied.id)):
                raise DamagedError(
                    f"The copy {copied.id[:12]} differs from {commit.id[:12]}.", hint="Run the command again."
                )
        contents = {digest: size for (side, *_), (digest, size) in self._seen.items() if side == "source"}
        return len(contents), sum(contents.values())

    def _hashes(self, repository: Repository, ref: str) -> dict[str, str]:
        """SHA-256 of every object of a commit; each distinct one is read once."""
        commit = repository.resolve(ref)
        found = {}
        for item in repository.list_objects(commit):
            if isinstance(item, ObjectInfo):
                found[item.path] = self._hash(repository, commit, item)
        return found

    def _hash(self, repository: Repository, commit: str, item: ObjectInfo) -> str:
        side = "source" if repository is self.source else "destination"
        key = (side, item.checksum, item.size_bytes)
        if key not in self._seen:
            content = repository.get_object(commit, item.path)
            self._seen[key] = (sha256_hex(content), len(content))
        return self._seen[key][0]
