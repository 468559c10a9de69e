"""The gate as a service: may this commit be merged? Answered from stored verdicts alone, in milliseconds.

What a pre-merge or pre-create-tag hook calls. It measures nothing and changes nothing, so asking twice gives
the same answer; `rag eval` makes the verdicts that it looks up.
"""

from eval.case import Case
from eval.evaluations import Evaluations
from eval.gate import Verdict
from knowledge_base.home import MAIN, KnowledgeBase
from knowledge_base.release import Frozen


class Admission(Frozen):
    """Whether a commit may replace what is live, and why; `reason` is a sentence for people."""

    allowed: bool
    reason: str
    candidate: str
    candidate_digest: str
    live: str
    live_digest: str
    verdict: str = ""


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
    verdict = Evaluations(repository).verdict(case.release.answers_digest, case.before_digest)
    name = case.release.commit[:12]
    ask = f"run `rag eval {name} --baseline {current[:12]}`"
    if verdict is None:
        return Admission(allowed=False, reason=f"{name} was never evaluated against {live}: {ask}.", **facts)
    if verdict.rules != case.rules:
        said = "by other golden questions, another judge or other margins"
        reason = f"{name} was evaluated {said}: {ask}."
        return Admission(allowed=False, reason=reason, verdict=verdict.label, **facts)
    return Admission(allowed=verdict.publishable, reason=_tell(verdict, name), verdict=verdict.label, **facts)


def _tell(verdict: Verdict, name: str) -> str:
    reasons = "; ".join(verdict.reasons[:3])
    return f"The gate says {verdict.label} of {name}" + (f": {reasons}." if reasons else ".")
