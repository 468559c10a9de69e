"""Faithfulness in RAGAS's meaning, by the offline judge: the share of claims that are supported."""

from collections.abc import Sequence

from rag.support import READ_THRESHOLD, claims, support


def faithfulness(answer: str, contexts: Sequence[str]) -> float | None:
    """Share of the answer's claims that are supported, 0 to 1; None when it makes none."""
    made = claims(answer)
    if not made:
        return None
    return sum(score >= READ_THRESHOLD for score in support(made, contexts, read=True)) / len(made)
