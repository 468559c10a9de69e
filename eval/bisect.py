"""Which release broke it: a binary search over the releases between a good one and a bad one.

Every step is an evaluation against the good release, by the golden questions, judge and margins of the bad
one, so that all steps are asked the same. Answers that are known are not asked again, and each is kept.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from eval.case import Case
from eval.evaluate import evaluate_case
from eval.gate import Verdict
from eval.golden import load_golden
from eval.metrics import METRICS
from eval.nights import Nights
from knowledge_base.difference import diff_documents
from knowledge_base.errors import CheckFailedError, ExpiredError, NotFoundError, UsageError
from knowledge_base.history import list_releases
from knowledge_base.home import MAIN, KnowledgeBase
from knowledge_base.release import JUDGE_PROMPT, DocumentChanges, Release, changed_parts, settings_difference
from knowledge_base.values import Frozen
from knowledge_base.version_store import Commit

_OTHER_ENDS = "Name other releases with --good and --bad: `rag log` lists them."


class Step(Frozen):
    """One release that was evaluated; `value` is what it has of the metric, None for no less than GOOD."""

    commit: str
    bad: bool
    verdict: str
    value: float | None


class Bisection(Frozen):
    """What a search found; without `metric` and `below`, bad is what the gate refuses.

    `first_bad` is the log's entry of the first bad release, `before` the release before it, with what
    differs between the two. `perhaps` are releases between them whose content gc removed: it may have been
    one of those.
    """

    good: str
    bad: str
    question: str | None
    metric: str | None
    below: float | None
    steps: tuple[Step, ...]
    first_bad: dict[str, Any]
    author: str
    before: str
    changed: tuple[str, ...]
    documents: DocumentChanges
    settings: dict[str, dict[str, Any]]
    perhaps: tuple[str, ...]
    commands: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Plain values for `--json`."""
        return {**self.model_dump(mode="json"), "documents": self.documents.as_json()}


@dataclass(frozen=True)
class Symptom:
    """How a bad release is known: by a golden question, by the mean of a metric, or by the gate.

    Without `below`, bad begins halfway between what GOOD and BAD have. A question without a `metric` is
    known by the one it lost most in.
    """

    question: str | None = None
    metric: str | None = None
    below: float | None = None

    def settled(self, bad: Verdict) -> "Symptom":
        """The same with a metric and a limit, by the verdict on BAD. Raises UsageError: BAD is not worse."""
        if self.question is None and self.metric is None:
            return self
        before, after, metric = self._ends(bad)
        if self.below is not None:
            return replace(self, metric=metric)
        if after >= before:
            raise UsageError(f"{metric} does not fall: {before:.3f} to {after:.3f}.", hint=_OTHER_ENDS)
        return replace(self, metric=metric, below=(before + after) / 2)

    def _ends(self, bad: Verdict) -> tuple[float, float, str]:
        """What GOOD and BAD have, and in which metric."""
        good, name = bad.baseline[:12], bad.candidate[:12]
        if self.question is None:
            for found in bad.metrics:
                if found.name == self.metric and None not in (found.baseline, found.candidate):
                    return found.baseline or 0.0, found.candidate or 0.0, found.name
            raise UsageError(
                f"{self.metric} was measured on no golden question.", hint="`rag eval` shows all."
            )
        for loss in bad.losses:  # the worst first
            if loss.id == self.question and self.metric in (None, loss.metric):
                return loss.baseline, loss.candidate, loss.metric
        raise UsageError(
            f"Golden question {self.question!r} scores no lower in {name} than in {good}: it is not broken, "
            "or it was broken before.",
            hint=f"`rag diff {good} {name}` shows both answers. {_OTHER_ENDS}",
        )

    def value(self, verdict: Verdict) -> float | None:
        """What a release has of the metric; of a question, None for no less than GOOD."""
        if self.question is None:
            return next((m.candidate for m in verdict.metrics if m.name == self.metric), None)
        lost = [loss for loss in verdict.losses if (loss.id, loss.metric) == (self.question, self.metric)]
        return lost[0].candidate if lost else None

    def shows(self, verdict: Verdict) -> bool:
        """Whether a release is bad."""
        if self.metric is None or self.below is None:
            return not verdict.publishable
        value = self.value(verdict)
        return value is not None and value < self.below


def bisect(
    knowledge_base: KnowledgeBase,
    symptom: Symptom,
    good: str | None = None,
    bad: str = MAIN,
    told: Callable[[str], None] = lambda detail: None,
) -> Bisection:
    """Find the first bad release after `good`, up to `bad`.

    `good` is the reference that the nightly report accepted, or else the last release before `bad` that the
    gate passed. As in every binary search, what was broken, mended and broken again is found once. `told`
    is called with what is done now.

    Raises:
        NotFoundError: No such ref, or no such golden question in `bad`.
        UsageError: `good` is no release before `bad`, it is not good, or `bad` is not bad.
        ExpiredError: gc removed the content of `good` or `bad`.
        CheckFailedError: A release on the way could not be measured.
    """
    search = _Search(knowledge_base, good, bad, symptom, told)
    ends = search.verdict(search.last.id), search.verdict(search.first.id)
    search.symptom = symptom.settled(ends[0])
    if not search.is_bad(ends[0]):
        raise UsageError(f"{bad!r} is not bad: {search.describe(ends[0])}.", hint=_OTHER_ENDS)
    if search.is_bad(ends[1]):
        raise UsageError(f"{search.first.id[:12]} is not good: {search.describe(ends[1])}.", hint=_OTHER_ENDS)
    return search.run()


class _Search:
    """A search under way."""

    def __init__(
        self,
        knowledge_base: KnowledgeBase,
        good: str | None,
        bad: str,
        symptom: Symptom,
        told: Callable[[str], None],
    ) -> None:
        self._knowledge_base, self._told, self.symptom = knowledge_base, told, symptom
        line = _line(knowledge_base, bad)
        self.first = _first(knowledge_base, line, good)
        self.last = line[-1]
        self._line = line[line.index(self.first) :]
        self._asking = knowledge_base.release(self.last.id)
        self._before = knowledge_base.release(self.first.id)
        self._rows = load_golden(knowledge_base.repository, self.last.id)
        self._steps: list[Step] = []
        _check(symptom, {row.id for row in self._rows if row.state == "approved"})

    def verdict(self, commit: str) -> Verdict:
        """That on a release against the good one. Raises ExpiredError, CheckFailedError."""
        self._told(commit[:12])
        release = _judged_like(self._asking, self._knowledge_base.release(commit))
        case = Case(release, self._before, self._rows, release.settings.gate, dropped=())
        verdict = evaluate_case(self._knowledge_base, case)
        if verdict.status == "INCOMPLETE":
            said = "; ".join(verdict.reasons)
            raise CheckFailedError(f"{commit[:12]} could not be measured: {said}.", hint=_OTHER_ENDS)
        return verdict

    def is_bad(self, verdict: Verdict) -> bool:
        """Whether the release is bad; it is noted down."""
        bad = self.symptom.shows(verdict)
        value = self.symptom.value(verdict)
        self._steps.append(Step(commit=verdict.candidate, bad=bad, verdict=verdict.label, value=value))
        return bad

    def describe(self, verdict: Verdict) -> str:
        """What is known of a release, in words."""
        value = self.symptom.value(verdict)
        if self.symptom.metric is None:
            return "; ".join((f"the gate says {verdict.label}", *verdict.reasons[:3]))
        return f"{self.symptom.metric} is " + (
            f"{value:.3f}" if value is not None else "no lower than in GOOD"
        )

    def run(self) -> Bisection:
        """Halve what lies between; a release whose content is gone is passed over."""
        line, low, high = list(self._line), 0, len(self._line) - 1
        while high - low > 1:
            middle = (low + high) // 2
            try:
                verdict = self.verdict(line[middle].id)
            except ExpiredError:
                del line[middle]
                high -= 1
                continue
            low, high = (low, middle) if self.is_bad(verdict) else (middle, high)
        return self._found(line[low], line[high])

    def _found(self, before: Commit, first: Commit) -> Bisection:
        kb, symptom = self._knowledge_base, self.symptom
        old, new = kb.release(before.id), kb.release(first.id)
        documents = diff_documents(kb.repository, before.id, first.id)
        commands = [f"rag diff {before.id[:12]} {first.id[:12]}"]
        if first in kb.repository.log(MAIN, first_parent=True):
            commands.append(f"rag rollback {before.id[:12]}")
        return Bisection(
            good=self.first.id,
            bad=self.last.id,
            question=symptom.question,
            metric=symptom.metric,
            below=symptom.below,
            steps=tuple(self._steps),
            first_bad=list_releases(kb.repository, first.id, 1)[0],
            author=first.committer,
            before=before.id,
            changed=tuple(changed_parts(old, new, corpus=bool(documents))),
            documents=documents,
            settings=settings_difference(old, new),
            perhaps=tuple(c.id for c in self._line[self._line.index(before) + 1 : self._line.index(first)]),
            commands=tuple(commands),
        )


def _check(symptom: Symptom, asked: set[str]) -> None:
    if symptom.metric is not None and symptom.metric not in METRICS:
        raise UsageError(f"There is no metric {symptom.metric!r}.", hint=f"There are {', '.join(METRICS)}.")
    if symptom.below is not None and symptom.metric is None:
        raise UsageError("--below needs --metric.")
    if symptom.question is not None and symptom.question not in asked:
        hint = "`rag golden list` names them; BAD must hold it and ask it: the next ingest commits new ones."
        raise NotFoundError("golden question", symptom.question, hint=hint)


def _line(knowledge_base: KnowledgeBase, bad: str) -> list[Commit]:
    """The releases up to `bad` by first parent, oldest first. Raises NotFoundError, UsageError."""
    line = [commit for commit in knowledge_base.repository.log(bad, first_parent=True) if commit.parents]
    if not line:
        raise UsageError("There is no release yet.", hint="`rag ingest PATH...` makes the first.")
    return line[::-1]


def _first(knowledge_base: KnowledgeBase, line: Sequence[Commit], good: str | None) -> Commit:
    """The good release to start from. Raises NotFoundError, UsageError."""
    earlier = {commit.id: commit for commit in line[:-1]}
    if good is not None:
        found = knowledge_base.repository.resolve(good)
        if found not in earlier:
            name = line[-1].id[:12]
            raise UsageError(f"{good!r} is no release before {name}.", hint=f"`rag log {name}` lists those.")
        return earlier[found]
    accepted = [one.release for one in Nights(knowledge_base).references()[-1:]]
    passed = [c.id for c in line[:-1] if c.metadata.get("verdict", "").startswith("PASS")]
    for commit in (*accepted, *passed[-1:]):
        if commit in earlier:
            return earlier[commit]
    raise UsageError("No release before it is known to be good.", hint="Name one: --good REF.")


def _judged_like(asking: Release, release: Release) -> Release:
    """A release with the judge and the margins of another, which decide no answer."""
    settings = release.settings.model_copy(
        update={"judge": asking.settings.judge, "gate": asking.settings.gate}
    )
    prompts = {name: text for name, text in release.prompts.items() if name != JUDGE_PROMPT}
    if JUDGE_PROMPT in asking.prompts:
        prompts[JUDGE_PROMPT] = asking.prompts[JUDGE_PROMPT]
    return release.model_copy(update={"settings": settings, "prompts": prompts})
