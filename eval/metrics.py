"""What is measured on an answer: exact checks here, the rest through RAGAS metrics."""

import asyncio
import importlib.metadata
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from eval.golden import GoldenQuestion
from eval.scores import Score
from knowledge_base.configuration import JudgeSettings
from knowledge_base.documents import sha256_hex
from knowledge_base.embedders import Embedder
from knowledge_base.errors import MissingExtraError, NotFoundError
from knowledge_base.prompts import parse_prompt
from knowledge_base.release import JUDGE_PROMPT, Release
from knowledge_base.values import canonical_json
from rag.answer import Answer, Citation, Context
from rag.support import JUDGE, READ_THRESHOLD

if TYPE_CHECKING:
    from eval.ragas_judge import ChatJudge

METRICS_VERSION = 2
"""Raised when a metric changes what it means: scores of different versions are never compared."""

OFFLINE = "offline"
METRICS = (
    "faithfulness", "context_recall", "reciprocal_rank", "abstention", "citation_validity", "schema",
    "canary", "answer_relevancy", "factual_correctness", "context_precision", "recall_at_1", "recall_at_3",
    "ndcg", "ragas_context_recall", "ragas_context_precision", "rouge_l", "bleu", "meteor",
)  # fmt: skip
"""Every metric there is, in the order in which they are shown."""

DocumentText = Callable[[str], str]
"""Text of a document of the release that answered, by path; raises NotFoundError."""

_MARKER = re.compile(r"\[(\d+)\]")
_EVIDENCE = "required"


def judge_fingerprint(release: Release) -> str:
    """Names what scores the answers of a release: 16 hexadecimal digits.

    Scores of different fingerprints are not compared. The embedder is part of it, as answer relevancy is
    measured in its space.
    """
    settings = release.settings.judge
    parts: dict[str, Any] = {
        "metrics": METRICS_VERSION,
        "ragas": _ragas_version(),
        "judge": settings.model_dump(include={"model", "base_url", "temperature", "max_tokens"}),
        "embedder": release.manifest.embedder,
    }
    parts["prompt"] = release.prompts.get(JUDGE_PROMPT, "")
    if settings.model == OFFLINE:
        parts["prompt"] = ""
        parts["judge"] = [JUDGE, READ_THRESHOLD]
    return sha256_hex(canonical_json(parts))[:16]


def judge_name(settings: JudgeSettings) -> str:
    """Who judges, in words."""
    return f"offline judge {JUDGE}" if settings.model == OFFLINE else settings.model


@dataclass(frozen=True)
class Asked:
    """One answer to score, with the texts of the documents it may cite."""

    question: GoldenQuestion
    answer: Answer
    document_text: DocumentText


class Measures:
    """Scores answers with one judge and one embedder; `prompt` is what a judge that is a model is told.

    Raises:
        MissingExtraError: The `eval` extra is not installed.
    """

    def __init__(self, settings: JudgeSettings, embedder: Embedder, prompt: str = "") -> None:
        self._settings = settings
        self._prompt = prompt
        self._embedder = embedder

    @cached_property
    def judge(self) -> "ChatJudge | None":
        """The language model that judges; None for the offline judge."""
        if self._settings.model == OFFLINE:
            return None
        with ragas_needed():
            from eval.ragas_judge import ChatJudge
        return ChatJudge(self._settings)

    @cached_property
    def _metrics(self) -> Mapping[str, Any]:
        with ragas_needed():
            from eval.ragas_metrics import build_metrics
        return build_metrics(self._embedder, self.judge, _instruction(self._prompt))

    def score(self, asked: Sequence[Asked]) -> list[tuple[Score, ...]]:
        """The scores of each answer, in order. What fails is a score without a value, with its reason."""
        return asyncio.run(self._score_all(asked)) if asked else []

    async def _score_all(self, asked: Sequence[Asked]) -> list[tuple[Score, ...]]:
        # In one event loop of our own: RAGAS's experiment() drops rows that fail.
        return list(await asyncio.gather(*(self._score_one(item) for item in asked)))

    async def _score_one(self, item: Asked) -> tuple[Score, ...]:
        question, answer = item.question, item.answer
        texts = [context.text for context in answer.contexts]
        scores = exact_scores(item)
        if not answer.abstained:
            said = _MARKER.sub("", answer.answer).strip()
            asked = {"user_input": question.question, "response": said}
            faithful = {**asked, "response": answer.answer, "retrieved_contexts": texts}
            scores.append(await self._ragas("faithfulness", **faithful))
            scores.append(await self._ragas("answer_relevancy", **asked))
            if question.answer:
                given = {"reference": question.answer, "response": said}
                for name in ("factual_correctness", "rouge_l", "bleu", "meteor"):
                    if name in self._metrics:
                        scores.append(await self._ragas(name, **given))
        scores += await self._retrieval(item)
        return tuple(sorted(scores, key=lambda score: METRICS.index(score.metric)))

    async def _retrieval(self, item: Asked) -> list[Score]:
        """How well the passages hold what the question requires: a document, a quote, or both."""
        question, contexts = item.question, item.answer.contexts
        if question.unanswerable or (question.document is None and question.quote is None):
            return []
        hits = [rank for rank, context in enumerate(contexts) if holds(question, context)]
        ids = [f"{rank} {context.chunk_id}" for rank, context in enumerate(contexts)]
        relevant = {
            "retrieved_context_ids": ids,
            "reference_context_ids": [ids[h] for h in hits] or [_EVIDENCE],
        }
        # The evidence is one thing, however many passages hold it: the first one counts.
        first = [_EVIDENCE if hits and rank == hits[0] else key for rank, key in enumerate(ids)]
        evidence = {"retrieved_context_ids": first, "reference_context_ids": [_EVIDENCE]}
        found = [await self._ragas("context_precision", **relevant)]
        for name in ("context_recall", "recall_at_1", "recall_at_3", "reciprocal_rank", "ndcg"):
            found.append(await self._ragas(name, **evidence))
        if question.quote:
            texts = {
                "retrieved_contexts": [context.text for context in contexts],
                "reference_contexts": [_paragraph(question.quote, question.document, item.document_text)],
            }
            found.append(await self._ragas("ragas_context_recall", **texts))
            found.append(await self._ragas("ragas_context_precision", **texts))
        return found

    async def _ragas(self, metric: str, **inputs: Any) -> Score:
        """One RAGAS metric; whatever it raises becomes the reason of a missing value."""
        try:
            result = await self._metrics[metric].ascore(**inputs)
        except MissingExtraError:
            raise
        except Exception as error:  # noqa: BLE001 - a failed measurement is a value, whoever's fault it is
            return Score(metric=metric, value=None, reason=f"{type(error).__name__}: {error}")
        if result.value is None or result.value != result.value:
            return Score(metric=metric, value=None, reason=str(result.reason or "RAGAS gave no value"))
        return Score(metric=metric, value=round(float(result.value), 6))


def exact_scores(item: Asked) -> list[Score]:
    """What needs no judge and tolerates no error, and whether the question was rightly answered at all."""
    question, answer = item.question, item.answer
    found = [
        Score(metric="abstention", value=float(answer.abstained == question.unanswerable)),
        Score(metric="schema", value=float(well_formed(answer))),
    ]
    if (validity := citation_validity(answer, item.document_text)) is not None:
        found.append(Score(metric="citation_validity", value=validity))
    if question.forbidden:
        said = answer.answer.casefold()
        clean = not any(text.casefold() in said for text in question.forbidden)
        found.append(Score(metric="canary", value=float(clean)))
    return found


def holds(question: GoldenQuestion, context: Context) -> bool:
    """Whether a passage is what a question requires."""
    return (question.document is None or question.document in (context.path, *context.also_in)) and (
        question.quote is None or question.quote in context.text
    )


def _paragraph(quote: str, document: str | None, document_text: DocumentText) -> str:
    """The paragraph of the document that the quote stands in: RAGAS compares passages with passages."""
    try:
        text = document_text(document) if document else ""
    except NotFoundError:
        return quote
    return next((part for part in text.split("\n\n") if quote in part), quote)


def well_formed(answer: Answer) -> bool:
    """Whether an answer keeps its form: valid values, a citation for every marker, none without one."""
    try:
        Answer.model_validate(answer.as_json())
    except ValidationError:
        return False
    known = {citation.marker for citation in answer.citations}
    if answer.abstained:
        return not known
    cited = {int(marker) for marker in _MARKER.findall(answer.answer)}
    return bool(known) and known <= cited


def citation_validity(answer: Answer, document_text: DocumentText) -> float | None:
    """Share of citations whose quote stands where it says, with the hash it says; None without citations."""
    if not answer.citations:
        return None
    valid = [_verifies(citation, answer.release.commit, document_text) for citation in answer.citations]
    return sum(valid) / len(valid)


def _verifies(citation: Citation, commit: str, document_text: DocumentText) -> bool:
    try:
        text = document_text(citation.path)
    except NotFoundError:
        return False
    return (
        citation.commit == commit
        and text[citation.start : citation.end] == citation.quote
        and sha256_hex(citation.quote.encode()) == citation.sha256
    )


def _instruction(prompt: str) -> str:
    """The text of prompts/judge.md; RAGAS adds the schema of the reply and examples."""
    return parse_prompt(JUDGE_PROMPT, prompt).template if prompt else ""


def _ragas_version() -> str:
    try:
        return importlib.metadata.version("ragas")
    except importlib.metadata.PackageNotFoundError:
        return ""


class ragas_needed:
    """Says what to install when an import inside the block fails."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, ImportError):
            raise MissingExtraError(
                f"Evaluation needs ragas: {error}.", hint='Run: pip install "plumbline[eval]"'
            ) from error
