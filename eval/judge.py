"""Is a sentence supported by its contexts? A first, lexical judge: no model, milliseconds, repeatable.

It looks at words only, so it cannot see a negation or a swapped name; it finds sentences that bring in
words which their contexts do not have. RAGAS's meaning of faithfulness is kept: supported claims over all.
"""

import re
from collections.abc import Sequence

from knowledge_base.sentences import split_sentences

JUDGE = "lexical-2"
SUPPORT_THRESHOLD = 0.6
_WINDOW = 3
_MARKER = re.compile(r"\s*\[\d+\]")
_WORD = re.compile(r"[^\W_]{2,}|\d")


def support(claim: str, contexts: Sequence[str]) -> float:
    """Share of the claim's words that the best three neighbouring sentences of a context hold, 0 to 1."""
    words = set(_WORD.findall(claim.lower()))
    if not words:
        return 1.0
    return max(
        (len(words & window) / len(words) for text in contexts for window in _windows(text)), default=0.0
    )


def claims(answer: str) -> list[str]:
    """The sentences of an answer that hold a word, without their citation markers."""
    # A marker ends a claim too: a quoted heading or list item has no full stop of its own.
    plain = _MARKER.sub("\n\n", answer)
    sentences = [plain[start:end] for start, end in split_sentences(plain)]
    return [sentence for sentence in sentences if _WORD.search(sentence)]


def faithfulness(answer: str, contexts: Sequence[str]) -> float | None:
    """Share of the answer's claims that are supported, 0 to 1; None when it makes none."""
    made = claims(answer)
    if not made:
        return None
    return sum(support(claim, contexts) >= SUPPORT_THRESHOLD for claim in made) / len(made)


def _windows(text: str) -> list[set[str]]:
    sentences = [set(_WORD.findall(text[start:end].lower())) for start, end in split_sentences(text)]
    count = max(1, len(sentences) - _WINDOW + 1)
    return [set().union(*sentences[i : i + _WINDOW]) for i in range(count)]
