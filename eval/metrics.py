"""Scores of answers on golden questions, as RAGAS metrics; the only place that imports ragas."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from eval.golden import GoldenQuestion
from eval.judge import faithfulness
from knowledge_base.documents import sha256_hex
from knowledge_base.errors import MissingExtraError, NotFoundError
from rag.answer import Answer, Citation
from rag.engine import Engine
from rag.support import JUDGE

METRICS = (
    "faithfulness",
    "citation_validity",
    "context_recall",
    "reciprocal_rank",
    "answer_rouge",
    "abstention",
)
METRICS_VERSION = f"1 ({JUDGE})"
"""Changes when scores stop being comparable with earlier ones."""


@dataclass(frozen=True)
class Score:
    """One metric of one question: a value, or the reason why there is none; never NaN."""

    metric: str
    value: float | None
    reason: str = ""


@dataclass(frozen=True)
class Row:
    """Everything measured on one golden question. `failure` is set when it could not be answered at all."""

    id: str
    scores: tuple[Score, ...] = ()
    failure: str = ""


@dataclass(frozen=True)
class Scores:
    """A release's rows, in the order of the questions."""

    commit: str
    rows: tuple[Row, ...] = field(default=())

    def values(self, metric: str) -> dict[str, float]:
        """Value by question id, of those questions the metric applies to."""
        return {
            row.id: score.value
            for row in self.rows
            for score in row.scores
            if score.metric == metric and score.value is not None
        }

    @property
    def failures(self) -> dict[str, str]:
        """Reason by question id of what should have been measured and was not."""
        failed = {row.id: row.failure for row in self.rows if row.failure}
        failed |= {row.id: s.reason for row in self.rows for s in row.scores if s.value is None and s.reason}
        return failed


def score_engine(engine: Engine, questions: Sequence[GoldenQuestion]) -> Scores:
    """Ask one engine every golden question and measure its answers.

    Raises:
        MissingExtraError: ragas is not installed.
    """
    _ragas_metrics()
    return Scores(engine.release_ref.commit, asyncio.run(_score_all(engine, questions)))


async def _score_all(engine: Engine, questions: Sequence[GoldenQuestion]) -> tuple[Row, ...]:
    # One after the other in one event loop: RAGAS's own experiment() drops rows that fail.
    return tuple([await _score_one(engine, question) for question in questions])


async def _score_one(engine: Engine, question: GoldenQuestion) -> Row:
    try:
        answer = engine.ask(question.question)
    except Exception as error:  # noqa: BLE001 - one question that fails is a row; the others go on
        return Row(question.id, failure=f"{type(error).__name__}: {error}")
    scores = [
        Score("citation_validity", citation_validity(answer, engine.snapshot.document_text)),
        Score("abstention", float(answer.abstained == question.unanswerable)),
    ]
    if not answer.abstained:
        scores.append(
            await _ragas("faithfulness", response=answer.answer, contexts=[c.text for c in answer.contexts])
        )
    if not question.unanswerable:
        scores += _retrieval(question, answer)
        if question.answer and not answer.abstained:
            scores.append(await _ragas("answer_rouge", reference=question.answer, response=answer.answer))
    return Row(question.id, tuple(scores))


def citation_validity(answer: Answer, document_text: Callable[[str], str]) -> float | None:
    """Share of citations whose quote stands where it says, with the hash it says; None without citations.

    `document_text` gives the text of a document of the release that answered.
    """
    if not answer.citations:
        return None
    valid = [_verifies(citation, answer.release.commit, document_text) for citation in answer.citations]
    return sum(valid) / len(valid)


def _verifies(citation: Citation, commit: str, document_text: Callable[[str], str]) -> bool:
    try:
        text = document_text(citation.path)
    except NotFoundError:
        return False
    return (
        citation.commit == commit
        and text[citation.start : citation.end] == citation.quote
        and sha256_hex(citation.quote.encode()) == citation.sha256
    )


def _retrieval(question: GoldenQuestion, answer: Answer) -> list[Score]:
    """Recall and reciprocal rank of what the question requires: a document, a quote, or both."""
    if question.document is None and question.quote is None:
        return []
    hits = [
        rank
        for rank, context in enumerate(answer.contexts, 1)
        if (question.document is None or question.document in (context.path, *context.also_in))
        and (question.quote is None or question.quote in context.text)
    ]
    return [
        Score("context_recall", float(bool(hits))),
        Score("reciprocal_rank", 1 / hits[0] if hits else 0.0),
    ]


async def _ragas(metric: str, **inputs: Any) -> Score:
    """One RAGAS metric; whatever it raises becomes the reason of a missing value."""
    try:
        result = await _ragas_metrics()[metric].ascore(**inputs)
    except Exception as error:  # noqa: BLE001 - a failed measurement is a value, whoever's fault it is
        return Score(metric, None, f"{type(error).__name__}: {error}")
    if result.value is None or result.value != result.value:
        return Score(metric, None, str(result.reason or "no value"))
    return Score(metric, float(result.value))


@cache
def _ragas_metrics() -> dict[str, Any]:
    """RAGAS's metrics that need no model, and our faithfulness as one of its kind."""
    try:
        from ragas.metrics import MetricResult, numeric_metric
        from ragas.metrics.collections import RougeScore

        rouge = RougeScore(rouge_type="rougeL", mode="fmeasure")  # looks for rouge-score when made
    except ImportError as error:
        raise MissingExtraError(
            f"Evaluation needs ragas: {error}.", hint='Run: pip install "plumbline[eval]"'
        ) from error

    @numeric_metric(name="faithfulness", allowed_values=(0.0, 1.0))  # type: ignore[untyped-decorator]
    def lexical_faithfulness(response: str, contexts: list[str]) -> Any:
        value = faithfulness(response, contexts)
        return MetricResult(value=value, reason="" if value is not None else "the answer makes no claim")

    return {
        "faithfulness": lexical_faithfulness,
        "answer_rouge": rouge,
    }
