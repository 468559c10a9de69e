"""What is found for the questions that the answerability score learns from.

A knowledge base of all SQuAD paragraphs and half of CLAP NQ is asked every question of the training titles,
so the score learns from what retrieval finds. Foreign questions are made by taking a question's own article
out of what was found. It is kept in one file, which holds text and is not shipped.
"""

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.abstention import build
from benchmarks.answerability_data import Question, clapnq, held_out, squad
from benchmarks.common import data_folder, scratch
from knowledge_base.embedders import Embedder
from rag.answer import Context
from rag.answerability import Candidate
from rag.engine import Engine
from rag.extractive import candidates

# Passages searched, so that five are left when a question's own article is taken out.
_DEPTH, _READ = 20, 5


@dataclass(frozen=True)
class Asked:
    """A question with the sentences found for it, nearest first; `foreign`: its own article was taken out.

    `spans` are the places of the gold answer in each sentence, in characters.
    """

    question: Question
    found: tuple[Candidate, ...]
    passages: tuple[str, ...]
    spans: tuple[tuple[tuple[int, int], ...], ...]
    foreign: bool = False

    @property
    def answerable(self) -> bool:
        """Whether what was searched holds an answer."""
        return bool(self.question.gold) and not self.foreign

    @property
    def right(self) -> NDArray[np.float64]:
        """1 for each sentence that holds the answer."""
        return np.array([bool(spans) for spans in self.spans], np.float64)


class Remembered:
    """An embedder that embeds each text once: the questions share their sentences."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self._known: dict[str, NDArray[np.float32]] = {}

    def embed_documents(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """As the embedder does."""
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if new:
            self._known.update(zip(new, self._embedder.embed_documents(new), strict=True))
        return np.array([self._known[text] for text in texts])

    def embed_query(self, text: str) -> NDArray[np.float32]:
        """As the embedder does."""
        return self._embedder.embed_query(text)


def ask(engine: Engine, questions: Sequence[Question]) -> list[Asked]:
    """Ask every question; every third one once more without its own article."""
    remembered: Any = Remembered(engine.embedder)
    passages: dict[str, set[str]] = {}
    for q in questions:
        passages.setdefault(q.title, set()).add(q.passage)
    asked = []
    for number, q in enumerate(questions):
        found = engine.search(q.question, _DEPTH)
        asked += _asked(q, found[:_READ], remembered, foreign=False)
        if number % 3 == 0 or q.source == "clapnq":
            others = [c for c in found if not any(c.text in p for p in passages[q.title])]
            asked += _asked(q, others[:_READ], remembered, foreign=True)
        if number % 500 == 0:
            print(f"{number} of {len(questions)} questions asked", flush=True)
    return asked


def _asked(q: Question, contexts: Sequence[Context], embedder: Any, *, foreign: bool) -> list[Asked]:
    found = candidates(q.question, contexts, embedder, "english")
    if not found:
        return []
    spans = [
        () if foreign or context.text not in q.passage else _places(candidate.text, q)
        for context, _, candidate in found
    ]
    sentences = tuple(candidate for _, _, candidate in found)
    return [Asked(q, sentences, tuple(c.text for c in contexts), tuple(spans), foreign)]


def _places(sentence: str, q: Question) -> tuple[tuple[int, int], ...]:
    """Where the gold answer stands in a sentence of its passage."""
    if q.source == "clapnq":
        chosen = any(text in sentence or sentence in text for text in q.gold)
        return ((0, len(sentence)),) if chosen else ()
    low = sentence.lower()
    places = ((low.find(text.lower()), len(text)) for text in dict.fromkeys(q.gold))
    return tuple((start, start + length) for start, length in places if start >= 0)


def asked_once(memory: Path) -> list[Asked]:
    """What was found, read from `memory`; written there the first time, which takes minutes."""
    if memory.exists():
        known: list[Asked] = pickle.loads(memory.read_bytes())
        return known
    data = data_folder()
    every = squad(data) + clapnq(data)
    training = [q for q in every if not held_out(q)]
    passages = {q.passage for q in every if q.source != "clapnq" or not held_out(q)}
    with scratch() as name:
        engine = build(Path(name), sorted(passages))
        asked = ask(engine, training)
        engine.close()
    memory.write_bytes(pickle.dumps(asked))
    return asked
