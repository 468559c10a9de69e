"""What a gate is to judge: a release, the one it would replace, the questions and the rules."""

from dataclasses import dataclass

from eval.evaluations import Evaluations
from eval.gate import Verdict
from eval.golden import GoldenQuestion, golden_fingerprint, load_golden
from eval.metrics import METRICS, judge_fingerprint
from knowledge_base.configuration import GateSettings
from knowledge_base.documents import sha256_hex
from knowledge_base.errors import NotFoundError, SettingsError
from knowledge_base.history import same_documents
from knowledge_base.home import KnowledgeBase
from knowledge_base.release import Release
from knowledge_base.values import canonical_json


@dataclass(frozen=True)
class Case:
    """What is to be judged: a release, the one before it, and by which questions and rules."""

    release: Release
    before: Release | None
    rows: list[GoldenQuestion]
    gate: GateSettings
    dropped: tuple[str, ...]
    """Ids of questions that the release before asks and this one does not."""

    @classmethod
    def of(cls, knowledge_base: KnowledgeBase, ref: str, baseline: str) -> "Case":
        """Read `ref` and `baseline`, or the release before `ref` when both are one commit.

        Raises:
            NotFoundError: No such ref.
            SettingsError: A golden question of `ref` is not valid, or a margin names no metric.
        """
        repository = knowledge_base.repository
        candidate, live = repository.resolve(ref), repository.resolve(baseline)
        if live == candidate:
            live = release_before(knowledge_base, candidate)
        return cls.against(knowledge_base, candidate, live)

    @classmethod
    def against(cls, knowledge_base: KnowledgeBase, candidate: str, live: str) -> "Case":
        """The case of one commit against another; `live` is empty for none. Raises as `of` does."""
        release = knowledge_base.release(candidate)
        before = knowledge_base.release(live) if live else None
        rules = release.settings.gate
        unknown = sorted(set(rules.margins) - set(METRICS))
        if unknown:
            raise SettingsError(
                f"plumbline.toml: gate.margins: there is no metric {unknown[0]!r}.",
                hint=f"There are {', '.join(METRICS)}.",
            )
        rows = load_golden(knowledge_base.repository, candidate)
        asked = {row.id for row in rows if row.state == "approved"}
        return cls(
            release=release,
            before=before if before and before.manifest.documents else None,
            rows=rows,
            dropped=tuple(sorted((_asked_before(knowledge_base, live) if live else set()) - asked)),
            gate=rules,
        )

    @property
    def before_digest(self) -> str:
        """What decides the answers of the release before; empty when there is none."""
        return self.before.answers_digest if self.before else ""

    @property
    def before_commit(self) -> str:
        """The commit of the release before; empty when there is none."""
        return self.before.commit if self.before else ""

    @property
    def approved(self) -> list[GoldenQuestion]:
        """The golden questions that are asked."""
        return [row for row in self.rows if row.state == "approved"]

    @property
    def rules(self) -> str:
        """Names questions, judge and margins: a kept verdict of other rules says nothing here."""
        parts = {
            "golden": golden_fingerprint(self.rows),
            "judge": judge_fingerprint(self.release),
            "gate": self.gate.model_dump(mode="json"),
        }
        return sha256_hex(canonical_json(parts))[:16]

    def known_verdict(self, knowledge_base: KnowledgeBase) -> Verdict | None:
        """The kept verdict on this case, by whatever questions and rules, if it was of the same documents.

        The digest names what answers are made from, which is the index: documents could differ beside it.
        """
        repository = knowledge_base.repository
        found = Evaluations(repository).verdict(self.release.answers_digest, self.before_digest)
        return found if found and same_documents(repository, found.candidate, self.release.commit) else None

    @property
    def loosened(self) -> list[str]:
        """What to say of wider margins, and of fewer questions, than those of the release that is live."""
        live = self.before.settings.gate.margins if self.before else self.gate.margins
        wider = [
            f"{name} {live[name]:g} -> {self.gate.margins[name]:g}"
            if name in self.gate.margins
            else f"{name} dropped"
            for name in live
            if self.gate.margins.get(name, 1.0) > live[name]
        ]
        told = [f"this release loosens its own margins: {', '.join(wider)}"] if wider else []
        if self.dropped:
            shown = ", ".join(self.dropped[:5]) + (" ..." if len(self.dropped) > 5 else "")
            told.append(f"{len(self.dropped)} golden question(s) are no longer asked: {shown}")
        return told


def _asked_before(knowledge_base: KnowledgeBase, live: str) -> set[str]:
    try:
        return {row.id for row in load_golden(knowledge_base.repository, live) if row.state == "approved"}
    except (NotFoundError, SettingsError):
        return set()  # there is none, or its golden files cannot be read: then nothing is lost


def release_before(knowledge_base: KnowledgeBase, commit: str) -> str:
    """The nearest earlier release by first parent that holds documents; empty when there is none."""
    repository = knowledge_base.repository
    found = repository.get_commit(commit)
    while found.parents:
        # Compaction answers as the release before it: what that one replaced is meant.
        compacted = found.metadata.get("changed") == "compaction"
        found = repository.get_commit(found.parents[0])
        if not compacted and knowledge_base.release(found.id).manifest.documents:
            return found.id
    return ""
