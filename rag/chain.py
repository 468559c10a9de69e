"""A question in, a grounded answer out: retrieve, ask the models in turn, check every sentence.

Of a language model's reply only what its passages support is handed on, sentence by sentence. From the
first sentence without support on, the rest waits for one repair by the model; so what was streamed is
always the beginning of the answer.
"""

import time
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING

from knowledge_base.configuration import EXTRACTIVE, AnswerSettings, ModelSettings, RetrievalSettings
from knowledge_base.documents import sha256_hex
from knowledge_base.embedders import Embedder
from knowledge_base.errors import MissingExtraError, ModelError
from knowledge_base.prompts import Prompt
from knowledge_base.snapshot import Selection
from rag.answer import (
    Answer,
    Attempt,
    Citation,
    Context,
    Done,
    Event,
    ReleaseRef,
    Restarted,
    Retrieved,
    Text,
    Turn,
    Usage,
)
from rag.conflicts import find_conflicts
from rag.conversation import asked_apart, other_queries, stand_alone
from rag.extractive import Sentence, choose, find_support
from rag.models import LanguageModel, cost
from rag.retriever import Retriever
from rag.writing import Draft, pack, write

if TYPE_CHECKING:
    from rag.answer_reader import AnswerReader

ABSTENTION = "The knowledge base holds no supported answer to this question."

_OWN = 2.0
"""How much more the last question counts than the one before it, when it points back."""


@dataclass(frozen=True)
class Question:
    """What is asked: in words, after what, how many passages, among which."""

    text: str
    history: tuple[Turn, ...] = ()
    top_k: int | None = None
    selection: Selection | None = None


@dataclass
class _Under:
    """An answer under way: what it has taken so far."""

    question: Question
    queries: tuple[str, ...] = ()
    apart: tuple[tuple[str, str], ...] = ()
    """Each question in the one: as it is searched for, and as it was asked."""
    contexts: tuple[Context, ...] = ()
    usage: Usage = Usage()
    cost: float = 0.0
    attempts: list[Attempt] = field(default_factory=list)
    timings: dict[str, float] = field(default_factory=dict)

    def spend(self, usage: Usage, model: ModelSettings) -> None:
        self.usage = Usage(
            input_tokens=self.usage.input_tokens + usage.input_tokens,
            output_tokens=self.usage.output_tokens + usage.output_tokens,
        )
        self.cost += cost(usage, model)


class Chain:
    """The retrieval chain of one release. Safe to share between threads."""

    def __init__(
        self,
        retriever: Retriever,
        embedder: Embedder,
        answer: AnswerSettings,
        retrieval: RetrievalSettings,
        prompts: Mapping[str, Prompt],
        release: ReleaseRef,
        prompt_hash: str,
        reader: "AnswerReader | None" = None,
    ) -> None:
        self._retriever = retriever
        self._embedder = embedder
        self._answer = answer
        self._retrieval = retrieval
        self._prompts = prompts
        self._release = release
        self._prompt_hash = prompt_hash
        self._reader = reader
        self._models = {m: LanguageModel(m) for m in answer.models if m.model != EXTRACTIVE}

    def stream(self, question: Question) -> Generator[Event, None, None]:
        """The steps of an answer; the last one is Done.

        Raises:
            ModelError: Every model failed, and the extractive answerer is not among them.
            MissingExtraError: Likewise, the last one for a package that is not installed.
        """
        started = time.perf_counter()
        under = _Under(question)
        self._retrieve(under)
        under.timings["retrieve"] = _milliseconds(started)
        yield Retrieved(queries=under.queries, contexts=under.contexts)
        answering = time.perf_counter()
        finish = _clocked(started, answering, under)
        for settings in self._answer.models:
            spoken = False
            try:
                steps = self._extract(under) if settings.model == EXTRACTIVE else self._ask(under, settings)
                for step in steps:
                    if isinstance(step, Text) and not spoken:
                        spoken = True
                        under.timings.setdefault("first_text", _milliseconds(started))
                    yield Done(answer=finish(step.answer)) if isinstance(step, Done) else step
                return
            except (ModelError, MissingExtraError) as error:
                attempt = Attempt(model=settings.model, error=error.message)
                under.attempts.append(attempt)
                if settings is self._answer.models[-1]:
                    raise
                if spoken:
                    yield Restarted(attempt=attempt)

    # -- retrieval -----------------------------------------------------------------------------

    def _retrieve(self, under: _Under) -> None:
        asked, model = under.question, next(iter(self._models.values()), None)
        query, usage = stand_alone(asked.text, asked.history, model, self._prompts)
        others: list[str] = []
        if model:
            under.spend(usage, model.settings)
        if model and self._retrieval.queries > 1:
            try:
                others, usage = other_queries(
                    query, self._retrieval.queries - 1, model, self._prompts["queries"]
                )
                under.spend(usage, model.settings)
            except (ModelError, MissingExtraError) as error:
                under.attempts.append(Attempt(model=model.name, error=error.message))
        under.apart = asked_apart(asked.text, query, asked.history)
        others += [part for part, _ in under.apart if part != query]
        found = self._retriever.search(query, asked.top_k, others=others, selection=asked.selection)
        under.queries, under.contexts = (query, *others), tuple(found)

    # -- without a language model --------------------------------------------------------------

    def _extract(self, under: _Under) -> Iterator[Event]:
        each = [self._quoted(query, own, under) for query, own in under.apart]
        places: dict[tuple[str, int], Sentence] = {}
        for sentence in chain.from_iterable(each):
            places.setdefault((sentence.context.path, sentence.start), sentence)
        quoted = list(places.values())
        left = tuple(own for (_, own), some in zip(under.apart, each, strict=True) if quoted and not some)
        citations = tuple(_quotation(i, s, self._release.commit) for i, s in enumerate(quoted, 1))
        text = " ".join(f"{s.said} [{i}]" for i, s in enumerate(quoted, 1)) or ABSTENTION
        yield Text(text=text)
        answer = self._made(under, EXTRACTIVE, text, citations)
        yield Done(answer=answer.model_copy(update={"unanswered": left}))

    def _quoted(self, query: str, own: str, under: _Under) -> list[Sentence]:
        """The sentences that answer a question which is searched for as `query` and was asked as `own`."""
        found = self._supporting(query, under)
        if found and query != own:
            found = _weighted(found, self._supporting(own, under))
        return choose(found, minimum=self._answer.min_support, maximum=self._answer.max_sentences)

    def _supporting(self, question: str, under: _Under) -> list[Sentence]:
        language = self._retrieval.language
        return find_support(question, under.contexts, self._embedder, language, self._reader)

    # -- with one ------------------------------------------------------------------------------

    def _ask(self, under: _Under, settings: ModelSettings) -> Iterator[Event]:
        model = self._models[settings]
        given = pack(under.contexts, self._answer.context_tokens, self._embedder)
        if not given:
            yield Text(text=ABSTENTION)
            yield Done(answer=self._made(under, settings.model, ABSTENTION, ()))
            return
        draft = Draft(under.queries[0], given, self._answer.grounding, self._release.commit)
        spend = partial(under.spend, model=settings)
        for text in write(draft, model, self._prompts, spend):
            if text:
                yield Text(text=text)
        if not draft.citations:
            if draft.text:
                reason = "nothing of its answer is supported by what it cites"
                yield Restarted(attempt=Attempt(model=settings.model, error=reason))
            yield Text(text=ABSTENTION)
        answer = self._made(
            under, settings.model, draft.text if draft.citations else ABSTENTION, draft.citations
        )
        yield Done(
            answer=answer.model_copy(update={"contexts": given, "unsupported": tuple(draft.unsupported)})
        )

    def _made(self, under: _Under, model: str, text: str, citations: Sequence[Citation]) -> Answer:
        return Answer(
            id=uuid.uuid4().hex,
            question=under.question.text,
            answer=text,
            abstained=not citations,
            release=self._release,
            citations=tuple(citations),
            contexts=under.contexts,
            model=model,
            prompt=self._prompt_hash,
            usage=under.usage,
            cost=round(under.cost, 8),
            queries=under.queries,
            conflicts=find_conflicts(citations, under.contexts),
            attempts=tuple(under.attempts),
            timings_ms=under.timings,
        )


def _weighted(found: list[Sentence], own: Sequence[Sentence]) -> list[Sentence]:
    """Sentences found for a follow-up and the question before it, ordered by what it asks itself as well.

    The best keeps the support that it had: whether there is an answer, the two questions decide together.
    """
    # What counts is how far each is behind the best: alone, a follow-up says little of whether there is one.
    best, own_best = (max(1e-9, *(sentence.support for sentence in some)) for some in (found, own or found))
    asked = {(sentence.context.path, sentence.start): sentence.support / own_best for sentence in own}
    sums = [s.support / best + _OWN * asked.get((s.context.path, s.start), 0.0) for s in found]
    scale = found[0].support / max(*sums, 1e-9)
    both = [replace(s, support=round(total * scale, 4)) for s, total in zip(found, sums, strict=True)]
    return sorted(both, key=lambda s: (-s.support, -s.context.score, s.context.path, s.start))


def _quotation(marker: int, sentence: Sentence, commit: str) -> Citation:
    return Citation(
        marker=marker,
        path=sentence.context.path,
        commit=commit,
        chunk_id=sentence.context.chunk_id,
        start=sentence.start,
        end=sentence.end,
        quote=sentence.text,
        sha256=sha256_hex(sentence.text.encode()),
        score=sentence.context.score,
        support=sentence.support,
    )


def _clocked(started: float, answering: float, under: _Under) -> Callable[[Answer], Answer]:
    def finish(answer: Answer) -> Answer:
        timings = under.timings | {"answer": _milliseconds(answering), "total": _milliseconds(started)}
        return answer.model_copy(update={"timings_ms": timings})

    return finish


def _milliseconds(started: float) -> float:
    return round((time.perf_counter() - started) * 1000, 2)
