"""The documents that show commands: what they show works."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RAG = Path(sys.executable).parent / "rag"


@pytest.mark.slow
def test_the_tour_can_be_followed_to_its_end(tmp_path: Path) -> None:
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / "tour.md").read_text(), re.DOTALL)
    script = "\n".join(["set -e", f'rag() {{ "{RAG}" "$@"; }}', *blocks])
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "within fourteen days" in done.stdout and done.stdout.rstrip().endswith("Clean.")


def test_every_command_is_in_the_readme_and_the_readme_names_no_other() -> None:
    environment = {**os.environ, "COLUMNS": "200"}
    help_text = subprocess.run([RAG, "--help"], capture_output=True, text=True, check=True, env=environment)
    commands = set(re.findall(r"^  ([a-z]+) +[A-Z]", help_text.stdout, re.MULTILINE))
    named = set(re.findall(r"`rag ([a-z]+)", (ROOT / "README.md").read_text()))
    assert commands == named
