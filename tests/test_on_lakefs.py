"""A knowledge base on lakeFS as its users meet it: the same releases as embedded, and a server that fails."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from ingestion.pipeline import IngestOptions, ingest
from ingestion.sources import list_sources
from knowledge_base import version_store_lakefs_refs, version_store_lakefs_repository
from knowledge_base.difference import diff_releases
from knowledge_base.embedders import load_embedder
from knowledge_base.errors import LockedError, PlumblineError, UnauthorizedError, UsageError
from knowledge_base.history import list_releases
from knowledge_base.home import WORK_PREFIX, KnowledgeBase, find_root
from knowledge_base.integrity import fsck
from knowledge_base.lifecycle import promote
from knowledge_base.merging import merge
from knowledge_base.republishing import compact, rollback
from knowledge_base.retention import Retention, gc
from knowledge_base.version_store_lakefs import LakeFSVersionStore
from knowledge_base.version_store_lakefs_client import Client
from knowledge_base.version_store_lakefs_repository import LakeFSRepository
from rag.engine import Engine
from tests.conftest import DOCUMENTS
from tests.lakefs_server import Fault, LakeFSServer

Step = Callable[[KnowledgeBase], object]
CHANGED = "# Billing\n\nInvoices are sent on the last day of each month.\n"


_load = cache(load_embedder)
"""Hundreds of trials use one model: loading it is no part of what they try."""


def connect(root: Path, objects: Path, models: Path) -> KnowledgeBase:
    """The knowledge base of the double, with pauses that a test can wait for."""
    store = LakeFSVersionStore(cache=objects, client=Client(pause_seconds=0.005, attempts=3))
    made = KnowledgeBase(root, store.create_repository("knowledge", exist_ok=True), models)
    made.embedder = lambda settings: _load(settings, models)  # type: ignore[method-assign]
    return made


@pytest.fixture
def remote(lakefs_server: LakeFSServer, tmp_path: Path, models: Path, sources: Path) -> KnowledgeBase:
    made = connect(tmp_path / "remote", tmp_path / "objects", models)
    ingest(made, list_sources([str(sources)]), IngestOptions())
    return made


def told(kb: KnowledgeBase, ref: str = "main") -> list[dict[str, object]]:
    """The log without ids and dates."""
    entries = list_releases(kb.repository, ref, None)
    for entry in entries:
        entry["message"] = re.sub(r"\b[0-9a-f]{12}\b", "ID", entry["message"])
    return [
        {key: entry[key] for key in entry if key not in ("commit", "parents", "date")} for entry in entries
    ]


# -- the same as embedded ----------------------------------------------------------------------


def test_a_life_on_lakefs_is_told_as_one_on_git(
    remote: KnowledgeBase, tmp_path: Path, models: Path, sources: Path
) -> None:
    embedded = KnowledgeBase.create(tmp_path / "embedded", models)
    for path in ("plumbline.toml", "prompts"):  # neither side has a working copy of its own
        (embedded.root / path).rename(tmp_path / path)
    ingest(embedded, list_sources([str(sources)]), IngestOptions())
    for kb in (embedded, remote):
        (sources / "billing.md").write_text(CHANGED)
        (sources / "team.txt").rename(sources / "people.txt")
        ingest(kb, list_sources([str(sources)]), IngestOptions(prune=True, message="Second"))
        kb.repository.create_tag("v2", "main")
        (sources / "garage.md").write_text("# Garage\n\nThe garage opens at noon.\n")
        ingest(kb, list_sources([str(sources)]), IngestOptions(branch="feature"))
        (sources / "garage.md").unlink()
        (sources / "billing.md").write_text(DOCUMENTS["billing.md"])
        ingest(kb, list_sources([str(sources)]), IngestOptions())
        merge(kb, "feature")
        compact(kb, everything=True)
        rollback(kb, "v2")
        (sources / "people.txt").rename(sources / "team.txt")
    assert told(remote) == told(embedded)
    assert told(remote, "feature") == told(embedded, "feature")
    assert diff_releases(remote, "v2", "feature") == diff_releases(embedded, "v2", "feature")
    for question in ("When are invoices sent?", "When does the garage open?"):
        found = [Engine.open(kb).search(question) for kb in (remote, embedded)]
        assert [(r.chunk_id, r.score) for r in found[0]] == [(r.chunk_id, r.score) for r in found[1]]
    assert not list(fsck(remote))


def test_a_working_copy_names_its_repository(
    lakefs_server: LakeFSServer, tmp_path: Path, models: Path, sources: Path
) -> None:
    first = KnowledgeBase.create_remote(tmp_path / "a", "lakefs://docs", models, objects=tmp_path / "o")
    (first.root / "plumbline.toml").write_text("[retrieval]\ntop_k = 7\n")
    ingest(first, list_sources([str(sources)]), IngestOptions())
    second = KnowledgeBase.create_remote(tmp_path / "b", "lakefs://docs", models, objects=tmp_path / "o")
    assert second.settings().retrieval.top_k == 7, "main's files, not the defaults"
    assert find_root(tmp_path / "b" / "prompts") == tmp_path / "b"
    opened = KnowledgeBase.open(tmp_path / "b", models, objects=tmp_path / "o")
    assert opened.release().commit == first.release().commit
    with pytest.raises(PlumblineError, match="already holds"):
        KnowledgeBase.create_remote(tmp_path / "b", "lakefs://other", models)


def test_without_a_working_copy_mains_files_count(
    lakefs_server: LakeFSServer, tmp_path: Path, models: Path, sources: Path
) -> None:
    first = KnowledgeBase.create_remote(tmp_path / "a", "lakefs://docs", models, objects=tmp_path / "o")
    (first.root / "plumbline.toml").write_text("[retrieval]\ntop_k = 7\n")
    ingest(first, list_sources([str(sources)]), IngestOptions())
    detached = KnowledgeBase.open_remote("lakefs://docs", tmp_path / "state", models, objects=tmp_path / "o")
    (sources / "new.md").write_text("# New\n\nSomething new.\n")
    ingest(detached, list_sources([str(sources)]), IngestOptions())
    assert detached.release().settings.retrieval.top_k == 7
    assert diff_releases(detached, "main~1", "main").settings == {}
    with pytest.raises(UsageError, match="no working copy"):
        detached.restore("main")
    for wrong in ("lakefs://", "lakefs://docs/main"):
        with pytest.raises(UsageError):
            KnowledgeBase.open_remote(wrong, tmp_path / "state", models)


def test_a_work_branch_of_another_machine_stays(remote: KnowledgeBase, sources: Path) -> None:
    import time

    running, killed = (f"{WORK_PREFIX}{int(time.time()) - age}-abc" for age in (0, 90_000))
    for name in (running, killed):
        remote.repository.create_branch(name, "main")
    (sources / "new.md").write_text("new")
    ingest(remote, list_sources([str(sources)]), IngestOptions())
    assert [branch.id for branch in remote.repository.list_branches(WORK_PREFIX)] == [running]


def test_two_machines_publish_at_once_and_both_land(
    remote: KnowledgeBase, tmp_path: Path, models: Path, sources: Path
) -> None:
    """The second finds main moved and starts over from there."""
    other = connect(tmp_path / "other", tmp_path / "other-objects", models)
    (sources / "mine.md").write_text("mine")
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "theirs.md").write_text("theirs")
    done: list[str] = []

    def interfere(stage: str, *_: object) -> None:
        if stage == "index" and not done:
            done.append(stage)
            ingest(other, list_sources([str(theirs)]), IngestOptions())

    assert ingest(remote, list_sources([str(sources)]), IngestOptions(), progress=interfere).published
    assert {"mine.md", "theirs.md"} <= set(remote.snapshot().paths)
    assert not list(fsck(remote))


def test_gc_leaves_the_servers_objects_to_the_server(remote: KnowledgeBase, sources: Path) -> None:
    assert gc(remote, Retention(), dry_run=False).object_bytes == 0
    rollback_target = remote.repository.resolve("main")
    (sources / "more.md").write_text("There is more.")
    ingest(remote, list_sources([str(sources)]), IngestOptions())
    with pytest.raises(PlumblineError, match="garbage collection"):
        gc(remote, Retention(keep_last=1))
    assert remote.repository.resolve(rollback_target)


# -- a server that fails -----------------------------------------------------------------------


@dataclass
class Trouble:
    """A fault at the nth request from now, with `on` at every one from there; None: it is down."""

    fault: Fault | None
    number: int
    on: bool
    count: int = 0
    over: bool = False

    def strikes(self) -> bool:
        self.count += 1
        return not self.over and (self.count == self.number or (self.on and self.count > self.number))


@contextmanager
def met_with(trouble: Trouble, server: LakeFSServer, kb: KnowledgeBase) -> Iterator[None]:
    """The trouble is on the way of this knowledge base to its server, which it does not wait for long."""
    client = client_of(kb)
    pool, patient = client.api._api.rest_client.pool_manager, (client._read_seconds, client._attempts)
    send = pool.request

    def request(method: str, url: str, **options: Any) -> Any:
        # A real refusal, by a port where nobody listens.
        down = trouble.fault is None and trouble.strikes()
        return send(method, url.replace(server.endpoint, NOWHERE) if down else url, **options)

    pool.request = request
    if trouble.fault is not None:
        server.fault = lambda request: trouble.fault if trouble.strikes() else None
    if trouble.fault in (FAULTS["slow before"], FAULTS["slow after"]):
        client._read_seconds, client._attempts = TIMEOUT, 2
    places = (version_store_lakefs_repository, version_store_lakefs_refs)
    with patch.object(places[0], "HOOK_SECONDS", TIMEOUT), patch.object(places[1], "HOOK_SECONDS", TIMEOUT):
        try:
            yield
        finally:
            trouble.over = True
            server.wait()  # what it was too slow with, it does all the same
            pool.request, (client._read_seconds, client._attempts) = send, patient


def client_of(kb: KnowledgeBase) -> Client:
    assert isinstance(kb.repository, LakeFSRepository)
    return kb.repository._client


def ingest_change(kb: KnowledgeBase) -> object:
    folder = kb.root.parent / "sources"
    (folder / "billing.md").write_text(CHANGED)
    return ingest(kb, list_sources([str(folder)]), IngestOptions())


def promote_change(kb: KnowledgeBase) -> object:
    return promote(kb, "feature")


TIMEOUT = 0.5
"""Seconds after which the client of a slow server gives up."""

NOWHERE = "http://127.0.0.1:1"

FAULTS: dict[str, Fault | None] = {
    "dropped before": Fault(drop="before"),
    "dropped after": Fault(drop="after"),
    "401": Fault(401),
    "403": Fault(403),
    "429": Fault(429),
    "500": Fault(500),
    "slow before": Fault(seconds=2 * TIMEOUT),
    "slow after": Fault(late=2 * TIMEOUT),
    "down": None,
}


def prepared(server: LakeFSServer, folder: Path, models: Path, step: Step) -> KnowledgeBase:
    """A repository with a release, and for a promotion with a branch to promote."""
    server.fault = lambda request: None
    server.store.repositories.pop("knowledge", None)
    sources = folder / "sources"
    for name, text in DOCUMENTS.items():
        (sources / name).parent.mkdir(parents=True, exist_ok=True)
        (sources / name).write_text(text)
    kb = connect(folder / "kb", folder / "objects", models)
    ingest(kb, list_sources([str(sources)]), IngestOptions())
    if step is promote_change:
        (sources / "billing.md").write_text(CHANGED)
        ingest(kb, list_sources([str(sources)]), IngestOptions(branch="feature"))
    return kb


def check(server: LakeFSServer, kb: KnowledgeBase, step: Step, before: str) -> None:
    """Main is the old release or the new one, whole, and the next run completes: one release more."""
    server.fault = lambda request: None
    head = kb.repository.resolve("main")
    assert head == before or kb.repository.get_commit(head).metadata["verdict"]
    text = kb.snapshot().document_text("billing.md")
    assert ("last day" in text) == (head != before)
    if head == before:
        step(kb)
    assert "last day" in kb.snapshot().document_text("billing.md")
    log = [commit.parents for commit in kb.repository.log("main", first_parent=True)]
    assert len(log) == 3, "the root, the first release, and one more"
    assert not list(fsck(kb))
    assert server.violations == []


def run_with_fault(server: LakeFSServer, folder: Path, models: Path, step: Step, trouble: Trouble) -> Trouble:
    """One trial; it says how many requests there were."""
    kb = prepared(server, folder, models, step)
    before, fault = kb.repository.resolve("main"), trouble.fault
    try:
        with met_with(trouble, server, kb):
            step(kb)
    except PlumblineError as error:
        assert error.exit_code == 3 and error.message and not isinstance(error, LockedError)
        unauthorized = fault is not None and fault.status in (401, 403)
        assert not unauthorized or isinstance(error, UnauthorizedError), error
    check(server, kb, step, before)
    return trouble


@pytest.mark.parametrize("step", [ingest_change, promote_change])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_at_some_requests_publishes_nothing_half(
    lakefs_server: LakeFSServer, tmp_path: Path, models: Path, step: Step, fault: str
) -> None:
    for number, on in ((20, False), (31, True)):
        folder = tmp_path / f"{number}"
        run_with_fault(lakefs_server, folder, models, step, Trouble(FAULTS[fault], number, on))


@pytest.mark.slow
@pytest.mark.parametrize("step", [ingest_change, promote_change])
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("on", [False, True])
def test_a_fault_at_every_request_publishes_nothing_half(
    lakefs_server: LakeFSServer,
    tmp_path: Path,
    models: Path,
    step: Step,
    fault: str,
    on: bool,
) -> None:
    none = Trouble(None, number=0, on=False)
    total = run_with_fault(lakefs_server, tmp_path / "none", models, step, none).count
    assert total > 10
    struck = 0
    for number in range(1, total + 1):
        trouble = Trouble(FAULTS[fault], number, on)
        run_with_fault(lakefs_server, tmp_path / f"{number}", models, step, trouble)
        struck += trouble.count >= number
    assert struck > 10
    print(f"{fault}, {step.__name__}, from there on: {on}: {struck} trials at {total} requests")


def test_a_slow_server_is_waited_for(
    lakefs_server: LakeFSServer, remote: KnowledgeBase, sources: Path
) -> None:
    lakefs_server.fault = lambda request: Fault(seconds=0.05)
    (sources / "new.md").write_text("new")
    assert ingest(remote, list_sources([str(sources)]), IngestOptions()).published


# -- requests ----------------------------------------------------------------------------------


def test_requests_grow_with_the_change_and_not_with_the_knowledge_base(
    lakefs_server: LakeFSServer, tmp_path: Path, models: Path
) -> None:
    def cost(documents: int, changed: int) -> int:
        folder = tmp_path / f"{documents}-{changed}"
        lakefs_server.store.repositories.clear()
        kb = connect(folder / "kb", folder / "objects", models)
        sources = folder / "sources"
        sources.mkdir(parents=True)
        for number in range(documents):
            (sources / f"{number:03}.md").write_text(f"Topic {number} is about the number {number * 17}.")
        ingest(kb, list_sources([str(sources)]), IngestOptions())
        for number in range(changed):
            (sources / f"{number:03}.md").write_text(f"Topic {number} is no longer about {number}.")
        lakefs_server.requests.clear()
        ingest(kb, list_sources([str(sources)]), IngestOptions())
        return len(lakefs_server.requests)

    one = cost(60, 1)
    assert one == cost(6, 1)
    assert cost(60, 11) == one + 10
