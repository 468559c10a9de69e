"""What a lakeFS server knows, in memory: repositories, branches with staging areas, commits, merges.

Written from the vendor's documentation and OpenAPI file. It keeps to what surprises clients: one
staging area for each branch that everybody shares, no compare-and-swap, merges by whole files that
never fast-forward and leave out nothing, tags that never move, hidden branches, identity of objects by
size, checksum, content type and user metadata.
"""

import hashlib
import json
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Tree = dict[str, "Entry"]

_REPOSITORY = re.compile(r"[a-z0-9][a-z0-9-]{2,62}", re.ASCII)
_BRANCH = re.compile(r"\w[-\w]*", re.ASCII)
_TAG = re.compile(r"\w[-.\w]*", re.ASCII)
_HASH = re.compile(r"[a-fA-F0-9]{1,64}", re.ASCII)
_MODIFIER = re.compile(r"([~^])([0-9]*)|([@$])")


class Refusal(Exception):
    """An answer that is not 2xx."""

    def __init__(self, status: int, message: str, body: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.body = body if body is not None else {"message": message}


@dataclass(frozen=True)
class Entry:
    checksum: str
    size_bytes: int
    content_type: str
    metadata: tuple[tuple[str, str], ...] = ()
    address: str = field(default="", compare=False)
    mtime: int = field(default=0, compare=False)


@dataclass
class Branch:
    commit: str
    hidden: bool = False
    staging: dict[str, Entry | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Commit:
    id: str
    parents: tuple[str, ...]
    committer: str
    message: str
    creation_date: int
    metadata: dict[str, str]
    generation: int
    tree: Tree

    def as_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "parents": list(self.parents),
            "committer": self.committer,
            "message": self.message,
            "creation_date": self.creation_date,
            "meta_range_id": _tree_hash(self.tree),
            "metadata": self.metadata,
            "generation": self.generation,
            "version": 1,
        }


Hook = Callable[["Repository", dict[str, Any], Tree], None]
"""Runs the actions of an event, from the tree they are read from; raises Refusal(412)."""


class Repository:
    """One repository; `lock` guards everything but hooks, which may take long and ask the server."""

    def __init__(
        self, id: str, namespace: str, default_branch: str, hook: Hook, now: Callable[[], float]
    ) -> None:
        self.id, self.namespace, self.default_branch = id, namespace, default_branch
        self.created = int(now())
        self._hook, self._now = hook, now
        self.lock = threading.RLock()
        self.commits: dict[str, Commit] = {}
        self.branches: dict[str, Branch] = {}
        self.tags: dict[str, str] = {}
        self.blobs: dict[str, bytes] = {}
        root = self._commit((), "Repository created", {}, {})
        self.branches[default_branch] = Branch(root.id)

    def as_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "creation_date": self.created,
            "default_branch": self.default_branch,
            "storage_namespace": self.namespace,
            "storage_id": "",
            "read_only": False,
        }

    # -- refs ----------------------------------------------------------------------------------

    def resolve(self, ref: str) -> Commit:
        """The commit of a ref expression; a full commit id beats a branch of that name."""
        found = _MODIFIER.search(ref)
        base, modifiers = (ref[: found.start()], ref[found.start() :]) if found else (ref, "")
        commit = self._named(base)
        for matched in _MODIFIER.finditer(modifiers):
            kind, digits, mark = matched.groups()
            if mark == "$":
                raise Refusal(400, "reference to staging area with $ is not a commit")
            count = int(digits or 1)
            for _ in range(0 if mark else count if kind == "~" else min(count, 1)):
                parent = 0 if kind == "~" else count - 1
                if parent >= len(commit.parents):
                    raise Refusal(404, "not found")
                commit = self.commits[commit.parents[parent]]
        return commit

    def _named(self, name: str) -> Commit:
        if name in self.commits:
            return self.commits[name]
        if name in self.branches:
            return self.commits[self.branches[name].commit]
        if name in self.tags:
            return self.commits[self.tags[name]]
        short = [known for known in self.commits if known.startswith(name)] if _HASH.fullmatch(name) else []
        if len(short) != 1:
            raise Refusal(404, "not found")
        return self.commits[short[0]]

    def tree(self, ref: str) -> Tree:
        """What a ref holds; of a branch with what is staged, unless `@` stands behind its name."""
        if ref in self.branches and ref not in self.commits:
            return self._staged(self.branches[ref])
        if ref.endswith("$"):
            return self._staged(self.branch(ref[:-1]))
        return self.resolve(ref).tree

    def _staged(self, branch: Branch) -> Tree:
        merged: dict[str, Entry | None] = {**self.commits[branch.commit].tree, **branch.staging}
        return {path: entry for path, entry in sorted_paths(merged) if entry is not None}

    def branch(self, name: str) -> Branch:
        if name not in self.branches:
            raise Refusal(404, "branch not found")
        return self.branches[name]

    def create_branch(self, name: str, source: str, hidden: bool) -> str:
        if not _BRANCH.fullmatch(name):
            raise Refusal(400, f"argument branch: validation error: {name}")
        self._refuse_taken(name, "branch already exists")
        commit = self.resolve(source).id
        self.branches[name] = Branch(commit, hidden)
        return commit

    def create_tag(self, name: str, ref: str) -> str:
        if not _TAG.fullmatch(name) or ".." in name or name.endswith((".", ".lock")):
            raise Refusal(400, f"argument tagID: validation error: {name}")
        self._refuse_taken(name, "tag already exists")
        commit = self.resolve(ref)
        self._hook(self, {"event_type": "pre-create-tag", "tag_id": name, **_told(commit)}, commit.tree)
        with self.lock:
            self._refuse_taken(name, "tag already exists")
            self.tags[name] = commit.id
        return commit.id

    def _refuse_taken(self, name: str, message: str) -> None:
        if name in self.branches or name in self.tags or name in self.commits:
            raise Refusal(409, message)

    def delete_branch(self, name: str) -> None:
        self.branch(name)
        if name == self.default_branch:
            raise Refusal(403, "cannot delete repository default branch")
        del self.branches[name]

    # -- commits -------------------------------------------------------------------------------

    def upload(
        self, branch: str, path: str, content: bytes, content_type: str, metadata: dict[str, str]
    ) -> Entry:
        checksum = hashlib.md5(content, usedforsecurity=False).hexdigest()
        address = f"{self.namespace}/data/{hashlib.sha256(content).hexdigest()[:20]}"
        kept = tuple(sorted(metadata.items()))
        entry = Entry(checksum, len(content), content_type, kept, address, int(self._now()))
        self.blobs[checksum] = content
        self.branch(branch).staging[path] = entry
        return entry

    def commit(
        self, name: str, message: str, metadata: dict[str, str], date: int | None, empty: bool
    ) -> Commit:
        """Everything that anybody has staged on the branch."""
        if not message:
            raise Refusal(400, "argument message: required")
        with self.lock:
            staged = self._staged(self.branch(name))
        self._hook(self, {"event_type": "pre-commit", "branch_id": name, "commit_message": message}, staged)
        with self.lock:
            branch = self.branch(name)
            tree, before = self._staged(branch), self.commits[branch.commit]
            if tree == before.tree and not empty:
                raise Refusal(400, "commit: no changes")
            commit = self._commit((before.id,), message, metadata, tree, date)
            branch.commit, branch.staging = commit.id, {}
            return commit

    def _commit(
        self,
        parents: tuple[str, ...],
        message: str,
        metadata: dict[str, str],
        tree: Tree,
        date: int | None = None,
    ) -> Commit:
        date = int(self._now()) if date is None else date
        content = json.dumps(["tester", message, _tree_hash(tree), date, sorted(metadata.items()), parents])
        generation = 1 + max((self.commits[parent].generation for parent in parents), default=0)
        digest = hashlib.sha256(content.encode()).hexdigest()
        commit = Commit(
            digest, parents, "tester", message, date, dict(metadata), generation, dict(sorted_paths(tree))
        )
        return self.commits.setdefault(digest, commit)

    def merge(self, source: str, name: str, options: dict[str, Any]) -> str:
        """Whole files against the merge base; the branch moves if nobody moved it meanwhile, ten times."""
        theirs = self.resolve(source)
        strategy = options.get("strategy") or ""
        if strategy not in ("", "source-wins", "dest-wins"):
            raise Refusal(400, f"invalid merge strategy: {strategy}")
        for _ in range(10):
            with self.lock:
                branch = self.branch(name)
                ours = self.commits[branch.commit]
                if self._staged(branch) != ours.tree:
                    raise Refusal(400, f"update branch {name}: uncommitted changes (dirty branch)")
                base = self.merge_base(theirs.id, ours.id)
                # Content is compared, not history; `force` would let it through.
                if theirs.tree == base.tree and not (options.get("allow_empty") or options.get("force")):
                    raise Refusal(400, f"update branch {name}: no changes")
                tree = merge_trees(base.tree, theirs.tree, ours.tree, strategy)
                parents = (ours.id,) if options.get("squash_merge") else (ours.id, theirs.id)
                metadata = dict(options.get("metadata") or {})
                if strategy:
                    metadata[".lakefs.merge.strategy"] = strategy
                message = options.get("message") or f"Merge '{source}' into '{name}'"
                merged = self._commit(parents, message, metadata, tree)
            # The merge commit is written already: refused, it dangles.
            event = {
                "event_type": "pre-merge",
                "branch_id": name,
                "source_ref": theirs.id,
                "merge_source": source,
            }
            self._hook(self, {**event, **_told(merged)}, theirs.tree)
            with self.lock:
                if self.branch(name).commit == ours.id:
                    self.branches[name].commit = merged.id
                    return merged.id
        raise Refusal(429, "Too many attempts, try again later")

    def revert(self, name: str, ref: str, parent_number: int) -> str:
        branch, target = self.branch(name), self.resolve(ref)
        if len(target.parents) > 1 and parent_number <= 0:
            raise Refusal(409, "must specify 1-based parent number for reverting merge commit")
        if parent_number > len(target.parents) or not target.parents:
            raise Refusal(400, "given commit does not have the given parent number")
        head = self.commits[branch.commit]
        if self._staged(branch) != head.tree:
            raise Refusal(400, f"{name}: uncommitted changes (dirty branch)")
        parent = self.commits[target.parents[max(parent_number, 1) - 1]]
        try:
            tree = merge_trees(target.tree, parent.tree, head.tree, "")
        except Refusal as error:
            raise Refusal(409, "conflict found") from error
        if tree == head.tree:
            raise Refusal(400, f"update branch {name}: no changes")
        branch.commit = self._commit((head.id,), f"Revert {target.id}", {}, tree).id
        return branch.commit

    # -- history -------------------------------------------------------------------------------

    def log(self, ref: str, first_parent: bool) -> list[Commit]:
        """By creation date, then by id: in one second a parent may stand before its child."""
        start = self.resolve(ref)
        found, queue, seen = [], [start], {start.id}
        while queue:
            queue.sort(key=lambda commit: (commit.creation_date, commit.id))
            commit = queue.pop()
            found.append(commit)
            for parent in commit.parents[: 1 if first_parent else None]:
                if parent not in seen:
                    seen.add(parent)
                    queue.append(self.commits[parent])
        return found

    def merge_base(self, one: str, other: str) -> Commit:
        """The common ancestor of the highest generation."""
        mine = {commit.id for commit in self.log(one, False)}
        common = [commit for commit in self.log(other, False) if commit.id in mine]
        return max(common, key=lambda commit: commit.generation)

    def diff(self, left: str, right: str, three_dot: bool) -> list[dict[str, Any]]:
        """Two trees; three_dot leaves out what only the left changed since the merge base."""
        ours, theirs = self.resolve(left), self.resolve(right)
        changes = diff_trees(ours.tree, theirs.tree)
        if not three_dot:
            return changes
        base = self.merge_base(ours.id, theirs.id).tree
        kept = []
        for change in changes:
            path = change["path"]
            before, mine, yours = base.get(path), ours.tree.get(path), theirs.tree.get(path)
            if yours != before:
                kept.append(change if mine == before else {**change, "type": "conflict"})
        return kept


def merge_trees(base: Tree, source: Tree, destination: Tree, strategy: str) -> Tree:
    """Path by path; a conflict is a 409 whose body names nothing."""
    merged: Tree = {}
    for path in {*base, *source, *destination}:
        was, theirs, ours = base.get(path), source.get(path), destination.get(path)
        if theirs in (was, ours):
            kept = ours
        elif ours == was or strategy == "source-wins":
            kept = theirs
        elif strategy == "dest-wins":
            kept = ours
        else:
            raise Refusal(409, "conflict found", {"reference": ""})
        if kept is not None:
            merged[path] = kept
    return merged


def diff_trees(left: Tree, right: Tree) -> list[dict[str, Any]]:
    changes = []
    for path in sorted({*left, *right}, key=lambda path: path.encode()):
        before, after = left.get(path), right.get(path)
        if before != after:
            kind = "added" if before is None else "removed" if after is None else "changed"
            size = (after or before or Entry("", 0, "")).size_bytes
            changes.append({"type": kind, "path": path, "path_type": "object", "size_bytes": size})
    return changes


def sorted_paths(tree: Any) -> list[tuple[str, Any]]:
    return sorted(tree.items(), key=lambda item: str(item[0]).encode())


def _told(commit: Commit) -> dict[str, Any]:
    return {
        "commit_id": commit.id,
        "commit_message": commit.message,
        "committer": commit.committer,
        "commit_metadata": commit.metadata,
    }


def _tree_hash(tree: Tree) -> str:
    rows = [
        (path, entry.checksum, entry.size_bytes, entry.content_type, entry.metadata)
        for path, entry in sorted_paths(tree)
    ]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


class Store:
    """All repositories of a server."""

    def __init__(self, hook: Hook, now: Callable[[], float] = time.time) -> None:
        self._hook, self._now = hook, now
        self.repositories: dict[str, Repository] = {}
        self._used: set[str] = set()

    def create(self, name: str, namespace: str, default_branch: str) -> Repository:
        if not _REPOSITORY.fullmatch(name):
            raise Refusal(400, f"argument repository: validation error: {name}")
        if name in self.repositories:
            raise Refusal(409, "error creating repository: not unique")
        if namespace.rstrip("/") in self._used:  # also that of a repository that is gone
            raise Refusal(400, "failed to create repository: storage namespace already in use")
        self._used.add(namespace.rstrip("/"))
        made = Repository(name, namespace, default_branch, self._hook, self._now)
        self.repositories[name] = made
        return made

    def get(self, name: str) -> Repository:
        if name not in self.repositories:
            raise Refusal(404, "repository not found")
        return self.repositories[name]
