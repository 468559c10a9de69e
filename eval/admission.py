"""The gate as a service: may this commit be merged? Answered from stored verdicts alone, in milliseconds.

What a pre-merge or pre-create-tag hook calls. It measures nothing and changes nothing, so asking twice gives
the same answer; `rag eval` makes the verdicts that it looks up.
"""

from eval.case import Case
from eval.gate import Verdict
from knowledge_base.errors import PlumblineError
from knowledge_base.history import same_documents
from knowledge_base.home import MAIN, KnowledgeBase
from knowledge_base.lifecycle import NO_GATE
from knowledge_base.values import Frozen


class Admission(Frozen):
    """Whether a commit may replace what is live, and why; `reason` is a sentence for people.

    `judged` says that there is a verdict that counts, whatever it is.
    """

    allowed: bool
    reason: str
    candidate: str
    candidate_digest: str = ""
    live: str = ""
    live_digest: str = ""
    verdict: str = ""
    judged: bool = False


def admit(knowledge_base: KnowledgeBase, candidate: str, live: str = MAIN) -> Admission:
    """Look up the verdict on what `candidate` answers with, against what `live` does.

    Verdicts are found by content: any commit with the same content and golden questions is the same
    candidate. A verdict by other questions, another judge or other margins does not count.

    Raises:
        NotFoundError: There is no such ref.
        SettingsError: The golden questions of `candidate` cannot be read.
    """
    repository = knowledge_base.repository
    current = repository.resolve(live)
    case = Case.against(knowledge_base, repository.resolve(candidate), current)
    facts = {
        "candidate": case.release.commit,
        "candidate_digest": case.release.answers_digest,
        "live": current,
        "live_digest": case.before_digest,
    }
    verdict = case.known_verdict(knowledge_base)
    name = case.release.commit[:12]
    ask = f"run `rag eval {name} --baseline {current[:12]}`"
    if verdict is None:
        return Admission(allowed=False, reason=f"{name} was never evaluated against {live}: {ask}.", **facts)
    if verdict.rules != case.rules:
        said = "by other golden questions, another judge or other margins"
        reason = f"{name} was evaluated {said}: {ask}."
        return Admission(allowed=False, reason=reason, verdict=verdict.label, **facts)
    return Admission(
        allowed=verdict.publishable,
        reason=_tell(verdict, name),
        verdict=verdict.label,
        judged=True,
        **facts,
    )


def admit_merge(knowledge_base: KnowledgeBase, merged: str) -> Admission:
    """Whether `merged`, the commit that a merge would make, may be main's next.

    Besides what `admit` lets in: what answers as main does, what brings a release of main back, and what
    somebody takes past the gate with a reason, which the commit then carries for ever.

    Raises:
        NotFoundError: There is no such commit.
        SettingsError: Its golden questions cannot be read.
    """
    repository = knowledge_base.repository
    live, metadata = repository.resolve(MAIN), repository.get_commit(merged).metadata
    facts = {
        "candidate": merged,
        "candidate_digest": knowledge_base.release(merged).answers_digest,
        "live": live,
        "live_digest": knowledge_base.release(live).answers_digest,
        "verdict": metadata.get("verdict", ""),
    }
    name = merged[:12]
    if _is_same(knowledge_base, live, merged):
        return Admission(allowed=True, reason=f"{name} answers as main does.", **facts)
    if metadata.get("verdict") == NO_GATE and metadata.get("override"):
        reason = f"{name} goes past the gate: {metadata['override']}"
        return Admission(allowed=True, reason=reason, **facts)
    for target in filter(None, (metadata.get("rollback"), *repository.get_commit(live).parents[:1])):
        # What the commit says of itself is not believed: it must be a release of main, and the same.
        if _was_main(knowledge_base, target, live) and _is_same(knowledge_base, target, merged):
            return Admission(allowed=True, reason=f"{name} brings {target[:12]} back.", **facts)
    return admit(knowledge_base, merged)


def admit_tag(knowledge_base: KnowledgeBase, commit: str) -> Admission:
    """Whether `commit` may get a tag: a release of main may, and what may become one. Raises as `admit`."""
    live = knowledge_base.repository.resolve(MAIN)
    if not _was_main(knowledge_base, commit, live):
        return admit(knowledge_base, commit)
    facts = {
        "candidate": commit,
        "candidate_digest": knowledge_base.release(commit).answers_digest,
        "live": live,
        "live_digest": knowledge_base.release(live).answers_digest,
    }
    return Admission(allowed=True, reason=f"{commit[:12]} is a release of main.", **facts)


def _is_same(knowledge_base: KnowledgeBase, left: str, right: str) -> bool:
    """Whether two commits answer alike and store the same documents."""
    digests = {knowledge_base.release(commit).answers_digest for commit in (left, right)}
    return len(digests) == 1 and same_documents(knowledge_base.repository, left, right)


def _was_main(knowledge_base: KnowledgeBase, commit: str, live: str) -> bool:
    """Whether main's history holds `commit`, with a verdict on it."""
    repository = knowledge_base.repository
    try:
        return (
            repository.find_merge_base(commit, live) == commit
            and "verdict" in repository.get_commit(commit).metadata
        )
    except PlumblineError:
        return False


def _tell(verdict: Verdict, name: str) -> str:
    reasons = "; ".join(verdict.reasons[:3])
    return f"The gate says {verdict.label} of {name}" + (f": {reasons}." if reasons else ".")
