"""The commands about versions, as people and scripts use them."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.test_api_cli import kb, rag, rag_json, template

__all__ = ["kb", "template"]  # fixtures


def test_branch_merge_tag_promote_and_roll_back(kb: Path, sources: Path) -> None:
    rag("branch", "draft", cwd=kb)
    (sources / "team.md").write_text("# Team\n\nThe night team answers after nine.\n")
    assert rag_json("ingest", sources, "--branch", "draft", cwd=kb)["branch"] == "draft"
    assert [row["branch"] for row in rag_json("branch", cwd=kb)] == ["draft", "main"]
    merged = rag_json("merge", "draft", cwd=kb)
    assert merged["published"] and merged["embedded"] == 0 and merged["documents"]["added"] == ["team.md"]
    question = "When does the night team answer?"
    assert "after nine" in rag_json("ask", question, cwd=kb)["answer"]
    rag("tag", "v1", cwd=kb)
    assert rag_json("tag", cwd=kb)[0]["tag"] == "v1"
    rag("rollback", cwd=kb)
    assert "after nine" not in rag_json("ask", question, cwd=kb)["answer"]
    assert "after nine" in rag_json("ask", question, "--ref", "v1", cwd=kb)["answer"]
    assert "rag rollback draft" in rag("merge", "draft", cwd=kb, code=2)
    rag("branch", "next", "v1", cwd=kb)
    (sources / "more.md").write_text("More is told.\n")
    rag("ingest", sources, "--branch", "next", cwd=kb)
    assert "rag merge main --into next" in rag("promote", "next", cwd=kb, code=1)
    rag("merge", "main", "--into", "next", cwd=kb)
    assert rag_json("promote", "next", cwd=kb)["branch"] == "main"
    rag("branch", "-d", "next", cwd=kb)
    rag("tag", "-d", "v1", cwd=kb)
    newest, *_ = rag_json("log", cwd=kb)
    assert newest["documents_changed"]["added"] and newest["message"] == "Promote next"
    assert rag_json("fsck", cwd=kb)["clean"]


def test_people_read_what_was_done(kb: Path, sources: Path) -> None:
    (sources / "team.md").write_text("The night team answers after nine.\n")
    rag("ingest", sources, "--branch", "draft", cwd=kb)
    assert "draft" in rag("branch", cwd=kb)
    assert "added  team.md" in rag("merge", "draft", cwd=kb)
    assert "would free" in rag("gc", "--keep-last", "1", cwd=kb)
    assert "freed" in rag("gc", "--keep-last", "1", "--apply", cwd=kb)
    assert "removed by gc" in rag("show", "main~1", "--text", "install.md", cwd=kb, code=2)
    assert "into 1" in rag("compact", "--all", cwd=kb)
    assert "Nothing to compact" in rag("compact", "--all", cwd=kb)
    assert "Nothing differs" in rag("restore", cwd=kb)
    assert "No difference." in rag("diff", "main", "main", cwd=kb)
    assert rag("--version", cwd=kb).startswith("plumbline ")
    assert "ingest" in rag(cwd=kb)


def test_a_rollback_warns_of_files_on_disk_that_would_be_published_again(kb: Path, sources: Path) -> None:
    (sources / "team.md").write_text("The night team answers after nine.\n")
    rag("ingest", sources, cwd=kb)
    assert "on disk" not in rag("rollback", cwd=kb)
    settings = kb / "plumbline.toml"
    settings.write_text(settings.read_text().replace("top_k = 5", "top_k = 1"))
    rag("ingest", cwd=kb)
    assert "the next ingest would publish them again" in rag("rollback", cwd=kb)


def test_conflicts_and_contradictions_are_named(kb: Path, sources: Path) -> None:
    rag("branch", "draft", cwd=kb)
    for branch, text in (("draft", "One."), ("main", "Two.")):
        (sources / "team.txt").write_text(text)
        rag("ingest", sources, "--branch", branch, cwd=kb)
    error = rag_json("merge", "draft", cwd=kb, code=1)["error"]
    assert error["type"] == "MergeConflictError" and "documents/team.txt" in error["message"]
    rag("merge", "draft", "--source-wins", "--dest-wins", cwd=kb, code=2)
    assert rag_json("merge", "draft", "--source-wins", cwd=kb)["documents"]["changed"] == ["team.txt"]


def test_fsck_repairs_what_it_can_and_names_the_rest(kb: Path, tmp_path: Path) -> None:
    backup = shutil.copytree(kb / ".plumbline" / "knowledge.git", tmp_path / "backup.git")
    store = kb / ".plumbline" / "knowledge.git"
    (store / "HEAD").write_text("garbage")
    assert not rag_json("fsck", cwd=kb, code=1)["clean"]
    assert rag_json("fsck", "--repair", cwd=kb)["restored"] == ["HEAD"]
    for path in store.glob("objects/??/*"):
        path.chmod(0o644)
        path.write_bytes(b"")
    assert rag_json("fsck", "--repair", cwd=kb, code=1)["problems"]
    assert rag_json("fsck", "--repair", "--from", backup, cwd=kb)["clean"]


def test_status_says_what_the_next_ingest_would_do(kb: Path, sources: Path) -> None:
    (kb / "golden" / "new.jsonl").write_text("")
    (sources / "empty.md").write_text("")
    (sources / "renamed.txt").write_text((sources / "team.txt").read_text())
    (sources / "team.txt").unlink()
    value = rag_json("status", sources, "--prune", cwd=kb)
    assert value["files"]["added"] == ["golden/new.jsonl"]
    assert value["sources"]["renamed"] == [{"from": "team.txt", "to": "renamed.txt"}]
    assert [failure["path"] for failure in value["sources"]["failed"]] == ["empty.md"]
    assert "golden/new.jsonl" in rag("status", cwd=kb)
    settings = kb / "plumbline.toml"
    settings.write_text(settings.read_text().replace('mode = "hybrid"', 'mode = "dense"'))
    assert 'retrieval.mode: "hybrid" -> "dense"' in rag("status", cwd=kb)


def test_a_knowledge_base_without_a_release_shows_no_differences(tmp_path: Path) -> None:
    rag("init", "new", cwd=tmp_path)
    said = rag("status", cwd=tmp_path / "new")
    assert "Nothing is ingested yet" in said and "added" not in said
    assert rag_json("status", cwd=tmp_path / "new")["files"]["added"]


def test_an_answer_log_that_cannot_be_used_does_not_spoil_the_answer(
    kb: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLUMBLINE_ANSWER_LOG", "nonsense")
    assert "8420" in rag("ask", "What is the default port of the server?", cwd=kb)
    assert "PLUMBLINE_ANSWER_LOG" in rag("report", cwd=kb, code=2)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="mounts, as root")
def test_a_read_only_knowledge_base_answers(kb: Path) -> None:
    subprocess.run(["mount", "--bind", kb, kb], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", kb], check=True)
        said = rag("ask", "What is the default port of the server?", cwd=kb)
        assert "8420" in said and "warning" in said
        rag("ingest", kb / "prompts", cwd=kb, code=3)
    finally:
        subprocess.run(["umount", "-l", kb], check=True)
