"""Does a sentence answer the question? A trained score behind quoting and abstaining.

Words and vectors tell what a sentence is about. What they leave out is counted here: which words and names
of the question stand nowhere near, whether one side negates or says the opposite, whether there is
anything new of the kind that is asked for. Boosted trees weigh it (docs/answerability.md).
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from knowledge_base.documents import sha256_hex
from knowledge_base.values import canonical_json
from rag.encoder_graph import open_session
from rag.evidence import Words

if TYPE_CHECKING:
    from rag.answer_reader import AnswerReader

FEATURES = (
    "overlap",
    "cosine",
    "below_best_overlap",
    "below_best_cosine",
    "lead",
    "best_cosine",
    "best_overlap",
    "below_best_passage",
    "missing_here",
    "missing_in_passage",
    "missing_anywhere",
    "share_missing_here",
    "share_missing_in_passage",
    "names_missing_here",
    "names_missing_in_passage",
    "numbers_missing_in_passage",
    "letters_missing_in_passage",
    "pairs_shared",
    "grams_shared",
    "opposites",
    "degree_missing",
    "question_negates",
    "negation_differs",
    "new_words",
    "new_names",
    "new_numbers",
    "new_years",
    "right_kind",
    "kind",
    "question_words",
    "question_content",
    "question_names",
    "question_numbers",
    "question_has_opposite",
    "words",
)
_MODELS = Path(__file__).parent / "models"
FOUND_BY = "sentences-2"
"""Counts up when rag.quotable or rag.extractive find other sentences: kept answers are then asked again."""
_YEAR = re.compile(r"\b(?:1\d{3}|20\d\d)\b")
_KINDS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"\bhow (?:many|much|long|far|old|tall|large|big|often)\b|\bwhat (?:percent|number|amount)",
        r"\b(?:when|(?:what|which|in what) (?:year|century|date|decade|month|day))\b",
        r"\b(?:who|whom|whose)\b",
        r"\bwhere\b|\b(?:what|which) (?:city|country|place|state|region|river)\b",
        r"\bwhy\b|\bwhat (?:reason|caused?)\b",
        r"\bhow\b",
        r"\bwhich\b",
    )
)
_NUMBER, _DATE, _PERSON, _PLACE, _REASON = range(5)
_REASONS = frozenset(
    "because due since so therefore cause caused result reason thus order".split()  # noqa: SIM905 - as in evidence
)
_ASKING = frozenset(
    "what when who which where how why whom whose much mani did doe do done name type kind".split()  # noqa: SIM905
)
_DEGREE = re.compile(r"\b(?:only|first|last|most|least|best|worst|never|always|every|all|\w{3,}est|not)\b")
_OPPOSED = """
after:before allowed:forbidden ancient:modern beginning:end best:worst better:worse bought:sold
bottom:top cause:prevent caused:prevented created:destroyed decrease:increase decreased:increased
different:same direct:indirect domestic:foreign earliest:latest early:late east:west eastern:western
end:start ended:began ended:started even:odd excluded:included expand:shrink failure:success fall:rise
fell:rose female:male few:many finite:infinite first:last foreign:native future:past gained:lost
greater:smaller high:low higher:lower highest:lowest illegal:legal important:unimportant
increasing:decreasing inside:outside joined:left known:unknown large:small larger:smaller
largest:smallest least:most less:more light:dark long:short longest:shortest lose:win lost:won
lower:upper major:minor majority:minority maximum:minimum men:women natural:artificial negative:positive
never:always new:old newest:oldest north:south northern:southern old:young older:younger open:closed
oppose:support opposed:supported poor:rich popular:unpopular private:public refused:accepted
rejected:accepted simple:complex slow:fast strong:weak stronger:weaker true:false under:over up:down
visible:invisible wealthy:poor allow:prevent allow:forbid able:unable possible:impossible
dependent:independent equal:unequal common:rare internal:external urban:rural winter:summer left:right
begin:end start:finish add:remove added:removed agree:disagree agreed:disagreed
"""


def _opposites() -> dict[str, frozenset[str]]:
    known: dict[str, set[str]] = {}
    for pair in _OPPOSED.split():
        one, other = pair.split(":")
        known.setdefault(one, set()).add(other)
        known.setdefault(other, set()).add(one)
    return {word: frozenset(others) for word, others in known.items()}


OPPOSITES = _opposites()


@dataclass(frozen=True)
class Candidate:
    """A sentence that may answer: its words, the number of its passage, and what retrieval says of both.

    `overlap` is the share of the question's terms that it holds, `cosine` that of the two vectors;
    `weight` is less than 1 for what only says where to look.
    """

    text: str
    passage: int
    overlap: float
    cosine: float
    passage_score: float
    weight: float = 1.0


def quoting(*, reads: bool) -> str:
    """Names what decides which sentences are quoted: the rule that finds them, trees and any reader."""
    from rag.answer_reader import facts

    weights = canonical_json({"trees": _facts(), "reader": facts() if reads else None})
    return f"{FOUND_BY} {sha256_hex(weights)[:12]}"


def answering(
    question: str, found: Sequence[Candidate], passages: Sequence[str], reader: "AnswerReader | None" = None
) -> list[float]:
    """For each sentence, nearest first, how sure it is to answer the question, 0 to 1.

    The best one has the probability that any of them answers; the others less, by how far they are behind.
    A reader has a say in that probability, not in which sentence is best.
    """
    if not found:
        return []
    rows = features(question, found, passages)
    each = _sigmoid(_raw("sentences", rows)) * [candidate.weight for candidate in found]
    odds = trees_odds(float(_raw("question", question_features(rows, each)[None])[0]), rows)
    reading = reader.read(question, [candidate.text for candidate in found]) if reader else None
    if reader and reading:
        odds = reader.odds(odds, reading)
    return [round(float(value), 4) for value in _sigmoid(np.array(odds)) * each / each.max()]


def trees_odds(raw: float, rows: NDArray[np.float32]) -> float:
    """Calibrated log-odds that any sentence answers, from what the trees say of the question."""
    facts = _facts()
    return float(facts["trees"] * raw + facts["nearness"] * nearness(rows) + facts["shift"])


def question_features(rows: NDArray[np.float32], each: NDArray[np.float64]) -> NDArray[np.float32]:
    """The row of the best sentence, its score, and that of the second."""
    second, first = np.sort(np.append(each, 0.0))[-2:]
    return np.append(rows[each.argmax()], (first, second)).astype(np.float32)


def nearness(rows: NDArray[np.float32]) -> float:
    """Mean of overlap and cosine of the sentence that is nearest: what tells foreign questions best."""
    return float((rows[:, 0] + np.maximum(rows[:, 1], 0)).max() / 2)


def _raw(model: str, rows: NDArray[np.float32]) -> NDArray[np.float64]:
    raw: NDArray[np.float32] = _trees(model).run(None, {"features": rows})[0][:, 0]
    return raw.astype(np.float64)


def _sigmoid(values: NDArray[np.float64]) -> NDArray[np.float64]:
    likely: NDArray[np.float64] = 1 / (1 + np.exp(-values))
    return likely


def features(question: str, found: Sequence[Candidate], passages: Sequence[str]) -> NDArray[np.float32]:
    """One row of FEATURES for each sentence, shape (len(found), len(FEATURES))."""
    asked = _Asked.of(question)
    read = [Words(text).unique for text in passages]
    everything = frozenset().union(*read)
    overlaps, cosines = ([getattr(c, name) for c in found] for name in ("overlap", "cosine"))
    best_overlap, best_cosine = max(overlaps), max(cosines)
    best_passage = max(c.passage_score for c in found)
    ranked = sorted((o + c for o, c in zip(overlaps, cosines, strict=True)), reverse=True)
    lead = ranked[0] - ranked[1] if len(ranked) > 1 else ranked[0]
    here = [Words(c.text) for c in found]
    rows = [
        [
            c.overlap,
            c.cosine,
            best_overlap - c.overlap,
            best_cosine - c.cosine,
            lead,
            best_cosine,
            best_overlap,
            best_passage - c.passage_score,
            *asked.missing(words, read[c.passage], everything),
            *asked.compared(words),
            *asked.form,
            len(words.stems),
        ]
        for c, words in zip(found, here, strict=True)
    ]
    return np.array(rows, np.float32).reshape(len(rows), len(FEATURES))


@dataclass(frozen=True)
class _Asked:
    """A question, read once for all sentences."""

    words: Words
    text: str
    content: tuple[str, ...]
    names: frozenset[str]
    numbers: frozenset[str]
    pairs: frozenset[tuple[str, str]]
    kind: int

    @classmethod
    def of(cls, question: str) -> "_Asked":
        words = Words(question)
        content = tuple(dict.fromkeys(stem for stem in words.content if stem not in _ASKING))
        return cls(
            words,
            question.lower(),
            content,
            frozenset(_names(words, 1)) & frozenset(content),
            frozenset(word for word in words.lower if word[0].isdigit()),
            frozenset(pairwise(words.stems)),
            next((number for number, kind in enumerate(_KINDS) if kind.search(question)), len(_KINDS)),
        )

    @property
    def form(self) -> list[float]:
        return [
            self.kind,
            len(self.words.stems),
            len(self.content),
            len(self.names),
            len(self.numbers),
            float(any(word in OPPOSITES for word in self.words.lower)),
        ]

    def missing(self, here: Words, passage: frozenset[str], everything: frozenset[str]) -> list[float]:
        """What of the question does not stand in the sentence, its passage, all passages."""
        absent = [stem for stem in self.content if stem not in here.unique]
        farther = [stem for stem in self.content if stem not in passage]
        size = max(1, len(self.content))
        return [
            len(absent),
            len(farther),
            sum(stem not in everything for stem in self.content),
            len(absent) / size,
            len(farther) / size,
            len(self.names - here.unique),
            len(self.names - passage),
            len(self.numbers - passage),
            sum(map(len, farther)),
        ]

    def compared(self, here: Words) -> list[float]:
        """Agreement in wording and meaning, and what is new of the kind that is asked for."""
        known, said = self.words.unique, frozenset(here.lower)
        new = [stem for stem in here.content if stem not in known]
        names = {stem for stem in _names(here, 0) if stem not in known}
        numbers = {word for word in said if word[0].isdigit()} - self.numbers
        years = set(_YEAR.findall(here.text)) - self.numbers
        opposed = sum(
            word not in said and bool(OPPOSITES[word] & said)
            for word in self.words.lower
            if word in OPPOSITES
        )
        right = {
            _NUMBER: bool(numbers),
            _DATE: bool(years or numbers),
            _PERSON: bool(names),
            _PLACE: bool(names),
            _REASON: bool(said & _REASONS),
        }
        return [
            len(self.pairs & frozenset(pairwise(here.stems))) / max(1, len(self.pairs)),
            len(self.words.grams & here.grams) / max(1, len(self.words.grams)),
            opposed,
            sum(word not in said for word in _DEGREE.findall(self.text)),
            float(self.words.negated),
            float(self.words.negated != here.negated),
            len(new),
            len(names),
            len(numbers),
            len(years),
            float(right.get(self.kind, True)),
        ]


def _names(words: Words, first: int) -> list[str]:
    """Stems of capitalised words; the word a question begins with says nothing by its capital."""
    raw, stems = words.raw[first:], words.stems[first:]
    return [stem for word, stem in zip(raw, stems, strict=True) if word[0].isupper() and word != "I"]


@cache
def _facts() -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((_MODELS / "answerability.json").read_text())
    return facts


@cache
def _trees(model: str) -> Any:
    return open_session((_MODELS / f"answerability_{model}.onnx").read_bytes())
