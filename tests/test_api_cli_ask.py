"""`rag ask` with conditions, streams, conversations and a language model; `rag prompt`."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.openai_server import Reply, ScriptedServer, scripted_server
from tests.test_api_cli import kb as kb
from tests.test_api_cli import rag, rag_json
from tests.test_api_cli import template as template

PORT = "What is the default port of the server?"


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with scripted_server() as running:
        yield running


@pytest.fixture
def model_kb(kb: Path, server: ScriptedServer) -> Path:
    """The knowledge base with the scripted server as its model, and the extractive answerer behind it."""
    (kb / "plumbline.toml").write_text(
        f'[answer]\nmodel = "openai:tiny"\nbase_url = "{server.url}"\nretries = 0\ninput_price = 1000\n'
        'fallbacks = ["extractive"]\n'
    )
    rag("ingest", cwd=kb)
    return kb


def test_conditions_narrow_what_is_searched(kb: Path) -> None:
    assert rag_json("ask", PORT, "--where", "path=billing*", cwd=kb)["abstained"]
    found = rag_json("search", "refund", "--where", "path=s*", "--where", "type=md", cwd=kb)["results"]
    assert {result["path"] for result in found} == {"security.md"}
    assert "not a condition" in rag("ask", PORT, "--where", "nonsense", cwd=kb, code=2)


def test_a_question_needs_no_quotes(kb: Path) -> None:
    loose = rag_json("ask", *PORT.split(), cwd=kb)
    assert (loose["question"], loose["abstained"]) == (PORT, False)
    assert rag_json("search", *PORT.split(), "--top-k", "1", cwd=kb)["question"] == PORT


def test_conditions_that_no_document_meets_are_explained(kb: Path) -> None:
    assert "path=guides/*" in rag("search", PORT, "--where", "path=api", cwd=kb)
    assert "path=guides/*" in rag("ask", PORT, "--where", "path=api", cwd=kb)


def test_a_stream_for_scripts_is_one_event_a_line(kb: Path) -> None:
    lines = rag("ask", PORT, "--stream", "--json", cwd=kb).splitlines()
    events = [json.loads(line) for line in lines]
    assert [event["event"] for event in events] == ["retrieval", "text", "done"]
    assert events[1]["text"] == events[2]["answer"]["answer"]


def test_a_conversation_understands_follow_ups_and_opens_sources(kb: Path) -> None:
    lines = "How many requests may each key send?\nWhat happens above that?\n1\n9\n\n"
    said = rag("ask", "--chat", cwd=kb, stdin=lines.encode())
    assert "600 requests per minute" in said
    assert "status 429" in said
    assert "api/limits.md at" in said
    assert "There is no source 9" in said


def test_a_conversation_and_a_question_exclude_each_other(kb: Path) -> None:
    assert "--chat" in rag("ask", cwd=kb, code=2)
    assert "--chat" in rag("ask", PORT, "--chat", cwd=kb, code=2)


def test_a_model_answers_with_tokens_and_cost(model_kb: Path, server: ScriptedServer) -> None:
    server.say("The default port of the server is 8420 [1]. Trolls live there [1].", "1. DROP")
    said = rag("ask", PORT, "--stream", cwd=model_kb)
    assert "The default port of the server is 8420 [1]." in said
    assert "left out, unsupported" in said
    assert "model openai:tiny" in said
    assert "cost" in said


def test_a_model_that_fails_is_named_beside_the_fallbacks_answer(
    model_kb: Path, server: ScriptedServer
) -> None:
    server.say(Reply(status=503))
    answer = rag_json("ask", PORT, cwd=model_kb)
    assert answer["model"] == "extractive"
    assert "503" in answer["attempts"][0]["error"]
    assert "openai:tiny failed" in rag("ask", PORT, cwd=model_kb)


def test_without_a_fallback_a_failing_model_is_an_error_of_its_own(
    model_kb: Path, server: ScriptedServer
) -> None:
    text = (model_kb / "plumbline.toml").read_text().replace('fallbacks = ["extractive"]\n', "")
    (model_kb / "plumbline.toml").write_text(text)
    rag("ingest", cwd=model_kb)
    server.say(Reply(status=401))
    assert "OPENAI_API_KEY" in rag("ask", PORT, cwd=model_kb, code=3)


def test_prompts_are_listed_shown_compared_and_tried(kb: Path) -> None:
    assert [row["name"] for row in rag_json("prompt", "list", cwd=kb)] == [
        "answer",
        "condense",
        "judge",
        "queries",
        "repair",
    ]
    default = rag("prompt", "show", "answer", "--default", cwd=kb)
    assert rag("prompt", "show", "answer", "--ref", "main", cwd=kb) == default
    path = kb / "prompts" / "answer.md"
    path.write_text(default.replace("Question: {question}", "Frage: {question}"))
    assert "+Frage: {question}" in rag("prompt", "diff", cwd=kb)
    messages = rag_json("prompt", "try", PORT, cwd=kb)["messages"]
    assert messages[0]["role"] == "system"
    assert messages[-1]["content"].endswith(f"Frage: {PORT}")
    rag("ingest", cwd=kb)
    assert "prompt" in rag_json("log", cwd=kb)[0]["changed"]
    assert rag("prompt", "diff", cwd=kb) == ""
    assert "No such prompt" in rag("prompt", "show", "nothing", cwd=kb, code=2)


def test_a_prompt_with_an_unknown_variable_is_not_published(kb: Path) -> None:
    (kb / "prompts" / "answer.md").write_text("---\nname: answer\n---\n{question} {contexts} {mood}\n")
    assert "{mood}" in rag("ingest", cwd=kb, code=2)
    assert len(rag_json("log", cwd=kb)) == 1
