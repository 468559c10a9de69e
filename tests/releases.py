"""A knowledge base that releases are made in, and how to look at them; for the tests of versions."""

from collections.abc import Callable
from pathlib import Path

import pytest

from ingestion.pipeline import IngestOptions, IngestResult, ingest
from ingestion.sources import list_sources
from knowledge_base.home import KnowledgeBase
from rag.engine import Engine

Write = Callable[..., IngestResult]


@pytest.fixture
def kb(knowledge_base: KnowledgeBase) -> KnowledgeBase:
    return knowledge_base


@pytest.fixture
def write(kb: KnowledgeBase, sources: Path) -> Write:
    """Edit the sources (None deletes a file), then ingest them on a branch."""

    def run(branch: str = "main", **files: str | None) -> IngestResult:
        for name, text in files.items():
            path = sources / f"{name}.md"
            path.unlink() if text is None else path.write_text(text)
        options = IngestOptions(branch=branch, prune=True)
        return ingest(kb, list_sources([str(sources)]), options)

    return run


def documents(kb: KnowledgeBase, ref: str = "main") -> dict[str, str]:
    snapshot = kb.snapshot(ref)
    return {path: snapshot.document_text(path) for path in snapshot.paths}


def ranking(kb: KnowledgeBase, question: str, ref: str = "main") -> list[tuple[str, float]]:
    engine = Engine.open(kb, ref)
    found = [(result.path, result.score) for result in engine.search(question, 20)]
    engine.close()
    return found
