"""Golden questions: rows, files, import, generation, review."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from eval.evaluate import evaluate_release
from eval.golden import GoldenQuestion, parse_golden
from eval.golden_files import GoldenFiles, read_import
from eval.golden_generate import certainty, from_corpus, from_feedback, from_log, generate_with_model
from ingestion.pipeline import IngestOptions, ingest
from ingestion.sources import list_sources
from knowledge_base.documents import sha256_hex
from knowledge_base.errors import AlreadyExistsError, ModelError, NotFoundError, SettingsError, UsageError
from knowledge_base.home import KnowledgeBase
from rag.answer_log import Feedback
from rag.engine import Engine
from tests.openai_server import Reply, Request, ScriptedServer, scripted_server


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with scripted_server() as running:
        yield running


def test_a_quote_that_was_edited_by_hand_does_not_pass_for_the_one_that_was_checked() -> None:
    line = {"id": "a", "question": "q", "document": "d", "quote": "new", "quote_sha256": sha256_hex(b"old")}
    with pytest.raises(SettingsError, match="quote_sha256"):
        parse_golden([("x", json.dumps(line))])


def test_added_rows_carry_the_hash_of_their_quote_and_occur_once(empty_kb: KnowledgeBase) -> None:
    files = GoldenFiles(empty_kb)
    row = GoldenQuestion(id="p", question="What is the port?", document="install.md", quote="8420")
    again = GoldenQuestion(id="other", question="what is  the PORT?")
    assert [r.id for r in files.add([row, again], "added")] == ["p"]
    (kept,) = files.rows()
    assert kept.quote_sha256 == sha256_hex(b"8420")
    with pytest.raises(AlreadyExistsError, match="taken"):
        files.add([row.model_copy(update={"question": "Another?"})], "added")


def test_a_row_takes_the_place_of_the_one_that_asks_the_same(empty_kb: KnowledgeBase) -> None:
    files = GoldenFiles(empty_kb)
    wrong = GoldenQuestion(id="p", question="What is the port?", document="instal.md")
    other = GoldenQuestion(id="o", question="Who founded it?")
    files.add([wrong, other], "imported")
    mended = GoldenQuestion(id="new", question="what is the PORT?", document="install.md", quote="8420")
    assert files.replace(mended) == mended.model_copy(update={"id": "p"}).hashed()
    assert files.rows() == [mended.model_copy(update={"id": "p"}).hashed(), other]
    with pytest.raises(NotFoundError, match="Where"):
        files.replace(GoldenQuestion(id="w", question="Where is it?"))


def test_csv_and_jsonl_are_imported_with_ragas_names_too(tmp_path: Path) -> None:
    table = tmp_path / "faq.csv"
    table.write_text(
        "question,answer,document,tags,unanswerable\nWhich port?,8420,install.md,ops; net,\nMoon?,,,,yes\n"
    )
    port, moon = read_import(table, "candidate")
    assert (port.answer, port.tags, port.state, port.source) == (
        "8420",
        ("ops", "net"),
        "candidate",
        "import faq",
    )
    assert moon.unanswerable
    lines = tmp_path / "ragas.jsonl"
    lines.write_text(
        json.dumps({"user_input": "Which port?", "reference": "8420", "reference_contexts": ["8420."]}) + "\n"
    )
    (row,) = read_import(lines, "approved")
    assert (row.question, row.answer, row.quote) == ("Which port?", "8420", "8420.")
    assert row.id == port.id


def test_an_import_with_an_unknown_column_is_refused_by_name(tmp_path: Path) -> None:
    table = tmp_path / "faq.csv"
    table.write_text("question,anwser\nWhich port?,8420\n")
    with pytest.raises(SettingsError, match="line 2: anwser"):
        read_import(table, "candidate")


def test_questions_from_the_corpus_can_be_answered_by_it(knowledge_base: KnowledgeBase) -> None:
    snapshot = knowledge_base.snapshot()
    rows = from_corpus(snapshot, 20)
    assert len(rows) >= 5 and len({row.question for row in rows}) == len(rows)
    assert {row.state for row in rows} == {"candidate"}
    assert all(row.source.startswith("generated from") for row in rows)
    assert all(row.is_held_by(snapshot.document_text) for row in rows)
    asked = {row.question for row in rows}
    assert "What is the default port of the server?" in asked
    assert "What does 'Billing' say about 'Cards'?" in asked
    assert rows == from_corpus(snapshot, 20)


def test_generated_candidates_are_not_asked_before_somebody_approves_them(
    knowledge_base: KnowledgeBase, sources: Path
) -> None:
    files = GoldenFiles(knowledge_base)
    rows = files.add(from_corpus(knowledge_base.snapshot(), 3), "generated")
    ingest(knowledge_base, list_sources([str(sources)]), IngestOptions())
    assert evaluate_release(knowledge_base, "main").label == "PASS (no golden set)"
    files.set_state([rows[0].id], "approved")
    ingest(knowledge_base, list_sources([str(sources)]), IngestOptions())
    assert evaluate_release(knowledge_base, "main").questions == 1
    with pytest.raises(NotFoundError, match="nothing-such"):
        files.set_state(["nothing-such"], "retired")


def test_logged_questions_become_candidates_the_least_certain_first(knowledge_base: KnowledgeBase) -> None:
    engine = Engine.open(knowledge_base)
    sure = engine.ask("What is the default port of the server?")
    unsure = engine.ask("How far away is the moon?")
    assert certainty(unsure) == 0 < certainty(sure)
    rows = from_log([sure, unsure, sure], 10)
    assert [row.question for row in rows] == [unsure.question, sure.question]
    assert [row.document for row in rows] == [None, "install.md"]


def test_what_readers_said_becomes_candidates_complaints_first(knowledge_base: KnowledgeBase) -> None:
    engine = Engine.open(knowledge_base)
    port = engine.ask("What is the default port of the server?")
    founder = engine.ask("Who founded the company?")
    given = [
        (port, Feedback(rating="up", citation=1)),
        (founder, Feedback(rating="down", correction="Astrid Lund, in 1987.")),
        (port, Feedback(rating="down")),
    ]
    rows = from_feedback(given, 10)
    assert [(row.question, row.answer, row.document) for row in rows] == [
        (founder.question, "Astrid Lund, in 1987.", None),
        (port.question, "The default port of the server is 8420.", "install.md"),
    ]
    assert {row.state for row in rows} == {"candidate"}
    assert len(from_feedback(given, 1)) == 1


def test_making_questions_with_a_model_needs_one(knowledge_base: KnowledgeBase) -> None:
    with pytest.raises(UsageError, match="needs one"):
        generate_with_model(knowledge_base, 3)


def use_judge(knowledge_base: KnowledgeBase, server: ScriptedServer, **settings: object) -> None:
    path = knowledge_base.root / "plumbline.toml"
    more = "".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items())
    text = path.read_text() + f'\n[judge]\nmodel = "openai:tiny"\nbase_url = "{server.url}"\n{more}'
    path.write_text(text)


def test_a_model_makes_questions_through_ragas(knowledge_base: KnowledgeBase, server: ScriptedServer) -> None:
    use_judge(knowledge_base, server, retries=0)

    def script(request: Request) -> Reply:
        prompt = request["messages"][-1]["content"]
        if '"entities"' in prompt and '"query"' not in prompt:
            return Reply('{"entities": ["Argon2", "server"]}')
        if '"mapping"' in prompt:
            return Reply('{"mapping": {"Reader": ["Argon2", "server"]}}')
        return Reply('{"query": "What guards the passwords?", "answer": "Argon2."}')

    server.script = script
    rows = generate_with_model(knowledge_base, 2)
    assert rows and {row.question for row in rows} == {"What guards the passwords?"}
    assert rows[0].source == "generated by openai:tiny" and rows[0].state == "candidate"
    assert rows[0].document in knowledge_base.snapshot().paths


def test_a_model_that_cannot_follow_ragas_is_an_error(
    knowledge_base: KnowledgeBase, server: ScriptedServer
) -> None:
    use_judge(knowledge_base, server, retries=0)
    server.say("I would rather talk about something else.")
    with pytest.raises(ModelError):
        generate_with_model(knowledge_base, 2)
