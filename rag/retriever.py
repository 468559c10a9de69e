"""Hybrid retrieval over one snapshot: dense and lexical rankings, fused."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from knowledge_base.embedders import Embedder
from knowledge_base.release import RetrievalSettings
from knowledge_base.snapshot import Snapshot
from rag.answer import Context


@dataclass(frozen=True)
class Ranking:
    """Passages of a snapshot, best first, with the score each was ranked by."""

    passages: NDArray[np.int64]
    scores: NDArray[np.float64]


class Retriever:
    """Ranks the passages of one release for a question."""

    def __init__(self, snapshot: Snapshot, embedder: Embedder, settings: RetrievalSettings) -> None:
        self._snapshot = snapshot
        self._embedder = embedder
        self._settings = settings

    def search(self, question: str, top_k: int | None = None) -> list[Context]:
        """The `top_k` best passages (the release's own number when None), best first."""
        ranking = self.rank(question)
        count = top_k or self._settings.top_k
        return [
            self._context(int(passage), float(score))
            for passage, score in zip(ranking.passages[:count], ranking.scores[:count], strict=True)
        ]

    def rank(self, question: str) -> Ranking:
        """The best `candidates` passages by the release's retrieval mode."""
        mode, depth = self._settings.mode, self._settings.candidates
        if not self._snapshot.chunk_count:
            return Ranking(np.empty(0, np.int64), np.empty(0))
        if mode == "lexical":
            return self._ranking(*self._lexical(self._snapshot.lexical_scores(question), depth))
        query = self._embedder.embed_query(question)
        nearest = self._snapshot.nearest(query, depth)
        if mode == "dense":
            return self._ranking(nearest, self._snapshot.dense_scores(query, nearest))
        return self._fused(query, nearest, self._snapshot.lexical_scores(question))

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

    def _context(self, passage: int, score: float) -> Context:
        chunk, *others = self._snapshot.chunks_of(passage)
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
