"""Evaluate a release: its own golden questions, asked of it and of the release it is compared with."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from eval.case import Case
from eval.evaluations import Evaluations
from eval.gate import NO_GOLDEN_SET, Verdict, judge
from eval.golden import GoldenQuestion, golden_fingerprint
from eval.measure import Measurement, uses_model
from eval.metrics import OFFLINE, Measures, judge_fingerprint
from eval.scores import Scores
from eval.selfcheck import check_canaries, check_passages, check_structure
from eval.summary import summarize
from knowledge_base.difference import diff_documents
from knowledge_base.errors import DamagedError, EmbedderError, MissingExtraError, PlumblineError
from knowledge_base.home import MAIN, KnowledgeBase
from knowledge_base.release import (
    JUDGE_PROMPT,
    DocumentChanges,
    Release,
    changed_parts,
)
from rag.engine import Engine

_NAMED = 10
_ANSWERING = {"corpus", "chunker", "embedder", "prompt", "retrieval", "model"}


def evaluate_release(
    knowledge_base: KnowledgeBase, ref: str, baseline: str = MAIN, *, again: bool = False
) -> Verdict:
    """The gate's verdict on `ref` against `baseline`, or the release before when both are one commit.

    A verdict on the same two contents, golden questions, judge and margins is taken from the version
    store, unless `again`; a new one is put there, with every answer and score.

    Raises:
        NotFoundError: No such ref.
        SettingsError: A golden question of `ref` is not valid, or a margin names no metric.
        MissingExtraError: ragas is not installed and there are golden questions.
        StorageError: The verdict cannot be stored.
    """
    return evaluate_case(knowledge_base, Case.of(knowledge_base, ref, baseline), again=again)


def evaluate_case(knowledge_base: KnowledgeBase, case: Case, *, again: bool = False) -> Verdict:
    """`evaluate_release` of a case that the caller has put together."""
    kept = Evaluations(knowledge_base.repository)
    known = None if again else case.known_verdict(knowledge_base)
    if known and known.status != "INCOMPLETE" and known.rules == case.rules:
        commits = {"candidate": case.release.commit, "baseline": case.before_commit}
        return known.model_copy(update={**commits, "cached": True})
    with _engine(knowledge_base, case.release.commit) as engine:
        verdict, measured = _evaluate(knowledge_base, case, engine, kept)
    kept.keep(verdict, *measured)
    return _tracked(knowledge_base, case, verdict)


def _tracked(knowledge_base: KnowledgeBase, case: Case, verdict: Verdict) -> Verdict:
    """Log the verdict where `[tracking]` says. A verdict stands when MLflow does not."""
    settings = case.release.settings.tracking
    if not settings.uri:
        return verdict
    from eval.tracking import track

    try:
        track(settings, verdict, case.release, knowledge_base.folder)
    except PlumblineError as error:
        return verdict.model_copy(update={"reasons": (*verdict.reasons, f"not tracked: {error.message}")})
    return verdict


def _evaluate(
    knowledge_base: KnowledgeBase, case: Case, engine: Engine, kept: Evaluations
) -> tuple[Verdict, list[Scores]]:
    """The verdict, and the scores that it rests on."""
    documents = _changed_documents(knowledge_base, case)
    faults = check_structure(knowledge_base, engine, None if documents is None else documents.held)
    changed = _changed(case, documents)
    if case.before is None or changed & {"prompt", "model"}:
        faults += check_canaries(engine)
    stated = {"rules": case.rules, "changed": tuple(sorted(changed))}
    if not case.approved:
        faults += check_passages(knowledge_base, engine) if not faults else []
        return _without_golden_set(case, faults).model_copy(update=stated), []
    if case.before is None:
        faults += check_passages(knowledge_base, engine) if not faults else []
    digests = {case.before_digest, case.release.answers_digest}
    measurement = Measurement(
        knowledge_base,
        Measures(case.release.settings.judge, engine.embedder, case.release.prompts.get(JUDGE_PROMPT, "")),
        judge_fingerprint(case.release),
        {digest: kept.rows(digest) for digest in digests},
    )
    with _Baseline(knowledge_base, case.before) as before:
        questions, told = _current(case.approved, engine, before)
        if not questions:
            return _without_golden_set(case, faults, told).model_copy(update=stated), []

        def run(repetitions: int) -> tuple[Verdict, list[Scores]]:
            old = before.measure(measurement, questions, repetitions)
            new = measurement.measure(engine, questions, repetitions)
            verdict = judge(
                new,
                old,
                golden=golden_fingerprint(questions),
                rules=case.gate,
                faults=faults,
                obstacle=before.obstacle,
                warnings=told + case.loosened,
                repetitions=repetitions,
            )
            summary = {"candidate": summarize(new)} | ({"baseline": summarize(old)} if old else {})
            return verdict.model_copy(update={**stated, "summary": summary}), [s for s in (old, new) if s]

        return _until_settled(run, case)


def _until_settled(
    run: Callable[[int], tuple[Verdict, list[Scores]]], case: Case
) -> tuple[Verdict, list[Scores]]:
    """Run once; when that settles nothing and asking more often may, run with more repetitions."""
    sampled = case.release.settings.judge.model != OFFLINE or any(
        uses_model(release) for release in (case.release, case.before) if release
    )
    verdict, measured = run(case.gate.repetitions if sampled else 1)
    if verdict.status != "INCONCLUSIVE":
        return verdict, measured
    if sampled and case.gate.escalated > verdict.repetitions:
        return run(case.gate.escalated)
    if not sampled:
        said = "answers and judge always say the same: only more golden questions would settle it"
        verdict = verdict.model_copy(update={"reasons": (*verdict.reasons, said)})
    return verdict, measured


def _without_golden_set(case: Case, faults: Sequence[str], warnings: Sequence[str] = ()) -> Verdict:
    """The verdict of the built-in checks alone."""
    reasons = [*faults, f"{NO_GOLDEN_SET}: only the built-in checks of index, citations and canaries"]
    return Verdict(
        status="FAIL" if faults else "PASS",
        reasons=(*reasons, *warnings),
        candidate=case.release.commit,
        baseline=case.before_commit,
        candidate_digest=case.release.answers_digest,
        baseline_digest=case.before_digest,
        judge=judge_fingerprint(case.release),
    )


def _changed_documents(knowledge_base: KnowledgeBase, case: Case) -> DocumentChanges | None:
    """How the documents differ from those of the release before; None when there is none."""
    if case.before is None:
        return None
    return diff_documents(knowledge_base.repository, case.before.commit, case.release.commit)


def _changed(case: Case, documents: DocumentChanges | None) -> set[str]:
    """Which parts of what decides an answer differ from the release before."""
    if case.before is None:
        return set(_ANSWERING)
    return set(changed_parts(case.before, case.release, corpus=bool(documents)))


@contextmanager
def _engine(knowledge_base: KnowledgeBase, commit: str) -> Iterator[Engine]:
    engine = Engine.open(knowledge_base, commit)
    try:
        yield engine
    finally:
        engine.close()


class _Baseline:
    """The release to compare with; opened only when what is known of it does not do."""

    def __init__(self, knowledge_base: KnowledgeBase, release: Release | None) -> None:
        self._knowledge_base = knowledge_base
        self._release = release
        self._engine: Engine | None = None
        self.obstacle = ""
        """Why it cannot be opened although there is one."""

    def __enter__(self) -> "_Baseline":
        return self

    def __exit__(self, *_: object) -> None:
        if self._engine:
            self._engine.close()

    def engine(self) -> Engine | None:
        if self._release and self._engine is None and not self.obstacle:
            commit = self._release.commit
            try:
                self._engine = Engine.open(self._knowledge_base, commit)
            except (DamagedError, EmbedderError, MissingExtraError) as error:
                # An ingest that embeds everything anew because the model on this machine is another one
                # ends up here: it must get a verdict, not an error that says to ingest.
                self.obstacle = f"{commit[:12]} cannot be opened to compare with: {error.message}"
        return self._engine

    def measure(
        self, measurement: Measurement, questions: Sequence[GoldenQuestion], repetitions: int
    ) -> Scores | None:
        if self._release and (known := measurement.recall(self._release, questions, repetitions)):
            return known
        engine = self.engine()
        return measurement.measure(engine, questions, repetitions) if engine else None

    def holds(self, row: GoldenQuestion) -> bool:
        engine = self.engine()
        return engine is not None and row.is_held_by(engine.snapshot.document_text)


def _current(
    rows: Sequence[GoldenQuestion], engine: Engine, before: _Baseline
) -> tuple[list[GoldenQuestion], list[str]]:
    """The rows that can be asked, and what to say of the others and of what this release loses.

    A row is stale when neither release holds what it requires. When only the candidate does not, that
    is a loss, and it is judged as one.
    """
    asked, told = [], []
    for row in rows:
        if row.is_held_by(engine.snapshot.document_text):
            asked.append(row)
        elif before.holds(row):
            asked.append(row)
            told.append(
                f"golden question {row.id!r} requires {_required(row)}, which this release drops: "
                "if that is meant, retire the question in the same ingest"
            )
        else:
            told.append(f"golden question {row.id!r} is stale: no release here holds {_required(row)}")
    more = [f"and {len(told) - _NAMED} more golden questions like that"] if len(told) > _NAMED else []
    return asked, told[:_NAMED] + more


def _required(row: GoldenQuestion) -> str:
    return f"its quote in {row.document!r}" if row.quote else repr(row.document)
