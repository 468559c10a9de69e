"""What the judge's reader is trained on: contexts with the answers that belong to them, as tokens.

Beside the marked answers stands one that is made anew in each round, of sentences of the contexts and of
supported claims: as they are, shortened, or with names exchanged, turned round or a verb negated.
"""

import random
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from benchmarks import judge_data
from benchmarks.judge_data import NAME, VERBS, Judged, shorter
from knowledge_base.documents import sha256_hex
from knowledge_base.sentences import split_sentences
from rag.evidence import Evidence, Words
from rag.support_reader import Piece, Token, read_claims, read_contexts

FOLDS = 3
_MADE_CLAIMS = 5
_NO_LABEL = -1
Parts = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Run:
    """Claims that are read together: `tokens` are labelled 1 where not supported, -1 where nobody knows.

    `claims` are the numbers of the claims, each with 1 when it is not supported; `answer` is whose they are.
    """

    piece: Piece
    tokens: list[int]
    claims: list[tuple[int, int]]
    answer: int


@dataclass(frozen=True)
class Pack:
    """Contexts, and all that was said beside them."""

    contexts: tuple[str, ...]
    read: list[Token]
    runs: list[Run]
    question: str

    @property
    def size(self) -> int:
        """Tokens."""
        return len(self.read) + sum(len(run.piece.tokens) for run in self.runs)


@cache
def evidence(contexts: tuple[str, ...]) -> Evidence:
    """The contexts, read once."""
    return Evidence.of(contexts)


def fold(question: str) -> int:
    """One of FOLDS parts of the questions; part 0 never trains the reader."""
    return int(sha256_hex(question.encode())[1:3], 16) % FOLDS


def packs(answers: Sequence[Judged], room: int) -> list[Pack]:
    """Answers by contexts, which are cut to `room` tokens."""
    groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for number, answer in enumerate(answers):
        groups[answer.contexts].append(number)
    found = []
    for contexts, members in groups.items():
        said = [Words(claim) for number in members for claim in answers[number].claims]
        runs = [run for number in members for run in runs_of(answers[number], number)]
        read = read_contexts(evidence(contexts), said, contexts, room)
        found.append(Pack(contexts, read, runs, answers[members[0]].question))
    return found


def runs_of(answer: Judged, number: int) -> list[Run]:
    """The runs of an answer's claims, with their labels."""
    found = []
    for piece in read_claims(answer.claims, evidence(answer.contexts)):
        labels = [
            _label(answer.unsupported_parts[claim], place) if claim >= 0 else _NO_LABEL
            for claim, place in zip(piece.claims, piece.places, strict=True)
        ]
        claims = [(c, int(not answer.supported[c])) for c in dict.fromkeys(piece.claims) if c >= 0]
        found.append(Run(piece, labels, claims, number))
    return found


def _label(parts: Parts | None, place: tuple[int, int]) -> int:
    if parts is None:
        return _NO_LABEL
    return int(any(start < place[1] and place[0] < end for start, end in parts))


class Maker:
    """Makes answers; `chance` decides how."""

    def __init__(self, packed: Sequence[Pack], answers: Sequence[Judged], chance: random.Random) -> None:
        self._chance = chance
        self._said: dict[tuple[str, ...], list[str]] = {pack.contexts: [] for pack in packed}
        for pack in packed:
            for run in pack.runs:
                given = zip(answers[run.answer].claims, answers[run.answer].supported, strict=True)
                self._said[pack.contexts] += [claim for claim, good in given if good and len(claim) > 30]
        self._foreign = [claim for said in self._said.values() for claim in said]

    def runs(self, contexts: tuple[str, ...]) -> list[Run]:
        """An answer of up to five claims, about half of them wrong."""
        chance = self._chance
        sentences = [c[a:b] for c in contexts for a, b in split_sentences(c) if 30 < b - a < 400]
        names = [m[0] for c in contexts for m in NAME.finditer(c)]
        said = self._said[contexts]
        pool = chance.sample(sentences, min(_MADE_CLAIMS, len(sentences)))
        pool += chance.sample(said, min(_MADE_CLAIMS, len(said)))
        chance.shuffle(pool)
        made = [self._claim(sentence, names) for sentence in pool[:_MADE_CLAIMS]]
        claims, parts = tuple(text for text, _ in made), tuple(parts for _, parts in made)
        return runs_of(Judged("made", "", contexts, claims, tuple(not p for p in parts), parts), _NO_LABEL)

    def _claim(self, sentence: str, names: list[str]) -> tuple[str, Parts]:
        kind = self._chance.random()
        changed: tuple[str, Parts] | None = None
        if kind < 0.5:
            changed = _changed(sentence, names, self._chance)
        elif kind < 0.58 and self._foreign:
            text = self._chance.choice(self._foreign)
            changed = text, ((0, len(text)),)
        return changed or (shorter(sentence) if self._chance.random() < 0.5 else sentence, ())


def _changed(sentence: str, names: list[str], chance: random.Random) -> tuple[str, Parts] | None:
    """The sentence with a verb negated, two names turned round, or another name; None where it has none."""
    kind = chance.random()
    places = list(NAME.finditer(sentence))
    if kind < 0.3 and (verbs := [m for m in re.finditer(r"\b\w+\b", sentence) if m[0] in VERBS]):
        verb = chance.choice(verbs)
        return _replaced(sentence, verb, VERBS[verb[0]])
    if kind < 0.55 and len(places) > 1 and (turned := _turned(sentence, places, chance)):
        return turned
    if places:
        old = chance.choice(places)
        pool = [n for n in names if n[0].isdigit() == old[0][0].isdigit() and n not in sentence]
        if pool:
            return _replaced(sentence, old, chance.choice(pool))
    return None


def _replaced(sentence: str, old: re.Match[str], new: str) -> tuple[str, Parts]:
    text = sentence[: old.start()] + new + sentence[old.end() :]
    return text, ((old.start(), old.start() + max(1, len(new))),)


def _turned(sentence: str, places: list[re.Match[str]], chance: random.Random) -> tuple[str, Parts] | None:
    first, second = sorted(chance.sample(places, 2), key=lambda m: m.start())
    between = sentence[first.end() : second.start()]
    # "X and Y" turned round says the same.
    same = re.fullmatch(r",? ?(and|or|,|&|to|-)? ?", between)
    if same or first[0] == second[0] or first[0][0].isdigit() != second[0][0].isdigit():
        return None
    text = sentence[: first.start()] + second[0] + between + first[0] + sentence[second.end() :]
    start = first.start() + len(second[0]) + len(between)
    return text, ((first.start(), first.start() + len(second[0])), (start, start + len(first[0])))


def marked(data: Path) -> dict[str, list[Judged]]:
    """The sets without what is for tests only."""
    sets = {
        "ragtruth": judge_data.ragtruth(data),
        "scifact": judge_data.scifact(data),
        "made": judge_data.made_from_squad(data, random.Random(0)),
        "clapnq": judge_data.clapnq(data),
    }
    return {name: [a for a in answers if not a.held_out] for name, answers in sets.items()}
