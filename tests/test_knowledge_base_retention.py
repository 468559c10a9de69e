"""What gc takes, and what it never does."""

import subprocess
import sys
import time

import pytest

from knowledge_base.errors import ExpiredError
from knowledge_base.home import KnowledgeBase
from knowledge_base.integrity import fsck
from knowledge_base.republishing import compact, rollback
from knowledge_base.retention import Retention, gc
from tests.releases import Write, documents, kb, ranking, write

__all__ = ["kb", "write"]  # fixtures


def test_gc_without_rules_keeps_every_release(kb: KnowledgeBase, write: Write) -> None:
    write(team="One.")
    write("draft", team="A draft nobody wants.")
    write("main", team="Two.")
    kb.repository.delete_branch("draft")
    texts = {commit.id: documents(kb, commit.id) for commit in kb.repository.log("main", first_parent=True)}
    plan = gc(kb, Retention())
    assert plan.dry_run and plan.object_bytes > 0 and not plan.expired
    done = gc(kb, Retention(), dry_run=False)
    assert done.object_bytes == plan.object_bytes and done.cache_bytes == plan.cache_bytes
    assert {commit: documents(kb, commit) for commit in texts} == texts
    assert not list(fsck(kb)) and gc(kb, Retention()).bytes == 0


def test_expired_releases_stay_in_the_log_and_say_that_they_are_gone(kb: KnowledgeBase, write: Write) -> None:
    write(team="One.")
    kb.repository.create_tag("kept", "main")
    write(team="Two.")
    expired = kb.repository.resolve("main")
    write(team="Three.")
    write(team="Four.")
    report = gc(kb, Retention(keep_last=2), dry_run=False)
    assert expired in report.expired and report.bytes > 0
    assert documents(kb)["team.md"] == "Four." and documents(kb, "main~1")["team.md"] == "Three."
    assert documents(kb, "kept")["team.md"] == "One."
    for read in (lambda: documents(kb, expired), lambda: rollback(kb, expired)):
        with pytest.raises(ExpiredError):
            read()
    assert expired in [commit.id for commit in kb.repository.log("main")]
    assert not list(fsck(kb))
    assert write(team="Two.").published, "its bytes are new again"
    assert documents(kb)["team.md"] == "Two." and not list(fsck(kb))


def test_retention_by_days_keeps_what_is_young(kb: KnowledgeBase, write: Write) -> None:
    write(team="One.")
    assert not gc(kb, Retention(keep_days=1)).expired
    time.sleep(1.1)  # commits are dated in whole seconds
    assert gc(kb, Retention(keep_days=0)).expired


def test_caches_that_nothing_serves_go_and_come_back_when_asked(kb: KnowledgeBase, write: Write) -> None:
    for number in range(3):
        write(team=f"Number {number}.")
        compact(kb, everything=True)
    old = kb.repository.resolve("main~4")
    before = ranking(kb, "number", old)
    report = gc(kb, Retention(), dry_run=False)
    assert report.caches and report.cache_bytes > 0
    assert ranking(kb, "number", old) == before


# What readers that open and build caches do, without end.
FLICKER = """
import os, sys
idle, young = sys.argv[1:]
while True:
    for folder in (f"{idle}/1/2/3/4", young):
        os.makedirs(folder)
        for name in "abcd":
            open(f"{folder}/{name}", "w").close()
        for name in "abcd":
            os.unlink(f"{folder}/{name}")
    os.removedirs(young)
    for depth in (4, 3, 2, 1):
        os.rmdir("/".join([idle, *"1234"[:depth]]))
"""


def test_files_that_come_and_go_while_gc_looks_are_no_failure(kb: KnowledgeBase) -> None:
    idle = kb.cache / ("0" * 32)
    idle.mkdir()
    with subprocess.Popen([sys.executable, "-c", FLICKER, idle, kb.cache / ".young"]) as reader:
        try:
            for _ in range(100):
                assert gc(kb, Retention()).caches == (idle.name,)
            assert reader.poll() is None
        finally:
            reader.kill()
