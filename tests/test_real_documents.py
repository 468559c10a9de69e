"""Three versions of a product's real documentation; needs $PLUMBLINE_DATA or ../shared/data."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from ingestion.pipeline import IngestOptions, IngestResult, ingest
from ingestion.sources import list_sources
from knowledge_base.difference import diff_releases
from knowledge_base.home import KnowledgeBase

DATA = Path(os.environ.get("PLUMBLINE_DATA", Path(__file__).parents[2] / "shared" / "data"))
DAPR = DATA / "docs_dapr_A"
AWKWARD = ("awkward_docs_tika", "awkward_docs_pypdf")
VERSIONS = ("v1.10", "v1.11", "v1.12")

pytestmark = pytest.mark.skipif(not DAPR.exists(), reason=f"no data sets in {DATA}")


def static(kb: KnowledgeBase) -> KnowledgeBase:
    """With the static embedder: these tests are about documents, not vectors."""
    settings = kb.root / "plumbline.toml"
    settings.write_text(settings.read_text().replace('"all-MiniLM-L6-v2"', '"static:all-MiniLM-L6-v2"'))
    return kb


def expected_changes(name: str) -> dict[str, Any]:
    rows = [json.loads(line) for line in (DAPR / name).read_text().splitlines()]
    return {
        **{
            status: sorted(r["path"] for r in rows if r["status"] == status)
            for status in ("added", "deleted")
        },
        "changed": sorted(r["path"] for r in rows if r["status"] == "modified"),
        "renamed": sorted((r["old_path"], r["path"]) for r in rows if r["status"] == "renamed"),
    }


def test_three_versions_are_three_releases_that_cost_what_changed(empty_kb: KnowledgeBase) -> None:
    kb = static(empty_kb)
    results: list[IngestResult] = []
    for version in VERSIONS:
        results.append(ingest(kb, list_sources([str(DAPR / version)]), IngestOptions(prune=True)))
    first, second, third = results
    assert [len(commit.parents) for commit in kb.repository.log("main")] == [1, 1, 1, 0]
    assert second.embedded < 0.4 * first.embedded and third.embedded < 0.25 * first.embedded
    assert third.bytes_written < second.bytes_written < 0.6 * first.bytes_written
    assert all(result.reused > 0 for result in (second, third))
    for old, new, name in (
        (first, second, "changes_v1.10__v1.11.jsonl"),
        (second, third, "changes_v1.11__v1.12.jsonl"),
    ):
        found = diff_releases(kb, old.commit, new.commit).documents
        wanted = expected_changes(name)
        assert sorted(found.added) == wanted["added"]
        assert sorted(found.changed) == wanted["changed"]
        assert sorted(found.deleted) == wanted["deleted"]
        assert sorted(found.renamed) == wanted["renamed"]
        assert new.documents == found


@pytest.mark.parametrize("name", AWKWARD)
def test_awkward_files_each_get_a_verdict(
    empty_kb: KnowledgeBase, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    sources = list_sources([str(DATA / name / "files")])
    result = ingest(static(empty_kb), sources, IngestOptions())
    assert len(result.documents.added) + len(result.failed) == len(sources.files) + len(sources.skipped)
    assert result.published and all(reason and "\n" not in reason for _, reason in result.failed)
    out, err = capfd.readouterr()
    assert "Traceback" not in out + err
