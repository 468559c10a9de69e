"""Ask a release its golden questions; what was answered from the same before is not asked again."""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache

from eval.golden import GoldenQuestion
from eval.metrics import Asked, DocumentText, Measures, exact_scores
from eval.scores import Passage, Row, Scores
from knowledge_base.documents import sha256_hex
from knowledge_base.embedder_memory import RememberingEmbedder
from knowledge_base.embedders import Embedder
from knowledge_base.errors import NotFoundError
from knowledge_base.home import KnowledgeBase
from knowledge_base.release import DOCUMENTS_PREFIX, Release
from knowledge_base.values import canonical_json, fingerprint_id
from rag.answer import Answer, Context
from rag.answerability import quoting
from rag.conversation import split_question
from rag.engine import Engine
from rag.support import GROUNDING

_ASKED_AT_ONCE = 4
"""Questions that wait for a language model at one time."""
_REMEMBERED = 100_000
"""Vectors kept during an evaluation: about 200 MB at most."""


def uses_model(release: Release) -> bool:
    """Whether a language model writes a release's answers, so that two of them may differ."""
    return release.settings.answer.asks_model


class Measurement:
    """One evaluation's way of measuring: its judge, and the rows that earlier evaluations left, by digest."""

    def __init__(
        self,
        knowledge_base: KnowledgeBase,
        measures: Measures,
        fingerprint: str,
        known: Mapping[str, Sequence[Row]],
    ) -> None:
        self._knowledge_base = knowledge_base
        self._measures = measures
        self._fingerprint = fingerprint
        self._known: dict[tuple[str, int], Row] = {}
        self._embedders: dict[str, Embedder] = {}
        self._of_release = known
        for rows in known.values():
            self._remember(rows)

    def _remember(self, rows: Iterable[Row]) -> None:
        self._known.update({(row.key, row.repetition): row for row in rows if row.answer is not None})

    def measure(self, engine: Engine, questions: Sequence[GoldenQuestion], repetitions: int = 1) -> Scores:
        """Rows of every question, asked `repetitions` times.

        Raises:
            MissingExtraError: The `eval` extra is not installed.
        """
        engine.embedder = self._remembering(engine.embedder)
        sampled = uses_model(engine.release)
        text = verified_text(self._knowledge_base, engine)
        turns = [(question, turn) for turn in range(repetitions) for question in questions]
        # Without a language model every turn has the answer of the first.
        asked = turns if sampled else turns[: len(questions)]
        with ThreadPoolExecutor(_ASKED_AT_ONCE if sampled else 1) as pool:
            found = list(pool.map(lambda item: self._ask(engine, *item), asked))
        if not sampled:
            found = [
                (row.model_copy(update={"repetition": turn}), known)
                for turn in range(repetitions)
                for row, known in found
            ]
        rows = self._score([row for row, _ in found], [question for question, _ in turns], text)
        self._remember(rows)
        return Scores(
            commit=engine.release_ref.commit,
            rows=tuple(row.model_copy(update={"answer": _kept(row.answer)}) for row in rows),
            digest=engine.release.answers_digest,
            judge=self._fingerprint,
            reused=sum(known for _, known in found),
        )

    def recall(
        self, release: Release, questions: Sequence[GoldenQuestion], repetitions: int
    ) -> Scores | None:
        """What an earlier evaluation measured of a release, if it measured all of this the same way."""
        kept = {(row.id, row.repetition): row for row in self._of_release.get(release.answers_digest, ())}
        rows = []
        for turn in range(repetitions):
            for question in questions:
                row = kept.get((question.id, turn))
                if row is None or row.judge != self._judge_of(question) or not _is_complete(row):
                    return None
                rows.append(row)
        return Scores(
            commit=release.commit,
            rows=tuple(rows),
            digest=release.answers_digest,
            judge=self._fingerprint,
            reused=len(rows),
        )

    def _judge_of(self, question: GoldenQuestion) -> str:
        """Names what scores the answer to a question: the judge, and the row it is held against."""
        return sha256_hex(self._fingerprint.encode() + canonical_json(question))[:16]

    def _remembering(self, embedder: Embedder) -> Embedder:
        """One for both releases when they have the same: most of their sentences are."""
        made = RememberingEmbedder(embedder, _REMEMBERED)
        return self._embedders.setdefault(fingerprint_id(embedder.fingerprint), made)

    def _ask(self, engine: Engine, question: GoldenQuestion, repetition: int) -> tuple[Row, bool]:
        """One question asked once, and whether an earlier evaluation had the answer."""
        row = Row(id=question.id, group=question.document or "", repetition=repetition)
        try:
            contexts = engine.search(question.question)
            key = answer_key(engine.release, question.question, contexts)
            known = self._known.get((key, repetition))
            answer = known.answer_of(engine.release_ref, contexts) if known else None
            answer = answer or engine.ask(question.question)
        except Exception as error:  # noqa: BLE001 - one question that fails is a row; the others go on
            return row.model_copy(update={"failure": f"{type(error).__name__}: {error}"}), False
        found = {
            "key": key,
            "answer": answer,
            "passages": tuple(
                Passage(path=c.path, chunk_id=c.chunk_id, start=c.start, end=c.end) for c in answer.contexts
            ),
        }
        return row.model_copy(update=found), known is not None

    def _score(
        self, rows: Sequence[Row], questions: Sequence[GoldenQuestion], text: DocumentText
    ) -> list[Row]:
        """Give each row its scores: those an earlier evaluation left, or new ones."""
        scored: list[Row] = list(rows)
        fresh: list[tuple[int, Asked, str]] = []
        for place, (row, question) in enumerate(zip(rows, questions, strict=True)):
            if row.answer is None:
                continue
            asked = Asked(question, row.answer, text)
            judge = self._judge_of(question)
            known = self._known.get((row.key, row.repetition))
            if known and known.judge == judge and _is_complete(known):
                # Exact checks are made again: the documents may be others though the passages are not.
                exact = {score.metric: score for score in exact_scores(asked)}
                kept = tuple(exact.get(score.metric, score) for score in known.scores)
                scored[place] = row.model_copy(update={"scores": kept, "judge": judge})
            else:
                fresh.append((place, asked, judge))
        results = self._measures.score([asked for _, asked, _ in fresh])
        for (place, _, judge), found in zip(fresh, results, strict=True):
            scored[place] = rows[place].model_copy(update={"scores": found, "judge": judge})
        return scored


def _is_complete(row: Row) -> bool:
    """Whether everything that applies to an answer was measured: what failed is tried again."""
    return bool(row.scores) and all(score.value is not None for score in row.scores)


def answer_key(release: Release, question: str, contexts: Sequence[Context]) -> str:
    """Names all that an answer is made from: question, passages, prompt, model, its settings, what quotes."""
    retrieval, answer = release.settings.retrieval, release.settings.answer
    several = retrieval.queries > 1 or len(split_question(question)) > 1
    parts = {
        "question": question,
        "contexts": [[c.chunk_id, c.start, c.end] for c in contexts],
        "answer": answer.model_dump(mode="json"),
        "prompts": release.prompt_hash,
        "embedder": release.manifest.embedder,
        "language": retrieval.language,
        "grounding": GROUNDING,
        "quoting": quoting(reads=answer.reads) if answer.quotes else "",
        # Of several queries, which passages they find together is known only by asking.
        "release": release.answers_digest if several else "",
    }
    return sha256_hex(canonical_json(parts))


def verified_text(knowledge_base: KnowledgeBase, engine: Engine) -> DocumentText:
    """The text of a release's documents, of those whose bytes in the commit are what was indexed."""
    snapshot, commit = engine.snapshot, engine.release.commit

    @cache
    def read(path: str) -> str:
        content = knowledge_base.repository.get_object(commit, DOCUMENTS_PREFIX + path)
        if sha256_hex(content) != snapshot.document(path).sha256:
            raise NotFoundError("document", path, hint="The index holds another version of it.")
        return snapshot.document_text(path)

    return read


def _kept(answer: Answer | None) -> Answer | None:
    """An answer without its passages: they are in the release."""
    return answer.model_copy(update={"contexts": ()}) if answer else None
