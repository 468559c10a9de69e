"""Releases as people and scripts read them: the log and one release in full. No heavy import."""

from collections import defaultdict
from datetime import UTC, datetime
from typing import Any

from knowledge_base.home import KnowledgeBase
from knowledge_base.release import DOCUMENTS_PREFIX, load_release
from knowledge_base.version_store import Commit, Repository


def list_releases(repository: Repository, ref: str, number: int | None) -> list[dict[str, Any]]:
    """Releases reachable from `ref` by first parent, newest first, without the empty first commit."""
    names = _names(repository)
    entries = []
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
    }


def _names(repository: Repository) -> dict[str, list[str]]:
    names: dict[str, list[str]] = defaultdict(list)
    for branch in repository.list_branches():
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
        "date": datetime.fromtimestamp(commit.creation_date, UTC).isoformat().replace("+00:00", "Z"),
        "message": commit.message.strip(),
        "changed": [part for part in metadata.get("changed", "").split(",") if part],
        "documents": int(metadata.get("documents", 0)),
        "chunks": int(metadata.get("chunks", 0)),
        "verdict": metadata.get("verdict", ""),
    }
