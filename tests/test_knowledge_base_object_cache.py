import hashlib
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from knowledge_base.object_cache import ObjectCache
from knowledge_base.version_store import ObjectInfo


def info_of(content: bytes, path: str = "a") -> ObjectInfo:
    return ObjectInfo(path, len(content), hashlib.md5(content, usedforsecurity=False).hexdigest())


def read(cache: ObjectCache, content: bytes) -> tuple[bytes, bool]:
    """What the cache gives, and whether it had to fetch it."""
    fetched: list[bytes] = []

    def fetch() -> bytes:
        fetched.append(content)
        return content

    with cache.open(info_of(content), fetch) as file:
        return file.read(), bool(fetched)


def test_content_is_fetched_once_and_by_all_processes_together(tmp_path: Path) -> None:
    assert read(ObjectCache(tmp_path), b"content") == (b"content", True)
    assert read(ObjectCache(tmp_path), b"content") == (b"content", False)
    script = (
        "import sys; from pathlib import Path; from tests.test_knowledge_base_object_cache import read;"
        "from knowledge_base.object_cache import ObjectCache;"
        "sys.exit(read(ObjectCache(Path(sys.argv[1])), b'content')[1])"
    )
    assert subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False).returncode == 0


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_file_is_fetched_again(tmp_path: Path, damage: str) -> None:
    read(ObjectCache(tmp_path), b"content")
    (path,) = (tmp_path / "objects").glob("*/*")
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(b"Content" if damage == "flip" else b"con")
    cache = ObjectCache(tmp_path)
    assert read(cache, b"content") == (b"content", True)
    assert read(cache, b"content") == (b"content", False)


def test_damage_is_reported_and_removed(tmp_path: Path) -> None:
    cache = ObjectCache(tmp_path)
    read(cache, b"content")
    read(cache, b"other")
    path = cache.path(hashlib.sha256(b"other").hexdigest())
    path.write_bytes(b"broken")
    assert list(cache.damaged()) == [path.name]
    assert list(cache.damaged()) == []


def test_what_was_not_used_for_longest_goes_first(tmp_path: Path) -> None:
    cache = ObjectCache(tmp_path, limit_bytes=250)
    for letter in (b"a", b"b", b"c"):
        read(cache, letter * 100)
        read(cache, b"a" * 100)
    cache.trim()
    assert [read(cache, letter * 100)[1] for letter in (b"a", b"c", b"b")] == [False, False, True]


def test_a_file_that_was_trimmed_is_read_to_its_end_by_who_has_it_open(tmp_path: Path) -> None:
    cache = ObjectCache(tmp_path, limit_bytes=10)
    read(cache, b"content")
    with cache.open(info_of(b"content"), lambda: b"") as file:
        read(cache, b"more content")
        assert file.read() == b"content"
    assert list((tmp_path / "objects").glob("*/*")) == []


def test_facts_are_shared_and_their_number_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("knowledge_base.object_cache._LISTINGS", 3)
    cache = ObjectCache(tmp_path)
    for number in range(5):
        cache.keep_fact(str(number), {"number": number})
    cache.trim()
    other = ObjectCache(tmp_path)
    assert [other.fact(str(number)) for number in range(5)] == [
        None,
        None,
        *({"number": n} for n in (2, 3, 4)),
    ]


def test_a_damaged_index_is_made_anew(tmp_path: Path) -> None:
    read(ObjectCache(tmp_path), b"content")
    for file in tmp_path.glob("index.sqlite*"):
        file.write_bytes(b"no database at all" * 100)
    cache = ObjectCache(tmp_path)
    assert read(cache, b"content") == (b"content", True)
    assert read(cache, b"content") == (b"content", False)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_where_nothing_can_be_kept_everything_is_fetched(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    for cache in (ObjectCache(tmp_path), ObjectCache(tmp_path / "cache")):
        assert read(cache, b"content") == read(cache, b"content") == (b"content", True)
        cache.keep_fact("key", 1)
        assert cache.fact("key") == 1


def test_the_index_survives_a_writer_that_holds_it(tmp_path: Path) -> None:
    cache = ObjectCache(tmp_path)
    cache.keep_fact("key", 1)
    with sqlite3.connect(tmp_path / "index.sqlite") as other:
        other.execute("begin immediate")
        assert ObjectCache(tmp_path).fact("key") == 1
    other.close()
