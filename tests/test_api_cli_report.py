"""`rag report`, `accept`, `list` and `simulate` as people and scripts call them."""

from pathlib import Path

import pytest

from tests.test_api_cli import rag, rag_json


@pytest.fixture
def kb(tmp_path: Path, sources: Path) -> Path:
    rag("init", tmp_path / "kb", cwd=tmp_path)
    rag("ingest", sources, cwd=tmp_path / "kb")
    rag("ask", "What is the default port of the server?", cwd=tmp_path / "kb")
    return tmp_path / "kb"


def test_a_report_is_written_kept_and_its_reference_accepted(kb: Path) -> None:
    made = rag_json("report", "-o", "out", cwd=kb)
    assert made["verdict"] == "OK" and made["schema_version"] == 2
    assert (kb / "out" / "junit.xml").exists()
    (listed,) = rag_json("report", "list", cwd=kb)
    assert (listed["verdict"], listed["date"]) == ("OK", made["date"])
    accepted = rag_json("report", "accept", "--reason", "it is fine", cwd=kb)
    assert accepted["release"] == made["release"] and accepted["accepted"] == made["date"]
    assert made["date"] in rag("report", "list", cwd=kb)


def test_mistakes_are_told(kb: Path) -> None:
    for arguments, said in (
        (["report", "--date", "tomorrow"], "is no day"),
        (["report", "--date", "2999-01-01"], "has not been yet"),
        (["report", "accept", "--reason", " "], "--reason is empty"),
        (["report", "-o", "plumbline.toml"], "is not a folder"),
        (["simulate", "prompts"], "is not empty"),
        (["simulate", "new", "--drift", "3:weather"], "is no drift"),
    ):
        assert said in rag(*arguments, cwd=kb, code=2)
