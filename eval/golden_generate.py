"""Candidate golden rows from the corpus, the answer log and feedback, for people to approve or retire."""

import random
import re
from collections.abc import Iterable, Iterator, Sequence

from eval.golden import GoldenQuestion
from eval.golden_files import make_id
from eval.metrics import OFFLINE, ragas_needed
from knowledge_base.documents import Chunk
from knowledge_base.errors import UsageError
from knowledge_base.home import KnowledgeBase
from knowledge_base.sentences import split_sentences
from knowledge_base.snapshot import Snapshot
from rag.answer import Answer
from rag.answer_log import Feedback

_SENTENCE = re.compile(
    r"(?P<subject>(?:The |A |An )?[A-Za-z][\w'-]*(?: [\w'-]+){0,7}?) "
    r"(?P<verb>is|are|was|were) (?P<rest>[^?]+)"
)
_DEFINES = re.compile(r"(?:an?|the|one of|\d+)\b|[A-Z]")
_VAGUE = re.compile(
    r"(?:it|this|these|those|they|he|she|we|you|i|here|one|some|many|most|such|above|below|if|when|as|in|with|"
    r"so|for|but)\b|.*\b(?:that|which|who|whose|what|where|there)\b",
    re.IGNORECASE,
)
_MARKER = re.compile(r"\s*\[\d+\]")
_LENGTHS = range(20, 301)
_SENTENCE_SOURCE, _HEADING_SOURCE = "generated from a sentence", "generated from a heading"


def from_corpus(snapshot: Snapshot, count: int) -> list[GoldenQuestion]:
    """Up to `count` candidates, made without a model from sentences and headings, one document in turn.

    A sentence "X is a Y" becomes "What is X?", "X is done" "What is known about X?", a heading "What does
    TITLE say about HEADING?". Such questions share words with their source, so they are easier than a
    user's: they guard what is there, and they tell little about how well real questions are answered.
    Their source says where they come from.
    """
    drawn = random.Random(snapshot.release.answers_digest)
    paths = list(snapshot.paths)
    drawn.shuffle(paths)
    made: list[GoldenQuestion] = []
    asked: set[str] = set()
    sources = [_questions(snapshot, path, drawn) for path in paths]
    while sources and len(made) < count:
        remaining = []
        for source in sources:
            row = next((row for row in source if row.id not in asked), None)
            if row is None:
                continue
            asked.add(row.id)
            made.append(row)
            remaining.append(source)
            if len(made) == count:
                break
        sources = remaining
    return made


def _questions(snapshot: Snapshot, path: str, drawn: random.Random) -> Iterator[GoldenQuestion]:
    chunks = snapshot.chunks_in({path})
    drawn.shuffle(chunks)
    title = snapshot.titles(path)
    for chunk in chunks:
        yield from _from_sentences(chunk)
    for chunk in chunks:
        yield from _from_heading(chunk, title)


def _from_sentences(chunk: Chunk) -> Iterator[GoldenQuestion]:
    for sentence in _sentences(chunk):
        match = _SENTENCE.match(sentence)
        if match and not _VAGUE.match(match["subject"]):
            subject = match["subject"]
            article, _, noun = subject.partition(" ")
            subject = f"{article.lower()} {noun}" if article in ("The", "A", "An") else subject
            defines = _DEFINES.match(match["rest"])
            question = f"What {match['verb']} {subject}?" if defines else f"What is known about {subject}?"
            yield _row(question, chunk, sentence, _SENTENCE_SOURCE)


def _from_heading(chunk: Chunk, title: str) -> Iterator[GoldenQuestion]:
    heading = chunk.heading[-1].strip() if chunk.heading else ""
    first = next(_sentences(chunk), "")
    if first and heading and heading != title:
        question = f"What does {title!r} say about {heading!r}?" if title else f"What about {heading!r}?"
        yield _row(question, chunk, first, _HEADING_SOURCE)


def _sentences(chunk: Chunk) -> Iterator[str]:
    for start, end in split_sentences(chunk.text):
        sentence = chunk.text[start:end].strip()
        if len(sentence) in _LENGTHS and sentence[0].isalnum() and sentence.endswith("."):
            yield sentence


def _row(question: str, chunk: Chunk, sentence: str, source: str) -> GoldenQuestion:
    return GoldenQuestion(
        id=make_id(question),
        question=question,
        answer=" ".join(sentence.split()),
        document=chunk.path,
        quote=sentence,
        state="candidate",
        source=source,
        tags=("generated",),
    )


def from_log(answers: Iterable[Answer], count: int) -> list[GoldenQuestion]:
    """Up to `count` candidates from logged questions, those answered with the least certainty first.

    An abstention is the least certain answer; otherwise it is the support of the best citation. The
    document that was cited is proposed as the required one.
    """
    latest = {answer.question: answer for answer in reversed(list(answers))}
    return [_logged(answer) for answer in sorted(latest.values(), key=certainty)[:count]]


def certainty(answer: Answer) -> float:
    """How well the best citation supports an answer, 0 to 1; 0 for an abstention."""
    return max((citation.support for citation in answer.citations), default=0.0)


def _logged(answer: Answer) -> GoldenQuestion:
    best = max(answer.citations, key=lambda citation: citation.support, default=None)
    return GoldenQuestion(
        id=make_id(answer.question),
        question=answer.question,
        document=best.path if best else None,
        state="candidate",
        source=f"log, certainty {certainty(answer):.2f}",
        tags=("logged",),
    )


def from_feedback(given: Iterable[tuple[Answer, Feedback]], count: int) -> list[GoldenQuestion]:
    """Up to `count` candidates from what readers said of answers, complaints first, the newest of each kind.

    A correction is proposed as the reference answer, or the answer itself where it was liked; the document
    of the citation that helped as the required one.
    """
    rows: dict[str, tuple[str, GoldenQuestion]] = {}
    for answer, said in given:
        row = _rated(answer, said)
        rows.setdefault(row.id, (said.rating, row))
    return [row for _, row in sorted(rows.values(), key=lambda one: one[0] != "down")][:count]


def _rated(answer: Answer, said: Feedback) -> GoldenQuestion:
    liked = said.rating == "up" and not answer.abstained
    helped = answer.citations[said.citation - 1].path if liked and said.citation else None
    return GoldenQuestion(
        id=make_id(answer.question),
        question=answer.question,
        answer=said.correction or (_MARKER.sub("", answer.answer) if liked else None),
        document=helped,
        state="candidate",
        source=f"feedback, thumb {said.rating}",
        tags=("feedback",),
    )


def generate_with_model(knowledge_base: KnowledgeBase, count: int) -> list[GoldenQuestion]:
    """Up to `count` candidates by RAGAS's TestsetGenerator with the model of `[judge]` on disk.

    Raises:
        UsageError: There is no such model.
        MissingExtraError: The `eval` extra is not installed.
        ModelError: The model failed.
    """
    settings = knowledge_base.settings()
    if settings.judge.model == OFFLINE:
        raise UsageError(
            "Making questions with a model needs one.", hint="Set judge.model in plumbline.toml."
        )
    with ragas_needed():
        from eval.ragas_metrics import ReleaseEmbeddings
        from eval.ragas_testset import from_model
    release = knowledge_base.release()
    embeddings = ReleaseEmbeddings(knowledge_base.embedder(release.settings.embedder))
    return from_model(settings.judge, embeddings, _sample_chunks(knowledge_base.snapshot(), count), count)


def _sample_chunks(snapshot: Snapshot, count: int) -> Sequence[Chunk]:
    """Up to `count` chunks, at most one of a document."""
    drawn = random.Random(snapshot.release.answers_digest)
    paths = drawn.sample(snapshot.paths, min(count, len(snapshot.paths)))
    found = [snapshot.chunks_in({path}) for path in paths]
    return [drawn.choice(chunks) for chunks in found if chunks]
