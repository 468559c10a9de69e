"""Git trees as path -> blob maps: compare, change and merge whole files, touching only what differs.

Our own, because git's merge works on lines and guesses renames, which a lakeFS repository would not,
and because libgit2's index drops a file `a` without a word when `a/b` is added.
"""

import errno
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pygit2

from knowledge_base.errors import InvalidPathError, MergeConflictError
from knowledge_base.version_store import Strategy

Changes = Mapping[str, str | None]
"""Path to the hex id of its new blob, None where it is deleted."""

_TREE_MODE = 0o040000
_FILE_MODE = 0o100644


def kept(git: Any, oid: Any) -> str:
    """Id of an object just written: libgit2 1.9 may report success although a full disk took nothing."""
    if oid not in git:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return str(oid)


def walk_files(git: Any, tree: Any, prefix: str = "", folder: str = "") -> Iterator[tuple[str, str]]:
    """Path and blob id of every file whose path starts with `prefix`, in byte order of the paths."""
    for entry in tree:
        path = folder + entry.name
        if entry.type == pygit2.GIT_OBJECT_TREE:
            below = path + "/"
            if below.startswith(prefix) or prefix.startswith(below):
                yield from walk_files(git, git[entry.id], prefix, below)
        elif path.startswith(prefix):
            yield path, str(entry.id)


def find_file(git: Any, tree: Any, path: str) -> str | None:
    """Blob id of one file, None when there is none."""
    *folders, name = path.split("/")
    for folder in folders:
        if folder not in tree or tree[folder].type != pygit2.GIT_OBJECT_TREE:
            return None
        tree = git[tree[folder].id]
    if name not in tree or tree[name].type == pygit2.GIT_OBJECT_TREE:
        return None
    return str(tree[name].id)


def compare_trees(
    git: Any, left: Any, right: Any, folder: str = ""
) -> Iterator[tuple[str, str | None, str | None]]:
    """(path, blob on the left, blob on the right) of every file that differs; equal subtrees are skipped."""
    names = {entry.name for entry in left or ()} | {entry.name for entry in right or ()}
    for name in sorted(names, key=lambda name: name.encode()):
        old = left[name] if left is not None and name in left else None
        new = right[name] if right is not None and name in right else None
        if old is not None and new is not None and old.id == new.id:
            continue
        old_tree, old_blob = _split(git, old)
        new_tree, new_blob = _split(git, new)
        if old_blob != new_blob:
            yield folder + name, old_blob, new_blob
        if old_tree is not None or new_tree is not None:
            yield from compare_trees(git, old_tree, new_tree, f"{folder}{name}/")


def _split(git: Any, entry: Any) -> tuple[Any, str | None]:
    if entry is None:
        return None, None
    if entry.type == pygit2.GIT_OBJECT_TREE:
        return git[entry.id], None
    return None, str(entry.id)


@dataclass
class _Node:
    """Changes to one name of a directory: the file of that name, and what lies below it."""

    touched: bool = False
    blob: str | None = None
    below: dict[str, "_Node"] = field(default_factory=dict)

    def adds(self) -> bool:
        return any(node.blob is not None or node.adds() for node in self.below.values())


def apply_changes(git: Any, tree: Any, changes: Changes) -> str:
    """Id of `tree` with the changes made; only directories on a changed path are written.

    Raises:
        InvalidPathError: A path would be the directory of another one.
    """
    root = _Node()
    for path, blob in changes.items():
        node = root
        for name in path.split("/"):
            node = node.below.setdefault(name, _Node())
        node.touched, node.blob = True, blob
    return _apply(git, tree, root, "") or kept(git, git.TreeBuilder().write())


def _apply(git: Any, tree: Any, node: _Node, folder: str) -> str | None:
    """Id of the changed tree, None when nothing is left in it."""
    builder = git.TreeBuilder(tree) if tree is not None else git.TreeBuilder()
    for name, child in node.below.items():
        existing = tree[name] if tree is not None and name in tree else None
        subtree, blob = _split(git, existing)
        blob = child.blob if child.touched else blob
        below = (
            _apply(git, subtree, child, f"{folder}{name}/")
            if child.below and (subtree or child.adds())
            else None
        )
        if subtree is not None and not child.below:
            below = str(subtree.id)
        if blob is not None and below is not None:
            raise InvalidPathError(
                f"{folder + name!r} would be both a file and a folder.", hint="Rename one of the two."
            )
        if below is not None:
            builder.insert(name, pygit2.Oid(hex=below), _TREE_MODE)
        elif blob is not None:
            builder.insert(name, pygit2.Oid(hex=blob), _FILE_MODE)
        elif existing is not None:
            builder.remove(name)
    return kept(git, builder.write()) if len(builder) else None


def merge_trees(git: Any, base: Any, source: Any, destination: Any, strategy: Strategy | None) -> str:
    """Id of `destination` with what `source` changed since `base`, file by file.

    Raises:
        MergeConflictError: Both changed a file differently and no `strategy` says who wins.
        InvalidPathError: One side made a file where the other made a folder.
    """
    theirs = {path: new for path, _, new in compare_trees(git, base, source)}
    ours = {path: new for path, _, new in compare_trees(git, base, destination)}
    conflicts = [path for path in theirs if path in ours and theirs[path] != ours[path]]
    if conflicts and strategy is None:
        raise MergeConflictError(conflicts)
    if strategy == "dest-wins":
        theirs = {path: new for path, new in theirs.items() if path not in conflicts}
    return apply_changes(git, destination, theirs)
