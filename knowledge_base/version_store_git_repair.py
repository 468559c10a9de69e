"""Putting a damaged bare repository right as far as anything still says what it held.

Branches and tags come back from their logs, `HEAD` and `config` from what they always are, objects
from a backup or from files that hash to the same. What nothing says any more is left for fsck to name.
"""

import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pygit2

from knowledge_base.durable import disk_errors, remove_file, write_bytes
from knowledge_base.errors import DamagedError, NotFoundError
from knowledge_base.version_store_git_history import reachable
from knowledge_base.version_store_git_objects import GIT_ERRORS, Git, Objects

# Refs are logged, which git leaves out in bare repositories: the log is the second copy of each.
CONFIG = b"""[core]
\trepositoryformatversion = 0
\tfilemode = true
\tbare = true
\tlogallrefupdates = always
"""
_LOG_LINE = re.compile(r"[0-9a-f]{40} ([0-9a-f]{40}) [^\n]*", re.ASCII)
_ID = re.compile(r"[0-9a-f]{40}", re.ASCII)
_NOTHING = "0" * 40


def faults_of_refs(folder: Path) -> Iterator[str]:
    """What is wrong with config, with logs, and which refs are gone.

    A log that is one entry ahead or behind, or not there yet, is no fault: a kill between the two writes
    leaves it so. `repair` writes a missing one. Nor is the log of a ref whose making a kill ended.
    """
    config = _read(folder / "config")
    if "bare = true" not in config or "logallrefupdates = always" not in config:
        yield "config does not say what it should"
    logged = dict(_logged(folder))
    for name, commit in logged.items():
        if not commit:
            yield f"the log of {name} cannot be read"
        if not _has(folder, name) and not _unborn(folder, name):
            yield f"{name} is missing"


def free_refs(folder: Path) -> None:
    """Undo what killed processes left halfway: locks, and logs of refs that never came to be."""
    for lock in (folder / "refs").rglob("*.lock"):
        name = lock.relative_to(folder).with_suffix("").as_posix()
        if _unborn(folder, name):  # before its lock, without which nothing says that it is no damage
            (folder / "logs" / name).unlink(missing_ok=True)
        lock.unlink(missing_ok=True)


def _unborn(folder: Path, name: str) -> bool:
    """Whether a kill ended the making of a ref: libgit2 takes the lock, writes the log, then the ref."""
    lines = _read(folder / "logs" / name).splitlines()
    begun = len(lines) == 1 and lines[0].startswith(_NOTHING)
    return begun and (folder / f"{name}.lock").exists() and not _has(folder, name)


def _has(folder: Path, name: str) -> bool:
    return (folder / name).exists() or f" {name}\n" in _read(folder / "packed-refs")


def repair(folder: Path, default_branch: str, backup: Path | None, spares: Iterable[bytes]) -> list[str]:
    """Restore what can be restored; returns a line for each thing that was.

    `backup` is a copy of the repository, `spares` are contents that may be those of lost objects.

    Raises:
        NotFoundError: The backup is no repository.
        StorageError: The disk refused.
    """
    done = []
    config = _read(folder / "config")
    if "bare = true" not in config or "logallrefupdates = always" not in config or not _opens(folder):
        write_bytes(folder / "config", CONFIG)
        done.append("config")
    head = f"ref: refs/heads/{default_branch}\n"
    if _read(folder / "HEAD") != head:
        write_bytes(folder / "HEAD", head.encode())
        done.append("HEAD")
    copy = _open_backup(backup) if backup is not None else None
    objects = Objects(folder)
    done += _repair_objects(objects, copy, list(spares))
    done += _repair_refs(folder, Git(folder), copy)
    done += _repair_objects(objects, copy, list(spares))
    done += _repair_ledger(objects)
    return done


def _opens(folder: Path) -> bool:
    try:
        return bool(Git(folder).is_bare)
    except GIT_ERRORS:
        return False


def _open_backup(folder: Path) -> Objects:
    try:
        Git(folder)
    except GIT_ERRORS as error:
        raise NotFoundError("repository", str(folder), hint="Name a copy of knowledge.git.") from error
    return Objects(folder)


def _repair_refs(folder: Path, git: Git, copy: Objects | None) -> list[str]:
    done = []
    logged = dict(_logged(folder))
    packed = _read(folder / "packed-refs")
    for name in sorted({*logged, *_loose(folder)}):
        now, wanted = _read(folder / name).strip(), logged.get(name, "")
        if now.startswith("ref: ") or (not now and f" {name}\n" in packed):
            continue
        if _is_commit(git, now):
            if not wanted:
                _write_log(folder, name, now)
                done.append(f"the log of {name}")
        elif _is_commit(git, wanted):
            write_bytes(folder / name, f"{wanted}\n".encode())
            done.append(f"{name} at {wanted[:12]}")
        elif copy is not None and name in copy.git.references:
            found = str(copy.git.references[name].resolve().target)
            write_bytes(folder / name, f"{found}\n".encode())
            _write_log(folder, name, found)
            done.append(f"{name} at {found[:12]}, from the backup")
    return done


def _repair_objects(objects: Objects, copy: Objects | None, spares: list[bytes]) -> list[str]:
    by_id = {str(pygit2.hash(content)): content for content in spares}
    done: list[str] = []
    try:
        expired = objects.expired()
    except DamagedError:
        expired = frozenset()
    while True:
        restored = [
            name
            for name, fault in reachable(objects, expired)
            if fault and _restore(objects, copy, by_id, name)
        ]
        done += (f"object {name}" for name in restored)
        if not restored:
            return done


def _restore(objects: Objects, copy: Objects | None, by_id: dict[str, bytes], name: str) -> bool:
    """Whether the object or large file of that name could be put back."""
    if len(name) == 64:
        source = copy.large_path(name) if copy else None
        if source is None or not source.is_file():
            return False
        target = objects.large_path(name)
        with disk_errors(str(target)):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target.with_name(f"tmp-{name}"))
            target.with_name(f"tmp-{name}").replace(target)
        return True
    if not _ID.fullmatch(name):
        return False  # a ref: not here
    kind, content = pygit2.GIT_OBJECT_BLOB, by_id.get(name)
    if content is None and copy is not None:
        try:
            found = copy.git[name]
            kind, content = found.type, found.read_raw()
        except GIT_ERRORS:
            return False
    if content is None and name == str(pygit2.hash(b"")):
        content = b""
    if content is None:
        return False
    remove_file(objects.folder / "objects" / name[:2] / name[2:])  # libgit2 would take it for the object
    return str(Git(objects.folder).write(kind, content)) == name


def _repair_ledger(objects: Objects) -> list[str]:
    """When the list of expired commits is damaged: those that miss a file and are no branch's head."""
    try:
        objects.expired()
        return []
    except DamagedError:
        pass
    git = Git(objects.folder)
    heads = [git.references[name].resolve().target for name in git.references]
    waiting, expired, seen = list(heads), set(), set()
    while waiting:
        oid = waiting.pop()
        if oid in seen:
            continue
        seen.add(oid)
        waiting += git[oid].parent_ids
        if oid not in heads and not _whole(objects, git, git[oid].tree_id):
            expired.add(str(oid))
    objects.expire(frozenset(expired))
    return [f"the list of expired releases, {len(expired)} of them"]


def _whole(objects: Objects, git: Git, tree: Any) -> bool:
    return all(
        _whole(objects, git, entry.id) if entry.type == pygit2.GIT_OBJECT_TREE else str(entry.id) in git
        for entry in git[tree]
    )


def _loose(folder: Path) -> list[str]:
    files = (path for path in (folder / "refs").rglob("*") if path.is_file() and path.suffix != ".lock")
    return [path.relative_to(folder).as_posix() for path in files]


def _logged(folder: Path) -> Iterator[tuple[str, str]]:
    """(ref, the commit its log says it is at) of every log that can be read."""
    logs = folder / "logs"
    for path in sorted(logs.rglob("*")):
        name = path.relative_to(logs).as_posix()
        if path.is_file() and name.startswith("refs/"):
            lines = _read(path).splitlines()
            if lines:  # an empty one is a log about to be written
                matched = _LOG_LINE.fullmatch(lines[-1])
                yield name, matched[1] if matched else ""


def _write_log(folder: Path, name: str, commit: str) -> None:
    line = f"{_NOTHING} {commit} Plumbline <plumbline@localhost> 0 +0000\trepaired\n"
    write_bytes(folder / "logs" / name, line.encode())


def _is_commit(git: Git, name: str) -> bool:
    try:
        return bool(_ID.fullmatch(name)) and git[name].type == pygit2.GIT_OBJECT_COMMIT
    except GIT_ERRORS:
        return False


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
