"""Reads a question beside the sentences that were found: what counting cannot see of an answer.

all-mpnet-base-v2 with changed weights and a null answer (Devlin et al. 2019): is there a place that answers,
which words of the question are wrong, does any of it answer. Optional: its weights are not in Plumbline's own
packages (`answer.reader`, docs/answerability.md). Trained by benchmarks/training/answer_reader.py.
"""

import json
import math
import threading
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from knowledge_base.documents import sha256_hex
from knowledge_base.durable import exclusive_lock
from knowledge_base.embedders import run_apart
from knowledge_base.errors import EmbedderError
from rag.encoder_graph import Floats, open_session
from rag.evidence import COMMON, STEMMER, TOKEN, word_of_each

KINDS = 14
_PLAIN, _PAIRED, _SHARED, _NOVEL, _NAME, _NOVEL_NAME, _NUMBER, _NOVEL_NUMBER = range(8)
_READ, _READ_NAME, _READ_NUMBER, _ASKED = 8, 9, 10, 3
"""Kinds of what is read; _ASKED is added to that of a word that the question holds too."""
SPECIAL, QUESTION, SENTENCE = 0, 1, 2
PAGES, READ_TOKENS, QUESTION_TOKENS = 2, 112, 48
_LEAST_ROOM = 8
_CLS, _SEP = 0, 2
_MODELS = Path(__file__).parent / "models"
ADAPTER = _MODELS / "answer_reader.safetensors"
FACTS = _MODELS / "answer_reader.json"
_WAIT_SECONDS = 600.0
TREES_AT_MOST = 1.0
"""Log-odds above which it does not count how sure the trees are: what is left then is to be read."""
_HEADS = ("tokens.", "mix.", "weigh")
_LONGEST = 512
"""Tokens that MPNet has places for; no page has so many."""
_OPENED: "weakref.WeakValueDictionary[Path, AnswerReader]" = weakref.WeakValueDictionary()
_OPENING = threading.Lock()


@dataclass(frozen=True)
class Reading:
    """What the reader says of a question and its sentences.

    `span` are the log-odds that a place in them is the answer, `answers` those that any of them answers,
    in view of the former and of the words of the question that look wrong.
    """

    span: float
    answers: float


@dataclass
class Page:
    """`[CLS] sentence [SEP] ... [SEP] question [SEP]`, a number in each list for each token.

    `segments` says what it is part of; `places` has the number of its sentence (-1: none) and the characters
    that it stands for in it or in the question.
    """

    ids: list[int] = field(default_factory=list)
    kinds: list[int] = field(default_factory=list)
    segments: list[int] = field(default_factory=list)
    places: list[tuple[int, int, int]] = field(default_factory=list)

    def add(self, token: int, kind: int, segment: int, place: tuple[int, int, int] = (-1, 0, 0)) -> None:
        """One more token."""
        self.ids.append(token)
        self.kinds.append(kind)
        self.segments.append(segment)
        self.places.append(place)


class _Text:
    """Tokens of a text, the word that each is of, and what is known of the words."""

    def __init__(self, tokenizer: Any, text: str) -> None:
        encoding = tokenizer.encode(text, add_special_tokens=False)
        words = list(TOKEN.finditer(text))
        self.ids: list[int] = encoding.ids
        self.spans: list[tuple[int, int]] = encoding.offsets
        self.owners = word_of_each(encoding.offsets, words)
        self.lower = [word[0].lower() for word in words]
        self.stems: list[str] = STEMMER.stemWords(self.lower)
        self.names = [i > 0 and word[0][0].isupper() and word[0] != "I" for i, word in enumerate(words)]


def encode(tokenizer: Any, question: str, sentences: Sequence[str]) -> list[Page]:
    """What the model sees: the sentences, nearest first, on at most PAGES pages, each with the question.

    A sentence for which a page has no room left stands on the next one. None are made when either side has
    no token: then there is nothing to read.
    """
    asked = _Text(tokenizer, question)
    left = [(number, _Text(tokenizer, sentence)) for number, sentence in enumerate(sentences)]
    left = [(number, text) for number, text in left if text.ids]
    pages: list[Page] = []
    while left and asked.ids and len(pages) < PAGES:
        parts: list[tuple[int, _Text]] = []
        room = READ_TOKENS
        for number, text in left:
            if room >= _LEAST_ROOM and (not parts or len(text.ids) <= room):
                parts.append((number, text))
                room -= len(text.ids)
        left = [part for part in left if part not in parts]
        pages.append(_page(asked, parts))
    return pages


def _page(asked: _Text, parts: Sequence[tuple[int, _Text]]) -> Page:
    page = Page()
    page.add(_CLS, _READ, SPECIAL)
    content = {s for s, word in zip(asked.stems, asked.lower, strict=True) if word not in COMMON}
    for number, text in parts:
        kinds = _read_kinds(text, content)
        for i in range(min(READ_TOKENS, len(text.ids))):
            page.add(text.ids[i], kinds[text.owners[i]], SENTENCE, (number, *text.spans[i]))
        page.add(_SEP, _READ, SPECIAL)
    kinds = _asked_kinds(asked, [text.stems for _, text in parts])
    for i in range(min(QUESTION_TOKENS, len(asked.ids))):
        page.add(asked.ids[i], kinds[asked.owners[i]], QUESTION, (-1, *asked.spans[i]))
    page.add(_SEP, _PLAIN, SPECIAL)
    return page


def _read_kinds(text: _Text, asked: set[str]) -> list[int]:
    """Kind of each word of a sentence; the last is that of what is no word."""
    kinds = []
    for word, stem, name in zip(text.lower, text.stems, text.names, strict=True):
        kind = _READ_NUMBER if word[0].isdigit() else _READ_NAME if name else _READ
        kinds.append(kind + _ASKED if stem in asked else kind)
    return [*kinds, _READ]


def _asked_kinds(asked: _Text, read: Sequence[Sequence[str]]) -> list[int]:
    """Kind of each word of the question beside the stems of the sentences; the last is that of no word."""
    stems = asked.stems
    every = {stem for part in read for stem in part}
    pairs = {pair for part in read for pair in pairwise(part)}
    kinds = []
    for i, (word, stem, name) in enumerate(zip(asked.lower, stems, asked.names, strict=True)):
        known = stem in every
        if word in COMMON:
            kinds.append(_PLAIN)
        elif word[0].isdigit():
            kinds.append(_NUMBER if known else _NOVEL_NUMBER)
        elif name:
            kinds.append(_NAME if known else _NOVEL_NAME)
        elif not known:
            kinds.append(_NOVEL)
        else:
            paired = tuple(stems[i - 1 : i + 1]) in pairs or tuple(stems[i : i + 2]) in pairs
            kinds.append(_PAIRED if paired else _SHARED)
    return [*kinds, _PLAIN]


class AnswerReader:
    """The model, opened. Safe to share between threads."""

    def __init__(self, folder: Path, weighed: Mapping[str, float]) -> None:
        from tokenizers import Tokenizer

        self.folder = folder
        self._session = open_session(str(folder / "model.onnx"))
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        self._heads = {name: value for name, value in adapter().items() if name.startswith(_HEADS)}
        self._weighed = weighed

    def read(self, question: str, sentences: Sequence[str]) -> Reading | None:
        """Read the question beside the sentences, nearest first; None when either has no token."""
        pages = encode(self.tokenizer, question, sentences)
        return together(map(self._read, pages)) if pages else None

    def _read(self, page: Page) -> Reading:
        feed = {"ids": np.array(page.ids), "kinds": np.array(page.kinds), "near": buckets(len(page.ids))}
        vectors: Floats = self._session.run(None, feed)[0]
        return judged(self._heads, vectors, np.array(page.segments))

    def odds(self, trees: float, reading: Reading) -> float:
        """Log-odds that any sentence answers, from those by the trees alone and what was read."""
        seen = {"trees": min(trees, TREES_AT_MOST), **vars(reading)}
        return sum((self._weighed[name] * value for name, value in seen.items()), self._weighed["shift"])


def together(readings: Iterable[Reading]) -> Reading:
    """What pages say together, taken one by one: an answer on any of them is one.

    Where a page answers more likely than not, no further one is asked for.
    """
    read = []
    for reading in readings:
        read.append(reading)
        if reading.answers > 0:
            break
    span, answers = np.array([(one.span, one.answers) for one in read]).T
    return Reading(_log_sum(span), _log_sum(answers))


def judged(trained: Mapping[str, Floats], vectors: Floats, segments: NDArray[np.int64]) -> Reading:
    """The reading from the vectors of the tokens, shape (T, WIDTH)."""
    read, asked = segments == SENTENCE, segments == QUESTION
    start, end, wrong = (vectors @ trained["tokens.weight"].T + trained["tokens.bias"]).T.astype(np.float64)
    # The first token stands for "no answer".
    span = float(_log_sum(start[read]) - start[0] + _log_sum(end[read]) - end[0])
    most = _log_sum(wrong[asked])
    likely = _softmax(start, read) + _softmax(end, read)
    likely /= likely.sum() + 1e-6
    whole = np.concatenate([vectors[0], vectors[asked].mean(0), likely @ vectors])
    hidden = trained["mix.0.weight"] @ whole + trained["mix.0.bias"]
    hidden *= [(1 + math.erf(x * 2**-0.5)) / 2 for x in hidden.tolist()]
    logit = trained["mix.3.weight"][0] @ hidden + trained["mix.3.bias"][0]
    return Reading(span, float(logit + trained["weigh"] @ (span, most)))


def _log_sum(logits: NDArray[np.float64]) -> float:
    top = logits.max()
    return float(top + np.log(np.exp(logits - top).sum()))


def _softmax(logits: NDArray[np.float64], read: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Probabilities over the first token and what is read; 0 for all but the latter."""
    total = np.logaddexp(logits[0], _log_sum(logits[read]))
    likely: NDArray[np.float64] = np.where(read, np.exp(np.where(read, logits, total) - total), 0.0)
    return likely


def buckets(length: int) -> NDArray[np.int64]:
    """Which of MPNet's 32 relative positions a token sees another at, shape (length, length).

    Exact up to eight tokens away, then by logarithm up to 128 (Raffel et al. 2020).
    """
    return np.ascontiguousarray(_buckets()[:length, :length])


@cache
def _buckets() -> NDArray[np.int64]:
    place = np.arange(_LONGEST)
    ahead = place[None, :] - place[:, None]
    away = np.abs(ahead)
    with np.errstate(divide="ignore"):
        far = 8 + (np.log(away.astype(np.float32) / np.float32(8)) / np.float32(math.log(16)) * 8)
    far = np.minimum(np.where(away < 8, 0, far).astype(np.int64), 15)
    found: NDArray[np.int64] = np.where(away < 8, away, far) + 16 * (ahead > 0)
    return found


def facts() -> dict[str, Any]:
    """What rag/models/answer_reader.json says: hashes, rank, and how the scores are weighed."""
    found: dict[str, Any] = json.loads(FACTS.read_text())
    return found


def open_reader(cache_folder: Path) -> AnswerReader:
    """The reader, one for all who hold it; its graph is put together in `cache_folder` the first time.

    Raises:
        EmbedderError: The base model is damaged, has other weights than the reader was trained on, or the
            graph cannot be put together or loaded.
        MissingExtraError: The base model is not installed.
    """
    from rag.answer_reader_graph import INSTALL, RECIPE, check_installed

    known = facts()
    key = sha256_hex(known["adapter"].encode() + known["base"].encode() + RECIPE)
    folder = cache_folder / f"reader-{key[:32]}"
    with _OPENING:
        if reader := _OPENED.get(folder):
            return reader
        if not is_built(folder):
            check_installed()
            with exclusive_lock(cache_folder / ".exporting", wait_seconds=_WAIT_SECONDS):
                if not is_built(folder) and (problem := run_apart("rag.answer_reader_graph", str(folder))):
                    raise EmbedderError(
                        f"The reader cannot be put together: {problem}", hint=f"Run: {INSTALL}"
                    )
        try:
            reader = _OPENED[folder] = AnswerReader(folder, known["weighed"])
        except Exception as error:
            raise EmbedderError(
                f"The reader in {folder} cannot be loaded: {error}.",
                hint="Delete that folder; it is made again by the next command.",
            ) from error
        return reader


def is_built(folder: Path) -> bool:
    """Whether a graph lies there with its tokenizer."""
    return (folder / "model.onnx").exists() and (folder / "tokenizer.json").exists()


def adapter() -> dict[str, Floats]:
    """What was trained: low-rank changes of the base's matrices, and all else whole."""
    from safetensors.numpy import load

    return {name: value.astype(np.float32) for name, value in load(ADAPTER.read_bytes()).items()}
