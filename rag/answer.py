"""What a question gets back: over the wire, into the log, into evaluation."""

from typing import Any

from pydantic import Field

from knowledge_base.release import Frozen


class ReleaseRef(Frozen):
    """Which release answered: the ref as asked for, and the commit it meant."""

    ref: str
    commit: str


class Context(Frozen):
    """One passage that was retrieved: `text` is the document's text from `start` to `end`."""

    chunk_id: str
    path: str
    start: int
    end: int
    text: str
    score: float
    heading: tuple[str, ...] = ()
    page: int | None = None
    also_in: tuple[str, ...] = ()
    """Other documents that hold exactly the same text."""


class Citation(Frozen):
    """Why a sentence of the answer may be believed.

    `quote` is the extracted text of document `path` at `commit` from character `start` to `end`,
    `sha256` the hash of the quote, `score` the rank score of its chunk, `support` how strongly the
    quote supports the sentence (0 to 1).
    """

    marker: int
    path: str
    commit: str
    chunk_id: str
    start: int
    end: int
    quote: str
    sha256: str
    score: float
    support: float


class Usage(Frozen):
    """Language-model tokens; zero when no language model was asked, or it did not say."""

    input_tokens: int = 0
    output_tokens: int = 0


class Answer(Frozen):
    """An answer with its evidence, or an abstention (`abstained`, no citations)."""

    id: str
    question: str
    answer: str
    abstained: bool
    release: ReleaseRef
    citations: tuple[Citation, ...]
    contexts: tuple[Context, ...]
    model: str
    prompt: str
    usage: Usage = Usage()
    timings_ms: dict[str, float] = Field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Plain values, as `rag ask --json` and `POST /v1/query` give them."""
        return self.model_dump(mode="json")
