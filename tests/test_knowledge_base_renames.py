"""Which deleted documents came back under another path."""

import time
from collections.abc import Mapping

from knowledge_base.documents import sha256_hex
from knowledge_base.renames import find_renames

LINES = [f"Line {number} of a document that is about to move.\n" for number in range(10)]


def renames(old: Mapping[str, str], new: Mapping[str, str]) -> list[tuple[str, str]]:
    def hashes(side: Mapping[str, str]) -> dict[str, str]:
        return {path: sha256_hex(text.encode()) for path, text in side.items()}

    return find_renames(
        hashes(old), hashes(new), lambda path: old[path].encode(), lambda path: new[path].encode()
    )


def test_equal_content_is_a_rename_and_prefers_its_own_name() -> None:
    old = {"a/x.md": "same", "a/y.md": "same"}
    assert renames(old, {"b/y.md": "same"}) == [("a/y.md", "b/y.md")]
    assert renames(old, {"b/z.md": "same"}) == [("a/x.md", "b/z.md")]


def test_more_than_half_the_same_is_a_rename_and_less_is_not() -> None:
    text = "".join(LINES)
    assert renames({"a.md": text}, {"b.md": "".join(LINES[:6]) + "Other.\n"}) == [("a.md", "b.md")]
    assert renames({"a.md": text}, {"b.md": "".join(LINES[:4]) + "Other.\n"}) == []


def test_the_most_alike_are_paired() -> None:
    old = {"a.md": "".join(LINES[:9]), "b.md": "".join(LINES[:7])}
    assert renames(old, {"c.md": "".join(LINES)}) == [("a.md", "c.md")]


def test_a_moved_folder_of_many_documents_is_paired_in_seconds() -> None:
    old = {f"old/{number}.md": str(number) for number in range(20_000)}
    started = time.perf_counter()
    found = renames(old, {path.replace("old/", "new/"): text for path, text in old.items()})
    assert len(found) == len(old) and all(before[4:] == after[4:] for before, after in found)
    assert time.perf_counter() - started < 5
