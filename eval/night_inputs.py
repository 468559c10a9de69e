"""What the monitors of one night look at: two releases, two windows of questions, earlier reports."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.drift_statistics import Sample
from eval.evaluate import evaluate_release
from eval.evaluations import Evaluations
from eval.gate import Verdict
from eval.nights import LEARNED, Nights, Reference, moment
from eval.scores import Scores
from knowledge_base.documents import sha256_hex
from knowledge_base.home import KnowledgeBase
from knowledge_base.release import Release
from rag.answer_log import AnswerLog, Served
from rag.engine import Engine

ENOUGH = 100
"""With fewer questions on the day itself, the days before are added."""
LOOK_BACK = 7
_BLOCK_SECONDS = 900


@dataclass(frozen=True)
class Night:
    """One night's inputs. Whatever costs something is read when the first monitor asks for it."""

    knowledge_base: KnowledgeBase
    answer_log: AnswerLog
    day: date
    served: Release
    reference: Reference
    history: list[dict[str, Any]]
    today: dict[str, Any] | None = None
    """The report of this very night, when there is one already."""

    @classmethod
    def of(cls, knowledge_base: KnowledgeBase, answer_log: AnswerLog, day: date, ref: str) -> "Night":
        """The night of `day`, on which `ref` is served; the first night becomes its own reference.

        Raises:
            NotFoundError: No such ref.
            StorageError: The reference cannot be stored.
        """
        nights = Nights(knowledge_base)
        served = knowledge_base.release(ref)
        reference = nights.reference(day) or nights.begin(day, served.commit)
        return cls(knowledge_base, answer_log, day, served, reference, nights.before(day), nights.of(day))

    def figure_of_today(self, name: str) -> float | None:
        """A figure of this night's first report, of those that the report itself changes by being made."""
        if self.today is None or self.today["release"] != self.served.commit:
            return None
        found: float | None = self.today["values"].get(name)
        return found

    @property
    def last_release(self) -> str:
        """The commit that the last report was about; that of the reference when this is the first."""
        return str(self.history[-1]["release"]) if self.history else self.reference.release

    @cached_property
    def engine(self) -> Engine:
        """The served release. Raises DamagedError, EmbedderError."""
        return Engine.open(self.knowledge_base, self.served.commit)

    @cached_property
    def normal(self) -> Release:
        """The release of the reference. Raises NotFoundError, DamagedError."""
        return self.knowledge_base.release(self.reference.release)

    @cached_property
    def at_reference(self) -> bool:
        """Whether the served release answers as the reference's does. Raises NotFoundError, DamagedError."""
        return self.normal.answers_digest == self.served.answers_digest

    @cached_property
    def passages(self) -> NDArray[np.int64]:
        """Numbers of the served release's live passages."""
        return np.flatnonzero(self.engine.snapshot.live)

    @cached_property
    def vectors(self) -> NDArray[np.float32]:
        """Their vectors, shape (passages, dimension)."""
        return self.engine.snapshot.passage_vectors(self.passages)

    # -- what was asked --------------------------------------------------------------------------

    @cached_property
    def asked(self) -> list[Served]:
        """The questions of the day, or of up to a week when the day has too few; none of the reference."""
        end = moment(self.day + timedelta(days=1))
        for days in range(1, LOOK_BACK + 1):
            start = moment(self.day + timedelta(days=1 - days))
            if self.reference.until is not None:
                start = max(start, moment(self.reference.until + timedelta(days=1)))
            found = self.answer_log.between(start, end)
            if len(found) >= ENOUGH:
                break
        return found

    @cached_property
    def asked_before(self) -> list[Served]:
        """The questions of the reference."""
        first = self.asked[0].asked_at if self.asked else moment(self.day)
        end = min(first, moment(self.day))
        if self.reference.until is not None:
            end = min(end, moment(self.reference.until + timedelta(days=1)))
        found = self.answer_log.between(moment(self.reference.since), end)
        return found if self.reference.until is not None else found[:LEARNED]

    def sample(self, old: Sequence[float], new: Sequence[float]) -> Sample:
        """Values of `asked_before` and `asked` as one sample, in blocks of a quarter of an hour."""
        return Sample.of(
            np.array(old, float), blocks_of(self.asked_before), np.array(new, float), blocks_of(self.asked)
        )

    # -- golden questions ------------------------------------------------------------------------

    @cached_property
    def verdict(self) -> Verdict:
        """The gate's verdict on the served release against the reference's. Raises PlumblineError."""
        return evaluate_release(self.knowledge_base, self.served.commit, self.reference.release)

    @cached_property
    def golden(self) -> tuple[Scores, Scores | None]:
        """Scores of the served release and of the one it was compared with."""
        verdict, kept = self.verdict, Evaluations(self.knowledge_base.repository)

        def scores(commit: str, digest: str) -> Scores:
            return Scores(commit=commit, digest=digest, rows=kept.rows(digest), judge=verdict.judge)

        old = scores(verdict.baseline, verdict.baseline_digest) if verdict.baseline_digest else None
        return scores(verdict.candidate, verdict.candidate_digest), old

    def seed(self, name: str) -> int:
        """A seed of this night's own for each test."""
        key = f"{self.day.isoformat()} {self.reference.release} {name}"
        return int(sha256_hex(key.encode())[:8], 16)

    def close(self) -> None:
        """Close the served release, if it was opened."""
        if "engine" in self.__dict__:
            self.engine.close()


def blocks_of(served: Sequence[Served]) -> NDArray[np.int64]:
    """The quarter of an hour that each was asked in: questions of one reader mostly share it."""
    return np.array([_quarter(one.asked_at) for one in served], np.int64)


def _quarter(asked_at: datetime) -> int:
    return int(asked_at.timestamp()) // _BLOCK_SECONDS
