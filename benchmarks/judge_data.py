"""Answers with claims that are supported or not: RAGTruth QA, SciFact, and made from SQuAD and CLAP NQ."""

import random
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common import read_jsonl
from knowledge_base.documents import sha256_hex
from knowledge_base.sentences import split_sentences
from rag.evidence import READER, SOURCES
from rag.support import claims

_PASSAGE = re.compile(r"^passage \d+:\s*", re.IGNORECASE)
NAME = re.compile(r"(?<=[a-z,] )[A-Z][\w'-]+(?: [A-Z][\w'-]+)*|\b\d[\d,.]*\d\b")
VERBS = {"is": "is not", "was": "was not", "are": "are not", "were": "were not", "can": "cannot",
          "has": "has never", "had": "had never",
          "did": "did not", "will": "will not", "not": ""}  # fmt: skip


@dataclass(frozen=True)
class Judged:
    """An answer's claims, and for each the parts without support; None when nobody marked the parts."""

    source: str
    question: str
    contexts: tuple[str, ...]
    claims: tuple[str, ...]
    supported: tuple[bool, ...]
    unsupported_parts: tuple[tuple[tuple[int, int], ...] | None, ...]

    @property
    def held_out(self) -> bool:
        """Whether it is for tests only: an eighth, by the hash of the question, or of the claim."""
        return sha256_hex(self.question.encode())[0] in "8c"


def ragtruth(data: Path) -> list[Judged]:
    """RAGTruth QA: answers of four models; a claim is unsupported when a marked span touches it."""
    found = []
    for row in read_jsonl(data / "ragtruth_qa" / "qa_train.jsonl"):
        texts = [_PASSAGE.sub("", text.strip()) for text in row["passages"].split("\n\n") if text.strip()]
        made = claims(row["response"])
        parts = [_inside(row["response"], claim, row["spans"]) for claim in _places(row["response"], made)]
        if not made:
            continue
        found.append(
            Judged(
                "ragtruth",
                row["source_id"],
                tuple(texts),
                tuple(made),
                tuple(not p for p in parts),
                tuple(parts),
            )
        )
    return found


def _places(text: str, made: list[str]) -> Iterator[tuple[int, int]]:
    position = 0
    for claim in made:
        start = max(position, text.find(claim, position))
        position = min(len(text), start + len(claim))
        yield start, position


def _inside(text: str, place: tuple[int, int], spans: list[dict[str, int]]) -> tuple[tuple[int, int], ...]:
    start, end = place
    cut = ((max(s["start"], start) - start, min(s["end"], end) - start) for s in spans)
    # A span that reaches into the next sentence by a full stop or a space marks nothing there.
    return tuple((a, b) for a, b in cut if b - a > 0 and re.search(r"\w", text[start + a : start + b]))


def scifact(data: Path) -> list[Judged]:
    """SciFact: a claim and an abstract that supports it, contradicts it, or says too little."""
    folder = data / "scifact"
    texts = {row["_id"]: row for row in read_jsonl(folder / "corpus.jsonl")}
    found = []
    for row in read_jsonl(folder / "claim_doc_labels_train.jsonl"):
        document = texts[str(row["doc_id"])]
        supported = row["label"] == "SUPPORT"
        context = f"{document['title']}\n\n{document['text']}"
        found.append(
            Judged(
                "scifact",
                row["claim"],
                (context,),
                (row["claim"],),
                (supported,),
                (() if supported else None,),
            )
        )
    return found


def crossed(answers: list[Judged]) -> list[Judged]:
    """Claims beside the contexts of another question: the easy kind of unsupported, which nobody wrote."""
    found = []
    for answer, other in zip(answers[::3], answers[len(answers) // 2 :: 3], strict=False):
        made = tuple(c for c in answer.claims if not SOURCES.search(c) and not READER.search(c))
        if made and answer.question != other.question:
            parts = tuple(((0, len(c)),) for c in made)
            no = (False,) * len(made)
            found.append(Judged("crossed", answer.question, other.contexts, made, no, parts))
    return found


def clapnq(data: Path) -> list[Judged]:
    """CLAP NQ: what its writers say from a passage, supported by it."""
    found = []
    for row in read_jsonl(data / "clapnq" / "dev_A.jsonl"):
        for text in row["answers"][:1]:
            made = tuple(claims(text))
            yes = (True,) * len(made)
            found.append(Judged("clapnq", row["question"], (row["passage"],), made, yes, ((),) * len(made)))
    return [judged for judged in found if judged.claims]


def made_from_squad(data: Path, chance: random.Random) -> list[Judged]:
    """Sentences of SQuAD's paragraphs: as they stand, shortened, changed, or from another paragraph.

    A change puts a name or number of the same article in another's place, or turns a verb around.
    """
    rows = read_jsonl(data / "squad" / "dev-v1.1.paragraphs.jsonl")
    by_title: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        by_title[row["id"].rpartition("#")[0]].append(row["text"])
    found = []
    for title, paragraphs in by_title.items():
        names = [m[0] for text in paragraphs for m in NAME.finditer(text)]
        for paragraph in paragraphs:
            sentences = [paragraph[a:b] for a, b in split_sentences(paragraph) if b - a > 40]
            other = chance.choice(paragraphs)
            foreign = [other[a:b] for a, b in split_sentences(other) if b - a > 40 and other != paragraph]
            for sentence in chance.sample(sentences, min(3, len(sentences))):
                claim, parts = _changed(sentence, names, foreign, chance)
                found.append(Judged("made", title, (paragraph,), (claim,), (not parts,), (parts,)))
    return found


def _changed(
    sentence: str, names: list[str], foreign: list[str], chance: random.Random
) -> tuple[str, tuple[tuple[int, int], ...]]:
    kind = chance.random()
    if kind < 0.4:
        return (shorter(sentence) if chance.random() < 0.7 else sentence), ()
    if kind < 0.5 and foreign:
        text = chance.choice(foreign)
        return text, ((0, len(text)),)
    if kind < 0.65 and (verbs := [m for m in re.finditer(r"\b\w+\b", sentence) if m[0] in VERBS]):
        verb = chance.choice(verbs)
        new = VERBS[verb[0]]
        text = sentence[: verb.start()] + new + sentence[verb.end() :]
        return text, ((verb.start(), verb.start() + max(1, len(new))),)
    if places := list(NAME.finditer(sentence)):
        old = chance.choice(places)
        pool = [n for n in names if n[0].isdigit() == old[0][0].isdigit() and n not in sentence]
        if pool:
            new = chance.choice(pool)
            text = sentence[: old.start()] + new + sentence[old.end() :]
            return text, ((old.start(), old.start() + len(new)),)
    return sentence, ()


def shorter(sentence: str) -> str:
    """Without what stands in brackets and without its last clause: still true, no longer verbatim."""
    text = re.sub(r" ?\([^)]*\)", "", sentence)
    head, comma, _ = text.rpartition(", ")
    return head + "." if comma and len(head) > 40 else text
