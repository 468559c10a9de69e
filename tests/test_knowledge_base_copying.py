import json
from pathlib import Path

import pytest

from ingestion.pipeline import IngestOptions, ingest
from ingestion.sources import list_sources
from knowledge_base.copying import COPIED_FROM, copy_knowledge_base
from knowledge_base.difference import diff_releases
from knowledge_base.errors import AlreadyExistsError, DamagedError
from knowledge_base.history import list_releases
from knowledge_base.home import KnowledgeBase
from knowledge_base.merging import merge
from knowledge_base.republishing import rollback
from knowledge_base.retention import Retention, gc
from knowledge_base.version_store import Repository, open_version_store
from rag.engine import Engine
from tests.lakefs_server import LakeFSServer


@pytest.fixture
def eventful(knowledge_base: KnowledgeBase, sources: Path) -> KnowledgeBase:
    """Releases, a branch that was merged, one that was not, a rollback, a tag."""

    def put(name: str, text: str, branch: str = "main") -> None:
        (sources / name).write_text(text)
        ingest(knowledge_base, list_sources([str(sources)]), IngestOptions(branch=branch))

    repository = knowledge_base.repository
    put("garage.md", "# Garage\n\nThe garage opens at noon.\n", "feature")
    (sources / "garage.md").unlink()
    put("billing.md", "# Billing\n\nInvoices are sent on the last day of each month.\n")
    repository.create_tag("v1.0", "main")
    merge(knowledge_base, "feature")
    put("canteen.md", "# Canteen\n\nLunch is served from eleven to two.\n", "open")
    (sources / "canteen.md").unlink()
    rollback(knowledge_base)
    return knowledge_base


def remote(name: str, tmp_path: Path, models: Path) -> KnowledgeBase:
    objects = tmp_path / "objects"
    open_version_store("lakefs://", objects).create_repository(name, exist_ok=True)
    return KnowledgeBase.open_remote(f"lakefs://{name}", tmp_path / "remote", models, objects=objects)


def told(kb: KnowledgeBase, ref: str = "main") -> list[dict[str, object]]:
    """The log without what a copy cannot have: ids."""
    entries = json.loads(json.dumps(list_releases(kb.repository, ref, None)))
    return [{key: entry[key] for key in entry if key not in ("commit", "parents")} for entry in entries]


def trees(repository: Repository) -> list[dict[str, bytes]]:
    return [
        {
            item.path: repository.get_object(commit.id, item.path)
            for item in repository.list_objects(commit.id)
        }
        for commit in repository.log("main", first_parent=True)
    ]


def test_a_copy_to_lakefs_and_back_has_every_release(
    eventful: KnowledgeBase, lakefs_server: LakeFSServer, tmp_path: Path
) -> None:
    there = remote("copy", tmp_path, eventful.models)
    report = copy_knowledge_base(eventful, there)
    back = KnowledgeBase.create(tmp_path / "back", eventful.models)
    again = copy_knowledge_base(there, back)
    assert (report.branches, report.tags, report.expired) == (3, 1, 0)
    assert (again.objects, again.bytes, again.passages) == (report.objects, report.bytes, report.passages)
    for copy in (there, back):
        assert told(copy) == told(eventful)
        assert told(copy, "open") == told(eventful, "open")
        assert trees(copy.repository) == trees(eventful.repository)
        assert diff_releases(copy, "v1.0", "open") == diff_releases(eventful, "v1.0", "open")
        found = [Engine.open(kb).ask("When are invoices sent?").answer for kb in (copy, eventful)]
        assert found[0] == found[1]


def test_a_rollback_names_the_copy_of_its_target(
    eventful: KnowledgeBase, lakefs_server: LakeFSServer, tmp_path: Path
) -> None:
    there = remote("copy", tmp_path, eventful.models)
    copy_knowledge_base(eventful, there)
    target = there.repository.get_commit("main").metadata["rollback"]
    original = eventful.repository.get_commit("main").metadata["rollback"]
    assert there.repository.get_commit(target).metadata[COPIED_FROM] == original


def test_a_copy_that_was_killed_goes_on_where_it_stopped(
    eventful: KnowledgeBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = len(list(eventful.repository.log("main")))

    class Killed(BaseException):
        pass

    for stop in range(1, steps + 4, 2):
        copy = KnowledgeBase.create(tmp_path / f"copy{stop}", eventful.models)
        left = [stop]

        def progress(stage: str, done: int, total: int | None, left: list[int] = left) -> None:
            left[0] -= 1
            if not left[0]:
                raise Killed

        with pytest.raises(Killed):
            copy_knowledge_base(eventful, copy, progress)
        before = len(list(copy.repository.log("main")))
        copy_knowledge_base(eventful, copy)
        assert len(list(copy.repository.log("main"))) >= before
        assert told(copy) == told(eventful)
        assert [branch.id for branch in copy.repository.list_branches()] == ["feature", "main", "open"]


def test_a_second_copy_changes_nothing(eventful: KnowledgeBase, tmp_path: Path) -> None:
    copy = KnowledgeBase.create(tmp_path / "copy", eventful.models)
    first = copy_knowledge_base(eventful, copy)
    head = copy.repository.resolve("main")
    assert copy_knowledge_base(eventful, copy) == first
    assert copy.repository.resolve("main") == head


def test_a_destination_with_a_life_of_its_own_is_refused(
    knowledge_base: KnowledgeBase, sources: Path, tmp_path: Path
) -> None:
    other = KnowledgeBase.create(tmp_path / "other", knowledge_base.models)
    ingest(other, list_sources([str(sources)]), IngestOptions())
    head = other.repository.resolve("main")
    with pytest.raises(AlreadyExistsError, match="no copy of the source"):
        copy_knowledge_base(knowledge_base, other)
    assert other.repository.resolve("main") == head


def test_releases_whose_content_is_gone_keep_their_place_in_the_log(
    eventful: KnowledgeBase, tmp_path: Path
) -> None:
    eventful.repository.delete_tag("v1.0")
    gc(eventful, Retention(keep_last=1), dry_run=False)
    copy = KnowledgeBase.create(tmp_path / "copy", eventful.models)
    assert copy_knowledge_base(eventful, copy).expired > 0
    assert told(copy) == told(eventful)
    found = [Engine.open(kb).ask("When are invoices sent?").answer for kb in (copy, eventful)]
    assert found[0] == found[1]


def test_a_difference_is_found(
    knowledge_base: KnowledgeBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = KnowledgeBase.create(tmp_path / "copy", knowledge_base.models)
    read = copy.repository.get_object

    def torn(ref: str, path: str) -> bytes:
        content = read(ref, path)
        return content[:-1] if path == "documents/billing.md" else content

    monkeypatch.setattr(copy.repository, "get_object", torn)
    with pytest.raises(DamagedError, match="differs"):
        copy_knowledge_base(knowledge_base, copy)
