"""Changes to a question that take its answer away.

Another name or number, an opposite, a word of other meaning, two names that change places, a negation: the
ways in which SQuAD 2.0's unanswerable questions were written (Rajpurkar et al. 2018, table 1).
"""

import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rag.answerability import OPPOSITES
from rag.evidence import COMMON, STEMMER

NAME = re.compile(r"(?<=[a-z,;] )[A-Z][\w'-]+(?: (?:of |the )?[A-Z][\w'-]+)*|\b\d[\d,.]*\d\b|\b\d\b")
WORD = re.compile(r"[a-z]{4,}")
_VERB = re.compile(r"\b(?:is|are|was|were|did|does|do|can|could|would|has|had|have|will|should)\b")
_NEGATED = re.compile(r"n't|\bnot\b|never")
_STEPS, _SMALL_STEPS = (-10, -4, -3, -2, -1, 1, 2, 3, 5, 10, 100), (1, 2, 3)
_SMALL = 12
_ENDINGS = ("ing", "ed", "ly", "est", "er", "tion", "ies", "es", "s")
_PREFIXES = ("un", "in", "im", "ir", "dis", "non", "de", "anti")
_SERIES = (
    "first second third fourth fifth sixth seventh eighth ninth tenth",
    "one two three four five six seven eight nine ten",
    "all some no few",
    "internal external",
    "acceleration deceleration",
    "accept reject",
    "before after during",
    "always never sometimes",
    "north south east west",
)
_WORDS, _OFTEN, _AT_ONCE = 9000, 4, 500
# Cosines of single words in all-MiniLM-L6-v2.
_LIKE, _UNLIKE = 0.72, (0.25, 0.52)


@dataclass(frozen=True)
class Changed:
    """A question that its passage no longer answers, and the characters that were changed."""

    text: str
    wrong: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Changes:
    """Words of like meaning, words of the same form with another meaning, and opposites."""

    like: Mapping[str, Sequence[str]]
    unlike: Mapping[str, Sequence[str]]
    opposites: Mapping[str, frozenset[str]]

    @classmethod
    def of(cls, texts: Iterable[str], embedder: Any) -> "Changes":
        """Over the commonest words of the texts, by an embedder's vectors of them."""
        counts = Counter(word for text in texts for word in WORD.findall(text) if word not in COMMON)
        words = [word for word, count in counts.most_common(_WORDS) if count >= _OFTEN]
        opposites = _opposites(words)
        vectors = embedder.embed_documents(words)
        stems, endings = STEMMER.stemWords(words), [_ending(word) for word in words]
        like, unlike = {}, {}
        for start in range(0, len(words), _AT_ONCE):
            for row, cosines in enumerate(vectors[start : start + _AT_ONCE] @ vectors.T, start):
                word, order = words[row], np.argsort(-cosines, kind="stable")[1:80]
                near = [words[i] for i in order if cosines[i] > _LIKE]
                like[word] = [other for other in near if other not in opposites.get(word, ())][:4]
                unlike[word] = [
                    words[i]
                    for i in order
                    if _UNLIKE[0] < cosines[i] < _UNLIKE[1]
                    and endings[i] == endings[row]
                    and stems[i] != stems[row]
                ][:15]
        return cls(like, unlike, opposites)

    def spoil(self, question: str, passage: str, chance: random.Random) -> Changed | None:
        """The question with one change, or None where none is possible."""
        ways: list[Callable[[str, str, random.Random], Changed | None]] = [
            *[self._name] * 2, *[self._opposite] * 3, *[self._word] * 2,
            self._roles, self._negation, self._word_of_passage,
        ]  # fmt: skip
        chance.shuffle(ways)
        return next((made for way in ways if (made := way(question, passage, chance))), None)

    def _name(self, question: str, passage: str, chance: random.Random) -> Changed | None:
        """Another name or number, of the passage or near the old one."""
        found = list(NAME.finditer(question))
        if not found:
            return None
        old = chance.choice(found)
        if old[0].isdigit() and chance.random() < 0.4:
            value = int(old[0])
            return _replaced(
                question, old, str(value + chance.choice(_STEPS if value > _SMALL else _SMALL_STEPS))
            )
        low, known = question.lower(), old[0].lower()
        fitting = [
            new[0]
            for new in NAME.finditer(passage)
            if new[0][0].isdigit() == old[0][0].isdigit()
            and new[0].lower() not in low
            and not any(word in known for word in new[0].lower().split())
            and new[0].split()[0].lower() not in COMMON
        ]
        return _replaced(question, old, chance.choice(fitting)) if fitting else None

    def _opposite(self, question: str, _: str, chance: random.Random) -> Changed | None:
        found = [m for m in re.finditer(r"\w+", question) if m[0].lower() in self.opposites]
        if not found:
            return None
        old = chance.choice(found)
        return _replaced(question, old, chance.choice(sorted(self.opposites[old[0].lower()])))

    def _word(self, question: str, _: str, chance: random.Random) -> Changed | None:
        found = [m for m in self._words(question) if self.unlike[m[0]]]
        if not found:
            return None
        old = chance.choice(found)
        return _replaced(question, old, chance.choice(self.unlike[old[0]]))

    def _word_of_passage(self, question: str, passage: str, chance: random.Random) -> Changed | None:
        """A word of the passage with the same ending."""
        found = self._words(question)
        if not found:
            return None
        old = chance.choice(found)
        stem, ending, low = STEMMER.stemWord(old[0]), _ending(old[0]), question.lower()
        fitting = sorted(
            word
            for word in set(WORD.findall(passage))
            if word in self.unlike
            and word not in low
            and _ending(word) == ending
            and word not in self.like[old[0]]
            and STEMMER.stemWord(word) != stem
        )
        return _replaced(question, old, chance.choice(fitting)) if fitting else None

    def _roles(self, question: str, _: str, chance: random.Random) -> Changed | None:
        """Two names, or two numbers, change places."""
        found = list(NAME.finditer(question))
        if len(found) < 2 or chance.random() < 0.3:
            return None
        first, second = (found[i] for i in sorted(chance.sample(range(len(found)), 2)))
        if first[0] == second[0] or first[0][0].isdigit() != second[0][0].isdigit():
            return None
        between = question[first.end() : second.start()]
        head = question[: first.start()] + second[0] + between
        text = head + first[0] + question[second.end() :]
        begin = first.start()
        return Changed(text, ((begin, begin + len(second[0])), (len(head), len(head) + len(first[0]))))

    def _negation(self, question: str, _: str, chance: random.Random) -> Changed | None:
        if chance.random() >= 0.5:
            return None
        verb = _VERB.search(question)
        if not verb or _NEGATED.search(question.lower()):
            return None
        short = chance.random() < 0.5 and verb[0] not in ("can", "will")
        return _replaced(question, verb, verb[0] + ("n't" if short else " not"))

    def _words(self, question: str) -> list[re.Match[str]]:
        """Known words, whole: not the end of a longer one."""
        return [
            m
            for m in WORD.finditer(question)
            if m[0] in self.unlike and (m.start() == 0 or not question[m.start() - 1].isalpha())
        ]


def _replaced(question: str, old: re.Match[str], new: str) -> Changed:
    start = old.start()
    return Changed(question[:start] + new + question[old.end() :], ((start, start + len(new)),))


def _ending(word: str) -> str:
    return next((ending for ending in _ENDINGS if word.endswith(ending)), "")


def _opposites(words: Iterable[str]) -> dict[str, frozenset[str]]:
    """Opposites that the trees know, by prefix ("unlike"), and one of a series for another."""
    known = set(words)
    found: dict[str, set[str]] = {word: set(others) for word, others in OPPOSITES.items()}
    for word in known:
        for prefix in _PREFIXES:
            rest = word.removeprefix(prefix)
            if rest != word and len(rest) > 4 and rest in known:
                found.setdefault(word, set()).add(rest)
                found.setdefault(rest, set()).add(word)
    for series in _SERIES:
        members = series.split()
        for word in members:
            found.setdefault(word, set()).update(set(members) - {word})
    return {word: frozenset(others) for word, others in found.items()}
