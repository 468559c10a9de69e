"""The whole API against /openapi.json: schemathesis sends what it allows, and what it forbids."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from api.answering import Search
from api.hosting import Host, Hosted
from api.keys import Caller
from api.serve_settings import ServeSettings
from api.server import create_app
from api.serving import Live
from knowledge_base.durable import exclusive_lock
from knowledge_base.errors import UsageError
from knowledge_base.home import KnowledgeBase
from rag.answer_log import AnswerLog
from rag.engine import check_question
from tests.running import running

SETTINGS = """\
hooks = "tests.schema_hooks"

[parameters]
"query.kb" = "kb"

[auth.openapi.HTTPBearer]
bearer = "KEY"

[[operations]]
# That no two files may have one name cannot be told in a schema, and the generator sends such.
include-name = "POST /v1/documents"
checks.positive_data_acceptance.expected-statuses = ["2xx", "400", "404", "409", "429"]

[[operations]]
# Nor that a key must not have expired before it is made.
include-name = "POST /v1/keys"
checks.positive_data_acceptance.expected-statuses = ["2xx", "400", "404", "409", "429"]
"""
ROOT = Path(__file__).parent.parent


@pytest.fixture
def address(knowledge_base: KnowledgeBase, tmp_path: Path) -> Iterator[str]:
    """The description of a server that wants keys; an admin's is in settings.toml for schemathesis."""
    log = AnswerLog(f"sqlite:///{tmp_path / 'answers.sqlite'}")
    host = Host([Hosted("kb", knowledge_base, Live(knowledge_base), log)])
    key, _ = host.keys.create("tester", "admin", by=Caller("", "test", "admin"))
    (tmp_path / "settings.toml").write_text(SETTINGS.replace("KEY", key))
    # Jobs are queued and none is carried out: each would be a process of some seconds.
    lock = exclusive_lock(knowledge_base.folder / "jobs" / "lock")
    with running(create_app(host, settings=ServeSettings(requests_per_minute=0))) as url, lock:
        yield f"{url}/openapi.json"
    log.close()


def run(address: str, folder: Path, *options: str) -> dict[str, Any]:
    """The report of a run; fails with what schemathesis says when it finds anything."""
    command = [
        str(Path(sys.executable).with_name("st")),
        f"--config-file={folder / 'settings.toml'}",
        "run",
        address,
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


@given(
    st.text(st.characters() | st.sampled_from("\0\x1c\x1f\x85\xa0\u2028\ufeff\n "), min_size=1, max_size=5)
)
@example("\0")
def test_a_question_is_described_as_what_is_taken_for_one(text: str) -> None:
    question = Search.model_json_schema()["properties"]["question"]
    with nullcontext() if re.search(question["pattern"], text) else pytest.raises(UsageError):
        check_question(text)


def test_every_route_keeps_to_its_description(address: str, tmp_path: Path) -> None:
    report = run(address, tmp_path, "--phases=coverage", "--seed=1")
    assert report["operations"]["tested"] == report["operations"]["total"]
    assert report["test_cases"]["generated"] >= 1000


@pytest.mark.slow
def test_five_thousand_requests_find_no_fault(address: str, tmp_path: Path) -> None:
    report = run(address, tmp_path, "--phases=coverage,fuzzing,stateful", "--max-examples=100")
    print(f"{report['test_cases']['generated']} requests, seed {report['seed']}")
    assert report["test_cases"]["generated"] >= 5000
