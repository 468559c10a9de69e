"""fsck finds every damaged file; --repair restores what something still says."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from ingestion.pipeline import IngestOptions, ingest
from ingestion.sources import list_sources
from knowledge_base.errors import DamagedError, NotFoundError, UnavailableError
from knowledge_base.home import KnowledgeBase
from knowledge_base.integrity import fsck, repair_knowledge_base
from knowledge_base.retention import Retention, gc
from knowledge_base.segment_tables import TABLES
from rag.engine import Engine

QUESTION = "What is the default port of the server?"
DAMAGES = ("halve", "zero", "delete", "flip")


@pytest.fixture
def kb(knowledge_base: KnowledgeBase, sources: Path) -> KnowledgeBase:
    """Three releases, a large file, a tag, a branch, an expired release, and every cache built."""
    (sources / "large.txt").write_text("many words " * 120_000)
    ingest(knowledge_base, list_sources([str(sources)]), IngestOptions())
    knowledge_base.repository.create_tag("first", "main~1")
    (sources / "team.txt").write_text("The team sleeps.")
    ingest(knowledge_base, list_sources([str(sources)]), IngestOptions())
    (sources / "team.txt").write_text("The team works.")
    ingest(knowledge_base, list_sources([str(sources)]), IngestOptions())
    knowledge_base.repository.create_branch("draft", "main")
    gc(knowledge_base, Retention(keep_last=2), dry_run=False)
    Engine.open(knowledge_base).search(QUESTION)
    return knowledge_base


def damage(path: Path, kind: str) -> None:
    path.chmod(0o644)
    content = path.read_bytes()
    if kind == "delete":
        path.unlink()
    elif kind == "halve":
        path.write_bytes(content[: len(content) // 2])
    elif kind == "zero":
        path.write_bytes(bytes(len(content)))
    else:
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])


def files(kb: KnowledgeBase) -> list[Path]:
    ignored = {"lock", ".rebuilding", "plumbline.lock", ".gitignore"}
    found = sorted(path for path in kb.folder.rglob("*") if path.is_file() and path.name not in ignored)
    return [path for path in found if path.stat().st_size]


def problems(kb: KnowledgeBase) -> list[str]:
    try:
        return [problem.what for problem in fsck(KnowledgeBase.open(kb.root, kb.models))]
    except UnavailableError as error:
        return [error.message]


def each_damage(kb: KnowledgeBase) -> Iterator[tuple[Path, str]]:
    for path in files(kb):
        original, mode = path.read_bytes(), path.stat().st_mode
        for kind in DAMAGES:
            damage(path, kind)
            if not path.exists() or path.read_bytes() != original:
                yield path, kind
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            path.write_bytes(original)
            path.chmod(mode)


def harmless(path: Path, kind: str) -> bool:
    """A cache without its seal is no cache; a ref's log, the second copy, may be gone, not unreadable."""
    lost_seal = path.name == "seal.json" and kind == "delete"
    log = "logs" in path.parts and (path.name == "HEAD" or kind != "zero")
    return lost_seal or log


def test_every_damage_to_every_file_is_found(kb: KnowledgeBase) -> None:
    assert not problems(kb)
    missed = [
        f"{kind} {path.relative_to(kb.folder)}"
        for path, kind in each_damage(kb)
        if not problems(kb) and not harmless(path, kind)
    ]
    assert not missed
    assert not problems(kb)


def test_refs_head_config_and_caches_are_repaired_without_a_backup(kb: KnowledgeBase) -> None:
    store = kb.folder / "knowledge.git"
    before = kb.repository.resolve("main"), kb.repository.resolve("first"), kb.repository.resolve("draft")
    kept = [
        "HEAD",
        "config",
        "refs/heads/main",
        "refs/heads/draft",
        "refs/tags/first",
        "logs/refs/heads/main",
    ]
    kept += ["plumbline-expired"]
    for name in kept:
        for kind in DAMAGES:
            if harmless(store / name, kind) and "logs" in name:
                continue
            damage(store / name, kind)
            repaired = repair_knowledge_base(kb.root)
            again = KnowledgeBase.open(kb.root, kb.models)
            assert [again.repository.resolve(ref) for ref in ("main", "first", "draft")] == list(before)
            assert repaired and not list(fsck(again)), (name, kind)
    caches = [path for path in files(kb) if "cache" in path.parts]
    for path in caches[:3]:
        damage(path, "zero")
    assert all(problem.repaired for problem in fsck(kb, repair=True))
    assert not list(fsck(kb))


def test_what_the_working_files_still_hold_is_put_back(kb: KnowledgeBase) -> None:
    info = kb.repository.stat_object("main", "plumbline.toml")
    path = kb.folder / "knowledge.git" / "objects" / info.checksum[:2] / info.checksum[2:]
    damage(path, "halve")
    assert repair_knowledge_base(kb.root) == [f"object {info.checksum}"]
    assert not problems(kb)


def test_every_object_comes_back_from_a_backup(kb: KnowledgeBase, tmp_path: Path) -> None:
    store, backup = kb.folder / "knowledge.git", tmp_path / "backup.git"
    shutil.copytree(store, backup)
    answer = Engine.open(kb).ask(QUESTION).answer
    objects = [path for path in files(kb) if "objects" in path.parts]
    assert any("lfs" in path.parts for path in objects)
    for number, path in enumerate(objects):
        damage(path, DAMAGES[number % len(DAMAGES)])
    assert problems(kb)
    assert len(repair_knowledge_base(kb.root, backup)) >= len(objects)
    assert not problems(kb)
    assert Engine.open(KnowledgeBase.open(kb.root, kb.models)).ask(QUESTION).answer == answer


def test_a_backup_that_is_none_is_named(kb: KnowledgeBase, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="nothing"):
        repair_knowledge_base(kb.root, tmp_path / "nothing")


@pytest.mark.parametrize("name", [*TABLES, "manifest"])
@pytest.mark.parametrize("releases", [1, 2])
def test_a_damaged_index_is_made_anew_from_the_documents(
    knowledge_base: KnowledgeBase, sources: Path, name: str, releases: int
) -> None:
    kb = knowledge_base
    if releases == 2:
        (sources / "team.txt").write_text("The team sleeps.")
        ingest(kb, list_sources([str(sources)]), IngestOptions())
    before = [(result.path, result.score) for result in Engine.open(kb).search(QUESTION)]
    segment = kb.release().manifest.segments[0]
    path = "index/manifest.json" if name == "manifest" else f"index/segments/{segment.id}/{name}"
    blob = kb.repository.stat_object("main", path).checksum
    damage(kb.folder / "knowledge.git" / "objects" / blob[:2] / blob[2:], "halve")
    again = KnowledgeBase.open(kb.root, kb.models)
    with pytest.raises(DamagedError):
        Engine.open(again).search(QUESTION)
    result = ingest(again, list_sources([]), IngestOptions(reindex=True))
    assert result.published and result.changed == ("index",)
    again = KnowledgeBase.open(kb.root, kb.models)
    assert [(found.path, found.score) for found in Engine.open(again).search(QUESTION)] == before
    if releases == 2:  # with one, the same bytes come again and the object itself is whole
        assert problems(kb), "the older releases still lack it"
        gc(again, Retention(keep_last=1), dry_run=False)
    assert not problems(kb)


def test_a_branch_whose_making_was_killed_is_no_damage(knowledge_base: KnowledgeBase) -> None:
    """libgit2 takes the lock and writes the log before the ref: so a kill between leaves the two."""
    git = knowledge_base.folder / "knowledge.git"
    log, lock = git / "logs/refs/heads/torn", git / "refs/heads/torn.lock"
    head = knowledge_base.repository.resolve("main")
    log.write_text(f"{'0' * 40} {head} Plumbline <plumbline@localhost> 0 +0000\tbranch\n")
    lock.write_text(f"{head}\n")
    assert not list(fsck(knowledge_base))
    knowledge_base.repository.create_branch("other", "main")
    assert not log.exists() and not lock.exists()
    assert not list(fsck(knowledge_base))
    assert knowledge_base.repository.create_branch("torn", "main").commit_id == head


def test_a_lost_branch_is_damage_even_when_a_lock_was_left(knowledge_base: KnowledgeBase) -> None:
    git = knowledge_base.folder / "knowledge.git"
    (git / "refs/heads/main").unlink()
    (git / "refs/heads/main.lock").write_text("")
    assert [problem.what for problem in fsck(knowledge_base)]
