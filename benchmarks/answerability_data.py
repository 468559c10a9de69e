"""Questions of SQuAD and CLAP NQ, where in their passage the answer stands, and which are kept for tests."""

import re
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common import read_jsonl
from knowledge_base.documents import sha256_hex
from knowledge_base.sentences import split_sentences

# A quarter of the titles that have unanswerable questions; chosen before anything was trained.
TEST_TITLES = ("Construction", "Huguenot", "Prime_number", "University_of_Chicago")
_WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True)
class Question:
    """`spans` are the answer's places in the passage: none for a question it does not answer."""

    source: str
    title: str
    question: str
    passage: str
    gold: tuple[str, ...] = ()
    spans: tuple[tuple[int, int], ...] = ()


def held_out(question: Question) -> bool:
    """Whether a question is for tests only: SQuAD by title, CLAP NQ by the hash of the question."""
    if question.source == "clapnq":
        return sha256_hex(question.question.encode())[0] in "01234567"
    return question.title in TEST_TITLES


def squad(data: Path) -> list[Question]:
    """SQuAD 2.0, and of SQuAD 1.1 the articles that 2.0 does not have."""
    found: list[Question] = []
    for version, source in (("2.0", "squad2"), ("1.1", "squad1")):
        folder = data / "squad"
        passages = {row["id"]: row["text"] for row in read_jsonl(folder / f"dev-v{version}.paragraphs.jsonl")}
        known = {q.title for q in found}
        for row in read_jsonl(folder / f"dev-v{version}.questions.jsonl"):
            if source == "squad1" and row["title"] in known:
                continue
            passage, gold = passages[row["paragraph"]], tuple(row["answers"])
            spans = answer_spans(row["question"], passage, gold)
            if bool(gold) == bool(spans):
                found.append(Question(source, row["title"], row["question"], passage, gold, spans))
    return found


def clapnq(data: Path) -> list[Question]:
    """CLAP NQ; an answer is the sentences that its writers chose."""
    found = []
    for row in read_jsonl(data / "clapnq" / "dev_A.jsonl"):
        chosen = sorted({text for selected in row["selected_sentences"] for text in selected})
        places = [(row["passage"].find(text), len(text)) for text in chosen]
        spans = tuple((start, start + length) for start, length in places if start >= 0)
        if row["answerable"] == bool(spans):
            found.append(
                Question("clapnq", row["title"], row["question"], row["passage"], tuple(chosen), spans)
            )
    return found


def answer_spans(question: str, passage: str, gold: tuple[str, ...]) -> tuple[tuple[int, int], ...]:
    """Where the gold answers stand in the sentence that shares most words with the question."""
    asked = set(_WORD.findall(question.lower()))
    best: tuple[int, tuple[tuple[int, int], ...]] = (-1, ())
    for start, end in split_sentences(passage):
        sentence = passage[start:end]
        places = tuple(
            (start + m.start(), start + m.end())
            for text in gold
            for m in re.finditer(re.escape(text), sentence)
        )
        shared = len(asked & set(_WORD.findall(sentence.lower())))
        if places and shared > best[0]:
            best = (shared, places)
    return best[1]
