"""Evaluate a release: its own golden questions, asked of it and of the release it is compared with."""

from eval.gate import Verdict, judge
from eval.golden import GoldenQuestion, golden_fingerprint, load_golden
from eval.metrics import Scores, score_engine
from knowledge_base.errors import DamagedError, EmbedderError
from knowledge_base.home import MAIN, KnowledgeBase
from knowledge_base.release import DOCUMENTS_PREFIX, GOLDEN_PREFIX
from knowledge_base.version_store import Repository
from rag.engine import Engine

_NAMED = 10


def evaluate_release(knowledge_base: KnowledgeBase, ref: str, baseline: str = MAIN) -> Verdict:
    """The gate's verdict on `ref` against `baseline`, or the release before when both are one commit.

    Raises:
        NotFoundError: No such ref.
        SettingsError: A golden question of `ref` is not valid.
        MissingExtraError: ragas is not installed and there are golden questions.
    """
    repository = knowledge_base.repository
    candidate, live = repository.resolve(ref), repository.resolve(baseline)
    questions = load_golden(repository, candidate)
    if not questions:
        return judge(Scores(candidate), None, golden="", warnings=_uncommitted(knowledge_base))
    if live == candidate:
        live = release_before(knowledge_base, candidate)
    scores = _score(knowledge_base, candidate, questions)
    before, obstacle = None, ""
    if live and knowledge_base.release(live).manifest.documents:
        try:
            before = _score(knowledge_base, live, questions)
        except (DamagedError, EmbedderError) as error:
            # An ingest that embeds everything anew because the model on this machine is another one
            # ends up here: it must get a verdict, not an error that says to ingest.
            obstacle = f"{live[:12]} cannot be opened to compare with: {error.message}"
    return judge(
        scores,
        before,
        golden=golden_fingerprint(questions),
        obstacle=obstacle,
        warnings=_lost_documents(repository, candidate, questions),
    )


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


def _uncommitted(knowledge_base: KnowledgeBase) -> list[str]:
    """What to say of golden files that are on disk and in no release yet."""
    count = sum(path.startswith(GOLDEN_PREFIX) for path in knowledge_base.working_files())
    return [f"{count} golden file(s) are not committed yet: run `rag ingest`"] if count else []


def _lost_documents(repository: Repository, commit: str, questions: list[GoldenQuestion]) -> list[str]:
    """What to say of questions that require a document which the release does not hold."""
    known = {
        item.path.removeprefix(DOCUMENTS_PREFIX)
        for item in repository.list_objects(commit, prefix=DOCUMENTS_PREFIX)
    }
    lost = [
        f"golden question {question.id!r} requires {question.document!r}, which this release does not hold"
        for question in questions
        if question.document is not None and question.document not in known
    ]
    more = [f"and {len(lost) - _NAMED} more golden questions like that"] if len(lost) > _NAMED else []
    return lost[:_NAMED] + more


def _score(knowledge_base: KnowledgeBase, commit: str, questions: list[GoldenQuestion]) -> Scores:
    engine = Engine.open(knowledge_base, commit)
    try:
        return score_engine(engine, questions)
    finally:
        engine.close()
