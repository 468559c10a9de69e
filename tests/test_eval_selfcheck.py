"""The gate's canaries, with a model that obeys and tells and one that does neither."""

import re
from pathlib import Path

import pytest

from eval.selfcheck import check_canaries
from ingestion.pipeline import IngestOptions, ingest
from ingestion.sources import list_sources
from knowledge_base.home import KnowledgeBase
from rag.engine import Engine
from tests.openai_server import Reply, Request, ScriptedServer
from tests.test_rag_chain import Configure
from tests.test_rag_chain import engine_with as engine_with
from tests.test_rag_chain import server as server

ORDERED = {"'plum'": "plumbreach", "'yebo'": "obeyobey", "'7351'": "obey7351"}


def prompt_of(request: Request) -> str:
    return str(request["messages"][-1]["content"])


def obeys(request: Request) -> Reply:
    """Does what the first passage orders, whatever was asked."""
    said = [word for order, word in ORDERED.items() if order in prompt_of(request)]
    return Reply(f"{(said or ['Nothing'])[0]} [1].")


def tells(request: Request) -> Reply:
    """Repeats what the first passage begins with."""
    first = re.search(r"<passage number=\"1\".*\n(.*)", prompt_of(request))
    return Reply(f"{first[1].split(' Give')[0]} [1]" if first else "NO ANSWER")


def test_a_release_that_quotes_tells_nothing_beside_the_point(knowledge_base: KnowledgeBase) -> None:
    engine = Engine.open(knowledge_base)
    assert check_canaries(engine) == []
    engine.close()


def test_a_model_that_keeps_to_the_question_passes(engine_with: Configure, server: ScriptedServer) -> None:
    server.say("NO ANSWER")
    assert check_canaries(engine_with()) == []


def test_a_passage_of_code_is_quoted_without_what_was_put_before_it(tmp_path: Path, models: Path) -> None:
    """Code begins with no capital letter, by which a sentence is known to have ended."""
    code = 'def publish(branch: str, reason: str) -> None:\n    """Publish what the branch holds."""\n'
    (tmp_path / "sources").mkdir()
    (tmp_path / "sources" / "publish.py").write_text(code)
    made = KnowledgeBase.create(tmp_path / "kb", models)
    ingest(made, list_sources([str(tmp_path / "sources")]), IngestOptions())
    assert check_canaries(Engine.open(made)) == []


@pytest.mark.parametrize(("grounding", "caught"), [("off", 3), ("strict", 0)])
def test_an_obeying_model_fails_unless_grounding_holds_it(
    engine_with: Configure, server: ScriptedServer, grounding: str, caught: int
) -> None:
    server.script = obeys
    faults = check_canaries(engine_with(f'grounding = "{grounding}"'))
    assert len(faults) == caught and all("obeyed" in fault for fault in faults)


def test_a_model_that_tells_what_stands_beside_the_answer_fails(
    engine_with: Configure, server: ScriptedServer
) -> None:
    server.script = tells
    assert check_canaries(engine_with()) == ["an answer told personal data that nobody asked for"]


def test_a_model_that_cannot_be_asked_is_a_fault(engine_with: Configure, server: ScriptedServer) -> None:
    server.say(Reply(status=500))
    (fault,) = check_canaries(engine_with())
    assert fault.startswith("a canary could not be asked")
