"""Fixtures: real knowledge bases on real folders; the exported model is shared by all tests."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from api.settings import read_environment, silence
from ingestion.pipeline import IngestOptions, ingest
from ingestion.sources import list_sources
from knowledge_base.home import KnowledgeBase
from knowledge_base.version_store import VersionStore, open_version_store
from tests.lakefs_server import LakeFSServer, specification
from tests.openapi import Specification

silence()
# No test is timed: the machine may be busy.
settings.register_profile("plumbline", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("plumbline")

REAL_LAKEFS = os.environ.get("PLUMBLINE_TEST_LAKEFS_ENDPOINT")
BACKENDS = ("git", "lakefs", "lakefs-real") if REAL_LAKEFS else ("git", "lakefs")

DOCUMENTS = {
    "billing.md": "# Billing\n\nInvoices are sent on the first day of each month. "
    "A refund is paid within fourteen days of the request.\n\n## Cards\n\nWe accept Visa and Mastercard.\n",
    "security.md": "# Security\n\nPasswords are hashed with Argon2. "
    "Two-factor codes expire after thirty seconds.\n",
    "install.md": "# Installation\n\nRun the installer with administrator rights. "
    "The default port of the server is 8420.\n",
    "api/limits.md": "# Rate limits\n\nEach key may send 600 requests per minute. "
    "Above that the server replies with status 429.\n",
    "team.txt": "The support team answers on weekdays between nine and five o'clock.\n",
    "history.md": "# History\n\nThe company was founded in Gothenburg in 1987 by Astrid Lund.\n",
}


@pytest.fixture(scope="session")
def models() -> Path:
    """The user's own cache of exported models: exporting takes ten seconds."""
    return read_environment().cache / "models"


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A folder of six short documents."""
    return write_documents(tmp_path / "sources")


def write_documents(folder: Path) -> Path:
    """Write the six documents; returns the folder."""
    for name, text in DOCUMENTS.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def index() -> str | None:
    """Where Chroma collections lie; a module that overrides it runs its tests on a server too."""
    return None


@pytest.fixture
def empty_kb(tmp_path: Path, models: Path, index: str | None) -> KnowledgeBase:
    """A new knowledge base without a release."""
    made = KnowledgeBase.create(tmp_path / "kb", models)
    if index:
        made.index_at(index)
    return made


@pytest.fixture(scope="session")
def chroma_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a Chroma server of this session's own; it ends with the session."""
    folder = tmp_path_factory.mktemp("chroma")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with open(folder / "log", "wb") as log:
        chroma = Path(sys.executable).with_name("chroma")
        command = [
            str(chroma),
            "run",
            "--path",
            str(folder / "data"),
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
        ]
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        try:
            for _ in range(600):
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(f"{url}/api/v2/heartbeat", timeout=5).close()
                    break
                assert process.poll() is None, (folder / "log").read_text()
                time.sleep(0.1)
            yield url
        finally:
            process.terminate()
            process.wait(20)


@pytest.fixture(scope="session")
def ingested(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Path:
    """The folder of a knowledge base whose main holds the six documents; nobody writes to it."""
    folder = tmp_path_factory.mktemp("ingested")
    made = KnowledgeBase.create(folder / "kb", models)
    ingest(made, list_sources([str(write_documents(folder / "sources"))]), IngestOptions(prune=True))
    return made.root


@pytest.fixture
def knowledge_base(
    request: pytest.FixtureRequest, tmp_path: Path, models: Path, index: str | None, sources: Path
) -> KnowledgeBase:
    """A knowledge base whose main holds the six documents, which are in `sources` too."""
    if index is None:
        return KnowledgeBase.open(
            shutil.copytree(request.getfixturevalue("ingested"), tmp_path / "kb"), models
        )
    made: KnowledgeBase = request.getfixturevalue("empty_kb")
    ingest(made, list_sources([str(sources)]), IngestOptions(prune=True))
    return made


@pytest.fixture(scope="session")
def lakefs_specification() -> Specification | None:
    """The vendor's OpenAPI file, where PLUMBLINE_DATA holds it."""
    return specification(os.environ.get("PLUMBLINE_DATA"))


@pytest.fixture
def lakefs_server(
    lakefs_specification: Specification | None, monkeypatch: pytest.MonkeyPatch
) -> Iterator[LakeFSServer]:
    """A lakeFS double that lakeFS's own variables lead to; what breaks the vendor's file fails the test."""
    with LakeFSServer(lakefs_specification) as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        yield server
    assert server.violations == []


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """Each version store in turn; the real lakeFS server takes its keys from lakeFS's own variables."""
    return str(request.param)


@pytest.fixture
def version_store(
    backend: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> VersionStore:
    """An empty store of that kind; on a real server, one that others use too."""
    if backend == "git":
        return open_version_store(str(tmp_path / "store"))
    if backend == "lakefs":
        request.getfixturevalue("lakefs_server")
    else:
        monkeypatch.setenv("LAKECTL_SERVER_ENDPOINT_URL", str(REAL_LAKEFS))
    from knowledge_base.version_store_lakefs import LakeFSVersionStore

    storage = os.environ.get("PLUMBLINE_TEST_LAKEFS_STORAGE") if backend == "lakefs-real" else None
    return LakeFSVersionStore(cache=tmp_path / "objects", storage=storage)
