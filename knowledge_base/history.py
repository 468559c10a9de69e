"""Releases as people and scripts read them: the log and one release in full. No heavy import."""

from collections import defaultdict
from datetime import UTC, datetime
from typing import Any

from knowledge_base.configuration import SETTINGS_PATH, settings_in
from knowledge_base.errors import ExpiredError, NotFoundError, VersionStoreError
from knowledge_base.findings import read_inspections
from knowledge_base.home import KnowledgeBase, release_branches
from knowledge_base.release import (
    DOCUMENTS_PREFIX,
    FINDINGS_PREFIX,
    QUARANTINE_PREFIX,
    Release,
    committed_files,
    load_release,
    prompts_in,
    settings_difference,
)
from knowledge_base.version_store import Commit, Repository

_VERBS = ("added", "changed", "deleted", "renamed")


def is_restricted(repository: Repository, commit: str) -> bool:
    """Whether a release has documents that are not open to all; so it is said of one that is gone."""
    try:
        return "restricted" in repository.get_commit(commit).metadata
    except VersionStoreError:
        return True


def same_documents(repository: Repository, left: str, right: str) -> bool:
    """Whether two commits store the same documents, byte for byte. False when one of them is no more."""
    try:
        return next(repository.diff(left, right, type="two_dot", prefix=DOCUMENTS_PREFIX), None) is None
    except (ExpiredError, NotFoundError):
        return False


class Restrictions:
    """Whether any release on the line of a commit had documents that were not open to all.

    What was found of one commit is kept, so of the next one only what is new is looked at.
    """

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._found: dict[str, bool] = {}

    def were(self, commit: str) -> bool:
        """Whether there were any; `commit` is an id. Raises NotFoundError."""
        if commit not in self._found:
            self._found[commit] = self._look(commit)
        return self._found[commit]

    def _look(self, commit: str) -> bool:
        for one in self._repository.log(commit, first_parent=True):
            if one.id in self._found:
                return self._found[one.id]
            if "restricted" in one.metadata:
                return True
        return False


def list_branches(repository: Repository) -> list[dict[str, str]]:
    """Branches of releases by name, with date and message of their head."""
    names = [(branch.id, branch.commit_id) for branch in release_branches(repository)]
    return _heads(repository, "branch", names)


def list_tags(repository: Repository) -> list[dict[str, str]]:
    """Tags by name with date and message of their release."""
    return _heads(repository, "tag", [(tag.id, tag.commit_id) for tag in repository.list_tags()])


def _heads(repository: Repository, kind: str, names: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [{kind: name, **describe_commit(repository.get_commit(commit))} for name, commit in names]


def describe_commit(commit: Commit) -> dict[str, str]:
    """What people know a release by, beside its id: date and message."""
    return {"commit": commit.id, "date": _date(commit), "message": commit.message}


def list_releases(repository: Repository, ref: str, number: int | None) -> list[dict[str, Any]]:
    """Releases reachable from `ref` by first parent, newest first, without the empty first commit."""
    names = _names(repository)
    entries: list[dict[str, Any]] = []
    for commit in repository.log(ref, first_parent=True, amount=number):
        if commit.parents:
            entries.append(_entry(commit, names[commit.id]))
    return entries


def describe_release(knowledge_base: KnowledgeBase, ref: str) -> dict[str, Any]:
    """One release: its log entry, settings, segments and documents. Raises NotFoundError."""
    repository = knowledge_base.repository
    release = load_release(repository, ref)
    documents = repository.list_objects(release.commit, prefix=DOCUMENTS_PREFIX)
    return {
        **_entry(repository.get_commit(release.commit), _names(repository)[release.commit]),
        "settings": release.settings.model_dump(),
        "prompt": release.prompt_hash,
        "embedder": release.manifest.embedder,
        "chunker": release.manifest.chunker,
        "segments": [segment.model_dump() for segment in release.manifest.segments],
        "paths": [item.path.removeprefix(DOCUMENTS_PREFIX) for item in documents],
        "findings": _found(repository, release.commit, FINDINGS_PREFIX),
        "quarantined": _found(repository, release.commit, QUARANTINE_PREFIX),
    }


def _found(repository: Repository, commit: str, prefix: str) -> list[dict[str, Any]]:
    inspections = read_inspections(repository, commit, prefix).values()
    return [value for found in sorted(inspections, key=lambda i: i.path) for value in found.as_json()]


def working_difference(knowledge_base: KnowledgeBase, live: Release) -> dict[str, Any]:
    """How plumbline.toml, prompts/ and golden/ on disk differ from a release.

    Raises:
        SettingsError: One of them cannot be read.
    """
    disk = knowledge_base.working_files()
    working = live.model_copy(update={"settings": settings_in(disk), "prompts": prompts_in(disk)})
    released = committed_files(knowledge_base.repository, live.commit)
    released.pop(SETTINGS_PATH, None)  # the first commit of all holds nothing
    files = {path: content for path, content in disk.items() if path != SETTINGS_PATH}
    settings = settings_difference(live, working)
    settings.pop("prompts", None)  # a hash tells nobody anything: the files say it
    return {
        "settings": settings,
        "files": {
            "added": sorted(set(files) - set(released)),
            "changed": sorted(path for path in files if released.get(path, files[path]) != files[path]),
            "deleted": sorted(set(released) - set(files)),
        },
    }


def _names(repository: Repository) -> dict[str, list[str]]:
    names: dict[str, list[str]] = defaultdict(list)
    for branch in release_branches(repository):
        names[branch.commit_id].append(branch.id)
    for tag in repository.list_tags():
        names[tag.commit_id].append(tag.id)
    return names


def _entry(commit: Commit, refs: list[str]) -> dict[str, Any]:
    metadata = commit.metadata
    return {
        "commit": commit.id,
        "parents": list(commit.parents),
        "refs": refs,
        "date": _date(commit),
        "message": commit.message.strip(),
        "changed": [part for part in metadata.get("changed", "").split(",") if part],
        "documents": int(metadata.get("documents", 0)),
        "chunks": int(metadata.get("chunks", 0)),
        "documents_changed": {verb: int(metadata.get(f"documents-{verb}", 0)) for verb in _VERBS},
        "chunks_changed": {verb: int(metadata.get(f"chunks-{verb}", 0)) for verb in ("added", "removed")},
        "verdict": metadata.get("verdict", ""),
        "override": metadata.get("override", ""),
    }


def _date(commit: Commit) -> str:
    if copied := commit.metadata.get("copied-date"):  # a copy of a release is as old as the release
        return copied.replace("+00:00", "Z")
    return datetime.fromtimestamp(commit.creation_date, UTC).isoformat().replace("+00:00", "Z")
