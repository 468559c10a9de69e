"""Is a claim supported by its contexts? A first, lexical judge: no model, milliseconds, repeatable.

It looks at words only, so it cannot see a negation or a swapped name; it finds sentences that bring in
words which their contexts do not have.
"""

import re
from collections.abc import Sequence

from knowledge_base.sentences import split_sentences

JUDGE = "lexical-2"
SUPPORT_THRESHOLD = 0.6
_WINDOW = 3
_MARKER = re.compile(r"\s*\[\d+\]")
_WORD = re.compile(r"[^\W_]{2,}|\d")


def claims(answer: str) -> list[str]:
    """The sentences of an answer that hold a word, without their citation markers."""
    # A marker ends a claim too: a quoted heading or list item has no full stop of its own.
    plain = _MARKER.sub("\n\n", answer)
    sentences = [plain[start:end] for start, end in split_sentences(plain)]
    return [sentence for sentence in sentences if _WORD.search(sentence)]


def support(made: Sequence[str], contexts: Sequence[str]) -> list[float]:
    """For each claim, the share of its words that its best window of a context holds, 0 to 1.

    A window is three neighbouring sentences; a claim without a word is supported.
    """
    windows = [window for text in contexts for window in _windows(text)]
    return [_share(set(_WORD.findall(claim.lower())), windows) for claim in made]


def _share(words: set[str], windows: Sequence[set[str]]) -> float:
    if not words:
        return 1.0
    return max((len(words & window) / len(words) for window in windows), default=0.0)


def _windows(text: str) -> list[set[str]]:
    sentences = [set(_WORD.findall(text[start:end].lower())) for start, end in split_sentences(text)]
    count = max(1, len(sentences) - _WINDOW + 1)
    return [set().union(*sentences[i : i + _WINDOW]) for i in range(count)]
