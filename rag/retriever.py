"""Hybrid retrieval over one snapshot: dense and lexical rankings, fused."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from knowledge_base.configuration import RetrievalSettings
from knowledge_base.embedders import Embedder
from knowledge_base.snapshot import Selection, Snapshot
from rag.answer import Context
from rag.expansion import Expander
from rag.reranker import Reranker


@dataclass(frozen=True)
class Ranking:
    """Passages of a snapshot, best first, with the score each was ranked by."""

    passages: NDArray[np.int64]
    scores: NDArray[np.float64]


class Retriever:
    """Ranks the passages of one release for a question."""

    def __init__(
        self,
        snapshot: Snapshot,
        embedder: Embedder,
        settings: RetrievalSettings,
        reranker: Reranker | None = None,
    ) -> None:
        self._snapshot = snapshot
        self._embedder = embedder
        self._settings = settings
        self._reranker = reranker

    def search(
        self,
        question: str,
        top_k: int | None = None,
        *,
        others: Sequence[str] = (),
        selection: Selection | None = None,
    ) -> list[Context]:
        """The `top_k` best passages (the release's own number when None), best first.

        `others` are further ways to ask the same; only passages of `selection` are ranked.
        """
        count = top_k or self._settings.top_k
        ranking = self._combined([self.rank(query, selection) for query in (question, *others)])
        if self._reranker:
            ranking = self._reranked(self._reranker, question, ranking)
        chosen = self._spread(ranking, count)
        contexts = [
            self._context(int(ranking.passages[place]), float(ranking.scores[place]), also, selection)
            for place, also in chosen
        ]
        return Expander(self._snapshot, self._embedder, self._settings, selection).expand(contexts)

    def rank(self, question: str, selection: Selection | None = None) -> Ranking:
        """The best `candidates` passages by the release's retrieval mode."""
        mode, depth = self._settings.mode, self._settings.candidates
        if not (self._snapshot.chunk_count if selection is None else len(selection.passages)):
            return Ranking(np.empty(0, np.int64), np.empty(0))
        if mode == "lexical":
            return self._ranking(*self._lexical(self._lexical_scores(question, selection), depth))
        query = self._embedder.embed_query(question)
        nearest = self._nearest(query, depth, selection)
        if mode == "dense":
            return self._ranking(nearest, self._snapshot.dense_scores(query, nearest))
        return self._fused(query, nearest, self._lexical_scores(question, selection))

    def _nearest(
        self, query: NDArray[np.float32], depth: int, selection: Selection | None
    ) -> NDArray[np.int64]:
        if selection is None:
            return self._snapshot.nearest(query, depth)
        # A selection is compared one by one: no graph can be asked for the nearest of a few.
        allowed = selection.passages
        return self._snapshot.rank(allowed, self._snapshot.dense_scores(query, allowed))[:depth]

    def _lexical_scores(self, question: str, selection: Selection | None) -> NDArray[np.float64]:
        scores = self._snapshot.lexical_scores(question)
        if selection is None:
            return scores
        kept = np.zeros_like(scores)
        kept[selection.passages] = scores[selection.passages]
        return kept

    def _combined(self, rankings: Sequence[Ranking]) -> Ranking:
        """The mean of a passage's scores over all queries; where one did not find it, 0."""
        if len(rankings) == 1:
            return rankings[0]
        passages = np.unique(np.concatenate([ranking.passages for ranking in rankings]))
        scores = np.zeros(len(passages))
        for ranking in rankings:
            scores[np.searchsorted(passages, ranking.passages)] += ranking.scores / len(rankings)
        combined = self._ranking(passages, np.round(scores, 6))
        depth = self._settings.candidates
        return Ranking(combined.passages[:depth], combined.scores[:depth])

    def _reranked(self, reranker: Reranker, question: str, ranking: Ranking) -> Ranking:
        """The first `rerank` passages by the cross-encoder's score; the others are dropped."""
        passages = ranking.passages[: self._settings.rerank]
        texts = [self._snapshot.chunks_of(int(passage))[0].text for passage in passages]
        return self._ranking(passages, np.round(reranker.scores(question, texts), 6))

    def _spread(self, ranking: Ranking, count: int) -> list[tuple[int, list[int]]]:
        """Places of the chosen passages in the ranking, each with those that only repeat it.

        Greedily by maximal marginal relevance: (1 - diversity) * score - diversity * likeness to what is
        chosen already (Carbonell and Goldstein, 1998), the scores scaled to a best of 1.
        """
        weight, same = self._settings.diversity, self._settings.duplicates
        if not weight and same >= 1:
            return [(place, []) for place in range(min(count, len(ranking.passages)))]
        vectors = self._snapshot.passage_vectors(ranking.passages)
        scores = ranking.scores / max(float(ranking.scores.max(initial=0)), 1e-9)
        likeness = np.zeros(len(scores))
        chosen: dict[int, list[int]] = {}
        left = np.ones(len(scores), bool)
        while left.any() and len(chosen) < count:
            value = np.where(left, (1 - weight) * scores - weight * likeness, -np.inf)
            place = int(np.argmax(value))
            cosines = vectors @ vectors[place]
            repeats = left & (cosines >= same) if same < 1 else np.zeros(len(scores), bool)
            repeats[place] = False
            chosen[place] = [int(ranking.passages[i]) for i in np.flatnonzero(repeats)]
            left &= ~repeats
            left[place] = False
            likeness = np.maximum(likeness, cosines)
        return list(chosen.items())

    def _fused(
        self, query: NDArray[np.float32], nearest: NDArray[np.int64], lexical: NDArray[np.float64]
    ) -> Ranking:
        """Convex combination of the two scores, each mapped to 0..1 over the candidates.

        The lower end is the score's own minimum rather than the candidates' (TM2C2 of Bruch, Gai and
        Ingber, 2023): 0 for BM25, and for cosine the weakest of the dense candidates. A passage that
        only one ranking found is given its exact score in the other.
        """
        depth = self._settings.candidates
        found, _ = self._lexical(lexical, depth)
        passages = np.union1d(nearest, found)
        dense = self._snapshot.dense_scores(query, passages)
        floor = float(self._snapshot.dense_scores(query, nearest[-1:])[0])
        weight = self._settings.dense_weight
        scores = weight * _scaled(dense, floor) + (1 - weight) * _scaled(lexical[passages], 0.0)
        ranking = self._ranking(passages, np.round(scores, 6))
        return Ranking(ranking.passages[:depth], ranking.scores[:depth])

    def _lexical(
        self, scores: NDArray[np.float64], depth: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        matches = np.flatnonzero(scores > 0)
        if len(matches) > depth:
            # Keep every tie at the edge: which of them stay is for the text hash to say, not for chance.
            edge = np.partition(scores[matches], -depth)[-depth]
            matches = matches[scores[matches] >= edge]
        ordered = self._snapshot.rank(matches, scores[matches])[:depth]
        return ordered, scores[ordered]

    def _ranking(self, passages: NDArray[np.int64], scores: NDArray[np.float64]) -> Ranking:
        ordered = self._snapshot.rank(passages, scores)
        lookup = dict(zip(passages.tolist(), scores.tolist(), strict=True))
        return Ranking(ordered, np.array([lookup[passage] for passage in ordered.tolist()]))

    def _context(
        self, passage: int, score: float, repeats: Sequence[int], selection: Selection | None
    ) -> Context:
        chunk, *others = self._snapshot.chunks_of(passage, selection)
        for other in repeats:
            others += self._snapshot.chunks_of(other, selection)
        return Context(
            chunk_id=chunk.id,
            path=chunk.path,
            start=chunk.start,
            end=chunk.end,
            text=chunk.text,
            score=score,
            heading=chunk.heading,
            page=chunk.page,
            also_in=tuple(dict.fromkeys(other.path for other in others if other.path != chunk.path)),
        )


def _scaled(scores: NDArray[np.float64], floor: float) -> NDArray[np.float64]:
    top = float(scores.max()) - floor
    return np.clip((scores - floor) / top, 0, 1) if top > 0 else np.zeros_like(scores)
