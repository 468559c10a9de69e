"""The embedded store below the protocol: what git shows of it, damage, crashes, and models in dicts."""

import os
import shutil
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knowledge_base.errors import (
    AlreadyExistsError,
    DamagedError,
    HeadMovedError,
    InvalidPathError,
    MergeConflictError,
    NoChangesError,
    NotFoundError,
    StorageError,
    UnavailableError,
)
from knowledge_base.naming import validate_path
from knowledge_base.version_store import Commit, Repository
from knowledge_base.version_store_git import GitRepository, GitVersionStore
from knowledge_base.version_store_git_messages import format_message, parse_message

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="needs the git program")
LARGE = b"x" * 1_500_000
WRITER = """
import sys
from pathlib import Path
from knowledge_base.version_store_git import GitVersionStore
repository = GitVersionStore(Path(sys.argv[1])).get_repository("knowledge")
number = int(sys.argv[2])
while True:
    number += 1
    with repository.transact("main", message=str(number)) as transaction:
        transaction.upload("counter", str(number).encode() + b" " * 1_100_000)
        transaction.upload("documents/twin", str(number).encode())
    print(number, flush=True)
"""
FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from knowledge_base.errors import StorageError
from knowledge_base.version_store_git import GitVersionStore
repository = GitVersionStore(Path(sys.argv[1])).get_repository("knowledge")
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    with repository.transact("main", message="x") as transaction:
        transaction.upload("a/b", bytes(range(256)) * int(sys.argv[3]))
except StorageError:
    print("refused")
"""


@pytest.fixture
def store(tmp_path: Path) -> GitVersionStore:
    made = GitVersionStore(tmp_path)
    repository = made.create_repository("knowledge")
    with repository.transact(
        "main", message="A release\n\nWith a reason.", metadata={"verdict": "PASS"}
    ) as tx:
        tx.upload("documents/small.md", b"# Small\n")
        tx.upload("documents/large.bin", LARGE)
    return made


def git(folder: Path, *arguments: str, date: str = "2026-01-01T00:00:00Z") -> str:
    who = {f"GIT_{role}_{what}": "a@b" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    environment = {**os.environ, **who, "GIT_AUTHOR_DATE": date, "GIT_COMMITTER_DATE": date}
    command = ["git", "-C", str(folder / "knowledge.git"), *arguments]
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return run.stdout.strip("\n")


def loose(folder: Path, object_id: str) -> Path:
    path = folder / "knowledge.git" / "objects" / object_id[:2] / object_id[2:]
    path.chmod(0o644)
    return path


@needs_git
def test_git_log_and_show_read_well(store: GitVersionStore, tmp_path: Path) -> None:
    log = git(tmp_path, "log", "-1")
    assert "A release" in log and 'Plumbline-verdict: "PASS"' in log
    assert git(tmp_path, "show", "main:documents/small.md") == "# Small"
    assert "sha256:" in git(tmp_path, "show", "main:documents/large.bin")
    git(tmp_path, "fsck", "--strict")


def test_large_files_lie_on_disk_as_git_lfs_keeps_them(store: GitVersionStore) -> None:
    repository = store.get_repository("knowledge")
    path = repository.local_path("main", "documents/large.bin")
    assert path is not None and path.read_bytes() == LARGE
    assert repository.local_path("main", "documents/small.md") is None


def test_a_damaged_large_file_is_refused_and_reported(store: GitVersionStore) -> None:
    repository = store.get_repository("knowledge")
    path = repository.local_path("main", "documents/large.bin")
    assert path is not None
    path.write_bytes(LARGE[:-1] + b"y")
    with pytest.raises(DamagedError):
        repository.get_object("main", "documents/large.bin")
    assert any("damaged" in fault for fault in repository.verify())


def test_any_missing_object_is_reported(store: GitVersionStore, tmp_path: Path) -> None:
    for path in sorted((tmp_path / "knowledge.git" / "objects").glob("??/*")):
        content = path.read_bytes()
        path.unlink()
        faults = list(store.get_repository("knowledge").verify())
        path.write_bytes(content)
        assert faults, path


def test_a_damaged_object_is_reported(store: GitVersionStore, tmp_path: Path) -> None:
    for path in sorted((tmp_path / "knowledge.git" / "objects").glob("??/*")):
        content = path.read_bytes()
        path.chmod(0o644)
        path.write_bytes(content[: len(content) // 2])
        faults = list(store.get_repository("knowledge").verify())
        path.write_bytes(content)
        assert faults, path


def test_a_repository_without_its_head_is_unavailable(store: GitVersionStore, tmp_path: Path) -> None:
    (tmp_path / "knowledge.git" / "HEAD").unlink()
    with pytest.raises(UnavailableError):
        store.get_repository("knowledge")


def test_what_a_killed_process_locked_is_freed(store: GitVersionStore, tmp_path: Path) -> None:
    (tmp_path / "knowledge.git" / "refs" / "heads" / "main.lock").touch()
    repository = store.get_repository("knowledge")
    with repository.transact("main", message="x") as transaction:
        transaction.upload("a", b"a")
    assert repository.get_object("main", "a") == b"a"


@needs_git
def test_a_commit_made_with_git_reads_as_one_without_metadata(store: GitVersionStore, tmp_path: Path) -> None:
    made = git(tmp_path, "commit-tree", "-m", "By hand\n\nPlumbline-x: 1", "main^{tree}")
    git(tmp_path, "update-ref", "refs/heads/hand", made)
    commit = store.get_repository("knowledge").get_commit("hand")
    assert (commit.message, dict(commit.metadata)) == ("By hand\n\nPlumbline-x: 1\n", {})


@needs_git
def test_a_short_or_foreign_id_is_not_found(store: GitVersionStore, tmp_path: Path) -> None:
    repository = store.get_repository("knowledge")
    blob = git(tmp_path, "rev-parse", "main:documents/small.md").strip()
    for ref in (repository.resolve("main")[:3], blob, "0" * 40):
        with pytest.raises(NotFoundError):
            repository.resolve(ref)


@needs_git
def test_a_date_names_the_head_of_that_time(store: GitVersionStore, tmp_path: Path) -> None:
    commits: list[str] = []
    for date in ("2026-03-01T10:00:00Z", "2026-03-02T10:00:00Z", "2026-03-02T23:00:00Z"):
        parents = [word for commit in commits[-1:] for word in ("-p", commit)]
        commits.append(git(tmp_path, "commit-tree", *parents, "-m", "x", "main^{tree}", date=date))
    git(tmp_path, "update-ref", "refs/heads/dated", commits[-1])
    repository = store.get_repository("knowledge")
    assert repository.resolve("dated@{2026-03-01}") == commits[0]
    assert repository.resolve("dated@{2026-03-02T09:59:59}") == commits[0]
    assert repository.resolve("dated@{2026-03-02T10:00:00}") == commits[1]
    assert repository.resolve("dated@{2026-03-02T12:00:00+02:00}") == commits[1]
    assert repository.resolve("dated@{2026-03-02}") == commits[2]
    assert repository.resolve("dated@{2026-03-02}~1") == commits[1]
    with pytest.raises(NotFoundError):
        repository.resolve("dated@{2026-02-28}")


@needs_git
def test_annotated_tags_and_symbolic_branches_lead_to_their_commit(
    store: GitVersionStore, tmp_path: Path
) -> None:
    git(tmp_path, "tag", "-a", "noted", "-m", "a note", "main")
    git(tmp_path, "symbolic-ref", "refs/heads/alias", "refs/heads/main")
    repository = store.get_repository("knowledge")
    head = repository.resolve("main")
    assert [repository.resolve("noted"), repository.resolve("alias")] == [head, head]
    assert [tag.commit_id for tag in repository.list_tags()] == [head]
    assert list(repository.verify()) == []


@needs_git
def test_unrelated_histories_have_no_merge_base(store: GitVersionStore, tmp_path: Path) -> None:
    git(tmp_path, "update-ref", "refs/heads/other", git(tmp_path, "commit-tree", "-m", "x", "main^{tree}"))
    with pytest.raises(NotFoundError):
        store.get_repository("knowledge").merge("other", "main", message="m")


@needs_git
def test_a_repository_packed_by_git_gc_works_on(store: GitVersionStore, tmp_path: Path) -> None:
    repository = store.get_repository("knowledge")
    repository.create_tag("packed", "main")
    git(tmp_path, "gc", "-q", "--prune=now")
    assert not list((tmp_path / "knowledge.git" / "objects").glob("??/*"))
    with repository.transact("main", message="x") as transaction:
        transaction.upload("documents/more.md", b"more")
    assert repository.get_object("packed", "documents/large.bin") == LARGE
    repository.delete_tag("packed")
    assert (repository.list_tags(), list(repository.verify())) == ([], [])


def test_the_committer_is_the_one_given_or_gits(store: GitVersionStore, tmp_path: Path) -> None:
    given_one = GitVersionStore(tmp_path, committer=("Ann", "ann@example.org")).get_repository("knowledge")
    with given_one.transact("main", message="x", allow_empty=True):
        pass
    with open(tmp_path / "knowledge.git" / "config", "a", encoding="utf-8") as file:
        file.write("[user]\n\tname = Åsa\n")
    with store.get_repository("knowledge").transact("main", message="x", allow_empty=True):
        pass
    assert [commit.committer for commit in given_one.log("main", amount=2)] == ["Åsa", "Ann"]


def test_a_branch_moved_by_git_is_not_overwritten(store: GitVersionStore, tmp_path: Path) -> None:
    repository = store.get_repository("knowledge")
    root, head = repository.resolve("main~1"), tmp_path / "knowledge.git" / "refs" / "heads" / "main"

    def push(event: str, branch: str, commit: Commit) -> None:
        head.write_text(f"{root}\n")

    repository.register_hook("pre-commit", push)
    with pytest.raises(HeadMovedError), repository.transact("main", message="x") as transaction:
        transaction.upload("a", b"a")
    assert repository.resolve("main") == root


def test_a_second_maker_of_a_repository_is_told(store: GitVersionStore, tmp_path: Path) -> None:
    with pytest.raises(AlreadyExistsError):
        GitVersionStore(tmp_path).create_repository("knowledge")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["knowledge.git"], "nothing is left aside"


# -- damage ------------------------------------------------------------------------------------


def test_an_object_changed_behind_an_open_repository_shows(store: GitVersionStore, tmp_path: Path) -> None:
    repository = store.get_repository("knowledge")
    assert list(repository.verify()) == []
    blob = repository.stat_object("main", "documents/small.md").checksum
    loose(tmp_path, blob).write_bytes(zlib.compress(b"blob 8\0# Smell\n"))
    assert any(blob in fault for fault in repository.verify())
    with pytest.raises(DamagedError):
        store.get_repository("knowledge").get_object("main", "documents/small.md")


@pytest.mark.parametrize("kind", ["commit", "tree", "blob"])
@pytest.mark.parametrize("keep", [0, 9, 20])
def test_reading_an_object_cut_short_is_refused(
    store: GitVersionStore, tmp_path: Path, kind: str, keep: int
) -> None:
    repository = store.get_repository("knowledge")
    ids = {
        "commit": repository.resolve("main"),
        "tree": str(repository._git[repository.resolve("main")].tree_id),
        "blob": repository.stat_object("main", "documents/small.md").checksum,
    }
    path = loose(tmp_path, ids[kind])
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DamagedError):
        store.get_repository("knowledge").get_object("main", "documents/small.md")


def test_a_missing_large_file_is_refused_and_reported(store: GitVersionStore) -> None:
    repository = store.get_repository("knowledge")
    path = repository.local_path("main", "documents/large.bin")
    assert path is not None
    path.unlink()
    with pytest.raises(DamagedError):
        repository.open_object("main", "documents/large.bin")
    with pytest.raises(DamagedError):
        repository.local_path("main", "documents/large.bin")
    assert any("missing" in fault for fault in repository.verify())


@pytest.mark.parametrize("content", ["", "garbage\n", "0" * 39, "1" * 40 + "\n"])
def test_a_broken_ref_is_reported(store: GitVersionStore, tmp_path: Path, content: str) -> None:
    (tmp_path / "knowledge.git" / "refs" / "heads" / "broken").write_text(content)
    repository = store.get_repository("knowledge")
    assert any("broken" in fault or "1111" in fault for fault in repository.verify())
    with pytest.raises(DamagedError):
        repository.resolve("broken")


@pytest.mark.parametrize("content", ["", "garbage", "ref: refs/heads/nowhere\n"])
def test_a_repository_with_a_damaged_head_is_unavailable(
    store: GitVersionStore, tmp_path: Path, content: str
) -> None:
    (tmp_path / "knowledge.git" / "HEAD").write_text(content)
    with pytest.raises(UnavailableError) as caught:
        store.get_repository("knowledge")
    assert caught.value.hint


def test_gc_removes_nothing_while_something_is_damaged(store: GitVersionStore, tmp_path: Path) -> None:
    repository = store.get_repository("knowledge")
    loose(tmp_path, str(repository._git[repository.resolve("main")].tree_id)).unlink()
    before = sorted((tmp_path / "knowledge.git").rglob("*"))
    with pytest.raises(DamagedError):
        store.get_repository("knowledge").gc(-1)
    assert {path for path in before if path.name != "plumbline.lock"} <= {
        *(tmp_path / "knowledge.git").rglob("*")
    }


def test_gc_removes_what_crashes_left_behind(store: GitVersionStore, tmp_path: Path) -> None:
    left = [tmp_path / "knowledge.git" / name for name in ("lfs/tmp-x", "objects/tmp_object_git2_x")]
    for path in left:
        path.write_bytes(b"12345")
    repository = store.get_repository("knowledge")
    assert repository.gc(3600) == 0
    assert repository.gc(-1) == 10
    assert not any(path.exists() for path in left)


def test_content_that_gc_removed_is_never_published(store: GitVersionStore) -> None:
    repository = store.get_repository("knowledge")
    head = repository.resolve("main")
    for content in (b"small", b"y" * 2_000_000):
        with pytest.raises(StorageError), repository.transact("main", message="x") as transaction:
            transaction.upload("slow", content)
            repository.gc(-1)
    assert (repository.resolve("main"), list(repository.verify())) == (head, [])


@pytest.mark.skipif(os.name != "posix", reason="limits the size of files")
@pytest.mark.parametrize(("limit", "kilobytes"), [(10, 1), (150, 1), (50_000, 8_000), (100, 0)])
def test_a_disk_that_refuses_is_a_storage_error_and_publishes_nothing(
    store: GitVersionStore, tmp_path: Path, limit: int, kilobytes: int
) -> None:
    head = store.get_repository("knowledge").resolve("main")
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path), str(limit), str(kilobytes * 4)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said == "refused\n"
    repository = store.get_repository("knowledge")
    assert (repository.resolve("main"), list(repository.verify())) == (head, [])


@pytest.mark.skipif(os.name != "posix", reason="kills with SIGKILL")
def test_no_acknowledged_commit_is_lost_or_torn_when_the_writer_is_killed(
    store: GitVersionStore, tmp_path: Path
) -> None:
    last = 0
    for attempt in range(10):
        command = [sys.executable, "-c", WRITER, str(tmp_path), str(last)]
        writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(0.007 * attempt)
        writer.send_signal(signal.SIGKILL)
        acknowledged = [last + 1, *map(int, writer.stdout.read().split())]
        writer.wait()
        writer.stdout.close()
        repository = GitVersionStore(tmp_path).get_repository("knowledge")
        last = int(repository.get_object("main", "counter"))
        assert last >= acknowledged[-1]
        assert int(repository.get_object("main", "documents/twin")) == last
        assert not list(repository.verify())
    if shutil.which("git"):
        git(tmp_path, "fsck", "--strict")


# -- models in dicts ---------------------------------------------------------------------------

PATHS = ("a", "a/b", "a/b/c", "d/e", "d/f", "g")
CONTENTS = st.sampled_from([b"0", b"1", b"2"])
STEPS = st.lists(st.dictionaries(st.sampled_from(PATHS), st.none() | CONTENTS, max_size=4), max_size=6)
FILES = st.dictionaries(st.sampled_from(PATHS), CONTENTS).filter(lambda files: not clashes(files))


def clashes(files: Mapping[str, bytes]) -> bool:
    return any(other.startswith(f"{path}/") for path in files for other in files)


def content(repository: Repository, ref: str = "main") -> dict[str, bytes]:
    return {item.path: repository.get_object(ref, item.path) for item in repository.list_objects(ref)}


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> GitRepository:
    return GitVersionStore(tmp_path_factory.mktemp("scratch")).create_repository("knowledge")


def become(repository: Repository, branch: str, files: Mapping[str, bytes]) -> None:
    with repository.transact(branch, message=f"become {branch}", allow_empty=True) as transaction:
        transaction.delete_prefix("")
        for path, data in files.items():
            transaction.upload(path, data)


@settings(max_examples=60)
@given(steps=STEPS)
def test_any_uploads_and_removals_equal_a_dict(
    scratch: GitRepository, steps: list[dict[str, bytes | None]]
) -> None:
    become(scratch, "main", {})
    model: dict[str, bytes] = {}
    for step in steps:
        wanted = {path: data for path, data in {**model, **step}.items() if data is not None}
        try:
            with scratch.transact("main", message="step") as transaction:
                for path, data in step.items():
                    if data is None:
                        transaction.delete(path)
                    else:
                        transaction.upload(path, data)
            assert wanted != model and not clashes(wanted)
            model = wanted
        except NoChangesError:
            assert wanted == model
        except InvalidPathError:
            assert clashes(wanted)
        assert list(content(scratch).items()) == sorted(model.items())


@settings(max_examples=60)
@given(base=FILES, ours=FILES, theirs=FILES)
def test_any_merge_of_folders_equals_a_merge_of_dicts(
    scratch: GitRepository, base: dict[str, bytes], ours: dict[str, bytes], theirs: dict[str, bytes]
) -> None:
    become(scratch, "main", base)
    source = f"source-{time.monotonic_ns()}"
    scratch.create_branch(source, "main")
    become(scratch, "main", ours)
    become(scratch, source, theirs)
    rows = {path: (base.get(path), ours.get(path), theirs.get(path)) for path in PATHS}
    conflicts = [path for path, (b, o, t) in rows.items() if o != b and t != b and o != t]
    merged = {path: t if o == b else o for path, (b, o, t) in rows.items()}
    wanted = {path: data for path, data in merged.items() if data is not None}
    try:
        scratch.merge(source, "main", message="merge")
        assert (content(scratch), conflicts) == (wanted, [])
    except MergeConflictError as error:
        assert error.paths == conflicts
    except NoChangesError:
        assert base == theirs
    except InvalidPathError:
        assert clashes(wanted) and not conflicts
    scratch.delete_branch(source)


@given(message=st.text(), metadata=st.dictionaries(st.text(), st.text()))
def test_any_message_and_metadata_survive_being_written(message: str, metadata: dict[str, str]) -> None:
    text = format_message(message, metadata).encode().decode()
    assert "\0" not in text
    assert parse_message(text.lstrip("\n")) == (message, metadata), "git drops newlines in front"


@settings(max_examples=60)
@given(path=st.text(min_size=1, max_size=20))
def test_any_valid_path_comes_back_unchanged(scratch: GitRepository, path: str) -> None:
    try:
        validate_path(path)
    except InvalidPathError:
        return
    become(scratch, "main", {path: b"1"})
    assert content(scratch) == {path: b"1"}
