"""plumbline.toml: every setting of a knowledge base, its default and its range."""

import tomllib
from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from knowledge_base.access import GROUP
from knowledge_base.errors import SettingsError
from knowledge_base.values import Frozen

SETTINGS_PATH = "plumbline.toml"


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
    `reader` is the model that reads question and sentences before the extractive answerer quotes or abstains:
    the trained one, so that a release pins its weights; others get another name.
    """

    model: str = Field(default=EXTRACTIVE, pattern=r"^(extractive|[a-z][a-z0-9_-]*:\S+)$")
    fallbacks: tuple[ModelSettings, ...] = ()
    grounding: Literal["strict", "flag", "off"] = "strict"
    context_tokens: int = Field(default=3000, ge=100, le=200_000)
    max_sentences: int = Field(default=3, ge=1, le=20)
    min_support: float = Field(default=0.5, ge=0, le=1)
    reader: Literal["none", "mpnet-1"] = "none"

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

    @property
    def asks_model(self) -> bool:
        """Whether a language model is asked."""
        return any(model.model != EXTRACTIVE for model in self.models)

    @property
    def quotes(self) -> bool:
        """Whether the extractive answerer is asked, if only when a model fails."""
        return any(model.model == EXTRACTIVE for model in self.models)

    @property
    def reads(self) -> bool:
        """Whether the reader is needed: it is set, and the extractive answerer is asked."""
        return self.reader != "none" and self.quotes


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


def settings_in(files: Mapping[str, bytes]) -> Settings:
    """Settings of plumbline.toml, the defaults where there is none. Raises SettingsError."""
    return parse_settings(files.get(SETTINGS_PATH, b"").decode())
