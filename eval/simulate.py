"""A rehearsal of the nightly report: days of made-up traffic on a copy, with drifts put in on purpose."""

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from pathlib import Path

from eval.golden import load_golden
from eval.golden_generate import from_corpus
from eval.measure import uses_model
from eval.nights import moment
from eval.question_changes import CHANGES, OTHER_TOPIC
from eval.report import Report, write_report
from ingestion.pipeline import IngestOptions, ingest
from ingestion.sources import SourceFile, Sources
from knowledge_base.copying import copy_knowledge_base
from knowledge_base.errors import UsageError
from knowledge_base.home import KnowledgeBase
from knowledge_base.lifecycle import override_gate
from knowledge_base.republishing import rollback
from rag.answer import Answer
from rag.answer_log import AnswerLog
from rag.engine import Engine

QUESTION_DRIFTS = ("topic", *CHANGES)
RELEASE_DRIFTS = ("embedder", "documents", "prompt")
WARM_UP_DAYS = 5
_POOL = 200
_SESSION = 4
"""At most so many questions of one reader, on neighbouring documents."""
_OTHER_PRECISION = {"int8": "fp32", "fp32": "int8"}
_BAD_PROMPT = """\
---
name: answer
description: A prompt that lost its rules.
system: |
  You are a helpful assistant. Answer from your general knowledge; the passages may help.
---
{contexts}

Question: {question}
"""
_DRIFT = re.compile(r"(\d+):([a-z]+)(?::(0?\.\d+|1|1\.0))?")


@dataclass(frozen=True)
class Drift:
    """What is wrong on one day, counted from 1: of the questions a `share`, of a release all of it."""

    day: int
    kind: str
    share: float = 0.5

    @classmethod
    def parse(cls, text: str) -> "Drift":
        """Read `DAY:KIND` or `DAY:KIND:SHARE`. Raises UsageError."""
        found = _DRIFT.fullmatch(text)
        if not found or found[2] not in (*QUESTION_DRIFTS, *RELEASE_DRIFTS):
            kinds = ", ".join((*QUESTION_DRIFTS, *RELEASE_DRIFTS))
            raise UsageError(
                f"{text!r} is no drift.", hint=f"Write DAY:KIND or DAY:KIND:SHARE, KIND one of {kinds}."
            )
        return cls(int(found[1]), found[2], float(found[3] or 0.5))


@dataclass
class Rehearsal:
    """A knowledge base that may be spoilt, the traffic on it, and its reports."""

    knowledge_base: KnowledgeBase
    log: AnswerLog
    questions: Sequence[str]
    """What readers ask, questions on the same document beside each other."""
    first: date
    per_day: int = 100
    seed: int = 0
    _answers: dict[tuple[str, str], Answer] = field(default_factory=dict)

    def day(self, number: int) -> date:
        """The date of a day; the first day of the rehearsal is 1, days of warm-up come before."""
        return self.first + timedelta(days=number - 1)

    def serve(self, number: int, drift: Drift | None = None) -> None:
        """Log a day of traffic in sessions, answered by what main serves."""
        drawn = random.Random(f"{self.seed} {number}")
        engine = Engine.open(self.knowledge_base)
        begin = moment(self.day(number)) + timedelta(hours=6)
        asked = 0
        while asked < self.per_day:
            start = begin + timedelta(seconds=drawn.uniform(0, 14 * 3600))
            place, length = drawn.randrange(len(self.questions)), drawn.randint(1, _SESSION)
            odd = drift is not None and drift.kind in QUESTION_DRIFTS and drawn.random() < drift.share
            for step in range(min(length, self.per_day - asked)):
                text = self.questions[(place + step) % len(self.questions)]
                if odd and drift is not None:
                    text = _changed(text, drift.kind, drawn)
                moment_asked = start + timedelta(seconds=40 * step)
                self._log(engine, text, moment_asked, f"{number}-{asked}")
                asked += 1
        engine.close()

    def _log(self, engine: Engine, text: str, asked_at: datetime, id: str) -> None:
        key = (engine.release.answers_digest, text)
        if key not in self._answers:
            # How long this machine takes while it also rehearses says nothing: no time is logged.
            self._answers[key] = engine.ask(text).model_copy(update={"timings_ms": {}})
        answer = self._answers[key]
        release = engine.release_ref
        cited = tuple(one.model_copy(update={"commit": release.commit}) for one in answer.citations)
        self.log.append(
            answer.model_copy(update={"id": id, "release": release, "citations": cited}), asked_at
        )

    def spoil(self, drift: Drift) -> None:
        """Publish, past the gate, a release with that drift."""
        kb = self.knowledge_base
        changes: dict[str, Callable[[], Sources]] = {
            "embedder": lambda: self._other_embedder(kb.settings().embedder.precision),
            "documents": self._bad_document,
            "prompt": self._bad_prompt,
        }
        sources = changes[drift.kind]()
        reason = f"rehearsal of {drift.kind}"
        ingest(kb, sources, IngestOptions(message=reason), gate=override_gate(reason))

    def mend(self) -> None:
        """Go back to the release before, and to its files."""
        rollback(self.knowledge_base)
        self.knowledge_base.restore("main")

    def _other_embedder(self, precision: str) -> Sources:
        path = self.knowledge_base.root / "plumbline.toml"
        text = path.read_text(encoding="utf-8")
        other = f'precision = "{_OTHER_PRECISION[precision]}"'
        changed = re.sub(r'precision = "\w+"', other, text)
        path.write_text(changed if changed != text else f"{text}\n[embedder]\n{other}\n", encoding="utf-8")
        return Sources(())

    def _bad_document(self) -> Sources:
        """One page that repeats what people ask, and answers all of it with the same untruth."""
        parts = ["# Answers to everything\n"]
        for question in self.questions:
            parts.append(f"## {question}\n\n{question} This was withdrawn. {question} It is no longer so.\n")
        return Sources((SourceFile("answers-to-everything.md", content="\n".join(parts).encode()),))

    def _bad_prompt(self) -> Sources:
        if not uses_model(self.knowledge_base.release()):
            raise UsageError(
                "The extractive answerer reads no prompt: a changed one would change nothing.",
                hint="Rehearse a prompt on a knowledge base whose answer.model is a language model.",
            )
        path = self.knowledge_base.root / "prompts" / "answer.md"
        path.write_text(_BAD_PROMPT, encoding="utf-8")
        return Sources(())

    def report(self, number: int, output: Path) -> Report:
        """That night's report."""
        return write_report(self.knowledge_base, self.log, output, day=self.day(number))


def _changed(text: str, kind: str, drawn: random.Random) -> str:
    return drawn.choice(OTHER_TOPIC) if kind == "topic" else CHANGES[kind](text, drawn)


def copy_of(knowledge_base: KnowledgeBase, folder: Path) -> KnowledgeBase:
    """A copy with all its history in a new folder, to be spoilt without harm.

    Raises:
        AlreadyExistsError: The folder holds a knowledge base.
    """
    made = KnowledgeBase.create(folder, knowledge_base.models)
    copy_knowledge_base(knowledge_base, made)
    made.restore("main")
    return made


def usual_questions(knowledge_base: KnowledgeBase) -> list[str]:
    """What readers may ask: the golden questions, and questions made from the documents, by document."""
    snapshot = knowledge_base.snapshot()
    rows = [row for row in load_golden(knowledge_base.repository, "main") if row.state == "approved"]
    rows += from_corpus(snapshot, max(0, _POOL - len(rows)))
    snapshot.close()
    if not rows:
        raise UsageError("There is nothing to ask about.", hint="Ingest documents first.")
    return list(dict.fromkeys(row.question for row in sorted(rows, key=lambda row: row.document or "")))


def rehearse(
    rehearsal: Rehearsal,
    days: int,
    drifts: Sequence[Drift],
    output: Path,
    progress: Callable[[int, Report], None] = lambda day, report: None,
) -> list[Report]:
    """Serve and report day by day; what a drift does to a release is undone in the next morning.

    Raises:
        UsageError: Two drifts on one day, or a day beyond the last.
    """
    by_day = {drift.day: drift for drift in drifts}
    if len(by_day) < len(drifts) or any(not 1 <= drift.day <= days for drift in drifts):
        raise UsageError(f"Each drift needs a day of its own from 1 to {days}.")
    for number in range(1 - WARM_UP_DAYS, 1):
        rehearsal.serve(number)
    reports = []
    for number in range(1, days + 1):
        drift = by_day.get(number)
        spoilt = drift is not None and drift.kind in RELEASE_DRIFTS
        if spoilt and drift is not None:
            rehearsal.spoil(drift)
        rehearsal.serve(number, drift)
        reports.append(rehearsal.report(number, output / f"day-{number:02}"))
        progress(number, reports[-1])
        if spoilt:
            rehearsal.mend()
    return reports
