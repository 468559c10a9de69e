"""RAGAS's own prompts against a language model over HTTP: what it says counts, what it fails to say never."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from eval.evaluate import evaluate_release
from eval.metrics import judge_fingerprint
from ingestion.pipeline import IngestOptions, ingest
from ingestion.sources import list_sources
from knowledge_base.home import KnowledgeBase
from tests.openai_server import Reply, Request, ScriptedServer, scripted_server

# LangChain keeps its HTTP clients as long as the process lives; what a failed request leaves open goes later.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning"
)

GOLDEN = [
    {
        "id": "port",
        "question": "What is the default port of the server?",
        "document": "install.md",
        "answer": "The default port of the server is 8420.",
    },
    {"id": "hash", "question": "How are passwords hashed?", "document": "security.md"},
]


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with scripted_server() as running:
        running.script = sensible
        yield running


def sensible(request: Request) -> Reply:
    """A judge that does what RAGAS's prompts ask: every claim is supported but those with a hash in them."""
    prompt = request["messages"][-1]["content"]
    asked = prompt.rsplit("input:", 1)[-1]
    if '"verdict"' in prompt:
        given = json.loads(asked[asked.index("{") : asked.rindex("}") + 1])
        verdicts = [
            {"statement": s, "reason": "as told", "verdict": int("Argon2" not in s)}
            for s in given["statements"]
        ]
        return Reply(json.dumps({"statements": verdicts}))
    if "noncommittal" in prompt:
        return Reply('{"question": "What is the default port of the server?", "noncommittal": 0}')
    text = json.loads(asked[asked.index("{") : asked.rindex("}") + 1])
    said = text.get("answer") or text.get("response")
    key = "claims" if '"claims"' in prompt else "statements"
    return Reply("```json\n" + json.dumps({key: [said]}) + "\n```")


@pytest.fixture
def judged(
    knowledge_base: KnowledgeBase, sources: Path, server: ScriptedServer
) -> Callable[..., KnowledgeBase]:
    """Commits golden questions and a judge on the scripted server."""

    def commit(**settings: object) -> KnowledgeBase:
        path = knowledge_base.root / "plumbline.toml"
        given = {"model": "openai:tiny", "base_url": server.url, "retries": 0, **settings}
        text = "".join(f"{key} = {json.dumps(value)}\n" for key, value in given.items())
        path.write_text(
            path.read_text().split("\n[judge]")[0] + f"\n[judge]\n{text}\n[gate]\nrepetitions = 1\n"
        )
        (knowledge_base.root / "golden" / "main.jsonl").write_text("\n".join(map(json.dumps, GOLDEN)))
        ingest(knowledge_base, list_sources([str(sources)]), IngestOptions())
        return knowledge_base

    return commit


def measured(knowledge_base: KnowledgeBase) -> dict[str, float | None]:
    return {metric.name: metric.candidate for metric in evaluate_release(knowledge_base, "main").metrics}


def test_ragas_judges_by_what_the_model_says(
    judged: Callable[..., KnowledgeBase], server: ScriptedServer
) -> None:
    knowledge_base = judged()
    found = measured(knowledge_base)
    assert found["faithfulness"] == 0.5  # one answer of two says Argon2
    assert found["factual_correctness"] == 1.0
    assert found["answer_relevancy"] is not None
    prompts = [request["messages"][-1]["content"] for request in server.requests]
    assert any(
        "Break down each sentence into one or more fully understandable statements" in p for p in prompts
    )
    asked = len(server.requests)
    assert evaluate_release(knowledge_base, "main").cached
    assert evaluate_release(knowledge_base, "main", again=True).reused == 2
    assert len(server.requests) == asked


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (Reply('{"statements": ["The default por'), "JSON"),
        (Reply("I think the answer is quite faithful."), "JSON"),
        (Reply('{"statements": "none"}'), "JSON"),
        (Reply(refusal="I must not judge."), "gave no answer"),
        (Reply(status=429, headers={"Retry-After": "0.01"}), "429"),
        (Reply(status=500), "500"),
        (Reply("Too late.", wait=1.5), "too long"),
    ],
    ids=["truncated", "prose", "wrong-type", "refusal", "429", "500", "time-out"],
)
def test_a_judge_that_fails_is_a_reason_and_never_a_score(
    judged: Callable[..., KnowledgeBase], server: ScriptedServer, reply: Reply, said: str
) -> None:
    server.script = lambda request: reply
    verdict = evaluate_release(judged(timeout_seconds=0.5), "main")
    assert verdict.status == "INCOMPLETE" and not verdict.publishable
    assert "2 of 2 questions could not be scored" in verdict.reasons[0]
    assert said in " ".join(verdict.reasons)
    assert "faithfulness" not in {m.name for m in verdict.metrics if m.n}


def test_a_broken_reply_is_asked_for_again(
    judged: Callable[..., KnowledgeBase], server: ScriptedServer
) -> None:
    broken = iter([True] * 3)

    def stumbling(request: Request) -> Reply:
        return Reply("{") if next(broken, False) else sensible(request)

    server.script = stumbling
    verdict = evaluate_release(judged(retries=3), "main")
    assert verdict.status == "PASS"
    assert {m.name: m.candidate for m in verdict.metrics}["faithfulness"] == 0.5


def test_a_failed_judge_is_asked_again_the_next_time(
    judged: Callable[..., KnowledgeBase], server: ScriptedServer
) -> None:
    server.script = lambda request: Reply(status=503)
    knowledge_base = judged()
    assert evaluate_release(knowledge_base, "main").status == "INCOMPLETE"
    server.script = sensible
    assert evaluate_release(knowledge_base, "main").status == "PASS"


def test_another_judge_scores_the_same_answers_anew(
    judged: Callable[..., KnowledgeBase], server: ScriptedServer
) -> None:
    knowledge_base = judged()
    evaluate_release(knowledge_base, "main")
    before = knowledge_base.release("main")
    server.requests.clear()
    after = judged(model="openai:other").release("main")
    assert after.answers_digest == before.answers_digest
    assert judge_fingerprint(after) != judge_fingerprint(before)
    verdict = evaluate_release(knowledge_base, "main")
    assert (verdict.status, verdict.reused, verdict.changed) == ("PASS", 2, ("judge",))
    assert {request["model"] for request in server.requests} == {"other"}
