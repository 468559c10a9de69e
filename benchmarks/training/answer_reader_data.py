"""What the answer reader learns from: questions beside the sentences found for them.

Labels are the places of the answer in the sentences and, of a question that was made unanswerable, those of
the words that were changed.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from benchmarks.answerability_data import Question
from benchmarks.training.answer_reader_changes import Changes
from benchmarks.training.answerability_asked import Asked
from knowledge_base.sentences import split_sentences
from rag.answer_reader import QUESTION, Page, encode

Span = tuple[int, int]
Sentence = tuple[str, Sequence[Span]]
"""A sentence, and where in it the answer stands, in characters."""

DEV_TITLES = ("Force", "Islamism")
"""Two of SQuAD 2.0's articles: training is watched on them, and the scores are calibrated."""
_UNKNOWN = -1
_KEPT = frozenset("what who when where which how not".split())  # noqa: SIM905 - as in rag.evidence
# Not every change takes the answer away; and SQuAD 1.1, where all is answered, must not teach that all is.
_DOUBTED = 0.7


@dataclass(frozen=True)
class Example:
    """What is read, and the labels of its tokens.

    `starts` and `ends` are positions of the answer's first and last tokens, none where nothing answers.
    `wrong` says of each token of the question whether it was changed, else _UNKNOWN.
    """

    page: Page
    starts: list[int]
    ends: list[int]
    wrong: list[int]
    weight: float


class Reading:
    """Makes examples with a tokenizer."""

    def __init__(self, tokenizer: bytes) -> None:
        self._tokenizer: Any = Tokenizer.from_buffer(tokenizer)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    def example(
        self,
        question: str,
        sentences: Sequence[Sentence],
        wrong: Sequence[Span] | None = None,
        weight: float = 1.0,
    ) -> Example:
        """The first page. `wrong`: characters of the question that were changed; None where not known.

        Raises:
            ValueError: The question or all sentences are without a token.
        """
        pages = self._pages(question, sentences)
        if not pages:
            raise ValueError(f"nothing to read: {question!r} beside {len(sentences)} sentences")
        return _labelled(pages[0], sentences, wrong, weight)

    def examples(self, question: str, sentences: Sequence[Sentence]) -> list[Example]:
        """One of each page, as a question is asked that nobody changed."""
        return [_labelled(page, sentences, None, 1.0) for page in self._pages(question, sentences)]

    def _pages(self, question: str, sentences: Sequence[Sentence]) -> list[Page]:
        return encode(self._tokenizer, question, [text for text, _ in sentences])


def _labelled(
    page: Page, sentences: Sequence[Sentence], wrong: Sequence[Span] | None, weight: float
) -> Example:
    example = Example(page, [], [], [_UNKNOWN] * len(page.ids), weight)
    for number, (_, spans) in enumerate(sentences):
        for span in spans:
            inside = [i for i, place in enumerate(page.places) if place[0] == number and _in(span, place)]
            if inside:
                example.starts.append(inside[0])
                example.ends.append(inside[-1])
    for i, place in enumerate(page.places):
        if wrong is not None and page.segments[i] == QUESTION:
            example.wrong[i] = int(any(_in(span, place) for span in wrong))
    return example


def _in(span: Span, place: tuple[int, int, int]) -> bool:
    """Whether a token's characters touch the span."""
    return place[1] < span[1] and place[2] > span[0]


def split(asked: Sequence[Asked], kept: Sequence[str] = DEV_TITLES) -> tuple[list[Asked], list[Asked]]:
    """What to learn from, and SQuAD 2.0's questions on the titles that are kept out of it."""
    squad = [a for a in asked if a.question.source != "clapnq"]
    dev = [a for a in squad if a.question.title in kept and not a.foreign]
    return [a for a in squad if a.question.title not in kept], dev


def found(asked: Asked) -> list[Sentence]:
    """The sentences found for a question, with the places of its answer."""
    return [(c.text, spans) for c, spans in zip(asked.found, asked.spans, strict=True)]


def views(
    reading: Reading, asked: Sequence[Asked], changes: Changes, chance: random.Random
) -> Iterator[Example]:
    """The questions as one epoch shows them: other sentences, words left out, some made unanswerable."""
    for one in asked:
        q = one.question
        if one.foreign:
            if chance.random() < 0.15:
                yield reading.example(q.question, found(one))
            continue
        read = _shown(one, chance)
        text = q.question if chance.random() < 0.7 else _thinned(q.question, chance)
        if not one.answerable:
            yield reading.example(text, _silent(read))
            continue
        if not any(spans for _, spans in read[:2]):
            read = [sentence for sentence in read if not sentence[1]]
            read.insert(chance.randint(0, 1), _gold(q))
        weight = _DOUBTED if q.source == "squad1" else 1.0
        example = reading.example(text, read, (), weight)
        if example.starts:
            yield example
        # SQuAD 2.0 has unanswerable questions of its own.
        often = 0.55 if q.source == "squad1" else 0.33
        if chance.random() < often and (made := changes.spoil(q.question, q.passage, chance)):
            yield reading.example(made.text, _silent(read), made.wrong, _DOUBTED)
        if chance.random() < 0.12:
            rest = [sentence for sentence in found(one) if not sentence[1]]
            if len(rest) > 2:
                yield reading.example(text, rest, weight=_DOUBTED)


def _shown(one: Asked, chance: random.Random) -> list[Sentence]:
    """Three to five of the sentences found; the nearest three at times in another order, or one left out."""
    read = found(one)
    count = chance.choice((3, 4, 5))
    if chance.random() < 0.35:
        head = list(range(len(read)))[:3]
        chance.shuffle(head)
        read[:3] = [read[i] for i in head]
    if chance.random() < 0.15:
        read.pop(chance.randrange(1, 4) if len(read) > 4 else -1)
    return read[:count]


def _silent(read: Sequence[Sentence]) -> list[Sentence]:
    return [(text, ()) for text, _ in read]


def _gold(q: Question) -> Sentence:
    """The sentence of the passage that answers."""
    for start, end in split_sentences(q.passage):
        spans = [(a - start, b - start) for a, b in q.spans if start <= a < end]
        if spans:
            return q.passage[start:end], spans
    return q.passage[:400], q.spans


def _thinned(question: str, chance: random.Random) -> str:
    words = question.split()
    return " ".join(w for w in words if chance.random() > 0.06 or not w.islower() or w in _KEPT)


def batches(examples: Sequence[Example], tokens: int, chance: random.Random) -> list[list[Example]]:
    """Examples of like length together, at most `tokens` in a batch with its padding, in random order."""
    made: list[list[Example]] = [[]]
    for example in sorted(examples, key=lambda e: len(e.page.ids) + chance.random() * 16):
        if made[-1] and len(example.page.ids) * (len(made[-1]) + 1) > tokens:
            made.append([])
        made[-1].append(example)
    chance.shuffle(made)
    return made
