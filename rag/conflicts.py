"""Passages of other documents that contradict what an answer quotes.

Two sentences are held to contradict each other when they are about the same thing, in nearly the same words,
and differ in a number or in a negation. That is meant to find the old and the new version of a fact in one
knowledge base; a contradiction in other words is not seen.
"""

import re
from collections.abc import Sequence

from knowledge_base.sentences import split_units
from rag.answer import Citation, Conflict, Context

_WORD = re.compile(r"[^\W\d_]{2,}")
_NUMBER = re.compile(r"\d+(?:[.,:]\d+)*")
_NEGATIONS = frozenset(
    """
    no not never none cannot without neither nor isn aren wasn weren don doesn didn won can couldn shouldn
    wouldn hasn haven disabled unsupported forbidden
    """.split()  # noqa: SIM905 - a list of quoted words is no easier to read
) - {"can"}
_STOPWORDS = frozenset({"the", "an", "is", "are", "was", "were", "be", "of", "to", "in", "on", "for", "and"})
_LEAST_WORDS = 3
_ALIKE = 0.75
_MOST = 3


def find_conflicts(citations: Sequence[Citation], contexts: Sequence[Context]) -> tuple[Conflict, ...]:
    """Sentences among `contexts`, in other documents than the quoted ones, that contradict a quote."""
    found: list[Conflict] = []
    for citation in citations:
        quoted = _Facts(citation.quote)
        for context in contexts:
            if context.path == citation.path or citation.path in context.also_in:
                continue
            for unit in split_units(context.text):
                text = context.text[unit.start : unit.end]
                if unit.kind != "code" and quoted.contradict(_Facts(text)):
                    found.append(
                        Conflict(
                            marker=citation.marker,
                            path=context.path,
                            chunk_id=context.chunk_id,
                            start=context.start + unit.start,
                            end=context.start + unit.end,
                            quote=text,
                        )
                    )
    return tuple(found[:_MOST])


class _Facts:
    """The words, numbers and negations of a sentence."""

    def __init__(self, text: str) -> None:
        words = {word for word in _WORD.findall(text.lower()) if word not in _STOPWORDS}
        self.negated = bool(words & _NEGATIONS)
        self.words = words - _NEGATIONS
        self.numbers = set(_NUMBER.findall(text))

    def contradict(self, other: "_Facts") -> bool:
        if min(len(self.words), len(other.words)) < _LEAST_WORDS:
            return False
        alike = len(self.words & other.words) / len(self.words | other.words)
        # One of two lists that holds all numbers of the other says more, not otherwise.
        numbers = self.numbers - other.numbers and other.numbers - self.numbers
        return alike >= _ALIKE and bool(numbers or self.negated != other.negated)
