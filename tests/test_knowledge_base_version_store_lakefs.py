"""What the behaviour suite cannot ask of every store: faults of the server, requests, lost answers."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest

from knowledge_base.errors import (
    DamagedError,
    DirtyBranchError,
    HeadMovedError,
    InvalidPathError,
    PlumblineError,
    UnauthorizedError,
    UnavailableError,
    VersionStoreError,
)
from knowledge_base.version_store import Repository, open_version_store
from knowledge_base.version_store_lakefs import LakeFSRepository, LakeFSVersionStore
from knowledge_base.version_store_lakefs_client import Client
from tests.lakefs_server import Fault, LakeFSServer, Request
from tests.test_version_store_behaviour import put


def connect(folder: Path, **options: float) -> LakeFSVersionStore:
    quick = {"pause_seconds": 0.01, "read_seconds": 5.0, **options}
    return LakeFSVersionStore(cache=folder, client=Client(**quick))  # type: ignore[arg-type]


@pytest.fixture
def repository(lakefs_server: LakeFSServer, tmp_path: Path) -> LakeFSRepository:
    return connect(tmp_path / "objects").create_repository("knowledge")


def hidden(server: LakeFSServer) -> list[str]:
    branches = server.store.get("knowledge").branches
    return [name for name in branches if name.startswith("plumbline-tx-")]


def when(operation: str, fault: Fault, times: int = 1) -> Callable[[Request], Fault | None]:
    """The fault for the next requests whose path and method fit."""
    method, _, end = operation.partition(" ")
    left = [times]

    def decide(request: Request) -> Fault | None:
        if left[0] and request.method == method and end in request.path:
            left[0] -= 1
            return fault
        return None

    return decide


# -- credentials and errors --------------------------------------------------------------------


def test_without_credentials_the_message_says_which_to_set(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("SERVER_ENDPOINT_URL", "CREDENTIALS_ACCESS_KEY_ID", "CREDENTIALS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(f"LAKECTL_{name}", raising=False)
    monkeypatch.setenv("LAKECTL_CONFIG_FILE", str(tmp_path / "none.yaml"))
    with pytest.raises(UnauthorizedError) as caught:
        open_version_store("lakefs://knowledge")
    assert "LAKECTL_CREDENTIALS_ACCESS_KEY_ID" in caught.value.hint


def test_credentials_come_from_lakectls_file_too(
    lakefs_server: LakeFSServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    key, secret = lakefs_server.key
    file = tmp_path / "lakectl.yaml"
    file.write_text(
        f"credentials:\n  access_key_id: {key}\n  secret_access_key: {secret}\n"
        f"server:\n  endpoint_url: {lakefs_server.endpoint}\n"
    )
    for name in lakefs_server.environment():
        monkeypatch.delenv(name)
    monkeypatch.setenv("LAKECTL_CONFIG_FILE", str(file))
    assert open_version_store("lakefs://").list_repositories() == []
    file.write_text("credentials: [")
    with pytest.raises(UnauthorizedError, match="cannot be read"):
        open_version_store("lakefs://")


@pytest.mark.parametrize(
    ("status", "error"),
    [(401, UnauthorizedError), (403, UnauthorizedError), (429, UnavailableError), (500, UnavailableError)],
)
def test_the_servers_message_is_kept(
    lakefs_server: LakeFSServer, repository: LakeFSRepository, status: int, error: type[PlumblineError]
) -> None:
    lakefs_server.fault = lambda request: Fault(status)
    with pytest.raises(error, match=f"fault {status}"):
        repository.resolve("main")


def test_a_proxys_page_is_no_answer_of_lakefs(
    lakefs_server: LakeFSServer, repository: LakeFSRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.lakefs_server import Answer

    monkeypatch.setattr(lakefs_server, "answer", lambda request: Answer(200, b"<html>", "text/html"))
    with pytest.raises(UnavailableError, match="is not lakeFS's"):
        repository.resolve("main")


def test_a_server_that_is_down_or_slow_is_unavailable(
    lakefs_server: LakeFSServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = connect(tmp_path, read_seconds=0.2, attempts=2)
    lakefs_server.fault = lambda request: Fault(seconds=0.6)
    with pytest.raises(UnavailableError, match="took too long"):
        store.list_repositories()
    lakefs_server.fault = lambda request: None
    monkeypatch.setenv("LAKECTL_SERVER_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(UnavailableError, match="does not answer"):
        connect(tmp_path, attempts=2).list_repositories()


def test_a_busy_server_is_asked_again_when_it_says(
    lakefs_server: LakeFSServer, repository: LakeFSRepository
) -> None:
    head = repository.resolve("main")
    lakefs_server.fault = when("GET /commits/", Fault(429, headers={"Retry-After": "0.05"}), times=3)
    assert repository.resolve("main") == head


# -- transactions ------------------------------------------------------------------------------


def test_what_others_have_staged_is_neither_committed_nor_lost(
    lakefs_server: LakeFSServer, repository: LakeFSRepository
) -> None:
    theirs = lakefs_server.store.get("knowledge")
    theirs.upload("main", "somebody's", b"x", "text/plain", {})
    with pytest.raises(DirtyBranchError, match="uncommitted changes"):
        put(repository, a="1")
    assert list(theirs.branches["main"].staging) == ["somebody's"]
    theirs.commit("main", "theirs", {}, None, False)
    put(repository, a="1")
    assert [item.path for item in repository.list_objects("main")] == ["a", "somebody's"]
    assert hidden(lakefs_server) == []


@pytest.mark.parametrize("operation", ["/merge/", "/commits", "/branches", "/objects"])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_lost_answer_makes_one_commit(
    lakefs_server: LakeFSServer, repository: LakeFSRepository, operation: str, moment: str
) -> None:
    before = repository.resolve("main")
    lakefs_server.fault = when(f"POST {operation}", Fault(drop=moment))
    head = put(repository, a="1")
    assert [commit.id for commit in repository.log("main")] == [head, before]
    assert repository.get_object("main", "a") == b"1"
    assert hidden(lakefs_server) == []


def test_a_merge_that_never_answers_says_so_and_moves_nothing(
    lakefs_server: LakeFSServer, repository: LakeFSRepository
) -> None:
    before = repository.resolve("main")
    lakefs_server.fault = when("POST /merge/", Fault(drop="before"), times=99)
    with pytest.raises(UnavailableError):
        put(repository, a="1")
    lakefs_server.fault = lambda request: None
    assert repository.resolve("main") == before
    put(repository, a="1")


def test_tags_and_branches_survive_lost_answers(
    lakefs_server: LakeFSServer, repository: LakeFSRepository
) -> None:
    head = repository.resolve("main")
    for moment in ("before", "after"):
        lakefs_server.fault = when("POST /tags", Fault(drop=moment))
        assert repository.create_tag(f"v-{moment}", "main").commit_id == head
        lakefs_server.fault = when("DELETE /tags/", Fault(drop=moment))
        repository.delete_tag(f"v-{moment}")
        lakefs_server.fault = when("DELETE /branches/", Fault(drop=moment))
        repository.create_branch("gone", "main")
        repository.delete_branch("gone")
    assert (repository.list_tags(), len(repository.list_branches())) == ([], 1)


def test_a_release_that_landed_on_another_head_is_undone(
    lakefs_server: LakeFSServer, repository: LakeFSRepository
) -> None:
    """Somebody lands between our last look at the branch and our merge."""
    other = connect(Path(str(repository._objects.cache._folder) + "-other")).get_repository("knowledge")
    expected = repository.resolve("main")
    landed: list[str] = []

    def interfere(request: Request) -> Fault | None:
        if request.method == "POST" and request.path.endswith("/merge/main") and not landed:
            landed.append("")
            landed[0] = put(other, theirs="1")
        return None

    lakefs_server.fault = interfere
    with (
        pytest.raises(HeadMovedError) as caught,
        repository.transact("main", message="mine", if_head=expected) as transaction,
    ):
        transaction.upload("mine", b"1")
    assert (caught.value.expected, caught.value.actual) == (expected, landed[0])
    assert [item.path for item in repository.list_objects("main")] == ["theirs"]


def test_a_folder_that_appeared_in_the_last_moment_is_undone(
    lakefs_server: LakeFSServer, repository: LakeFSRepository
) -> None:
    other = connect(Path(str(repository._objects.cache._folder) + "-other")).get_repository("knowledge")
    landed: list[str] = []

    def interfere(request: Request) -> Fault | None:
        if request.method == "POST" and request.path.endswith("/merge/main") and not landed:
            landed.append("")
            put(other, a__b="1")
        return None

    lakefs_server.fault = interfere
    with pytest.raises(InvalidPathError):
        put(repository, a="1")
    assert [item.path for item in repository.list_objects("main")] == ["a/b"]


def test_branches_of_killed_transactions_are_swept_after_a_day(
    lakefs_server: LakeFSServer, repository: LakeFSRepository
) -> None:
    held = lakefs_server.store.get("knowledge")
    for name in ("plumbline-tx-1000000000-abc", "plumbline-tx-4000000000-abc"):
        held.create_branch(name, "main", True)
    assert (repository.sweep(), repository.sweep()) == (1, 0)
    assert hidden(lakefs_server) == ["plumbline-tx-4000000000-abc"]


def test_an_upload_that_fails_fails_the_transaction(
    lakefs_server: LakeFSServer, repository: LakeFSRepository
) -> None:
    before = repository.resolve("main")
    lakefs_server.fault = when("POST /objects", Fault(403))
    with pytest.raises(UnauthorizedError, match="fault 403"):
        put(repository, **{f"file{number}": "x" for number in range(40)})
    assert repository.resolve("main") == before and hidden(lakefs_server) == []


def test_a_refused_removal_is_an_error(
    lakefs_server: LakeFSServer, repository: LakeFSRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.lakefs_server import Answer

    put(repository, a="1")
    refusal = Answer.of({"errors": [{"path": "a", "status_code": 403, "message": "protected"}]})
    monkeypatch.setattr(lakefs_server, "_delete_objects", lambda *_, **__: refusal)
    with (
        pytest.raises(VersionStoreError, match="'a': protected"),
        repository.transact("main", message="x") as transaction,
    ):
        transaction.delete("a")


def test_thousands_of_objects_go_up_and_down_in_batches(
    lakefs_server: LakeFSServer, repository: LakeFSRepository
) -> None:
    with repository.transact("main", message="up") as transaction:
        for number in range(1100):
            transaction.upload(f"documents/{number:05}.md", io.BytesIO(b"%d" % number))
    lakefs_server.requests.clear()
    fresh = connect(Path(str(repository._objects.cache._folder) + "-other")).get_repository("knowledge")
    assert len(list(fresh.list_objects("main", prefix="documents/"))) == 1100
    assert lakefs_server.counts()["list_objects"] == 2
    with fresh.transact("main", message="down") as transaction:
        transaction.delete_prefix("documents/0")
        assert not transaction.exists("documents/00001.md")
    assert lakefs_server.counts()["delete_objects"] == 2
    assert list(fresh.list_objects("main")) == []


# -- reading -----------------------------------------------------------------------------------


def test_what_a_commit_holds_is_fetched_once(lakefs_server: LakeFSServer, tmp_path: Path) -> None:
    writer = connect(tmp_path / "writer").create_repository("knowledge")
    commit = put(writer, documents__a="1", documents__b="2", prompts__p="3", settings="4")
    reader = connect(tmp_path / "reader").get_repository("knowledge")

    def read(repository: Repository) -> list[str]:
        lakefs_server.requests.clear()
        for path in ("documents/a", "documents/b", "prompts/p", "settings"):
            repository.get_object(commit, path)
        list(repository.list_objects(commit, prefix="prompts/"))
        return [request.operation for request in lakefs_server.requests]

    assert sorted(read(reader)) == ["get_commit"] + ["get_object"] * 4 + ["list_objects"] * 3
    assert read(reader) == read(connect(tmp_path / "reader").get_repository("knowledge")) == []
    lakefs_server.requests.clear()
    put(writer, documents__a="1!")
    reader.get_object("main", "documents/b")
    assert lakefs_server.counts()["get_object"] == 0, "b is the same object in both commits"


def test_a_release_opens_while_the_server_is_down(lakefs_server: LakeFSServer, tmp_path: Path) -> None:
    writer = connect(tmp_path / "writer").create_repository("knowledge")
    commit = put(writer, a="1")
    assert connect(tmp_path / "reader").get_repository("knowledge").get_object("main", "a") == b"1"
    lakefs_server.fault = lambda request: Fault(drop="before")
    offline = connect(tmp_path / "reader", attempts=1).get_repository("knowledge")
    assert offline.get_object(commit, "a") == b"1"
    with pytest.raises(UnavailableError) as caught:
        offline.resolve("main")
    assert commit in caught.value.hint
    with pytest.raises(UnavailableError):
        connect(tmp_path / "reader", attempts=1).get_repository("never-seen")


def test_other_bytes_than_the_checksum_says_are_damage(lakefs_server: LakeFSServer, tmp_path: Path) -> None:
    writer = connect(tmp_path / "writer").create_repository("knowledge")
    put(writer, a="right")
    blobs = lakefs_server.store.get("knowledge").blobs
    blobs.update({key: b"wrong" for key, content in blobs.items() if content == b"right"})
    reader = connect(tmp_path / "reader").get_repository("knowledge")
    with pytest.raises(DamagedError, match="other bytes"):
        reader.get_object("main", "a")
    assert list(writer.verify()) == []
    assert list(reader.verify()) == [f"a of main: {_damage(reader)}"]


def _damage(reader: Repository) -> str:
    with pytest.raises(DamagedError) as caught:
        reader.get_object("main", "a")
    return caught.value.message


def test_lakefs_own_files_are_no_part_of_a_knowledge_base(
    lakefs_server: LakeFSServer, repository: LakeFSRepository
) -> None:
    put(repository, a="1")
    held = lakefs_server.store.get("knowledge")
    held.upload("main", "_lakefs_actions/gate.yaml", b"name: gate\non: {}\nhooks: []\n", "text/plain", {})
    held.commit("main", "action", {}, None, False)
    assert [item.path for item in repository.list_objects("main")] == ["a"]
    assert list(repository.diff("main~1", "main", type="two_dot")) == []
