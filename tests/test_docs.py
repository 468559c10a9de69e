"""The documents that show commands: what they show works."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RAG = Path(sys.executable).parent / "rag"


def follow(page: str, folder: Path) -> str:
    """What the commands of a page print when they are typed one after the other."""
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)
    script = "\n".join(["set -e", f'rag() {{ "{RAG}" "$@"; }}', *blocks])
    done = subprocess.run(["bash", "-c", script], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_tour_can_be_followed_to_its_end(tmp_path: Path) -> None:
    said = follow("tour.md", tmp_path)
    assert "within fourteen days" in said and said.rstrip().endswith("Clean.")


@pytest.mark.slow
def test_the_answers_that_the_documentation_shows_are_given(tmp_path: Path) -> None:
    said = follow("answers.md", tmp_path).splitlines()
    shown = re.findall(r"```text\n(.*?)```", (ROOT / "docs" / "answers.md").read_text(), re.DOTALL)
    for line in "".join(shown).splitlines():
        assert line in said, line


def test_every_command_is_in_the_readme_and_the_readme_names_no_other() -> None:
    environment = {**os.environ, "COLUMNS": "200"}
    help_text = subprocess.run([RAG, "--help"], capture_output=True, text=True, check=True, env=environment)
    commands = set(re.findall(r"^  ([a-z]+) +[A-Z]", help_text.stdout, re.MULTILINE))
    named = set(re.findall(r"`rag ([a-z]+)", (ROOT / "README.md").read_text()))
    assert commands == named


def test_every_page_that_the_code_or_a_page_names_is_there() -> None:
    packages = ("rag", "ingestion", "eval", "api", "knowledge_base", "benchmarks")
    files = [path for package in packages for path in (ROOT / package).rglob("*.py")]
    files += [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]
    named = {
        page
        for path in files
        for page in re.findall(r"(?<!\.\./)docs/[\w-]+\.(?:md|yaml|yml|svg)", path.read_text())
    }
    assert len(named) > 5
    assert not {page for page in named if not (ROOT / page).exists()}
