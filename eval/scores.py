"""What was measured on each golden question: plain values, kept with the release they are of."""

from collections import defaultdict
from collections.abc import Sequence

from knowledge_base.values import Frozen
from rag.answer import Answer, Context, ReleaseRef


class Score(Frozen):
    """One metric of one answer: a value, or the reason why there is none; never NaN."""

    metric: str
    value: float | None
    reason: str = ""


class Passage(Frozen):
    """Which passage an answer was made from; its text is in the release."""

    path: str
    chunk_id: str
    start: int
    end: int


class Row(Frozen):
    """One golden question, asked once: its answer and everything measured on it.

    `key` names what the answer was made from, `judge` what scored it, `passages` what it was given, best
    first. `group` is the document that the question is about. `failure` is set when it could not be
    answered at all.
    """

    id: str
    scores: tuple[Score, ...] = ()
    failure: str = ""
    group: str = ""
    repetition: int = 0
    key: str = ""
    judge: str = ""
    answer: Answer | None = None
    passages: tuple[Passage, ...] = ()

    def answer_of(self, release: ReleaseRef, retrieved: Sequence[Context]) -> Answer | None:
        """The kept answer as one of `release`, which retrieved the same passages for the question."""
        if self.answer is None:
            return None
        found = {context.chunk_id: context for context in retrieved}
        given = tuple(
            # A model with little room was given the beginning only.
            found[p.chunk_id].model_copy(
                update={"text": found[p.chunk_id].text[: p.end - p.start], "end": p.end}
            )
            for p in self.passages
            if p.chunk_id in found
        )
        cited = tuple(
            c.model_copy(update={"commit": release.commit, "score": found[c.chunk_id].score})
            for c in self.answer.citations
            if c.chunk_id in found
        )
        return self.answer.model_copy(update={"release": release, "contexts": given, "citations": cited})


class Scores(Frozen):
    """A release's rows. `reused` counts those whose answer came from the cache."""

    commit: str
    rows: tuple[Row, ...] = ()
    digest: str = ""
    judge: str = ""
    reused: int = 0

    def values(self, metric: str) -> dict[str, float]:
        """Value by question id, of those questions the metric applies to: the mean of repetitions."""
        found: dict[str, list[float]] = defaultdict(list)
        for row in self.rows:
            for score in row.scores:
                if score.metric == metric and score.value is not None:
                    found[row.id].append(score.value)
        return {key: sum(values) / len(values) for key, values in found.items()}

    @property
    def groups(self) -> dict[str, str]:
        """The document that each question is about, where it is about one."""
        return {row.id: row.group for row in self.rows if row.group}

    @property
    def failures(self) -> dict[str, str]:
        """Reason by question id of what should have been measured and was not."""
        failed = {row.id: row.failure for row in self.rows if row.failure}
        for row in self.rows:
            for score in row.scores:
                if score.value is None and score.reason:
                    failed.setdefault(row.id, f"{score.metric}: {score.reason}")
        return failed

    @property
    def questions(self) -> int:
        """How many golden questions were asked."""
        return len({row.id for row in self.rows})
