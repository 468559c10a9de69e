"""What a question gets back: over the wire, into the log, into evaluation."""

from typing import Any, Literal

from pydantic import Field

from knowledge_base.values import Frozen


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


class Conflict(Frozen):
    """A retrieved passage of another document that says otherwise than the quote cited as `marker`."""

    marker: int
    path: str
    chunk_id: str
    start: int
    end: int
    quote: str


class Unsupported(Frozen):
    """A sentence of the model that its passages do not support: left out, or shown and `flagged`."""

    sentence: str
    support: float
    flagged: bool


class Attempt(Frozen):
    """A model that was asked and failed, before another one answered."""

    model: str
    error: str


class Turn(Frozen):
    """An earlier question of a conversation and its answer."""

    question: str
    answer: str


class Answer(Frozen):
    """An answer with its evidence, or an abstention (`abstained`, no citations).

    `queries` is what was searched for, `cost` what the tokens cost at the release's prices, `attempts`
    which models failed before `model` answered, `unanswered` those of several questions in one for which no
    sentence was found (a language model says so itself).
    """

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
    cost: float = 0.0
    queries: tuple[str, ...] = ()
    conflicts: tuple[Conflict, ...] = ()
    unsupported: tuple[Unsupported, ...] = ()
    unanswered: tuple[str, ...] = ()
    attempts: tuple[Attempt, ...] = ()
    timings_ms: dict[str, float] = Field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Plain values, as `rag ask --json` and `POST /v1/query` give them."""
        return self.model_dump(mode="json")


class Retrieved(Frozen):
    """What was found for which queries, before the answer begins."""

    event: Literal["retrieval"] = "retrieval"
    queries: tuple[str, ...]
    contexts: tuple[Context, ...]


class Text(Frozen):
    """More of the answer: only sentences that have been checked."""

    event: Literal["text"] = "text"
    text: str


class Restarted(Frozen):
    """What was shown of the answer does not hold: its model failed half-way, and the next one begins."""

    event: Literal["restart"] = "restart"
    attempt: Attempt


class Done(Frozen):
    """The whole answer; its text is what the pieces since the last restart make together."""

    event: Literal["done"] = "done"
    answer: Answer


Event = Retrieved | Text | Restarted | Done
"""One step of an answer under way."""
