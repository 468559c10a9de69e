"""`rag golden` and what `rag eval`, `rag show`, `rag log` and `rag diff` print of evaluations."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from api.cli import app
from ingestion.pipeline import IngestOptions, ingest
from ingestion.sources import list_sources
from knowledge_base.errors import UsageError
from knowledge_base.home import KnowledgeBase


@pytest.fixture
def run(knowledge_base: KnowledgeBase) -> Any:
    """The command line in this process: `run(..., code=0)` gives what it prints."""

    def call(*words: object, code: int = 0) -> str:
        done = CliRunner().invoke(app, [*map(str, words), "--kb", str(knowledge_base.root)])
        if done.exception and not isinstance(done.exception, SystemExit):
            raise done.exception
        assert done.exit_code == code, done.output
        return done.stdout

    return call


def test_questions_are_added_imported_generated_reviewed_and_asked(
    knowledge_base: KnowledgeBase, sources: Path, tmp_path: Path, run: Any
) -> None:
    port = "What is the default port of the server?"
    assert "approved" in run(
        "golden", "add", port, "--document", "install.md", "--quote", "8420", "--id", "port"
    )
    table = tmp_path / "faq.csv"
    table.write_text(f"question,document\n{port},install.md\nWho founded the company?,history.md\n")
    imported = json.loads(run("golden", "import", table, "--json"))
    assert (len(imported["added"]), imported["known"]) == (1, 1)
    generated = json.loads(run("golden", "generate", "-n", 2, "--json"))["added"]
    assert len(generated) == 2
    waiting = json.loads(run("golden", "review", "--json"))
    assert {row["state"] for row in waiting} == {"candidate"} and len(waiting) == 3
    run("golden", "review", imported["added"][0]["id"], "--approve")
    run("golden", "review", "--all", "--retire")
    ingest(knowledge_base, list_sources([str(sources)]), IngestOptions())
    verdict = json.loads(run("eval", "--json"))
    assert (verdict["status"], verdict["questions"]) == ("PASS", 2)
    assert "unchanged since it was last evaluated" in run("eval")
    assert "PASS on 2 golden question(s)" in run("show")
    assert "later PASS" in run("log")


def test_a_question_with_a_wrong_path_is_mended_by_asking_it_again(run: Any) -> None:
    added = run("golden", "add", "Who founded it?", "--document", "histroy.md", "--id", "founder")
    assert "stale" in added
    assert "--replace" in run("golden", "add", "Who founded it?", "--document", "history.md")
    said = run("golden", "add", "Who founded it?", "--document", "history.md", "--replace")
    assert said.startswith("founder is replaced")
    (row,) = json.loads(run("golden", "list", "--json"))
    assert (row["id"], row["document"], row["state"]) == ("founder", "history.md", "approved")


def test_what_is_not_committed_or_not_in_main_is_said_at_once(
    knowledge_base: KnowledgeBase, sources: Path, run: Any
) -> None:
    run("eval")
    said = run("golden", "add", "Who founded it?", "--document", "histroy.md")
    assert (
        "stale" in said and "main does not hold 'histroy.md'" in said and "the next ingest commits it" in said
    )
    done = CliRunner().invoke(app, ["eval", "--kb", str(knowledge_base.root)])  # a verdict that is known
    assert "Not committed yet, so not asked: golden/added.jsonl" in done.stderr
    ingest(knowledge_base, list_sources([str(sources)]), IngestOptions())
    done = CliRunner().invoke(app, ["eval", "--kb", str(knowledge_base.root)])
    assert "Not committed" not in done.stderr


def test_a_diff_without_golden_questions_asks_for_no_evaluation(
    knowledge_base: KnowledgeBase, sources: Path, run: Any
) -> None:
    before = knowledge_base.repository.resolve("main")
    (sources / "install.md").write_text("# Installation\n\nThe default port of the server is 9000.\n")
    ingest(knowledge_base, list_sources([str(sources)]), IngestOptions())
    said = run("diff", before, "main")
    assert "golden questions: none to compare" in said and "rag eval" not in said


def test_a_row_whose_quote_vanished_is_listed_as_stale(
    knowledge_base: KnowledgeBase, sources: Path, run: Any
) -> None:
    run("golden", "add", "What is the port?", "--document", "install.md", "--quote", "8420", "--id", "port")
    (sources / "install.md").write_text("# Installation\n\nThe default port of the server is 9000.\n")
    ingest(knowledge_base, list_sources([str(sources)]), IngestOptions())
    (row,) = json.loads(run("golden", "list", "--state", "stale", "--json"))
    assert row["id"] == "port" and "does not stand in 'install.md'" in row["reason"]
    assert "stale" in run("golden", "list")


def test_a_diff_shows_old_and_new_answer_side_by_side(
    knowledge_base: KnowledgeBase, sources: Path, run: Any
) -> None:
    run(
        "golden", "add", "What is the default port of the server?", "--document", "install.md", "--id", "port"
    )
    ingest(knowledge_base, list_sources([str(sources)]), IngestOptions())
    before = knowledge_base.repository.resolve("main")
    (sources / "install.md").write_text("# Installation\n\nThe default port of the server is 9000.\n")
    ingest(knowledge_base, list_sources([str(sources)]), IngestOptions())
    assert "was not evaluated" in run("diff", before, "main")
    said = run("eval", "main", "--baseline", before)
    assert "cannot tell" in said and "lower than before" not in said
    said = run("diff", before, "main")
    assert "1 of 1 answered differently" in said
    assert "8420" in said and "9000" in said and "why: install.md was changed" in said


def test_an_evaluation_names_the_questions_that_lost(
    knowledge_base: KnowledgeBase, sources: Path, run: Any
) -> None:
    run("golden", "add", "What is the default port?", "--document", "install.md", "--id", "port")
    ingest(knowledge_base, list_sources([str(sources)]), IngestOptions())
    before = knowledge_base.repository.resolve("main")
    (sources / "install.md").unlink()
    ingest(knowledge_base, list_sources([str(sources)]), IngestOptions(prune=True))
    said = run("eval", "main", "--baseline", before, code=1)
    after = knowledge_base.repository.resolve("main")
    assert "port  context_recall 1.000 -> 0.000" in said
    assert f"`rag diff {before[:12]} {after[:12]}`" in said


def test_a_row_of_a_table_is_one_line_in_a_pipe(run: Any) -> None:
    asked = f"What is the {'very ' * 60}default port?"
    run("golden", "add", asked, "--id", "port")
    assert any("port" in line and asked in line for line in run("golden", "list").splitlines())


def test_a_row_that_cannot_be_is_refused(run: Any) -> None:
    with pytest.raises(UsageError, match="unanswerable"):
        run("golden", "add", "How far is the moon?", "--unanswerable", "--document", "moon.md")
    with pytest.raises(UsageError, match="Say --approve"):
        run("golden", "review", "port")
