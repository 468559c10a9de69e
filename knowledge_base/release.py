"""What one commit pins: settings, prompts and the manifest of its index; how two releases differ."""

import hashlib
import json
import tomllib
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from knowledge_base.access import GROUP
from knowledge_base.documents import sha256_hex
from knowledge_base.errors import DamagedError, NotFoundError, SettingsError
from knowledge_base.version_store import Repository

SETTINGS_PATH = "plumbline.toml"
MANIFEST_PATH = "index/manifest.json"
DOCUMENTS_PREFIX = "documents/"
PROMPTS_PREFIX = "prompts/"
GOLDEN_PREFIX = "golden/"
INDEX_PREFIX = "index/"
FINDINGS_PREFIX = "index/findings/"
QUARANTINE_PREFIX = "index/quarantine/"
JUDGE_PROMPT = "judge.md"

Fingerprint = Mapping[str, str | int | float | bool]
"""What decides a result, as flat canonical values; two of them are equal or the results may differ."""


class Frozen(BaseModel):
    """Every persisted value: immutable, and a misspelt key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ChunkerSettings(Frozen):
    """How documents are split; sizes in tokens of the embedder's tokenizer."""

    splitter: Literal["sentence", "token", "markdown"] = "markdown"
    size: int = Field(default=250, ge=16, le=8192)
    overlap: int = Field(default=0, ge=0, le=4096)

    @model_validator(mode="after")
    def _overlap_leaves_something_new(self) -> Self:
        if self.overlap > self.size // 2:
            raise ValueError(f"overlap is {self.overlap}: at most half the size, {self.size // 2}")
        return self


class EmbedderSettings(Frozen):
    """Which model turns texts into vectors: a name, a folder, or `static:` before either."""

    model: str = "all-MiniLM-L6-v2"
    precision: Literal["int8", "fp32"] = "int8"
    query_prefix: str = ""
    document_prefix: str = ""


class RetrievalSettings(Frozen):
    """How passages are ranked for a question, and what of them is given on.

    `duplicates` is the cosine from which on a passage is the same as a better one and left out, `diversity`
    the weight of being unlike those already chosen (MMR, Carbonell and Goldstein, 1998), `queries` how many
    ways of asking a language model writes (1: the question alone), `reranker` a cross-encoder by name or
    folder, and `expand` what is added around a passage, up to `expand_tokens`.
    """

    mode: Literal["hybrid", "dense", "lexical"] = "hybrid"
    top_k: int = Field(default=5, ge=1, le=100)
    candidates: int = Field(default=100, ge=10, le=1000)
    dense_weight: float = Field(default=0.5, ge=0, le=1)
    language: str = "english"
    duplicates: float = Field(default=1.0, ge=0.5, le=1)
    diversity: float = Field(default=0.0, ge=0, le=1)
    queries: int = Field(default=1, ge=1, le=8)
    reranker: str = ""
    rerank: int = Field(default=20, ge=1, le=200)
    expand: Literal["none", "neighbours", "section"] = "none"
    expand_tokens: int = Field(default=500, ge=50, le=20_000)


class ModelSettings(Frozen):
    """A language model: which one, where, and how patiently it is asked.

    `model` is LangChain's `provider:name`; `base_url` the address of a server that speaks the provider's
    protocol; prices are for a million tokens, in whatever currency is paid in.
    """

    model: str = Field(pattern=r"^(extractive|offline|[a-z][a-z0-9_-]*:\S+)$")
    base_url: str = Field(default="", pattern=r"^(https?://[^\s@]+)?$")
    temperature: float = Field(default=0.0, ge=0, le=2)
    max_tokens: int = Field(default=1024, ge=1, le=100_000)
    timeout_seconds: float = Field(default=60.0, gt=0, le=3600)
    retries: int = Field(default=2, ge=0, le=10)
    input_price: float = Field(default=0.0, ge=0)
    output_price: float = Field(default=0.0, ge=0)


EXTRACTIVE = "extractive"


class AnswerSettings(ModelSettings):
    """Who writes the answer, what it may rest on, and when to abstain.

    `fallbacks` are asked in turn when the model fails; a bare string is a model with the other settings
    at their defaults. `context_tokens` bounds the passages a model is given, in the embedder's tokens.
    """

    model: str = Field(default=EXTRACTIVE, pattern=r"^(extractive|[a-z][a-z0-9_-]*:\S+)$")
    fallbacks: tuple[ModelSettings, ...] = ()
    grounding: Literal["strict", "flag", "off"] = "strict"
    context_tokens: int = Field(default=3000, ge=100, le=200_000)
    max_sentences: int = Field(default=3, ge=1, le=20)
    min_support: float = Field(default=0.4, ge=0, le=1)

    @field_validator("fallbacks", mode="before")
    @classmethod
    def _names_are_models(cls, value: object) -> object:
        if not isinstance(value, list | tuple):
            return value
        return tuple({"model": item} if isinstance(item, str) else item for item in value)

    @property
    def models(self) -> tuple[ModelSettings, ...]:
        """Everyone who is asked, in turn."""
        return (self, *self.fallbacks)


class JudgeSettings(ModelSettings):
    """Who decides whether an answer is supported: the offline judge, or a language model through RAGAS."""

    model: str = Field(default="offline", pattern=r"^(offline|[a-z][a-z0-9_-]*:\S+)$")


class IngestSettings(Frozen):
    """What becomes of a document that an ingest finds an alarm in: with `quarantine` it is kept out."""

    quarantine: bool = False


class LogSettings(Frozen):
    """The answer log: `redact` takes personal data out of it, `keep_days` says how long (0: for ever)."""

    redact: bool = True
    keep_days: int = Field(default=0, ge=0, le=36_500)


class GateSettings(Frozen):
    """What a candidate must not lose.

    `margins` names at most four primary metrics and how much worse the mean of each may be. Where a
    language model answers or judges, each question is asked `repetitions` times, `escalated` times when
    that did not settle it.
    """

    margins: dict[str, Annotated[float, Field(gt=0, lt=1)]] = Field(
        default={"faithfulness": 0.05, "context_recall": 0.03, "reciprocal_rank": 0.05, "abstention": 0.05},
        min_length=1,
        max_length=4,
    )
    repetitions: int = Field(default=3, ge=1, le=20)
    escalated: int = Field(default=5, ge=1, le=20)


class TrackingSettings(Frozen):
    """Where evaluations are logged as MLflow runs: an MLflow tracking URI, empty for nowhere."""

    uri: str = ""
    experiment: str = "plumbline"


Group = Annotated[str, Field(pattern=f"^{GROUP}$")]


class Settings(Frozen):
    """All of plumbline.toml: what decides an answer, and what decides whether it is good enough.

    `access` maps patterns of document paths to the groups that may read them.
    """

    chunker: ChunkerSettings = ChunkerSettings()
    embedder: EmbedderSettings = EmbedderSettings()
    retrieval: RetrievalSettings = RetrievalSettings()
    answer: AnswerSettings = AnswerSettings()
    ingest: IngestSettings = IngestSettings()
    log: LogSettings = LogSettings()
    judge: JudgeSettings = JudgeSettings()
    gate: GateSettings = GateSettings()
    tracking: TrackingSettings = TrackingSettings()
    access: dict[Annotated[str, Field(min_length=1)], tuple[Group, ...]] = {}


def parse_settings(text: str, *, where: str = SETTINGS_PATH) -> Settings:
    """Settings from TOML.

    Raises:
        SettingsError: Not TOML, an unknown key, or a value out of range; the message names it.
    """
    try:
        return Settings.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{where} is not valid TOML: {error}.", hint="Mend that line.") from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        said = "there is no such key" if first["type"] == "extra_forbidden" else first["msg"]
        said = said.removeprefix("Value error, ")
        raise SettingsError(f"{where}: {key}: {said}.", hint="See docs/configuration.md.") from error


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


_Model = TypeVar("_Model", bound=Frozen)


def canonical_json(value: BaseModel | Mapping[str, Any]) -> bytes:
    """The one way a value is written: sorted keys, two spaces, a final newline."""
    plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    return (json.dumps(plain, sort_keys=True, indent=2, ensure_ascii=False) + "\n").encode()


def fingerprint_id(fingerprint: Fingerprint) -> str:
    """A short name for a fingerprint: 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(dict(fingerprint), sort_keys=True).encode()).hexdigest()[:16]


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


def settings_in(files: Mapping[str, bytes]) -> Settings:
    """Settings of plumbline.toml, the defaults where there is none. Raises SettingsError."""
    return parse_settings(files.get(SETTINGS_PATH, b"").decode())


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
