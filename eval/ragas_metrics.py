"""Our measures as RAGAS metrics, and RAGAS's own with our judge; imports ragas, so import it late.

Each metric has `ascore(**inputs) -> MetricResult` with RAGAS's names for the inputs, and runs in RAGAS's
own machinery (`score`, `abatch_score`, inside an `experiment`).
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pytrec_eval
from nltk.stem.porter import PorterStemmer
from nltk.translate.meteor_score import single_meteor_score
from ragas.embeddings.base import BaseRagasEmbedding
from ragas.metrics.collections import (
    AnswerRelevancy,
    FactualCorrectness,
    Faithfulness,
    NonLLMStringSimilarity,
    RougeScore,
)
from ragas.metrics.collections.base import BaseMetric
from ragas.metrics.result import MetricResult
from sacrebleu import sentence_bleu

from eval.judge import faithfulness
from eval.ragas_judge import ChatJudge
from knowledge_base.embedders import Embedder

__all__ = ["build_metrics"]


_WORD = re.compile(r"\w+")
_SIMILAR = 0.5


class OfflineFaithfulness(BaseMetric):
    """Share of the response's claims that the contexts support, by the offline judge: RAGAS's meaning."""

    def __init__(self) -> None:
        super().__init__(name="faithfulness")

    async def ascore(self, user_input: str, response: str, retrieved_contexts: list[str]) -> MetricResult:
        """Score one response; without a claim the result has no value, and says so."""
        value = faithfulness(response, retrieved_contexts)
        return MetricResult(value=value, reason="" if value is not None else "the answer makes no claim")


class OfflineAnswerRelevancy(BaseMetric):
    """Cosine of question and response. RAGAS asks a model for questions that the response answers."""

    def __init__(self, embeddings: BaseRagasEmbedding) -> None:
        self.embeddings = embeddings
        super().__init__(name="answer_relevancy")

    async def ascore(self, user_input: str, response: str) -> MetricResult:
        """Score one response, 0 to 1."""
        question, answer = await self.embeddings.aembed_texts([user_input, response])
        return MetricResult(value=max(0.0, sum(a * b for a, b in zip(question, answer, strict=True))))


class RankingScore(BaseMetric):
    """A trec_eval measure of one ranking, by pytrec_eval."""

    def __init__(self, name: str, measure: str) -> None:
        self.measure = measure
        super().__init__(name=name)

    async def ascore(
        self, retrieved_context_ids: Sequence[str], reference_context_ids: Sequence[str]
    ) -> MetricResult:
        """Score distinct ids, best first, against the ids that are required."""
        relevant = {"q": dict.fromkeys(reference_context_ids, 1)}
        run = {"q": {key: -float(rank) for rank, key in enumerate(retrieved_context_ids)}}
        scores = pytrec_eval.RelevanceEvaluator(relevant, {self.measure}).evaluate(run)
        (value,) = scores["q"].values() if scores else (0.0,)
        return MetricResult(value=float(value))


class Bleu(BaseMetric):
    """Sentence BLEU by sacrebleu, 0 to 1. RAGAS's own fails when the sentence counts differ."""

    def __init__(self) -> None:
        super().__init__(name="bleu")

    async def ascore(self, reference: str, response: str) -> MetricResult:
        """Score one response against its reference."""
        return MetricResult(value=sentence_bleu(response, [reference]).score / 100)


class Meteor(BaseMetric):
    """METEOR (Banerjee and Lavie, 2005) by NLTK, of exact and stemmed matches.

    Its third module, synonyms, needs WordNet, which cannot be installed as a package.
    """

    def __init__(self) -> None:
        super().__init__(name="meteor")
        self._stemmer = PorterStemmer()

    async def ascore(self, reference: str, response: str) -> MetricResult:
        """Score one response against its reference, 0 to 1."""
        words = (_WORD.findall(reference.lower()), _WORD.findall(response.lower()))
        value = single_meteor_score(*words, stemmer=self._stemmer, wordnet=_NoSynonyms())
        return MetricResult(value=float(value))


class _NoSynonyms:
    def synsets(self, word: str) -> list[Any]:
        return []


class NonLLMContext(BaseMetric):
    """RAGAS's context precision or recall by string similarity, on its own similarity metric.

    RAGAS has them in its deprecated style only, where nothing retrieved has no value; here it scores 0.
    """

    def __init__(self, name: str, kind: Literal["precision", "recall"]) -> None:
        self._kind = kind
        self._similarity = NonLLMStringSimilarity()
        super().__init__(name=name)

    async def ascore(self, retrieved_contexts: list[str], reference_contexts: list[str]) -> MetricResult:
        """Score one retrieval, 0 to 1; a passage matches a reference from a similarity of 0.5 on."""
        matches = [
            [await self._matches(found, wanted) for wanted in reference_contexts]
            for found in retrieved_contexts
        ]
        if self._kind == "recall":
            recalled = sum(any(column) for column in zip(*matches, strict=True))
            return MetricResult(value=recalled / len(reference_contexts))
        relevant = [any(row) for row in matches]
        precisions = [sum(relevant[:rank]) / rank for rank, hit in enumerate(relevant, 1) if hit]
        return MetricResult(value=sum(precisions) / len(precisions) if precisions else 0.0)

    async def _matches(self, found: str, wanted: str) -> bool:
        result = await self._similarity.ascore(reference=found, response=wanted)
        return bool(result.value >= _SIMILAR)


class ReleaseEmbeddings(BaseRagasEmbedding):
    """A release's embedder for RAGAS."""

    def __init__(self, embedder: Embedder) -> None:
        super().__init__()
        self._embedder = embedder

    def embed_text(self, text: str, **kwargs: Any) -> list[float]:
        """Vector of a text."""
        return [float(value) for value in self._embedder.embed_query(text)]

    async def aembed_text(self, text: str, **kwargs: Any) -> list[float]:
        """Vector of a text."""
        return self.embed_text(text)


def build_metrics(
    embedder: Embedder, judge: ChatJudge | None, instruction: str = ""
) -> Mapping[str, BaseMetric]:
    """Every RAGAS metric by its name here; with a judge, RAGAS's own where a model is needed.

    `instruction` takes the place of RAGAS's when statements are judged against passages.
    """
    embeddings = ReleaseEmbeddings(embedder)
    metrics = [
        RankingScore("context_recall", "recall_1000"),
        RankingScore("context_precision", "map"),
        RankingScore("recall_at_1", "recall_1"),
        RankingScore("recall_at_3", "recall_3"),
        RankingScore("reciprocal_rank", "recip_rank"),
        RankingScore("ndcg", "ndcg"),
        NonLLMContext("ragas_context_recall", "recall"),
        NonLLMContext("ragas_context_precision", "precision"),
        RougeScore(name="rouge_l", rouge_type="rougeL", mode="fmeasure"),
        Bleu(),
        Meteor(),
    ]
    if judge is None:
        metrics += [OfflineFaithfulness(), OfflineAnswerRelevancy(embeddings)]
    else:
        faithful = Faithfulness(llm=judge)
        if instruction:
            faithful.nli_statement_prompt.instruction = instruction
        metrics += [
            faithful,
            AnswerRelevancy(llm=judge, embeddings=embeddings),
            FactualCorrectness(llm=judge),
        ]
    return {metric.name: metric for metric in metrics}
