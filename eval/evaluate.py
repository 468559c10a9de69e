"""Evaluate a release: its own golden questions, asked of it and of the release it is compared with."""

from eval.gate import Verdict, judge
from eval.golden import GoldenQuestion, golden_fingerprint, load_golden
from eval.metrics import Scores, score_engine
from knowledge_base.errors import DamagedError, EmbedderError
from knowledge_base.home import MAIN, KnowledgeBase
from rag.engine import Engine


def evaluate_release(knowledge_base: KnowledgeBase, ref: str, baseline: str = MAIN) -> Verdict:
    """The gate's verdict on `ref` against `baseline`; against nothing when both are one commit.

    Raises:
        NotFoundError: No such ref.
        SettingsError: A golden question of `ref` is not valid.
        MissingExtraError: ragas is not installed and there are golden questions.
    """
    repository = knowledge_base.repository
    candidate, live = repository.resolve(ref), repository.resolve(baseline)
    questions = load_golden(repository, candidate)
    if not questions:
        return judge(Scores(candidate), None, golden="")
    scores = _score(knowledge_base, candidate, questions)
    comparable = live != candidate and knowledge_base.release(live).manifest.documents > 0
    before, obstacle = None, ""
    if comparable:
        try:
            before = _score(knowledge_base, live, questions)
        except (DamagedError, EmbedderError) as error:
            # An ingest that embeds everything anew because the model on this machine is another one
            # ends up here: it must get a verdict, not an error that says to ingest.
            obstacle = f"{live[:12]} cannot be opened to compare with: {error.message}"
    return judge(scores, before, golden=golden_fingerprint(questions), obstacle=obstacle)


def _score(knowledge_base: KnowledgeBase, commit: str, questions: list[GoldenQuestion]) -> Scores:
    engine = Engine.open(knowledge_base, commit)
    try:
        return score_engine(engine, questions)
    finally:
        engine.close()
