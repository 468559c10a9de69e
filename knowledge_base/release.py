"""What one commit pins: settings, prompts and the manifest of its index; how two releases differ."""

import json
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import ValidationError

from knowledge_base.configuration import SETTINGS_PATH, Settings, parse_settings
from knowledge_base.documents import sha256_hex
from knowledge_base.errors import DamagedError, NotFoundError
from knowledge_base.values import Frozen, canonical_json
from knowledge_base.version_store import Repository

MANIFEST_PATH = "index/manifest.json"
DOCUMENTS_PREFIX = "documents/"
PROMPTS_PREFIX = "prompts/"
GOLDEN_PREFIX = "golden/"
INDEX_PREFIX = "index/"
FINDINGS_PREFIX = "index/findings/"
QUARANTINE_PREFIX = "index/quarantine/"
JUDGE_PROMPT = "judge.md"


class SegmentRef(Frozen):
    """One segment as a release uses it; `tombstones` are the document paths that no longer count."""

    id: str
    documents: int
    passages: int
    bytes: int
    tombstones: tuple[str, ...] = ()

    def without(self, paths: Iterable[str]) -> "SegmentRef":
        """The same segment with other tombstones."""
        return self.model_copy(update={"tombstones": order_paths(set(paths))})


class Manifest(Frozen):
    """The index of a release: which segments, without which documents, built by what."""

    version: Literal[1] = 1
    embedder: dict[str, str | int | float | bool] = {}
    chunker: dict[str, str | int | float | bool] = {}
    documents: int = 0
    chunks: int = 0
    segments: tuple[SegmentRef, ...] = ()


class Release(Frozen):
    """One commit's settings, prompts and manifest."""

    commit: str
    settings: Settings
    manifest: Manifest
    prompts: dict[str, str]

    @property
    def prompt_hash(self) -> str:
        """Names the prompts: 16 hexadecimal digits, empty without prompts."""
        return hash_prompts(self.prompts)

    @property
    def answers_digest(self) -> str:
        """Names everything that decides an answer, wherever it is committed: 64 hexadecimal digits.

        Golden questions, judge, gate and tracking are no part of it.
        """
        deciding = {
            "settings": self.settings.model_dump(mode="json", include={"embedder", "retrieval", "answer"}),
            "prompts": self.prompt_hash,
            "embedder": self.manifest.embedder,
            "segments": [[segment.id, list(segment.tombstones)] for segment in self.manifest.segments],
        }
        return sha256_hex(canonical_json(deciding))


def hash_prompts(prompts: Mapping[str, str]) -> str:
    """One name for the prompts that make answers: 16 hexadecimal digits, empty for none.

    The judge's is left out: it decides no answer.
    """
    answering = {name: text for name, text in prompts.items() if name != JUDGE_PROMPT}
    return sha256_hex(json.dumps(answering, sort_keys=True).encode())[:16] if answering else ""


def committed_files(repository: Repository, commit: str) -> dict[str, bytes]:
    """plumbline.toml, prompts and golden questions of a commit, by path: what people edit on disk."""
    return {
        item.path: repository.get_object(commit, item.path)
        for prefix in (SETTINGS_PATH, PROMPTS_PREFIX, GOLDEN_PREFIX)
        for item in repository.list_objects(commit, prefix=prefix)
    }


def prompts_in(files: Mapping[str, bytes]) -> dict[str, str]:
    """Prompts by file name."""
    return {
        path.removeprefix(PROMPTS_PREFIX): content.decode()
        for path, content in files.items()
        if path.startswith(PROMPTS_PREFIX)
    }


def load_release(repository: Repository, ref: str) -> Release:
    """Read what `ref` pins.

    Raises:
        NotFoundError: There is no such ref.
        DamagedError: The commit's settings or manifest cannot be read.
    """
    commit = repository.resolve(ref)
    files = repository.list_objects(commit, prefix=PROMPTS_PREFIX)
    try:
        prompts = prompts_in({item.path: repository.get_object(commit, item.path) for item in files})
        settings = parse_settings(
            _read(repository, commit, SETTINGS_PATH).decode(), where=f"{ref}:{SETTINGS_PATH}"
        )
        manifest = Manifest.model_validate_json(_read(repository, commit, MANIFEST_PATH) or b"{}")
    except (ValidationError, UnicodeDecodeError) as error:
        raise DamagedError(
            f"Manifest, settings or prompts of {ref!r} cannot be read: {error}.",
            hint="It may come from a newer Plumbline; otherwise run `rag fsck`.",
        ) from error
    return Release(commit=commit, settings=settings, manifest=manifest, prompts=prompts)


def _read(repository: Repository, commit: str, path: str) -> bytes:
    try:
        return repository.get_object(commit, path)
    except NotFoundError:
        return b""  # the root commit of a repository holds nothing: defaults and an empty index


def changed_parts(old: Release, new: Release, *, corpus: bool) -> list[str]:
    """Which parts of a release differ, from corpus to gate; `corpus` is the caller's word.

    An index that was never built has no fingerprints, and differs from none.
    """
    before, after = old.manifest, new.manifest
    flags = {
        "corpus": corpus,
        "chunker": before.chunker and after.chunker and before.chunker != after.chunker,
        "embedder": before.embedder and after.embedder and before.embedder != after.embedder,
        "prompt": old.prompt_hash != new.prompt_hash,
        "retrieval": old.settings.retrieval != new.settings.retrieval,
        "model": old.settings.answer != new.settings.answer,
        "judge": old.settings.judge != new.settings.judge,
        "gate": old.settings.gate != new.settings.gate,
        "access": old.settings.access != new.settings.access,
    }
    return [name for name, changed in flags.items() if changed]


def settings_difference(old: Release, new: Release) -> dict[str, dict[str, Any]]:
    """Each setting whose value differs, as `{"section.key": {"from": ..., "to": ...}}`."""
    before, after = _flat(old.settings), _flat(new.settings)
    before["prompts"], after["prompts"] = old.prompt_hash, new.prompt_hash
    return {
        key: {"from": before.get(key), "to": after.get(key)}
        for key in sorted({*before, *after})
        if before.get(key) != after.get(key)
    }


def _flat(settings: Settings) -> dict[str, Any]:
    return {
        f"{part}.{key}": value for part, keys in settings.model_dump().items() for key, value in keys.items()
    }


class DocumentChanges(Frozen):
    """How the documents of two releases differ, each list in byte order."""

    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    deleted: tuple[str, ...] = ()
    renamed: tuple[tuple[str, str], ...] = ()

    def __bool__(self) -> bool:
        """Whether anything differs."""
        return bool(self.added or self.changed or self.deleted or self.renamed)

    @property
    def gone(self) -> tuple[str, ...]:
        """Paths that hold no document any more, because it was deleted or renamed."""
        return (*self.deleted, *(old for old, _ in self.renamed))

    @property
    def held(self) -> tuple[str, ...]:
        """Paths whose document is new there or another."""
        return (*self.added, *self.changed, *(new for _, new in self.renamed))

    def counts(self) -> dict[str, int]:
        """How many of each kind, by its verb."""
        return {verb: len(getattr(self, verb)) for verb in ("added", "changed", "deleted", "renamed")}

    def as_json(self) -> dict[str, Any]:
        """Lists as `--json` prints them; renamed as `{"from", "to"}`."""
        return {
            "added": list(self.added),
            "changed": list(self.changed),
            "deleted": list(self.deleted),
            "renamed": [{"from": old, "to": new} for old, new in self.renamed],
        }


def order_paths(paths: Iterable[str]) -> tuple[str, ...]:
    """Paths in byte order, as both version stores list them."""
    return tuple(sorted(paths, key=lambda path: path.encode()))
