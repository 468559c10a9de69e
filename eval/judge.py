"""The offline judge: is a sentence covered by the passages, does a citation hold. Pure and exact.

A sentence counts as supported when one window of consecutive passage sentences holds enough of its
terms. That sees invented facts, not false logic: a negated or recombined sentence of the same words
passes. It asks no model, so it gives the same score on every machine.
"""

import re
from collections.abc import Callable, Sequence

from knowledge_base.documents import sha256_hex
from knowledge_base.errors import PlumblineError
from knowledge_base.lexical import Analyzer
from knowledge_base.release import Frozen
from knowledge_base.sentences import split_sentences
from rag.answer import Answer

VERSION = "1"
THRESHOLD = 0.7
"""Least coverage of a supported sentence; on RAGTruth's QA training answers see docs of `faithfulness`."""

_WINDOW = 3
_MARKER = re.compile(r"\s*\[\d+\]")
_STOP_WORDS = frozenset(
    """
    a about all also an and any are as at be been but by can could did do does for from had has have he her his
    how i if in into is it its may more most no not of on one only or other our she should so some such than
    that the their them then there these they this to up was we were what when which who will with would you your
    """.split()  # noqa: SIM905 - a list of quoted words is no easier to read
)


class Claim(Frozen):
    """One sentence of an answer and how much of it the best window of the passages holds (0 to 1)."""

    text: str
    coverage: float
    supported: bool


def judge_claims(text: str, contexts: Sequence[str], *, language: str = "english") -> tuple[Claim, ...]:
    """Each sentence of an answer with its verdict; sentences without a term of their own are left out."""
    analyzer = Analyzer(language)
    windows = [window for context in contexts for window in _windows(context, analyzer)]
    claims = []
    for sentence in _sentences(text):
        terms = _terms(sentence, analyzer)
        if terms:
            coverage = max((len(terms & window) / len(terms) for window in windows), default=0.0)
            claims.append(
                Claim(text=sentence, coverage=round(coverage, 4), supported=coverage >= THRESHOLD)
            )
    return tuple(claims)


def faithfulness(claims: Sequence[Claim]) -> float | None:
    """Share of supported claims; None when there is no claim to judge."""
    return sum(claim.supported for claim in claims) / len(claims) if claims else None


def _sentences(text: str) -> list[str]:
    # A citation marker ends a quoted sentence that has no full stop of its own.
    plain = _MARKER.sub("\n\n", text)
    return [plain[start:end] for start, end in split_sentences(plain)]


def _terms(text: str, analyzer: Analyzer) -> frozenset[str]:
    words = [word for word in re.findall(r"[^\W_]+", text.lower()) if word not in _STOP_WORDS]
    return frozenset(analyzer.terms(" ".join(words)))


def _windows(context: str, analyzer: Analyzer) -> list[frozenset[str]]:
    sentences = [_terms(context[start:end], analyzer) for start, end in split_sentences(context)]
    last = max(1, len(sentences) - _WINDOW + 1)
    return [frozenset().union(*sentences[first : first + _WINDOW]) for first in range(last)]
