"""The answerer without a language model: it quotes the sentences that answer, or abstains.

Sentences are found by what they share with the question: its terms, weighted by how rare each is in the
retrieved passages, and the cosine of the two vectors. A trained score then tells which of the nearest
answers, if any (rag/answerability.py). No word is ever written that does not stand in a document.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from knowledge_base.embedders import Embedder
from knowledge_base.lexical import Analyzer
from knowledge_base.orders import is_order
from rag.answer import Context
from rag.answerability import Candidate, answering
from rag.quotable import Quotable, quotables, shown

if TYPE_CHECKING:
    from rag.answer_reader import AnswerReader

_WORDS = re.compile(r"[^\W\d_]{2,}")
_QUESTION_WORDS = frozenset(
    """
    a an and are as at be by can could do does did for from had has have how i if in is it its me my of on or
    our should so that the their them there these they this to us was we were what when where which who whom
    whose why will with would you your
    """.split()  # noqa: SIM905 - a list of quoted words is no easier to read
)
_PASSAGES_READ = 5
_SENTENCES_EMBEDDED = 24
_SENTENCES_JUDGED = 8


@dataclass(frozen=True)
class Sentence:
    """A sentence of a retrieved passage, or a row; `start` and `end` count in the document's text.

    `said` is how it stands in an answer.
    """

    context: Context
    start: int
    end: int
    text: str
    said: str
    support: float = 0.0


def find_support(
    question: str,
    contexts: Sequence[Context],
    embedder: Embedder,
    language: str,
    reader: "AnswerReader | None" = None,
) -> list[Sentence]:
    """Sentences of the passages with how well each supports an answer (0 to 1), best first."""
    found = candidates(question, contexts, embedder, language)
    passages = [context.text for context in contexts[:_PASSAGES_READ]]
    supports = answering(question, [candidate for _, _, candidate in found], passages, reader)
    scored = [
        _sentence(context, part, support) for (context, part, _), support in zip(found, supports, strict=True)
    ]
    return sorted(scored, key=lambda s: (-s.support, -s.context.score, s.context.path, s.start))


def candidates(
    question: str, contexts: Sequence[Context], embedder: Embedder, language: str
) -> list[tuple[Context, Quotable, Candidate]]:
    """The sentences nearest to the question by words and vectors, nearest first."""
    analyzer = Analyzer(language)
    found = [
        (number, context, part)
        for number, context in enumerate(contexts[:_PASSAGES_READ])
        for part in quotables(context)
        if not is_order(context.text[part.start : part.end])
    ]
    if not found:
        return []
    asked = _question_terms(question, analyzer)
    terms = [Counter(analyzer.terms(part.searched)) for _, _, part in found]
    weights = _rarity(asked, terms)
    overlap = [sum(weights[t] for t in asked if t in counts) for counts in terms]
    # A cosine costs milliseconds, so only the lexically promising sentences get one.
    order = sorted(range(len(found)), key=lambda i: (-overlap[i], -found[i][1].score, i))
    chosen = [found[i] for i in order[:_SENTENCES_EMBEDDED]]
    vectors = embedder.embed_documents([part.searched for _, _, part in chosen])
    cosines = (vectors @ embedder.embed_query(question)).tolist()
    made = [
        (context, part, Candidate(part.searched, number, overlap[i], cosine, context.score, part.weight))
        for i, (number, context, part), cosine in zip(order, chosen, cosines, strict=False)
    ]
    made.sort(key=lambda row: (-_nearness(row[2]), -row[0].score, row[0].path, row[1].start))
    return made[:_SENTENCES_JUDGED]


def choose(sentences: Sequence[Sentence], *, minimum: float, maximum: int) -> list[Sentence]:
    """The sentences to quote: supported ones close to the best, no two of them alike."""
    chosen: list[Sentence] = []
    for sentence in sentences:
        if (
            len(chosen) == maximum
            or sentence.support < minimum
            or sentence.support < 0.85 * sentences[0].support
        ):
            break
        words = set(_WORDS.findall(sentence.text.lower()))
        if all(_overlap(words, set(_WORDS.findall(other.text.lower()))) < 0.7 for other in chosen):
            chosen.append(sentence)
    return chosen


def _sentence(context: Context, part: Quotable, support: float) -> Sentence:
    text = context.text[part.start : part.end]
    before, after = part.marks
    said = f"{before}{shown(text)}{after}"
    weighted = round(float(support * part.weight), 4)
    return Sentence(context, context.start + part.start, context.start + part.end, text, said, weighted)


def _question_terms(question: str, analyzer: Analyzer) -> list[str]:
    words = [word for word in re.findall(r"[^\W_]+", question.lower()) if word not in _QUESTION_WORDS]
    return sorted(set(analyzer.terms(" ".join(words) or question)))


def _rarity(asked: Sequence[str], terms: Sequence[Counter[str]]) -> dict[str, float]:
    """Weight of each term of the question; they sum to 1, so an overlap is a share of the question."""
    raw = {t: math.log(1 + len(terms) / (1 + sum(t in counts for counts in terms))) for t in asked}
    total = sum(raw.values()) or 1.0
    return {term: weight / total for term, weight in raw.items()}


def _nearness(candidate: Candidate) -> float:
    return candidate.weight * (candidate.overlap + max(0.0, candidate.cosine))


def _overlap(one: set[str], other: set[str]) -> float:
    return len(one & other) / max(1, min(len(one), len(other)))
