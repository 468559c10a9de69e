"""Questions made of sentences: a name, number or word is left out, and what remains asks for it.

Crude as language, but each comes with its answer's place, and there are passages enough to make them of
(Lewis et al. 2019, "Unsupervised Question Answering by Cloze Translation").
"""

import random
import re
from collections.abc import Sequence
from pathlib import Path

from benchmarks.answerability_data import clapnq, held_out
from benchmarks.common import read_jsonl
from benchmarks.training.answer_reader_changes import Changes
from benchmarks.training.answer_reader_data import Example, Reading, Span
from benchmarks.training.answerability_asked import Asked
from knowledge_base.sentences import split_sentences
from rag.evidence import COMMON, Words

_SPAN = re.compile(
    r"(?:[A-Z][\w'-]+(?: (?:of |the |de )?[A-Z][\w'-]+)*|\b\d+(?:[.,]\d+)*%?|\b[a-z]{5,}(?: [a-z]{5,})?\b)"
)
_YEAR = re.compile(r"1\d{3}|20\d\d")
_MIX = {"squad": 0.6, "clapnq": 0.15, "wikitext": 0.1, "scifact": 0.15}
_ABSTRACTS, _TOGETHER, _LEAST = 2500, 6, 3
_SHORTEST = 20

Passage = Sequence[str]
"""The sentences of a passage."""
Item = tuple[str, Passage, int]
"""The sentence that is asked about, what is read, and the sentence's number there."""


def sources(data: Path, training: Sequence[Asked]) -> dict[str, list[Item]]:
    """Sentences of the passages of each set."""
    abstracts = [row["text"] for row in read_jsonl(data / "scifact" / "corpus.jsonl")[:_ABSTRACTS]]
    wikitext = _sentences((data / "chunking_eval" / "corpora" / "wikitexts.md").read_text(encoding="utf-8"))
    passages = {
        "squad": map(_sentences, sorted({a.question.passage for a in training})),
        "clapnq": map(_sentences, sorted({q.passage for q in clapnq(data) if not held_out(q)})),
        "wikitext": (wikitext[i : i + _TOGETHER] for i in range(0, len(wikitext), _TOGETHER)),
        "scifact": map(_sentences, abstracts),
    }
    return {
        name: [(s, texts, i) for texts in some if len(texts) >= _LEAST for i, s in enumerate(texts)]
        for name, some in passages.items()
    }


def _sentences(text: str) -> list[str]:
    return [text[a:b] for a, b in split_sentences(text) if 25 < b - a < 500]


class Cloze:
    """Makes examples of the sources."""

    def __init__(self, reading: Reading, items: dict[str, list[Item]], changes: Changes) -> None:
        self._reading, self._items, self._changes = reading, items, changes

    def examples(self, count: int, chance: random.Random) -> list[Example]:
        """About `count`, fewer where a source gives too few."""
        made: list[Example] = []
        for name, share in _MIX.items():
            wanted = len(made) + count * share
            for _ in range(6 * count):
                if len(made) >= wanted:
                    break
                example = self._example(*chance.choice(self._items[name]), chance)
                if example:
                    made.append(example)
        return made

    def _example(self, about: str, texts: Passage, own: int, chance: random.Random) -> Example | None:
        """Half of them answered; of the others most are spoiled, some do not read the answer's sentence."""
        span = _chosen(about, chance)
        places = [_places(span[0], text) for text in texts] if span else []
        if not span or not any(places):
            return None
        kind = chance.random()
        noise = 0.15 if 0.12 <= kind < 0.5 else chance.choice((0.3, 1.2, 2.0))
        question = self._question(about, span, noise, chance)
        if len(question) < _SHORTEST:
            return None
        if kind < 0.12:
            rest = [text for i, text in enumerate(texts) if not places[i] and i != own]
            return self._unanswered(question, rest, None, chance) if len(rest) > 1 else None
        if kind < 0.5:
            made = self._changes.spoil(question, " ".join(texts), chance)
            return self._unanswered(made.text, texts, made.wrong, chance) if made else None
        places = [spans if i == own else [] for i, spans in enumerate(places)]
        return self._answered(question, texts, places, chance)

    def _unanswered(
        self, question: str, texts: Passage, wrong: Sequence[Span] | None, chance: random.Random
    ) -> Example:
        order = self._order(question, texts, chance)
        return self._reading.example(question, [(texts[i], ()) for i in order], wrong)

    def _answered(
        self, question: str, texts: Passage, places: Sequence[Sequence[Span]], chance: random.Random
    ) -> Example | None:
        order = self._order(question, texts, chance)
        if not any(places[i] for i in order[:2]):
            first = next((i for i in order if places[i]), None)
            if first is None:
                return None
            order = [first, *(i for i in order if i != first)]
        example = self._reading.example(question, [(texts[i], places[i]) for i in order], ())
        return example if example.starts else None

    def _order(self, question: str, texts: Passage, chance: random.Random) -> list[int]:
        """Nearest first, at times the nearest four as they stand."""
        asked = set(Words(question).content)
        order = sorted(
            range(len(texts)), key=lambda i: -len(asked & Words(texts[i]).unique) - chance.random() * 0.7
        )
        return sorted(order[:4]) if chance.random() < 0.3 else order

    def _question(self, text: str, span: re.Match[str], noise: float, chance: random.Random) -> str:
        """A window around what is left out, an asking word, words left out or replaced."""
        before, after = text[: span.start()].split(), text[span.end() :].rstrip(".!? ").split()
        room = chance.randint(6, 16)
        k = chance.randint(0, room)
        after = after[: max(room - k, room - len(before))]
        first = max(k, room - len(after), 0)
        before = self._noisy(before[-first:] if first else [], noise, chance)
        after = self._noisy(after, noise, chance)
        words = _arranged(before, after, _asking(span[0], chance), chance)
        question = " ".join(words)
        return question[:1].upper() + question[1:] + "?"

    def _noisy(self, words: Sequence[str], noise: float, chance: random.Random) -> list[str]:
        kept = []
        for word in words:
            low = word.lower().strip(',.;:()"')
            if chance.random() < (0.3 if low in COMMON else 0.1) * noise:
                continue
            if word.islower() and self._changes.like.get(low) and chance.random() < 0.2 * noise:
                word = chance.choice(self._changes.like[low])
            kept.append(word.strip('()"'))
        return kept


def _arranged(before: list[str], after: list[str], asking: str, chance: random.Random) -> list[str]:
    form = chance.random()
    if form < 0.3:
        return [*before, asking, *after]
    if form < 0.6:
        if after:
            return [asking, *after, *before]
        return [asking, chance.choice(("did", "was", "is", "does")), *before]
    if form < 0.85:
        return [asking, chance.choice(("did", "was", "is", "does", "were", "has")), *before, *after]
    return [*after, *before, asking] if chance.random() < 0.3 else [*before, *after, asking]


def _asking(span: str, chance: random.Random) -> str:
    """A word that asks for such a thing."""
    if _YEAR.fullmatch(span):
        return chance.choice(("when", "what year", "in what year", "which year"))
    if span[0].isdigit():
        share = "what percentage" if "%" in span else "how many"
        return chance.choice(("how many", "how much", "what number of", share))
    if span[0].isupper():
        return chance.choice(("who", "what", "which", "where", "what", "who"))
    return chance.choice(("what", "what", "what", "which", "how", "what type of", "why"))


def _chosen(text: str, chance: random.Random) -> re.Match[str] | None:
    """What to ask for: more often a name or a number than a word."""
    found = [
        m
        for m in _SPAN.finditer(text)
        if m[0].split()[0].lower() not in COMMON and (m.start() or len(m[0].split()) > 1)
    ]
    big = [m for m in found if m[0][0].isupper() or m[0][0].isdigit()]
    if big and chance.random() < 0.6:
        return chance.choice(big)
    return chance.choice(found) if found else None


def _places(span: str, text: str) -> list[Span]:
    return [m.span() for m in re.finditer(rf"(?<!\w){re.escape(span)}(?!\w)", text, re.IGNORECASE)]
