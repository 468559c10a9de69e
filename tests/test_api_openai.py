"""The routes that stream and that speak OpenAI's protocol, used through the clients people have."""

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from ingestion.pipeline import IngestOptions, ingest
from ingestion.sources import Sources
from knowledge_base.home import KnowledgeBase
from knowledge_base.republishing import rollback
from rag.answer_log import AnswerLog
from tests.openai_server import Reply, ScriptedServer, scripted_server
from tests.test_api_server import answer_log as answer_log
from tests.test_api_server import client as client
from tests.test_api_server import live as live

PORT = "What is the default port of the server?"
MODEL = "kb"


@pytest.fixture
def openai_client(client: httpx.Client) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{client.base_url}/v1", api_key="none", max_retries=0) as made:
        yield made


@pytest.fixture
def server(knowledge_base: KnowledgeBase) -> Iterator[ScriptedServer]:
    """A language model behind the knowledge base."""
    with scripted_server() as running:
        text = f'[answer]\nmodel = "openai:tiny"\nbase_url = "{running.url}"\nretries = 0\n'
        (knowledge_base.root / "plumbline.toml").write_text(text)
        ingest(knowledge_base, Sources(()), IngestOptions())
        yield running


def events_of(client: httpx.Client, body: dict[str, object]) -> list[tuple[str, dict[str, object]]]:
    with client.stream("POST", "/v1/query", json={**body, "stream": True}) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        blocks = "".join(response.iter_text()).split("\n\n")
    found = []
    for block in filter(None, blocks):
        name, data = block.split("\n")
        found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


def test_a_stream_has_typed_events_and_ends_with_the_answer(
    client: httpx.Client, answer_log: AnswerLog
) -> None:
    events = events_of(client, {"question": PORT})
    assert [name for name, _ in events] == ["retrieval", "text", "citations", "done"]
    done = events[-1][1]["answer"]
    assert isinstance(done, dict)
    assert events[1][1]["text"] == done["answer"]
    assert events[2][1]["citations"] == done["citations"]
    assert [answer.id for answer in answer_log.recent(2)] == [done["id"]]


def test_what_is_wrong_before_the_stream_is_a_status(client: httpx.Client) -> None:
    for body, status in (
        ({"question": " ", "stream": True}, 400),
        ({"question": "x", "ref": "no", "stream": True}, 404),
        ({"question": "x", "where": ["nonsense"], "stream": True}, 400),
    ):
        assert client.post("/v1/query", json=body).status_code == status


def test_a_model_that_dies_in_the_stream_is_an_error_event(
    server: ScriptedServer, client: httpx.Client
) -> None:
    server.say(Reply("The default port of the server is 8420 [1]. It is really so.", break_after=11))
    events = events_of(client, {"question": PORT})
    assert [name for name, _ in events] == ["retrieval", "text", "error"]
    assert events[-1][1]["title"] == "ModelError"
    assert client.post("/v1/query", json={"question": PORT}).status_code == 503


def test_conditions_and_history_reach_the_chain(client: httpx.Client) -> None:
    narrowed = client.post("/v1/search", json={"question": "port", "where": ["path=b*"]}).json()["results"]
    assert {result["path"] for result in narrowed} == {"billing.md"}
    history = [{"question": "How many requests may each key send?", "answer": "600 per minute."}]
    answer = client.post(
        "/v1/query", json={"question": "What happens above that?", "history": history}
    ).json()
    assert answer["queries"] == ["How many requests may each key send? What happens above that?"]


def test_the_openai_client_asks_a_knowledge_base(
    openai_client: openai.OpenAI, client: httpx.Client, answer_log: AnswerLog
) -> None:
    assert [model.id for model in openai_client.models.list()] == [MODEL]
    reply = openai_client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": PORT}])
    message = reply.choices[0].message
    assert message.content == "The default port of the server is 8420. [1]"
    assert message.annotations is not None
    cited = message.annotations[0].url_citation
    assert message.content[cited.start_index : cited.end_index] == "[1]"
    passage = httpx.get(cited.url).raise_for_status().json()
    assert passage["text"] == "The default port of the server is 8420."
    whole = reply.model_extra["plumbline"] if reply.model_extra else {}
    assert whole["id"] == answer_log.recent(1)[0].id


def test_the_openai_client_streams(openai_client: openai.OpenAI) -> None:
    stream = openai_client.chat.completions.create(
        model=MODEL,
        messages=[
            {"role": "system", "content": "Be a pirate."},
            {"role": "user", "content": "How many requests may each key send?"},
            {"role": "assistant", "content": "600 per minute."},
            {"role": "user", "content": [{"type": "text", "text": "What happens above that?"}]},
        ],
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert "status 429" in text
    assert chunks[-1].usage is not None
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"


def test_a_client_that_shows_the_text_alone_shows_what_was_not_answered(openai_client: openai.OpenAI) -> None:
    both = "Who founded the company and how far away is the moon?"
    reply = openai_client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": both}])
    text = reply.choices[0].message.content or ""
    assert text.endswith("(No supported answer to: how far away is the moon?)")
    parts = openai_client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": both}], stream=True
    )
    assert "".join(part.choices[0].delta.content or "" for part in parts) == text


def test_a_model_name_may_name_a_ref(
    openai_client: openai.OpenAI, knowledge_base: KnowledgeBase, tmp_path: Path
) -> None:
    from ingestion.sources import list_sources

    knowledge_base.repository.create_tag("v1", "main")
    (tmp_path / "install.md").write_text("The default port of the server is 9999.\n")
    ingest(knowledge_base, list_sources([str(tmp_path / "install.md")]), IngestOptions())
    assert {model.id for model in openai_client.models.list()} == {"kb", "kb@v1"}

    def say(model: str) -> str:
        asked = openai_client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": PORT}]
        )
        return asked.choices[0].message.content or ""

    until = time.monotonic() + 20
    while "9999" not in say("kb") and time.monotonic() < until:  # the server looks twice a second
        time.sleep(0.1)
    assert "9999" in say("kb") and "8420" in say("kb@v1")
    rollback(knowledge_base, None)
    for model in ("other", "kb@nowhere"):
        with pytest.raises(openai.NotFoundError):
            openai_client.chat.completions.create(model=model, messages=[{"role": "user", "content": PORT}])
    with pytest.raises(openai.BadRequestError):
        openai_client.chat.completions.create(model="kb", messages=[{"role": "assistant", "content": "Hi"}])


@pytest.mark.parametrize(
    ("model", "role", "type", "said"),
    [
        ("other", "user", "NotFoundError", "There is kb. A release of it is NAME@REF."),
        ("kb", "assistant", "UsageError", "End the conversation with a question."),
        ("kb", "nobody", "InvalidRequest", "messages.0.role"),
        ("", "user", "InvalidRequest", "model"),
    ],
)
def test_the_openai_client_shows_what_is_wrong(
    openai_client: openai.OpenAI, model: str, role: str, type: str, said: str
) -> None:
    asked = [{"role": role, "content": PORT}]
    with pytest.raises(openai.APIStatusError) as refused:
        openai_client.chat.completions.create(model=model, messages=asked)  # type: ignore[arg-type]
    assert isinstance(refused.value.body, dict)
    assert (refused.value.type, refused.value.body["code"]) == (type, refused.value.status_code)
    assert said in refused.value.body["message"] and said in str(refused.value)


def test_langchains_client_works_against_it(client: httpx.Client) -> None:
    from langchain_openai import ChatOpenAI
    from pydantic import SecretStr

    chat = ChatOpenAI(model=MODEL, base_url=f"{client.base_url}/v1", api_key=SecretStr("none"), max_retries=0)
    assert "8420" in chat.invoke(PORT).text
    assert "8420" in "".join(chunk.text for chunk in chat.stream(PORT))


def test_part_of_a_document_can_be_read(client: httpx.Client) -> None:
    whole = client.get("/v1/documents/api/limits.md").raise_for_status().json()
    part = client.get("/v1/documents/api/limits.md?start=2&end=13").raise_for_status().json()
    assert part["text"] == whole["text"][2:13] == "Rate limits"
    assert client.get("/v1/documents/api/limits.md?start=9&end=2").status_code == 404
    assert client.get("/v1/documents/nothing.md").status_code == 404


LLAMA_INDEX = """
import sys
from llama_index.llms.openai_like import OpenAILike
from llama_index.core.llms import ChatMessage
model = OpenAILike(model="kb", api_base=sys.argv[1], api_key="none", is_chat_model=True, max_retries=0)
asked = [ChatMessage(role="user", content=sys.argv[2])]
print(model.chat(asked).message.content)
print("".join(piece.delta or "" for piece in model.stream_chat(asked)))
"""


@pytest.mark.skipif(
    "PLUMBLINE_TEST_LLAMAINDEX" not in os.environ,
    reason="PLUMBLINE_TEST_LLAMAINDEX names a Python that has llama-index-llms-openai-like",
)
def test_llamaindexs_client_works_against_it(client: httpx.Client) -> None:
    """Its package wants an older openai than ours, so it runs in an environment of its own."""
    command = [os.environ["PLUMBLINE_TEST_LLAMAINDEX"], "-c", LLAMA_INDEX, f"{client.base_url}/v1", PORT]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("8420") == 2
