import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from knowledge_base.errors import DamagedError, NotFoundError, UnavailableError
from knowledge_base.version_store_git import GitVersionStore

LARGE = b"x" * 1_500_000
WRITER = """
import sys
from pathlib import Path
from knowledge_base.version_store_git import GitVersionStore
repository = GitVersionStore(Path(sys.argv[1])).get_repository("knowledge")
number = 0
while True:
    number += 1
    with repository.transact("main", message=str(number)) as transaction:
        transaction.upload("counter", str(number).encode() + b" " * 1_100_000)
    print(number, flush=True)
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


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder / "knowledge.git"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_git_log_and_show_read_well(store: GitVersionStore, tmp_path: Path) -> None:
    log = git(tmp_path, "log", "-1")
    assert "A release" in log and 'Plumbline-verdict: "PASS"' in log
    assert git(tmp_path, "show", "main:documents/small.md") == "# Small\n"
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


def test_a_commit_made_with_git_reads_as_one_without_metadata(store: GitVersionStore, tmp_path: Path) -> None:
    git(
        tmp_path,
        "update-ref",
        "refs/heads/hand",
        git(
            tmp_path,
            "-c",
            "user.name=A",
            "-c",
            "user.email=a@b",
            "commit-tree",
            "-m",
            "By hand",
            "main^{tree}",
        ).strip(),
    )
    commit = store.get_repository("knowledge").get_commit("hand")
    assert (commit.message.strip(), dict(commit.metadata)) == ("By hand", {})


def test_a_short_or_foreign_id_is_not_found(store: GitVersionStore, tmp_path: Path) -> None:
    repository = store.get_repository("knowledge")
    blob = git(tmp_path, "rev-parse", "main:documents/small.md").strip()
    for ref in (repository.resolve("main")[:7], blob, "0" * 40):
        with pytest.raises(NotFoundError):
            repository.resolve(ref)


@pytest.mark.skipif(os.name != "posix", reason="kills with SIGKILL")
def test_no_acknowledged_commit_is_lost_when_the_writer_is_killed(
    store: GitVersionStore, tmp_path: Path
) -> None:
    for attempt in range(8):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(0.01 * attempt)
        writer.send_signal(signal.SIGKILL)
        acknowledged = [1, *map(int, writer.stdout.read().split())]
        writer.wait()
        writer.stdout.close()
        repository = GitVersionStore(tmp_path).get_repository("knowledge")
        assert int(repository.get_object("main", "counter")) >= acknowledged[-1]
        assert not list(repository.verify())
