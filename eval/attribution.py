"""Which part most likely caused an alarm: what could have, what of it changed, and what the others say."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from eval.findings import ALARMS, Cause, Finding, Part
from eval.metrics import METRICS
from eval.night_inputs import Night
from knowledge_base.difference import diff_documents
from knowledge_base.errors import PlumblineError
from knowledge_base.release import changed_parts

_RETRIEVING: tuple[Part, ...] = ("embedder", "chunker", "retrieval", "corpus")
_WRITING: tuple[Part, ...] = ("prompt", "model")
_SUSPECTS: Mapping[str, tuple[Part, ...]] = {
    "embedder": ("embedder", "machine"),
    "corpus": ("corpus",),
    "retrieval": _RETRIEVING,
    "golden_answers": (*_WRITING, *_RETRIEVING),
    "queries": ("queries",),
    "answers": (*_WRITING, *_RETRIEVING, "queries"),
    "service": (*_WRITING, *_RETRIEVING, "queries", "machine"),
    "trends": (*_WRITING, *_RETRIEVING, "queries"),
    "housekeeping": ("machine",),
    "changes": (),
    "golden_rows": ("corpus",),
    "self_test": (),
}
"""What can move each monitor. The order decides when several of them changed and nothing else tells."""


@dataclass(frozen=True)
class Facts:
    """Which parts changed since the last night and since the reference, and whose golden answers moved."""

    lately: frozenset[str]
    altogether: frozenset[str]
    last: str
    reference: str
    served: str
    same_passages: float | None
    """Share of the golden questions that got the same passages from both releases."""
    since_last: int = 1
    since_reference: int = 1
    """How many releases of main are newer than that one; 0 where it is none of main's."""

    @classmethod
    def of(cls, night: Night) -> "Facts":
        """Compare the releases; a release that is gone counts as unchanged from."""
        return cls(
            lately=_changed(night, night.last_release),
            altogether=_changed(night, night.reference.release),
            last=night.last_release,
            reference=night.reference.release,
            served=night.served.commit,
            same_passages=_same_passages(night),
            since_last=_releases_since(night, night.last_release),
            since_reference=_releases_since(night, night.reference.release),
        )


def attribute(findings: Sequence[Finding], facts: Facts) -> list[Finding]:
    """The findings, each alarm with its likely causes, the likeliest first."""
    shifted = [one for one in findings if one.monitor == "queries" and one.level in ALARMS]
    swapped = [one for one in findings if one.monitor == "embedder" and one.level in ALARMS]
    return [
        one.model_copy(update={"causes": tuple(_causes(one, facts, shifted, swapped))})
        if one.level in ALARMS
        else one
        for one in findings
    ]


def _causes(
    alarm: Finding, facts: Facts, shifted: Sequence[Finding], swapped: Sequence[Finding]
) -> list[Cause]:
    suspects = _suspects(alarm, facts)
    found = []
    if swapped and "embedder" in suspects:
        found.append(_release_cause(alarm, "embedder", facts, swapped[0].said))
    for changed, when in ((facts.lately, "since the last report"), (facts.altogether, "since the reference")):
        for part in suspects:
            if part in changed and part not in {cause.part for cause in found}:
                found.append(_release_cause(alarm, part, facts, f"{part} changed {when}"))
    if shifted and "queries" in suspects:
        cause = Cause(
            part="queries",
            evidence=shifted[0].said,
            command="rag golden generate --from log, or rag report accept --reason ...",
        )
        # A release that changed explains its own alarms first; a drift of the questions alone does not.
        found.insert(0 if alarm.monitor == "queries" or not facts.lately else len(found), cause)
    if not found and "machine" in suspects:
        told = "nothing that decides an answer changed: this machine, its libraries or its load"
        found.append(Cause(part="machine", evidence=told, command="rag fsck"))
    if not found and suspects:
        told = "nothing that decides an answer changed, and the questions look as before"
        found.append(Cause(part="unknown", evidence=told, command=f"rag show {facts.served[:12]}"))
    return found


def _suspects(alarm: Finding, facts: Facts) -> tuple[Part, ...]:
    """What can have moved this alarm; unchanged passages clear whatever finds passages, and the reverse."""
    suspects = _SUSPECTS[alarm.monitor]
    if alarm.name == "retrieval.gate":
        suspects = (*_RETRIEVING, *_WRITING)
        if facts.same_passages is not None and facts.same_passages >= 0.95:
            suspects = (*_WRITING, *_RETRIEVING)
    if alarm.monitor == "golden_answers" and facts.same_passages is not None and facts.same_passages < 0.95:
        suspects = (*_RETRIEVING, *_WRITING)
    return suspects


def _release_cause(alarm: Finding, part: Part, facts: Facts, evidence: str) -> Cause:
    if part in _WRITING and facts.same_passages is not None:
        evidence += f"; {facts.same_passages:.0%} of the golden questions get the same passages as before"
    lately = part in facts.lately
    base, number = (facts.last, facts.since_last) if lately else (facts.reference, facts.since_reference)
    if base == facts.served:
        return Cause(part=part, evidence=evidence, command="rag fsck; rag ingest --reindex")
    undo = "rag rollback" if lately and number <= 1 else f"rag rollback {base[:12]}"
    return Cause(part=part, evidence=evidence, command=f"{_closer_look(alarm, base, facts, number)}; {undo}")


def _closer_look(alarm: Finding, base: str, facts: Facts, number: int) -> str:
    """The command that shows what did it: which of several releases, where that can be searched for."""
    if number > 1 and alarm.monitor in ("retrieval", "golden_answers"):
        if alarm.check == "gate":
            return f"rag bisect --good {base[:12]}"
        if alarm.check in METRICS:
            return f"rag bisect --metric {alarm.check} --good {base[:12]}"
    return f"rag diff {base[:12]} {facts.served[:12]}"


def _changed(night: Night, since: str) -> frozenset[str]:
    if since == night.served.commit:
        return frozenset()
    try:
        old = night.knowledge_base.release(since)
        corpus = bool(diff_documents(night.knowledge_base.repository, since, night.served.commit))
        return frozenset(changed_parts(old, night.served, corpus=corpus))
    except PlumblineError:
        return frozenset()


def _releases_since(night: Night, since: str) -> int:
    line = night.knowledge_base.repository.log(night.served.commit, first_parent=True)
    return next((number for number, commit in enumerate(line) if commit.id == since), 0)


def _same_passages(night: Night) -> float | None:
    try:
        new, old = night.golden
    except PlumblineError:
        return None
    if old is None or not new.rows:
        return None
    before = {row.id: row.passages for row in old.rows if not row.repetition}
    now = {row.id: row.passages for row in new.rows if not row.repetition and row.id in before}
    return sum(before[key] == passages for key, passages in now.items()) / len(now) if now else None
