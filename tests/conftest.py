"""Fixtures: real knowledge bases on real folders; the exported model is shared by all tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from api.settings import read_environment, silence
from ingestion.pipeline import IngestOptions, ingest
from ingestion.sources import list_sources
from knowledge_base.home import KnowledgeBase

silence()

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
    folder = tmp_path / "sources"
    for name, text in DOCUMENTS.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def empty_kb(tmp_path: Path, models: Path) -> KnowledgeBase:
    """A new knowledge base without a release."""
    return KnowledgeBase.create(tmp_path / "kb", models)


@pytest.fixture
def knowledge_base(empty_kb: KnowledgeBase, sources: Path) -> Iterator[KnowledgeBase]:
    """A knowledge base whose main holds the six documents."""
    ingest(empty_kb, list_sources([str(sources)]), IngestOptions(prune=True))
    yield empty_kb
