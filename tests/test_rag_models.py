"""Language models asked over HTTP: replies, waits, and every way in which one can fail."""

from collections.abc import Iterator

import pytest

from knowledge_base.configuration import ModelSettings, parse_settings
from knowledge_base.errors import MissingExtraError, ModelError, SettingsError
from rag.answer import Usage
from rag.models import LanguageModel, cost
from tests.openai_server import Reply, ScriptedServer, scripted_server

ASKED = [("system", "Be brief."), ("user", "What is the port?")]


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with scripted_server() as running:
        yield running


def model(server: ScriptedServer, **settings: object) -> LanguageModel:
    return LanguageModel(ModelSettings(model="openai:tiny", base_url=server.url, **settings))


def test_a_reply_comes_in_pieces_and_whole_with_its_tokens(server: ScriptedServer) -> None:
    server.say("The port is 8420.")
    pieces = list(model(server).stream(ASKED))
    assert len([piece for piece in pieces if piece.text]) == 4
    done = pieces[-1].completion
    assert done is not None
    assert done.text == "".join(piece.text for piece in pieces) == "The port is 8420."
    assert done.usage == Usage(input_tokens=6, output_tokens=4)


def test_the_request_carries_what_the_settings_say(server: ScriptedServer) -> None:
    server.say("Yes.")
    model(server, temperature=0.25, max_tokens=77).complete(ASKED)
    (request,) = server.requests
    assert request["model"] == "tiny"
    assert request["temperature"] == 0.25
    assert 77 in (request.get("max_tokens"), request.get("max_completion_tokens"))
    assert [(m["role"], m["content"]) for m in request["messages"]] == ASKED


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_a_passing_failure_is_tried_again(server: ScriptedServer, status: int) -> None:
    server.say(Reply(status=status, headers={"Retry-After": "0.01"}), "Yes.")
    assert model(server, retries=1).complete(ASKED).text == "Yes."
    assert len(server.requests) == 2


@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_a_lasting_failure_is_not_tried_again(server: ScriptedServer, status: int) -> None:
    server.say(Reply(status=status))
    with pytest.raises(ModelError, match=str(status)) as caught:
        model(server, retries=3).complete(ASKED)
    assert not caught.value.transient
    assert len(server.requests) == 1


def test_retries_come_to_an_end(server: ScriptedServer) -> None:
    server.say(Reply(status=500, headers={"Retry-After": "0.01"}))
    with pytest.raises(ModelError, match="HTTP 500"):
        model(server, retries=2).complete(ASKED)
    assert len(server.requests) == 3


def test_a_reply_that_breaks_off_is_an_error_and_not_begun_again(server: ScriptedServer) -> None:
    server.say(Reply("The port is 8420.", break_after=2))
    heard = ""
    with pytest.raises(ModelError) as caught:
        for piece in model(server, retries=3).stream(ASKED):
            heard += piece.text
    assert heard == "The port "
    assert caught.value.transient
    assert len(server.requests) == 1


def test_a_silent_server_is_a_time_out(server: ScriptedServer) -> None:
    server.say(Reply("Too late.", wait=2))
    with pytest.raises(ModelError, match="too long"):
        model(server, timeout_seconds=0.3, retries=0).complete(ASKED)


def test_a_server_that_is_not_there_is_named_as_such() -> None:
    nowhere = LanguageModel(ModelSettings(model="openai:tiny", base_url="http://127.0.0.1:9/v1", retries=0))
    with pytest.raises(ModelError) as caught:
        nowhere.complete(ASKED)
    assert "base_url" in caught.value.hint


@pytest.mark.parametrize(
    "reply", [Reply(refusal="I must not."), Reply("Half", finish_reason="content_filter")]
)
def test_a_refusal_is_an_error_and_never_an_answer(server: ScriptedServer, reply: Reply) -> None:
    server.say(reply)
    with pytest.raises(ModelError, match="gave no answer"):
        model(server).complete(ASKED)


def test_a_reply_that_is_not_json_is_an_error(server: ScriptedServer) -> None:
    server.say(Reply(body=b"<html>proxy error</html>"))
    with pytest.raises(ModelError):
        model(server, retries=0).complete(ASKED)


def test_a_reply_at_the_token_limit_is_marked_as_cut(server: ScriptedServer) -> None:
    server.say(Reply("The port is", finish_reason="length"))
    assert model(server).complete(ASKED).cut


def test_a_provider_without_its_package_says_what_to_install() -> None:
    with pytest.raises(MissingExtraError, match="cohere") as caught:
        LanguageModel(ModelSettings(model="cohere:command")).complete(ASKED)
    assert "langchain-cohere" in caught.value.hint


def test_an_unknown_provider_is_named() -> None:
    with pytest.raises(ModelError, match="nobody:x"):
        LanguageModel(ModelSettings(model="nobody:x")).complete(ASKED)


def test_a_price_is_of_a_million_tokens() -> None:
    prices = ModelSettings(model="openai:x", input_price=2.0, output_price=8.0)
    assert cost(Usage(input_tokens=500_000, output_tokens=250_000), prices) == 3.0


def test_models_and_fallbacks_are_one_line_each() -> None:
    chain = '["ollama:b", {model = "openai:c", base_url = "http://h/v1"}, "extractive"]'
    models = parse_settings(f'[answer]\nmodel = "openai:a"\nfallbacks = {chain}\n').answer.models
    assert [m.model for m in models] == ["openai:a", "ollama:b", "openai:c", "extractive"]


@pytest.mark.parametrize(
    "line",
    ['model = "gpt"', 'base_url = "ftp://x"', 'base_url = "http://me:secret@host/v1"', 'fallbacks = "x"'],
)
def test_a_setting_that_cannot_work_is_refused(line: str) -> None:
    with pytest.raises(SettingsError, match="answer"):
        parse_settings(f"[answer]\n{line}\n")
