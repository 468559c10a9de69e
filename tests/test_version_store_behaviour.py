"""What every version store must do. A new backend adds itself to `BACKENDS` in conftest and nothing else."""

import io
import secrets
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from knowledge_base.errors import (
    AlreadyExistsError,
    HeadMovedError,
    HookFailedError,
    InvalidNameError,
    InvalidPathError,
    MergeConflictError,
    NoChangesError,
    NotFoundError,
    ProtectedError,
    UnsupportedError,
)
from knowledge_base.naming import validate_path
from knowledge_base.version_store import Commit, CommonPrefix, Repository, VersionStore

LARGE = b"0123456789abcdef" * 100_000


@pytest.fixture
def prefix(backend: str) -> str:
    """What keeps names apart on a server that others use too."""
    return f"plumbline-{secrets.token_hex(4)}-" if backend == "lakefs-real" else ""


@pytest.fixture
def store(version_store: VersionStore, prefix: str) -> Iterator[VersionStore]:
    yield version_store
    for name in version_store.list_repositories(prefix) if prefix else ():
        version_store.delete_repository(name)


@pytest.fixture
def repository(store: VersionStore, prefix: str) -> Repository:
    return store.create_repository(f"{prefix}knowledge")


def put(repository: Repository, branch: str = "main", /, **files: str) -> str:
    with repository.transact(branch, message="put") as transaction:
        for name, text in files.items():
            transaction.upload(name.replace("__", "/"), text.encode())
    assert transaction.commit is not None
    return transaction.commit.id


def tree(repository: Repository, ref: str = "main") -> dict[str, bytes]:
    return {item.path: repository.get_object(ref, item.path) for item in repository.list_objects(ref)}


# -- repositories ------------------------------------------------------------------------------


def test_a_new_repository_has_one_commit_and_no_objects(repository: Repository) -> None:
    assert [commit.parents for commit in repository.log("main")] == [()]
    assert tree(repository) == {}


def test_a_repository_cannot_be_created_twice(store: VersionStore, repository: Repository) -> None:
    with pytest.raises(AlreadyExistsError):
        store.create_repository(repository.id)
    assert store.create_repository(repository.id, exist_ok=True).id == repository.id


def test_repositories_are_listed_and_deleted(
    store: VersionStore, repository: Repository, prefix: str
) -> None:
    another = store.create_repository(f"{prefix}another").id
    assert store.list_repositories(prefix) == [another, repository.id]
    assert store.list_repositories(f"{prefix}kn") == [repository.id]
    store.delete_repository(another)
    with pytest.raises(NotFoundError):
        store.get_repository(another)


@pytest.mark.parametrize("name", ["ab", "Upper", "-x-", "a_b", "a/b", "münchen", "abc\n", "a" * 64])
def test_bad_repository_names_are_refused(store: VersionStore, name: str) -> None:
    with pytest.raises(InvalidNameError):
        store.create_repository(name)


# -- transactions ------------------------------------------------------------------------------


def test_a_transaction_is_one_commit_on_the_head(repository: Repository) -> None:
    before = repository.resolve("main")
    with repository.transact("main", message="two files", metadata={"k": "v"}) as transaction:
        transaction.upload("a.md", b"a")
        transaction.upload("b.md", io.BytesIO(b"b"))
        assert tree(repository) == {}, "nothing is visible before the commit"
    assert transaction.commit == repository.get_commit("main")
    assert transaction.commit.parents == (before,)
    assert tree(repository) == {"a.md": b"a", "b.md": b"b"}


@pytest.mark.parametrize(
    ("message", "metadata"),
    [
        ("plain", {"changed": "corpus,embedder", "verdict": "PASS"}),
        ("many\n\nparagraphs\n\nPlumbline-x: 1", {"two words": "line\nline", "ü": "☃\u2028", "Other": "o"}),
        ("trailing newline\n", {"": "", "json": '{"a": [1, "\\""]}'}),
        ("ends like one\n\nPlumbline-Version: 1", {"Version": "v", "Message": "m", "a:b": "c"}),
        ("\n\n leading and\r\nnul \0", {"nul": "\0\x1b"}),
        ("\n", {}),
        ("", {}),
    ],
)
def test_message_and_metadata_come_back_exactly(
    repository: Repository, message: str, metadata: dict[str, str]
) -> None:
    with repository.transact("main", message=message, metadata=metadata) as transaction:
        transaction.upload("a", b"a")
    commit = repository.get_commit("main")
    assert (commit.message, dict(commit.metadata)) == (message, metadata)


def test_an_exception_in_the_block_changes_nothing(repository: Repository) -> None:
    before = repository.resolve("main")
    with pytest.raises(RuntimeError), repository.transact("main", message="x") as transaction:
        transaction.upload("a", b"a")
        raise RuntimeError
    assert repository.resolve("main") == before


def test_a_transaction_without_net_change_is_refused(repository: Repository) -> None:
    head = put(repository, a="1")
    for stage in ("nothing", "same", "missing"):
        with pytest.raises(NoChangesError), repository.transact("main", message=stage) as transaction:
            if stage == "same":
                transaction.upload("a", b"1")
            elif stage == "missing":
                transaction.delete("nowhere")
    assert repository.resolve("main") == head


def test_an_empty_commit_is_made_when_asked_for(repository: Repository) -> None:
    before = repository.resolve("main")
    with repository.transact("main", message="empty", allow_empty=True):
        pass
    assert repository.get_commit("main").parents == (before,)


def test_a_transaction_sees_its_own_writes(repository: Repository) -> None:
    put(repository, a="old", d__x="x", d__y="y")
    with repository.transact("main", message="x") as transaction:
        transaction.upload("a", b"new")
        transaction.upload("d/z", b"z")
        transaction.delete_prefix("d/")
        assert transaction.get_object("a") == b"new"
        assert not transaction.exists("d/x")
        assert not transaction.exists("d/z")
        with pytest.raises(NotFoundError):
            transaction.get_object("d/y")
    assert tree(repository) == {"a": b"new"}


def test_large_objects_come_back_whole(repository: Repository, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(LARGE)
    with repository.transact("main", message="large") as transaction:
        transaction.upload("large", tmp_path / "large")
        assert transaction.get_object("large") == LARGE
    assert repository.get_object("main", "large") == LARGE
    assert repository.stat_object("main", "large").size_bytes == len(LARGE)
    with repository.open_object("main", "large") as file:
        file.seek(-4, io.SEEK_END)
        assert file.read() == LARGE[-4:]


def test_a_file_that_looks_like_an_lfs_pointer_is_kept_as_it_is(repository: Repository) -> None:
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "a" * 64 + "\nsize 12345\n"
    put(repository, pointer=text)
    assert repository.get_object("main", "pointer") == text.encode()


def test_disjoint_concurrent_transactions_both_land(repository: Repository) -> None:
    with repository.transact("main", message="outer") as outer:
        outer.upload("a", b"a")
        inner = put(repository, b="b")
    assert outer.commit is not None and outer.commit.parents == (inner,)
    assert tree(repository) == {"a": b"a", "b": b"b"}


def test_the_second_of_two_changes_to_one_path_conflicts(repository: Repository) -> None:
    with pytest.raises(MergeConflictError) as caught, repository.transact("main", message="x") as outer:
        outer.upload("a", b"mine")
        put(repository, a="theirs")
    assert caught.value.paths == ["a"]
    assert tree(repository) == {"a": b"theirs"}


def test_the_same_change_twice_is_no_change(repository: Repository) -> None:
    with pytest.raises(NoChangesError), repository.transact("main", message="x") as outer:
        outer.upload("a", b"same")
        put(repository, a="same")


def test_content_is_read_to_its_end_from_a_stream_that_gives_little_at_a_time(repository: Repository) -> None:
    class Dripping(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read(min(size or 0, 70_001) if size != -1 else 70_001)

    with repository.transact("main", message="x") as transaction:
        transaction.upload("small", Dripping(LARGE[:500_000]))
        transaction.upload("large", Dripping(LARGE))
    assert tree(repository) == {"small": LARGE[:500_000], "large": LARGE}


@pytest.mark.parametrize("size", [0, 1, 2**20 - 1, 2**20, 2**20 + 1])
def test_content_of_any_size_comes_back(repository: Repository, size: int) -> None:
    with repository.transact("main", message="x") as transaction:
        assert transaction.upload("a", b"x" * size).size_bytes == size
    assert repository.get_object("main", "a") == b"x" * size


def test_a_reader_sees_a_commit_whole_or_not_at_all(repository: Repository) -> None:
    put(repository, one="0", two="0")
    torn: list[dict[str, bytes]] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            if len(set((files := tree(repository, repository.resolve("main"))).values())) != 1:
                torn.append(files)

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(1, 30):
        put(repository, one=str(number), two=str(number))
    done.set()
    reader.join()
    assert not torn


def test_concurrent_writers_of_different_paths_all_land_in_a_line(repository: Repository) -> None:
    def write(name: str) -> None:
        for number in range(10):
            put(repository, **{name: str(number)})

    threads = [threading.Thread(target=write, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert tree(repository) == dict.fromkeys("abcd", b"9")
    assert [len(commit.parents) for commit in repository.log("main")] == [1] * 40 + [0]


def test_a_transaction_needs_its_branch_until_the_end(repository: Repository) -> None:
    with pytest.raises(NotFoundError):
        repository.transact("nowhere", message="x")
    repository.create_branch("short", "main")
    with pytest.raises(NotFoundError), repository.transact("short", message="x") as transaction:
        transaction.upload("a", b"a")
        repository.delete_branch("short")


def test_message_and_metadata_can_be_set_inside_the_block(repository: Repository) -> None:
    with repository.transact("main", message="before") as transaction:
        transaction.upload("a", b"a")
        transaction.message, transaction.metadata["k"] = "after", "v"
    commit = repository.get_commit("main")
    assert (commit.message, dict(commit.metadata)) == ("after", {"k": "v"})


def test_many_removals_are_refused_together_when_one_path_is_bad(repository: Repository) -> None:
    put(repository, a="1", b="1")
    with repository.transact("main", message="x") as transaction:
        with pytest.raises(InvalidPathError):
            transaction.delete_objects(["a", "../b"])
        transaction.delete("b")
    assert tree(repository) == {"a": b"1"}


def test_an_emptied_folder_is_gone(repository: Repository) -> None:
    put(repository, d__e__f="1")
    with repository.transact("main", message="x") as transaction:
        transaction.delete("d/e/f")
    assert list(repository.list_objects("main", delimiter="/")) == []


def test_removing_a_folder_name_or_below_a_file_removes_nothing(repository: Repository) -> None:
    put(repository, d__x="1", file="1")
    with pytest.raises(NoChangesError), repository.transact("main", message="x") as transaction:
        transaction.delete_objects(["d", "file/below"])


def test_if_head_refuses_when_the_branch_moved(repository: Repository) -> None:
    expected = repository.resolve("main")
    with (
        pytest.raises(HeadMovedError) as caught,
        repository.transact("main", message="x", if_head=expected) as outer,
    ):
        outer.upload("a", b"a")
        moved = put(repository, b="b")
    assert (caught.value.expected, caught.value.actual) == (expected, moved)


def test_exactly_one_of_many_concurrent_releases_wins(repository: Repository) -> None:
    expected = repository.resolve("main")
    outcomes: list[str] = []

    def release(number: int) -> None:
        try:
            with repository.transact("main", message=str(number), if_head=expected) as transaction:
                transaction.upload("release.json", str(number).encode())
            outcomes.append("won")
        except HeadMovedError:
            outcomes.append("lost")

    threads = [threading.Thread(target=release, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["lost"] * 5 + ["won"]


def test_a_path_cannot_be_the_folder_of_another(repository: Repository) -> None:
    put(repository, a="file")
    with pytest.raises(InvalidPathError), repository.transact("main", message="x") as transaction:
        transaction.upload("a/b", b"below")
    put(repository, d__e="file")
    with pytest.raises(InvalidPathError), repository.transact("main", message="x") as transaction:
        transaction.upload("d", b"above")


def test_a_path_cannot_be_the_folder_of_another_in_one_transaction(repository: Repository) -> None:
    with pytest.raises(InvalidPathError), repository.transact("main", message="x") as transaction:
        transaction.upload("a/b/c", b"")
        transaction.upload("a/b", b"")


def test_a_path_cannot_become_the_folder_of_a_concurrent_one(repository: Repository) -> None:
    with pytest.raises(InvalidPathError), repository.transact("main", message="x") as transaction:
        transaction.upload("a/b", b"")
        put(repository, a="file")
    assert tree(repository) == {"a": b"file"}


def test_a_file_may_become_a_folder_in_one_transaction(repository: Repository) -> None:
    put(repository, a="file")
    with repository.transact("main", message="x") as transaction:
        transaction.delete("a")
        transaction.upload("a/b", b"below")
    assert tree(repository) == {"a/b": b"below"}


BAD_PATHS = [
    "",
    "/a",
    "a/",
    "a//b",
    "./a",
    "a/../b",
    "x/.GIT/y",
    "a\\b",
    "a\0b",
    "a\nb",
    "e\u0301",
    "_lakefs/x",
    "x" * 1025,
]


@pytest.mark.parametrize("path", BAD_PATHS)
def test_bad_paths_are_refused_at_upload(repository: Repository, path: str) -> None:
    with pytest.raises(InvalidPathError), repository.transact("main", message="x") as transaction:
        transaction.upload(path, b"")


@settings(max_examples=300)
@given(st.text(max_size=40))
def test_a_valid_path_survives_the_store_or_is_refused(path: str) -> None:
    try:
        assert validate_path(path) == path
    except InvalidPathError:
        return
    assert path.encode().decode() == path
    assert not {"", ".", "..", ".git"} & {segment.lower() for segment in path.split("/")}


# -- reading -----------------------------------------------------------------------------------


def test_objects_are_listed_in_byte_order(repository: Repository) -> None:
    with repository.transact("main", message="x") as transaction:
        for path in ("b", "a/z", "a-b", "é", "a/b/c", "Z"):
            transaction.upload(path, b"")
    assert [item.path for item in repository.list_objects("main")] == ["Z", "a-b", "a/b/c", "a/z", "b", "é"]
    assert [item.path for item in repository.list_objects("main", prefix="a/")] == ["a/b/c", "a/z"]
    assert [item.path for item in repository.list_objects("main", after="a/z")] == ["b", "é"]
    grouped = list(repository.list_objects("main", delimiter="/"))
    assert [item.path for item in grouped] == ["Z", "a-b", "a/", "b", "é"]
    assert isinstance(grouped[2], CommonPrefix)


def test_missing_things_are_not_found(repository: Repository) -> None:
    for call in (
        lambda: repository.resolve("nowhere"),
        lambda: repository.get_object("main", "nowhere"),
        lambda: repository.stat_object("main", "no/where"),
        lambda: repository.get_branch("nowhere"),
        lambda: repository.get_tag("nowhere"),
        lambda: repository.delete_branch("nowhere"),
        lambda: repository.resolve("main~5"),
        lambda: repository.resolve("main@{1999-01-01}"),
        lambda: repository.resolve("main@{yesterday}"),
        lambda: repository.resolve(""),
        lambda: repository.resolve("../main"),
    ):
        with pytest.raises(NotFoundError):
            call()


def test_reading_needs_the_whole_path(repository: Repository) -> None:
    put(repository, d__x="1")
    for path in ("d", "d/", "/d/x", "d//x", "d/x/", "d/x/y", "", "."):
        with pytest.raises(NotFoundError):
            repository.get_object("main", path)


def test_the_same_bytes_have_the_same_checksum(repository: Repository) -> None:
    put(repository, a="1", b="1", c="2")
    a, b, c = (repository.stat_object("main", path).checksum for path in "abc")
    assert a == b != c


def test_parents_of_a_merge_have_numbers(repository: Repository) -> None:
    repository.create_branch("feature", "main")
    ours, theirs = put(repository, a="1"), put(repository, "feature", b="1")
    merged = repository.merge("feature", "main", message="m").id
    assert (repository.resolve("main^1"), repository.resolve("main^2")) == (ours, theirs)
    assert repository.resolve("main^2~1") == repository.resolve("main~2")
    assert repository.resolve("main~0") == merged
    for ref in ("main^3", "main~3", "main~999999", "main~9999999999", "main^" * 2000):
        with pytest.raises(NotFoundError):
            repository.resolve(ref)


def test_ref_expressions_name_commits(repository: Repository) -> None:
    root = repository.resolve("main")
    first = put(repository, a="1")
    second = put(repository, a="2")
    assert repository.resolve("main~1") == repository.resolve("main^") == first
    assert repository.resolve("main~2") == root
    assert repository.resolve(second[:12]) == second
    assert repository.resolve("main@{2100-01-01}") == second


# -- branches and tags -------------------------------------------------------------------------


def test_a_branch_starts_where_its_source_is(repository: Repository) -> None:
    head = put(repository, a="1")
    assert repository.create_branch("trial", "main").commit_id == head
    put(repository, "trial", b="2")
    assert tree(repository) == {"a": b"1"}
    assert [branch.id for branch in repository.list_branches()] == ["main", "trial"]
    repository.delete_branch("trial")
    assert [branch.id for branch in repository.list_branches("t")] == []


def test_tags_never_move(repository: Repository) -> None:
    head = put(repository, a="1")
    assert repository.create_tag("v1.0", "main").commit_id == head
    put(repository, a="2")
    assert repository.get_object("v1.0", "a") == b"1"
    with pytest.raises(AlreadyExistsError):
        repository.create_tag("v1.0", "v1.0")
    repository.delete_tag("v1.0")
    assert repository.list_tags() == []


def test_names_need_a_commit_to_point_at(repository: Repository) -> None:
    with pytest.raises(NotFoundError):
        repository.create_branch("b", "nowhere")
    with pytest.raises(NotFoundError):
        repository.create_tag("t", "nowhere")
    assert (len(repository.list_branches()), repository.list_tags()) == (1, [])


def test_a_tag_keeps_its_commit_when_the_branch_is_gone(repository: Repository) -> None:
    repository.create_branch("trial", "main")
    head = put(repository, "trial", a="1")
    repository.create_tag("kept", "trial")
    repository.delete_branch("trial")
    assert repository.get_tag("kept").commit_id == head
    assert repository.get_object("kept", "a") == b"1"


def test_branches_and_tags_share_one_namespace(repository: Repository) -> None:
    repository.create_tag("name", "main")
    with pytest.raises(AlreadyExistsError):
        repository.create_branch("name", "main")
    with pytest.raises(AlreadyExistsError):
        repository.create_tag("main", "main")


@pytest.mark.parametrize(
    "name", ["a/b", "a.b", "-a", "", "é", "a b", "a" * 101, "0" * 40, "plumbline-tx-1", "a\n"]
)
def test_bad_branch_names_are_refused(repository: Repository, name: str) -> None:
    with pytest.raises(InvalidNameError):
        repository.create_branch(name, "main")


@pytest.mark.parametrize("name", ["a/b", "a..b", "a.", "a.lock", ".a", "f" * 64])
def test_bad_tag_names_are_refused(repository: Repository, name: str) -> None:
    with pytest.raises(InvalidNameError):
        repository.create_tag(name, "main")


def test_the_default_branch_cannot_be_deleted(repository: Repository) -> None:
    with pytest.raises(ProtectedError):
        repository.delete_branch("main")


# -- merging -----------------------------------------------------------------------------------


@pytest.fixture
def forked(repository: Repository) -> Repository:
    put(repository, same="0", both="0", mine="0", theirs="0", gone="0")
    repository.create_branch("feature", "main")
    return repository


def test_a_merge_takes_each_sides_changes(forked: Repository) -> None:
    ours = put(forked, mine="1")
    theirs = put(forked, "feature", theirs="1")
    commit = forked.merge("feature", "main", message="merge", metadata={"k": "v"})
    assert commit.parents == (ours, theirs)
    assert dict(commit.metadata) == {"k": "v"}
    assert (tree(forked)["mine"], tree(forked)["theirs"]) == (b"1", b"1")


def test_a_merge_is_never_a_fast_forward(forked: Repository) -> None:
    head, source = forked.resolve("main"), put(forked, "feature", theirs="1")
    assert forked.merge("feature", "main", message="m").parents == (head, source)


def test_a_squash_merge_has_one_parent(forked: Repository) -> None:
    head = forked.resolve("main")
    put(forked, "feature", theirs="1")
    assert forked.merge("feature", "main", message="m", squash=True).parents == (head,)


def test_conflicts_name_their_paths_and_move_nothing(forked: Repository) -> None:
    head = put(forked, both="1", mine="1")
    put(forked, "feature", both="2")
    with pytest.raises(MergeConflictError) as caught:
        forked.merge("feature", "main", message="m")
    assert caught.value.paths == ["both"]
    assert forked.resolve("main") == head


@pytest.mark.parametrize(("strategy", "expected"), [("source-wins", b"2"), ("dest-wins", b"1")])
def test_a_strategy_settles_conflicts(forked: Repository, strategy: str, expected: bytes) -> None:
    put(forked, both="1")
    put(forked, "feature", both="2", theirs="2")
    forked.merge("feature", "main", message="m", strategy=strategy)  # type: ignore[arg-type]
    assert (tree(forked)["both"], tree(forked)["theirs"]) == (expected, b"2")


def test_deleting_what_the_other_side_changed_conflicts(forked: Repository) -> None:
    with forked.transact("main", message="x") as transaction:
        transaction.delete("gone")
    put(forked, "feature", gone="1")
    with pytest.raises(MergeConflictError):
        forked.merge("feature", "main", message="m")


def test_the_same_change_on_both_sides_is_no_conflict(forked: Repository) -> None:
    put(forked, both="1")
    put(forked, "feature", both="1", theirs="1")
    forked.merge("feature", "main", message="m")
    assert tree(forked)["both"] == b"1"


def test_a_source_that_adds_nothing_is_refused(forked: Repository) -> None:
    put(forked, mine="1")
    with pytest.raises(NoChangesError):
        forked.merge("feature", "main", message="m")


def test_a_squash_that_changes_nothing_is_refused(forked: Repository) -> None:
    put(forked, both="1")
    put(forked, "feature", both="1")
    with pytest.raises(NoChangesError):
        forked.merge("feature", "main", message="m", squash=True)


def test_a_branch_merged_twice_meets_no_false_conflict(forked: Repository) -> None:
    put(forked, "feature", theirs="1")
    forked.merge("feature", "main", message="first")
    put(forked, "feature", theirs="2")
    forked.merge("feature", "main", message="second")
    assert tree(forked)["theirs"] == b"2"


def test_a_file_against_a_folder_is_refused_whatever_the_strategy(forked: Repository) -> None:
    head = put(forked, new="file")
    put(forked, "feature", new__below="1")
    for strategy in (None, "source-wins", "dest-wins"):
        with pytest.raises(InvalidPathError):
            forked.merge("feature", "main", message="m", strategy=strategy)
    assert forked.resolve("main") == head


def test_merging_needs_a_branch_to_merge_into(forked: Repository) -> None:
    forked.create_tag("tag", "main")
    for source, destination in (("nowhere", "main"), ("feature", "nowhere"), ("feature", "tag")):
        with pytest.raises(NotFoundError):
            forked.merge(source, destination, message="m")


def test_merge_honours_if_head(forked: Repository) -> None:
    expected = forked.resolve("main")
    put(forked, "feature", theirs="1")
    put(forked, mine="1")
    with pytest.raises(HeadMovedError):
        forked.merge("feature", "main", message="m", if_head=expected)


def test_a_hook_can_refuse(forked: Repository) -> None:
    head = forked.resolve("main")
    put(forked, "feature", theirs="1")

    def refuse(event: str, branch: str, commit: object) -> None:
        raise RuntimeError("not today")

    forked.register_hook("pre-merge", refuse)
    with pytest.raises(HookFailedError, match="not today"):
        forked.merge("feature", "main", message="m")
    assert forked.resolve("main") == head


def test_a_hook_sees_the_commit_before_the_branch_moves(repository: Repository) -> None:
    seen: list[tuple[str, str, str, bool]] = []

    def look(event: str, branch: str, commit: Commit) -> None:
        seen.append((event, branch, commit.message, repository.resolve(branch) == commit.id))
        raise HookFailedError("Not yet.") if len(seen) == 1 else ValueError(commit.message)

    repository.register_hook("pre-commit", look)
    for message in ("Not yet.", "Nor now."):
        with pytest.raises(HookFailedError, match=message):
            put_with(repository, message)
    assert seen == [("pre-commit", "main", "Not yet.", False), ("pre-commit", "main", "Nor now.", False)]


def put_with(repository: Repository, message: str) -> None:
    with repository.transact("main", message=message) as transaction:
        transaction.upload("a", b"a")


def test_a_revert_that_others_built_on_conflicts(repository: Repository) -> None:
    wrong = put(repository, a="1")
    head = put(repository, a="2")
    with pytest.raises(MergeConflictError):
        repository.revert("main", wrong)
    assert repository.resolve("main") == head


def test_a_second_revert_changes_nothing(repository: Repository) -> None:
    wrong = put(repository, a="1")
    reverted = repository.revert("main", wrong)
    assert reverted.message.startswith("Revert ") and reverted.parents == (wrong,)
    with pytest.raises(NoChangesError):
        repository.revert("main", wrong)


def test_reverting_a_merge_needs_the_parent_to_go_back_to(forked: Repository) -> None:
    before = put(forked, mine="1")
    put(forked, "feature", theirs="1")
    merged = forked.merge("feature", "main", message="").id
    with pytest.raises(NotFoundError):
        forked.revert("main", merged)
    forked.revert("main", merged, parent_number=1)
    assert tree(forked) == tree(forked, before)


def test_revert_undoes_one_commit(repository: Repository) -> None:
    put(repository, a="1")
    wrong = put(repository, a="2", b="2")
    put(repository, c="3")
    repository.revert("main", wrong)
    assert tree(repository) == {"a": b"1", "c": b"3"}


FILES = st.dictionaries(st.sampled_from("abcdef"), st.sampled_from([b"0", b"1", b"2"]), max_size=6)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(base=FILES, ours=FILES, theirs=FILES)
def test_merge_equals_a_merge_of_dicts(
    store: VersionStore,
    prefix: str,
    base: dict[str, bytes],
    ours: dict[str, bytes],
    theirs: dict[str, bytes],
) -> None:
    repository = store.create_repository(f"{prefix}{secrets.token_hex(8)}")

    def become(branch: str, files: dict[str, bytes]) -> None:
        with repository.transact(branch, message=branch, allow_empty=True) as transaction:
            transaction.delete_objects("abcdef")
            for path, content in files.items():
                transaction.upload(path, content)

    become("main", base)
    repository.create_branch("feature", "main")
    become("main", ours)
    become("feature", theirs)
    wanted, conflicts = {}, []
    for path in "abcdef":
        b, o, t = base.get(path), ours.get(path), theirs.get(path)
        if o != b and t != b and o != t:
            conflicts.append(path)
        elif (merged := t if o == b else o) is not None:
            wanted[path] = merged
    try:
        repository.merge("feature", "main", message="m")
        assert (tree(repository), []) == (wanted, conflicts)
    except MergeConflictError as error:
        assert error.paths == conflicts
    except NoChangesError:
        assert base == theirs


# -- history -----------------------------------------------------------------------------------


def test_log_is_newest_first_and_can_be_cut(repository: Repository) -> None:
    commits = [
        repository.resolve("main"),
        put(repository, a="1"),
        put(repository, b="2"),
        put(repository, a="3"),
    ]
    newest_first = commits[::-1]
    assert [commit.id for commit in repository.log("main")] == newest_first
    assert [commit.id for commit in repository.log("main", amount=2)] == newest_first[:2]
    assert [commit.id for commit in repository.log("main", stop_at=commits[2])] == newest_first[:2]
    assert [commit.id for commit in repository.log("main", objects=["a"])] == [commits[3], commits[1]]
    assert [commit.id for commit in repository.log("main", prefixes=["b"])] == [commits[2]]


def test_log_of_nothing_is_empty(repository: Repository) -> None:
    assert list(repository.log("main", amount=0)) == []
    assert list(repository.log("main", since=2**40)) == []
    assert len(list(repository.log("main", since=repository.get_commit("main").creation_date))) == 1


def test_log_by_path_counts_from_the_first_parent(forked: Repository) -> None:
    theirs = put(forked, "feature", d__x="1")
    merged = forked.merge("feature", "main", message="m").id
    put(forked, d2="1")
    assert {commit.id for commit in forked.log("main", prefixes=["d/"])} == {theirs, merged}
    assert [commit.id for commit in forked.log("main", objects=["d/x"], first_parent=True)] == [merged]


def test_log_shows_every_commit_once_and_parents_after_children(forked: Repository) -> None:
    for number in range(3):
        put(forked, mine=f"{number}!")
        put(forked, "feature", theirs=f"{number}!")
        forked.merge("feature", "main", message="m")
        forked.merge("main", "feature", message="back")
    place = {commit.id: number for number, commit in enumerate(forked.log("feature"))}
    assert len(place) == len(list(forked.log("feature"))) == 14
    assert all(place[commit.id] < place[p] for commit in forked.log("feature") for p in commit.parents)


def test_first_parent_leaves_merged_commits_out(forked: Repository) -> None:
    put(forked, "feature", theirs="1")
    forked.merge("feature", "main", message="merge")
    assert len(list(forked.log("main"))) == 4
    assert len(list(forked.log("main", first_parent=True))) == 3


def test_two_dot_diff_compares_trees(forked: Repository) -> None:
    put(forked, mine="1", new="1")
    with forked.transact("main", message="x") as transaction:
        transaction.delete("gone")
    changes = [(change.type, change.path) for change in forked.diff("feature", "main", type="two_dot")]
    assert changes == [("removed", "gone"), ("changed", "mine"), ("added", "new")]
    assert [c.path for c in forked.diff("feature", "main", type="two_dot", prefix="n")] == ["new"]


def test_three_dot_diff_counts_from_the_merge_base_and_marks_conflicts(forked: Repository) -> None:
    put(forked, mine="1", both="1")
    put(forked, "feature", both="2", theirs="2")
    changes = [(change.type, change.path) for change in forked.diff("main", "feature")]
    assert changes == [("conflict", "both"), ("changed", "theirs")]
    assert forked.find_merge_base("feature", "main") == forked.resolve("main~1")


def test_three_dot_diff_leaves_out_what_both_sides_did(forked: Repository) -> None:
    put(forked, both="1")
    put(forked, "feature", both="1", new="12345")
    with forked.transact("feature", message="x") as transaction:
        transaction.delete("gone")
    changes = [(change.type, change.path, change.size_bytes) for change in forked.diff("main", "feature")]
    assert changes == [("removed", "gone", 1), ("added", "new", 5)]
    assert list(forked.diff("main", "main")) == []


# -- care --------------------------------------------------------------------------------------


def test_a_healthy_repository_verifies(repository: Repository) -> None:
    put(repository, a="1", large="x" * 2_000_000)
    assert list(repository.verify()) == []


def test_gc_keeps_everything_that_is_reachable(repository: Repository) -> None:
    put(repository, a="1", large="x" * 2_000_000)
    with pytest.raises(RuntimeError), repository.transact("main", message="x") as transaction:
        transaction.upload("lost", b"y" * 2_000_000)
        raise RuntimeError
    try:
        assert repository.gc(grace_seconds=3600) == 0
    except UnsupportedError as error:
        pytest.skip(error.message)
    assert repository.gc(grace_seconds=-1) >= 2_000_000
    assert list(repository.verify()) == []
    assert set(tree(repository)) == {"a", "large"}
