"""What the words of a claim say about its support: the features of the offline judge, and what it reads.

All of it is counting, so it costs well under a millisecond a claim and carries over to new subjects;
what needs reading (a negation, a swapped name) is left to the encoder.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import Stemmer
from numpy.typing import NDArray

from knowledge_base.sentences import split_sentences

FEATURES = (
    "covered_by_window",
    "covered_by_sentence",
    "covered_by_all",
    "scattered",
    "pairs_covered",
    "triples_covered",
    "grams_covered",
    "longest_copy",
    "copied_pieces",
    "novel_words",
    "longest_novel_run",
    "rarest_novel",
    "numbers",
    "novel_digits",
    "novel_numbers",
    "names",
    "novel_names",
    "negation_differs",
    "negated",
    "words",
    "speaks_of_sources",
    "speaks_to_reader",
    "list_item",
    "verbatim",
)
_WINDOW = 3
TOKEN = re.compile(r"\d+(?:[.,]\d+)*|[^\W\d_]+(?:['’][^\W\d_]+)?")
STEMMER = Stemmer.Stemmer("english")
# Numbers that name a list item or a passage say nothing about the world.
_ORDINALS = re.compile(
    r"^\s*\(?\d{1,2}[.):]\s+"
    r"|\b(?:passages?|sources?|documents?|contexts?)\s+\d+(?:(?:,| and|, and|-)\s*\d+)*",
    re.IGNORECASE,
)
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3})")
_ITEM = re.compile(r"\s*(?:[-*+•]|\(?\d{1,2}[.):])\s+")
_NEGATIONS = frozenset(
    """
    no not never none nor neither without cannot unable nothing nobody fail fails lack lacks
    """.split()  # noqa: SIM905 - as below
)
SOURCES = re.compile(
    r"\b(passages?|context|sources?|documents?|provided|given text|mention(s|ed)?|based on|information)\b",
    re.IGNORECASE,
)
# Pleasantries and announcements claim nothing, so nobody marks them.
READER = re.compile(
    r"\b(i|you|your|we|us|let me|please|hope|sorry|sure|thanks?|here (is|are)|following|overall|note)\b"
    r"|:\s*$",
    re.IGNORECASE,
)
COMMON = frozenset(
    """
    a about after all also an and any are as at be because been before being both but by can could did do does
    for from had has have he her his how however i if in into is it its may more most must of on one or other
    our she should so some such than that the their them then there these they this those through to under up
    use used was we were what when where which while who will with would you your
    """.split()  # noqa: SIM905 - a list of quoted words is no easier to read
)
DIGITS = {
    word: str(number)
    for number, word in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve".split()  # noqa: SIM905
    )
}


class Words:
    """A text as stems, with what is asked of them again and again."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.raw = TOKEN.findall(_ORDINALS.sub(" ", text))
        lower = [DIGITS.get(word, word) for word in map(str.lower, self.raw)]
        self.lower = [word.replace(",", "") if word[0].isdigit() else word for word in lower]
        self.stems: list[str] = STEMMER.stemWords(self.lower)

    @cached_property
    def content(self) -> list[str]:
        """Stems of the words that carry meaning; all of them when none does."""
        found = [stem for stem, word in zip(self.stems, self.lower, strict=True) if word not in COMMON]
        return found or self.stems

    @cached_property
    def unique(self) -> frozenset[str]:
        """The stems."""
        return frozenset(self.stems)

    @cached_property
    def negated(self) -> bool:
        """Whether a word of negation stands in it."""
        return any(word in _NEGATIONS or word.endswith(("n't", "n’t")) for word in self.lower)

    @cached_property
    def grams(self) -> frozenset[str]:
        """Runs of four letters: other forms of a word share most of them."""
        return frozenset(w[i : i + 4] for w in self.lower for i in range(max(1, len(w) - 3)))


@dataclass(frozen=True)
class Evidence:
    """The contexts of an answer, cut into sentences once for all of its claims."""

    sentences: tuple[Words, ...]
    starts_context: tuple[bool, ...]
    everything: frozenset[str]
    pairs: frozenset[tuple[str, ...]]
    triples: frozenset[tuple[str, ...]]
    grams: frozenset[str]
    plain: str
    windows: tuple[frozenset[str], ...]
    rarity: dict[str, float]

    @classmethod
    def of(cls, contexts: Sequence[str]) -> "Evidence":
        """Read the contexts."""
        sentences: list[Words] = []
        starts: list[bool] = []
        windows: list[frozenset[str]] = []
        for text in contexts:
            own = [Words(text[start:end]) for start, end in split_sentences(text)]
            starts += [i == 0 for i in range(len(own))]
            sentences += own
            for i in range(max(1, len(own) - _WINDOW + 1) if own else 0):
                windows.append(frozenset().union(*(s.unique for s in own[i : i + _WINDOW])))
        count = Counter(stem for sentence in sentences for stem in sentence.unique)
        return cls(
            sentences=tuple(sentences),
            starts_context=tuple(starts),
            everything=frozenset(count),
            pairs=frozenset(pair for s in sentences for pair in _runs(s.stems, 2)),
            triples=frozenset(triple for s in sentences for triple in _runs(s.stems, 3)),
            grams=frozenset().union(*(s.grams for s in sentences)) if sentences else frozenset(),
            plain="\n".join(plain(text) for text in contexts),
            windows=tuple(windows),
            rarity={stem: math.log(1 + len(sentences) / n) for stem, n in count.items()},
        )

    def weight(self, stem: str) -> float:
        """How much a stem says: the rarer in the contexts, the more; one they do not have, the most."""
        return self.rarity.get(stem) or math.log(2 + len(self.sentences))

    def best_sentences(self, claim: Words) -> list[int]:
        """Numbers of the sentences that share something with a claim, best first."""
        stems = set(claim.content)
        # fsum: the order of a set differs from process to process, and so would the rounding of a plain sum.
        shared = [math.fsum(map(self.weight, stems & s.unique)) for s in self.sentences]
        return sorted((i for i, value in enumerate(shared) if value), key=lambda i: (-shared[i], i))


def plain(text: str) -> str:
    """Lower case, one space between words, no comma in numbers: for looking a quotation up."""
    return " ".join(_THOUSANDS.sub("", text.lower()).split())


def features(claims: Sequence[Words], evidence: Evidence) -> NDArray[np.float32]:
    """One row of FEATURES for each claim, shape (len(claims), len(FEATURES))."""
    rows = [_row(claim, evidence) for claim in claims]
    return np.array(rows, np.float32).reshape(len(rows), len(FEATURES))


def word_of_each(spans: Sequence[tuple[int, int]], words: Sequence[re.Match[str]]) -> list[int]:
    """For each span of characters, in order, the number of the word that it is of; -1 for none."""
    found, at = [], 0
    for start, end in spans:
        while at < len(words) and words[at].end() <= start:
            at += 1
        found.append(at if at < len(words) and words[at].start() < end else -1)
    return found


def _row(claim: Words, evidence: Evidence) -> list[float]:
    stems = set(claim.content)
    weights = {stem: evidence.weight(stem) for stem in stems}
    total = math.fsum(weights.values()) or 1.0
    best = evidence.best_sentences(claim)
    sentence = evidence.sentences[best[0]] if best else None

    def covered(by: frozenset[str]) -> float:
        return math.fsum(weights[stem] for stem in stems & by) / total

    window = max(map(covered, evidence.windows), default=0.0)
    everywhere = covered(evidence.everything)
    copied = [pair in evidence.pairs for pair in pairwise(claim.stems)]
    novel = [stem not in evidence.everything for stem in claim.stems]
    numbers = [word for word in claim.lower if word[0].isdigit()]
    names = [
        stem
        for raw, stem in zip(claim.raw[1:], claim.stems[1:], strict=True)
        if raw[0].isupper() and raw != "I"
    ]
    return [
        window,
        covered(sentence.unique) if sentence else 0.0,
        everywhere,
        everywhere - window,
        _share(copied),
        _share([triple in evidence.triples for triple in _runs(claim.stems, 3)]),
        len(claim.grams & evidence.grams) / max(1, len(claim.grams)),
        (1 + _longest(copied)) / max(1, len(claim.stems)),
        sum(not a and b for a, b in pairwise([False, *copied])) / max(1, len(claim.stems)),
        sum(stem not in evidence.everything for stem in stems),
        _longest(novel),
        max((len(stem) for stem in stems - evidence.everything), default=0),
        len(numbers),
        sum(len(n) == 1 and n not in evidence.everything for n in numbers),
        sum(len(n) > 1 and n not in evidence.plain for n in numbers),
        len(names),
        sum(stem not in evidence.everything for stem in names),
        float(sentence is not None and sentence.negated != claim.negated),
        float(claim.negated),
        len(claim.stems),
        float(bool(SOURCES.search(claim.text))),
        float(bool(READER.search(claim.text))),
        float(_ITEM.match(claim.text) is not None),
        float(plain(claim.text).rstrip(".") in evidence.plain),
    ]


def _runs(stems: Sequence[str], length: int) -> list[tuple[str, ...]]:
    return list(zip(*(stems[i:] for i in range(length)), strict=False))


def _share(values: Sequence[bool]) -> float:
    # A claim of one word has no pair; it is judged by its word.
    return sum(values) / len(values) if values else 1.0


def _longest(values: Sequence[bool]) -> int:
    longest = run = 0
    for value in values:
        run = run + 1 if value else 0
        longest = max(longest, run)
    return longest
