"""BM25 over several segments with the release's own statistics.

Postings hold raw term counts, so the weights (document frequency, average length) can be those of
the whole release at the moment of the question, whichever segments it is made of; a library that
stores finished scores per index could not do that.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from knowledge_base.errors import SettingsError

K1 = 1.2
B = 0.75
_WORD = re.compile(r"[^\W_]+")
_ARRAYS = ("terms", "offsets", "rows", "counts", "lengths")


class Analyzer:
    """Text to index terms: lower-cased words, stemmed by Snowball. Raises SettingsError."""

    def __init__(self, language: str) -> None:
        import Stemmer

        try:
            self._stem = Stemmer.Stemmer(language) if language != "none" else None
        except KeyError as error:
            known = ", ".join([*sorted(Stemmer.algorithms()), "none"])
            raise SettingsError(
                f"retrieval.language: no stemmer for {language!r}.", hint=f"Known: {known}."
            ) from error

    def terms(self, text: str) -> list[str]:
        """The terms of `text` in order."""
        words = _WORD.findall(text.lower())
        return self._stem.stemWords(words) if self._stem else words


def _hash(term: str) -> int:
    return int.from_bytes(hashlib.blake2b(term.encode(), digest_size=8).digest(), "little")


def write_postings(folder: Path, texts: Sequence[str], language: str) -> None:
    """Write the postings of `texts` as arrays that can be memory mapped."""
    analyzer = Analyzer(language)
    hashes: dict[str, int] = {}
    terms: list[int] = []
    rows: list[int] = []
    counts: list[int] = []
    lengths = np.zeros(len(texts), np.uint32)
    for row, text in enumerate(texts):
        words = analyzer.terms(text)
        lengths[row] = len(words)
        for word, count in Counter(words).items():
            if word not in hashes:
                hashes[word] = _hash(word)
            terms.append(hashes[word])
            rows.append(row)
            counts.append(count)
    keys = np.array(terms, np.uint64)
    order = np.argsort(keys, kind="stable")
    unique, starts = np.unique(keys[order], return_index=True)
    folder.mkdir(parents=True)
    np.save(folder / "terms.npy", unique)
    np.save(folder / "offsets.npy", np.append(starts, len(keys)).astype(np.uint64))
    np.save(folder / "rows.npy", np.array(rows, np.uint32)[order])
    np.save(folder / "counts.npy", np.array(counts, np.uint32)[order])
    np.save(folder / "lengths.npy", lengths)


class Postings:
    """The postings of one segment, memory mapped."""

    def __init__(self, folder: Path) -> None:
        self._terms, self._offsets, self._rows, self._counts, self.lengths = (
            # A plain view of the mapped file: slicing a memmap itself costs a multiple.
            np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r"))
            for name in _ARRAYS
        )

    def find(self, term: str) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
        """Rows that hold `term` and how often, both of shape (matches,)."""
        key = np.uint64(_hash(term))
        at = int(np.searchsorted(self._terms, key))
        if at == len(self._terms) or self._terms[at] != key:
            return np.empty(0, np.uint32), np.empty(0, np.uint32)
        span = slice(int(self._offsets[at]), int(self._offsets[at + 1]))
        return self._rows[span], self._counts[span]


def bm25_scores(
    terms: Sequence[str], segments: Sequence[tuple[Postings, NDArray[np.bool_]]]
) -> list[NDArray[np.float64]]:
    """BM25 of every row of every segment, shape (rows,) each; rows that are not live score 0.

    Okapi BM25 (Robertson and Zaragoza, 2009) with the idf of Lucene, which is never negative. Number
    of passages, average length and document frequencies count live rows of all segments together.
    """
    total = sum(int(live.sum()) for _, live in segments)
    words = sum(int(postings.lengths[live].sum()) for postings, live in segments)
    average = words / total if total else 1.0
    scores = [np.zeros(len(live)) for _, live in segments]
    for term, weight in sorted(Counter(terms).items()):
        found = [postings.find(term) for postings, _ in segments]
        frequency = sum(int(live[rows].sum()) for (rows, _), (_, live) in zip(found, segments, strict=True))
        if not frequency:
            continue
        idf = np.log(1 + (total - frequency + 0.5) / (frequency + 0.5))
        for (rows, counts), (postings, live), score in zip(found, segments, scores, strict=True):
            length = postings.lengths[rows] / average
            saturation = counts * (K1 + 1) / (counts + K1 * (1 - B + B * length))
            score[rows] += weight * idf * saturation * live[rows]
    return scores
