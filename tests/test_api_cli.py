"""The `rag` command as people and scripts use it: real processes, real exit codes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import DOCUMENTS

RAG = Path(sys.executable).parent / "rag"


def rag(*arguments: str | Path, cwd: Path, code: int = 0, stdin: bytes = b"") -> str:
    done = subprocess.run([RAG, *arguments], cwd=cwd, input=stdin, capture_output=True, check=False)
    assert done.returncode == code, done.stdout.decode() + done.stderr.decode()
    assert b"Traceback" not in done.stderr
    return (done.stdout + done.stderr).decode()


def rag_json(*arguments: str | Path, cwd: Path, code: int = 0, stdin: bytes = b"") -> Any:
    return json.loads(rag(*arguments, "--json", cwd=cwd, code=code, stdin=stdin))


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A knowledge base made once by the command line; every test works on a copy."""
    folder = tmp_path_factory.mktemp("template")
    for name, text in DOCUMENTS.items():
        path = folder / "sources" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    rag("init", "kb", cwd=folder)
    rag("ingest", folder / "sources", cwd=folder / "kb")
    return folder / "kb"


@pytest.fixture
def kb(tmp_path: Path, template: Path) -> Path:
    """A folder with a knowledge base that holds the six documents."""
    return Path(shutil.copytree(template, tmp_path / "kb"))


def test_the_main_job_from_init_to_rollback(tmp_path: Path, sources: Path) -> None:
    rag("init", "kb", cwd=tmp_path)
    kb = tmp_path / "kb"
    first = rag_json("ingest", sources, cwd=kb)
    assert (
        first["published"]
        and first["verdict"] == "PASS (no golden set)"
        and first["embedded"] == first["chunks"]["total"]
    )
    (sources / "install.md").write_text("# Installation\n\nThe default port of the server is 9000.\n")
    assert rag_json("ingest", sources, cwd=kb)["documents"]["changed"] == ["install.md"]

    question = "What is the default port of the server?"
    answer = rag_json("ask", question, cwd=kb)
    assert "9000" in answer["answer"]
    citation = answer["citations"][0]
    text = rag_json("show", citation["commit"], "--text", citation["path"], cwd=kb)["text"]
    assert text[citation["start"] : citation["end"]] == citation["quote"]
    assert "8420" in rag_json("ask", question, "--ref", first["commit"], cwd=kb)["answer"]

    log = rag_json("log", cwd=kb)
    assert [entry["documents"] for entry in log] == [6, 6] and log[0]["refs"] == ["main"]
    changed = rag_json("diff", first["commit"], "main", cwd=kb)["documents"]
    assert (changed["changed"], changed["added"]) == (["install.md"], [])
    rag("rollback", cwd=kb)
    assert "8420" in rag_json("ask", question, cwd=kb)["answer"]
    assert rag_json("fsck", cwd=kb)["clean"]


def test_people_get_readable_output(kb: Path, sources: Path) -> None:
    assert "no golden set" in rag("log", cwd=kb)
    assert "install.md" in rag("search", "default port", cwd=kb)
    assert "[1]" in rag("ask", "What is the default port of the server?", cwd=kb)
    shown = rag("show", cwd=kb)
    assert (
        "6 documents" in shown and "quarantine = false" in shown and "margins = {faithfulness = 0.05" in shown
    )
    assert "6 unchanged" in rag("status", sources, cwd=kb)
    assert "up to date" in rag("ingest", sources, cwd=kb)
    assert "Clean" in rag("fsck", cwd=kb)
    assert "0 embedded" in rag("rebuild", cwd=kb)
    assert "no golden set" in rag("eval", cwd=kb)
    assert "OK" in rag("report", "--output", kb / "out", cwd=kb)
    assert (kb / "out" / "report.html").stat().st_size < 1_000_000


def test_chunks_that_are_not_embedded_because_their_text_is_there_twice_are_explained(
    kb: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "twice"
    folder.mkdir()
    for name in ("one.md", "two.md"):
        (folder / name).write_text("# Ferries\n\nFerries leave at dawn.\n")
    said = rag("ingest", folder, cwd=kb)
    assert "chunks     2 added" in said and "1 embedded, 0 reused" in said
    assert "1 of the added chunks have the text of another one, and its vector" in said


def test_what_is_not_in_the_documents_is_not_answered(kb: Path) -> None:
    answer = rag_json("ask", "Who won the football world cup in 1998?", cwd=kb)
    assert answer["abstained"] and not answer["citations"]


def test_standard_input_and_globs_are_ingested(kb: Path, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "one.md").write_text("# One\n\nLighthouses are painted white.\n")
    (tmp_path / "notes" / "two.txt").write_text("not matched")
    rag("ingest", "../notes/*.md", "-", "--stdin-name", "piped.txt", cwd=kb, stdin=b"Ferries leave at dawn.")
    assert {"one.md", "piped.txt"} < set(rag_json("show", cwd=kb)["paths"])


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["ingest", "no/such/path"], 2, "no such file"),
        (["ingest", "~no-such-user/x"], 2, "cannot be read"),
        (["ask", "x", "--ref", "nowhere"], 2, "No such ref"),
        (["ask", "  "], 2, "question is empty"),
        (["log", "nowhere"], 2, "No such ref"),
        (["diff", "main~9"], 2, "No such ref"),
        (["rollback"], 2, "no release before"),
        (["show", "--text", "nowhere.md"], 2, "No such document"),
        (["init", "."], 2, "already holds"),
        (["init", "plumbline.toml"], 2, "is no folder"),
        (["log", "--kb", "x" * 5000], 2, "longer than"),
        (["golden", "add", "\udcff"], 2, "not UTF-8"),
        (["answers", "forget", "--days", "9999999"], 2, "days"),
        (["search", "x", "--top-k", "0"], 2, "top-k"),
        (["branch", "-d"], 2, "needs the name"),
        (["fsck", "--from", "backup.git"], 2, "goes with --repair"),
        (["frobnicate"], 2, "frobnicate"),
        (["ask", "x", "--kb", "/no/such/folder"], 2, "no knowledge base"),
        (["ask", "x", "--kb", "s3://bucket"], 2, "is no knowledge base"),
        (["ask", "x", "--kb", "lakefs://repo"], 3, "No lakeFS credentials"),
    ],
)
def test_mistakes_get_one_clear_line(kb: Path, arguments: list[str], code: int, said: str) -> None:
    output = rag(*arguments, cwd=kb, code=code)
    assert output.startswith("error: ") and said in output
    error = rag_json(*arguments, cwd=kb, code=code)["error"]
    assert set(error) == {"type", "message", "hint"}


def test_bad_settings_are_named_and_change_nothing(kb: Path, sources: Path) -> None:
    before = rag_json("log", cwd=kb)
    settings = kb / "plumbline.toml"
    good = settings.read_text()
    for bad, said in (
        ("[chunker]\nsize = 3\n", "chunker.size"),
        ("[retrieval]\ntopk = 3\n", "retrieval.topk"),
        ("[oops\n", "not valid TOML"),
        ('[embedder]\nmodel = "no/such-model"\n', "no/such-model"),
        ('[retrieval]\nlanguage = "klingon"\n', "language"),
    ):
        settings.write_text(bad)
        output = rag("ingest", sources, cwd=kb, code=3 if "no/such" in said else 2)
        assert said in output
    settings.write_text(good)
    assert rag_json("log", cwd=kb) == before


def test_an_unknown_environment_variable_is_refused(tmp_path: Path) -> None:
    environment = {**os.environ, "PLUMBLINE_KBB": "x"}
    done = subprocess.run([RAG, "log"], cwd=tmp_path, env=environment, capture_output=True, check=False)
    assert done.returncode == 2 and b"PLUMBLINE_KBB" in done.stderr


def test_strict_fails_with_exit_code_one(kb: Path, sources: Path) -> None:
    (sources / "broken.pdf").write_bytes(b"%PDF-1.4 broken")
    assert "broken.pdf" in rag("ingest", sources, "--strict", cwd=kb, code=1)
    assert rag_json("ingest", sources, cwd=kb)["documents"]["failed"][0]["path"] == "broken.pdf"


def test_a_megabyte_is_a_million_bytes(kb: Path, tmp_path: Path) -> None:
    (tmp_path / "big.txt").write_text("many words " * 95_000)
    plan = rag("ingest", tmp_path / "big.txt", "--max-mb", "1", "--dry-run", cwd=kb, code=1)
    assert "too large: 1.1 MB, the limit is 1 MB (--max-mb)" in plan


def test_a_damaged_repository_is_one_clear_line(kb: Path) -> None:
    objects = kb / ".plumbline" / "knowledge.git" / "objects"
    for path in objects.glob("??/*"):
        path.chmod(0o644)
        path.write_bytes(path.read_bytes()[:10])
    assert "damaged" in rag("ask", "x", cwd=kb, code=3)
    assert "problem" in rag("fsck", cwd=kb, code=1)
    (kb / ".plumbline" / "knowledge.git" / "HEAD").unlink()
    assert "error: " in rag("log", cwd=kb, code=3)


def test_the_gate_keeps_a_worse_release_out(kb: Path, sources: Path) -> None:
    rows = [
        {"id": name, "question": question, "document": name}
        for name, question in (
            ("install.md", "What is the default port of the server?"),
            ("history.md", "Who founded the company?"),
            ("security.md", "How are passwords hashed?"),
        )
    ]
    (kb / "golden" / "main.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    assert rag_json("ingest", sources, cwd=kb)["verdict"] == "PASS"
    live = rag_json("log", cwd=kb)[0]["commit"]
    for row in rows:
        (sources / row["id"]).unlink()
    refused = rag_json("ingest", sources, "--prune", cwd=kb, code=1)
    assert (refused["published"], refused["verdict"]) == (False, "FAIL")
    assert rag_json("log", cwd=kb)[0]["commit"] == live
    assert rag_json("eval", refused["branch"], cwd=kb, code=1)["status"] == "FAIL"
    rag("ingest", sources, "--prune", "--no-gate", cwd=kb, code=2)
    reason = ("--no-gate", "--reason", "those pages moved")
    assert rag_json("ingest", sources, "--prune", *reason, cwd=kb)["verdict"] == "NO-GATE"
    rag("rollback", cwd=kb)
    rag("rollback", refused["branch"], cwd=kb, code=1)  # no way around the gate
    assert any(entry["override"] == "those pages moved" for entry in rag_json("log", cwd=kb))


@pytest.mark.skipif(
    not Path("/bin/mount").exists() or os.getuid() != 0, reason="mounts a small disk, which needs root"
)
def test_a_full_disk_publishes_nothing(tmp_path: Path, sources: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", disk], check=False).returncode:
        pytest.skip("cannot mount a small disk here")
    try:
        rag("init", "kb", cwd=disk)
        rag("ingest", sources, cwd=disk / "kb")
        before = rag_json("log", cwd=disk / "kb")
        for number in range(3):
            (sources / f"big{number}.txt").write_text(f"{number} " + "many words " * 150_000)
        assert "error: " in rag("ingest", sources, cwd=disk / "kb", code=3)
        assert rag_json("log", cwd=disk / "kb") == before
        assert "8420" in rag_json("ask", "What is the default port of the server?", cwd=disk / "kb")["answer"]
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_losing_the_whole_cache_costs_no_embedding(kb: Path) -> None:
    question = "What is the default port of the server?"
    before = rag_json("ask", question, cwd=kb)
    shutil.rmtree(kb / ".plumbline" / "cache")
    after = rag_json("ask", question, cwd=kb)
    for answer in (before, after):
        for varying in ("id", "timings_ms"):
            del answer[varying]
    assert before == after


def test_a_folder_may_have_a_name_that_means_something_in_a_url(template: Path, tmp_path: Path) -> None:
    kb = Path(shutil.copytree(template, tmp_path / "C# 100%25 what?" / "kb"))
    assert "8420" in rag("ask", "What is the default port of the server?", cwd=kb)
    assert (kb / ".plumbline" / "answers.sqlite").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["C# 100%25 what?"]


HEAVY = (
    "torch",
    "chromadb",
    "ragas",
    "langchain_core",
    "llama_index",
    "pyarrow",
    "numpy",
    "onnxruntime",
    "sqlalchemy",
)


@pytest.mark.parametrize("arguments", [["--help"], ["log"], ["init", "fresh"]])
def test_light_commands_import_nothing_heavy(kb: Path, arguments: list[str]) -> None:
    code = (
        "import sys, api.cli\n"
        f"sys.argv = ['rag', *{arguments!r}]\n"
        "try:\n    api.cli.main()\nexcept SystemExit:\n    pass\n"
        f"heavy = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=kb, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_logged_answers_are_exported_and_forgotten(kb: Path) -> None:
    rag("ask", "What is the default port of the server?", cwd=kb)
    assert rag_json("answers", "export", "answers.parquet", cwd=kb) == {
        "file": "answers.parquet",
        "answers": 1,
    }
    assert (kb / "answers.parquet").read_bytes()[:4] == b"PAR1"
    assert rag_json("answers", "forget", "--days", "30", cwd=kb)["deleted"] == 0
    assert rag_json("answers", "forget", "--days", "0", cwd=kb)["deleted"] == 1
    rag("answers", "export", "none/answers.parquet", cwd=kb, code=2)
