"""The whole API against /openapi.json: schemathesis sends what it allows, and what it forbids."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from knowledge_base.durable import exclusive_lock
from knowledge_base.home import KnowledgeBase
from tests.test_api_server import answer_log as answer_log
from tests.test_api_server import client as client
from tests.test_api_server import live as live

SETTINGS = """\
hooks = "tests.schema_hooks"

[parameters]
"query.kb" = "kb"

[[operations]]
# That no two files may have one name cannot be told in a schema, and the generator sends such.
include-name = "POST /v1/documents"
checks.positive_data_acceptance.expected-statuses = ["2xx", "400", "404", "409", "429"]
"""
ROOT = Path(__file__).parent.parent


def run(client: httpx.Client, folder: Path, *options: str) -> dict[str, Any]:
    """The report of a run; fails with what schemathesis says when it finds anything."""
    (folder / "settings.toml").write_text(SETTINGS)
    command = [
        str(Path(sys.executable).with_name("st")),
        f"--config-file={folder / 'settings.toml'}",
        "run",
        f"{client.base_url}/openapi.json",
        "--checks=all",
        "--continue-on-failure",
        "--warnings=off",
        "--report=json",
        f"--report-json-path={folder / 'report.json'}",
        *options,
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2000:]
    found: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return found


def test_every_route_keeps_to_its_description(
    client: httpx.Client, knowledge_base: KnowledgeBase, tmp_path: Path
) -> None:
    with exclusive_lock(knowledge_base.folder / "jobs" / "lock"):  # jobs are queued, none is carried out
        report = run(client, tmp_path, "--phases=coverage", "--seed=1")
    assert report["operations"]["tested"] == report["operations"]["total"]
    assert report["test_cases"]["generated"] >= 1000


@pytest.mark.slow
def test_five_thousand_requests_find_no_fault(client: httpx.Client, tmp_path: Path) -> None:
    report = run(client, tmp_path, "--phases=coverage,fuzzing,stateful", "--max-examples=120")
    print(f"{report['test_cases']['generated']} requests, seed {report['seed']}")
    assert report["test_cases"]["generated"] >= 5000
