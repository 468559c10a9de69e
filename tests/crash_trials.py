"""Interrupts operations on copies of a knowledge base and looks at what is left: `python -m` this module.

This process imports what is slow to import and opens nothing, so that it can fork: each operation and
each check runs in a process of its own, which starts in milliseconds and may end at any moment.
"""

import errno
import functools
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ingestion.pipeline import IngestOptions, ingest
from ingestion.sources import list_sources
from knowledge_base.durable import Phase, faults
from knowledge_base.errors import ExpiredError, NoChangesError, NotFoundError, PlumblineError
from knowledge_base.home import MAIN, WORK_PREFIX, KnowledgeBase
from knowledge_base.integrity import fsck
from knowledge_base.release import DOCUMENTS_PREFIX
from rag.engine import Engine
from tests.crash_operations import (
    NEXT,
    OPERATIONS,
    QUESTIONS,
    hashes,
    open_knowledge_base,
    prepare,
    sources_of,
)

_SLOW_IMPORTS = (
    "chromadb",
    "chromadb.api.rust",
    "knowledge_base.snapshot",
    "llama_index.core.node_parser",
    "pandas",
    "pyarrow.parquet",
    "rag.chain",
    "tokenizers",
)
_CRASHED = 137
_HANGS_AFTER_SECONDS = 120

KINDS = ("crash before", "crash after", "torn", "EIO", "ENOSPC")
_GIT_OBJECTS = ("store object", "store folders", "store commit")
_GIT_REFS = ("create ref", "move branch", "delete ref")

Step = tuple[str, bool]
"""A durable step's name, and whether it says when it is halfway."""


def possible(kind: str, step: Step) -> bool:
    """Removing is the one thing that cannot be torn here."""
    return kind != "torn" or step[1] or step[0] in _GIT_OBJECTS + _GIT_REFS


class Fault:
    """Makes the nth durable step fail, and this process with it when it is a crash."""

    def __init__(self, root: Path, number: int, kind: str, step: Step) -> None:
        self._repository = root / ".plumbline" / "knowledge.git"
        self._left = number
        self._kind = kind
        self._phase: Phase = "after" if kind == "crash after" else "before"
        if step[1] and kind in ("torn", "ENOSPC"):
            self._phase = "during"
        self.fired = False

    def __call__(self, step: str, phase: Phase) -> None:
        self._left -= phase == "before"
        if self._left or phase != self._phase or self.fired:
            return
        self.fired = True
        if self._kind in ("EIO", "ENOSPC"):
            code = getattr(errno, self._kind)
            raise OSError(code, os.strerror(code))
        if self._kind == "torn" and phase == "before":
            self._tear(step)
        os._exit(_CRASHED)

    def _tear(self, step: str) -> None:
        """Leave what libgit2, which has no hooks, leaves when it is killed between writing and renaming."""
        if step in _GIT_OBJECTS:
            (self._repository / "objects" / "tmp_object_torn").write_bytes(b"x\x01K\xca\xc9OR0")
        else:
            for branch in (MAIN, f"{WORK_PREFIX}torn"):
                (self._repository / "refs" / "heads" / f"{branch}.lock").write_bytes(b"0123456789abcdef")
            head = (self._repository / "refs" / "heads" / MAIN).read_text().strip()
            log = self._repository / "logs" / "refs" / "heads" / f"{WORK_PREFIX}torn"
            log.write_text(f"{'0' * 40} {head} Plumbline <plumbline@localhost> 0 +0000\tbranch\n")


# -- processes ------------------------------------------------------------------------------------


def in_child(job: Callable[[], Any]) -> tuple[int, Any]:
    """Run `job` in a forked process: its exit status, and what it returned, None when it did not end well."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(reader)
        status = 70
        try:
            signal.alarm(_HANGS_AFTER_SECONDS)
            with open(writer, "w", encoding="utf-8") as pipe:
                json.dump(job(), pipe)
            status = 0
        except BaseException:  # noqa: BLE001 - nothing may escape into the code that forked
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(writer)
    with open(reader, encoding="utf-8") as pipe:
        said = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return status, json.loads(said) if status == 0 else None


def record(root: Path, name: str) -> dict[str, Any]:
    """Run an operation to its end: its steps, and the release that main then serves."""
    steps: list[list[Any]] = []

    def note(step: str, phase: Phase) -> None:
        if phase == "before":
            steps.append([step, False])
        elif phase == "during":
            steps[-1][1] = True

    knowledge_base = open_knowledge_base(root)
    with faults(note):
        OPERATIONS[name].run(knowledge_base)
    return {"steps": steps, **observe(knowledge_base)}


def attempt(root: Path, name: str, fault: Fault) -> dict[str, Any]:
    """Run an operation with a fault in it; how it ended, unless the fault ended this process."""
    try:
        with faults(fault):
            OPERATIONS[name].run(open_knowledge_base(root))
        return {"ended": "done", "fired": fault.fired}
    except PlumblineError as error:
        return {"ended": "refused", "fired": fault.fired, "said": f"{error.message} {error.hint}"}
    except Exception as error:  # noqa: BLE001 - that there is none is what is tested
        return {"ended": "raw", "fired": fault.fired, "said": f"{type(error).__name__}: {error}"}


# -- what is left ---------------------------------------------------------------------------------


def observe(knowledge_base: KnowledgeBase) -> dict[str, Any]:
    """All that main serves: documents in tree and index, manifest, rankings, answers."""
    repository = knowledge_base.repository
    commit = repository.get_commit(MAIN)
    engine = Engine.open(knowledge_base)
    try:
        answers = [engine.ask(question) for question in QUESTIONS]
        return {
            "commit": commit.id,
            "parents": list(commit.parents),
            "tree": sorted(
                item.path.removeprefix(DOCUMENTS_PREFIX)
                for item in repository.list_objects(commit.id, prefix=DOCUMENTS_PREFIX)
            ),
            "served": {
                "documents": engine.snapshot.hashes(),
                "texts": {path: engine.snapshot.document_text(path) for path in engine.snapshot.paths},
                "manifest": engine.release.manifest.model_dump(mode="json"),
                "found": [[c.chunk_id, c.score] for c in engine.search(QUESTIONS[0], 100)],
                "answers": [
                    [
                        answer.answer,
                        [c.quote for c in answer.citations],
                        [c.chunk_id for c in answer.contexts],
                    ]
                    for answer in answers
                ],
            },
        }
    finally:
        engine.close()


def violations(
    root: Path, name: str, known: Mapping[str, Any], outcome: Mapping[str, Any], *, last: bool
) -> list[str]:
    """What is wrong after a trial; `last` also goes on working with what is left."""
    try:
        knowledge_base = open_knowledge_base(root)
        found = list(_wrong_release(knowledge_base, name, known, outcome))
        found += [f"fsck: {problem.where}: {problem.what}" for problem in fsck(knowledge_base)]
        if name == "gc":
            found += _wrong_expiry(knowledge_base, outcome["ended"] == "done")
        if last:
            found += _wrong_sequel(knowledge_base, name)
        return found
    except Exception as error:  # noqa: BLE001 - whatever it is, it is a violation
        return [f"{type(error).__name__}: {error}: {traceback.format_exc(limit=-3)}"]


def _wrong_release(
    knowledge_base: KnowledgeBase, name: str, known: Mapping[str, Any], outcome: Mapping[str, Any]
) -> Iterator[str]:
    before, after = known["before"], known["after"][name]
    now = observe(knowledge_base)
    old = (now["commit"], now["served"]) == (before["commit"], before["served"])
    new = now["served"] == after["served"]
    if OPERATIONS[name].moves_main:
        new = new and before["commit"] in now["parents"]
    if not old and not new:
        differing = [key for key, value in now["served"].items() if value != before["served"][key]]
        yield f"main serves neither the old nor the new release: {differing} differ from the old one"
    if now["tree"] != sorted(now["served"]["documents"]):
        yield "tree and index hold different documents"
    if outcome["ended"] == "done" and not new:
        yield "acknowledged, and yet main serves the old release"
    if outcome["ended"] == "raw":
        yield f"not a PlumblineError: {outcome['said']}"
    if outcome["ended"] == "refused" and not old and "Nothing was published" in outcome["said"]:
        yield f"published, and yet the error says: {outcome['said']}"


def _wrong_expiry(knowledge_base: KnowledgeBase, done: bool) -> Iterator[str]:
    try:
        snapshot = knowledge_base.snapshot("first")
        texts = [snapshot.document_text(path) for path in snapshot.paths]
        if done:
            yield f"gc is through, and yet its content is there: {len(texts)} documents"
    except ExpiredError:
        pass  # as it should: gone, and said to be gone


def _wrong_sequel(knowledge_base: KnowledgeBase, name: str) -> Iterator[str]:
    """Repeat the operation, ingest one more document, and look again."""
    try:
        OPERATIONS[name].run(knowledge_base)
    except (NoChangesError, NotFoundError) as error:
        if knowledge_base.snapshot().hashes() != hashes(OPERATIONS[name].documents):
            yield f"cannot be repeated: {error}"
    result = ingest(
        knowledge_base, list_sources([str(sources_of(knowledge_base.root, "next"))]), IngestOptions()
    )
    if not result.published:
        yield "the next ingest published nothing"
    engine = Engine.open(knowledge_base)
    if engine.snapshot.hashes() != hashes({**OPERATIONS[name].documents, **NEXT}):
        yield "after the next ingest the documents are others"
    if engine.search("Where do visitors park?")[0].path not in NEXT:
        yield "after the next ingest its document is not found"
    engine.close()
    yield from (f"fsck at the end: {problem.where}: {problem.what}" for problem in fsck(knowledge_base))
    if left := [branch.id for branch in knowledge_base.repository.list_branches(WORK_PREFIX)]:
        yield f"nobody swept {left}"


# -- trials ---------------------------------------------------------------------------------------


def fault_trial(
    folder: Path, known: Mapping[str, Any], name: str, number: int, kind: str
) -> tuple[int, list[str]]:
    """One fault in one copy."""
    step = tuple(known["after"][name]["steps"][number - 1])
    root = _copy(folder)
    try:
        status, outcome = in_child(lambda: attempt(root, name, Fault(root, number, kind, step)))
        outcome = outcome or {"ended": "crashed", "fired": status == _CRASHED}
        wrong = [] if outcome["fired"] else [f"the fault did not happen: {status} {outcome}"]
        if kind in ("EIO", "ENOSPC") and outcome["ended"] == "crashed":
            wrong.append(f"an error of the disk ended the process: {status}")
        return 1, wrong + _look(root, name, known, outcome, last=True)
    finally:
        shutil.rmtree(root)


def kill_trial(
    folder: Path, known: Mapping[str, Any], name: str, seed: int, kills: int
) -> tuple[int, list[str]]:
    """Kill one operation in one copy again and again, until it is through or has had its `kills`."""
    chance = random.Random(f"{name} {seed}")
    root = _copy(folder)
    done, ended = 0, "crashed"
    found: list[str] = []
    try:
        while not found and done < kills and ended == "crashed":
            # A little beyond its end too: what it acknowledged must be there.
            status = _run_command(root, name, chance.uniform(0, 1.2 * _seconds(folder, name)))
            # Another status than success: it refuses to do again what was done, though not acknowledged.
            ended = "crashed" if status == -signal.SIGKILL else "done"
            done += ended == "crashed"
            found = _look(root, name, known, {"ended": ended}, last=False)
        return done, found + _look(root, name, known, {"ended": ended}, last=True)
    finally:
        shutil.rmtree(root)


@functools.cache
def _seconds(folder: Path, name: str) -> float:
    """How long an operation takes from the moment it takes the writer lock."""
    root = _copy(folder, "measured")
    try:
        assert _run_command(root, name, None) == 0, f"{name} fails"
        return time.time() - (root / ".plumbline" / "lock").stat().st_mtime
    finally:
        shutil.rmtree(root)


def _run_command(root: Path, name: str, seconds: float | None) -> int:
    """Run an operation as people do and kill it so many seconds after it took the writer lock."""
    operation = OPERATIONS[name]
    if operation.command:
        command = [Path(sys.executable).parent / "rag", *operation.command(root)]
    else:
        code = (
            "from pathlib import Path; from tests.crash_operations import OPERATIONS, open_knowledge_base; "
            f"OPERATIONS[{name!r}].run(open_knowledge_base(Path('.')))"
        )
        command = [sys.executable, "-c", code]
    lock = root / ".plumbline" / "lock"
    lock.unlink(missing_ok=True)
    here = os.pathsep.join(filter(None, [os.getcwd(), os.environ.get("PYTHONPATH")]))
    process = subprocess.Popen(
        command,
        cwd=root,
        env={**os.environ, "PYTHONPATH": here},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not lock.exists() and process.poll() is None:
        time.sleep(0.001)
    if seconds is not None:
        time.sleep(seconds)
        process.kill()
    return process.wait()


def _look(
    root: Path, name: str, known: Mapping[str, Any], outcome: Mapping[str, Any], *, last: bool
) -> list[str]:
    status, found = in_child(lambda: violations(root, name, known, outcome, last=last))
    return [f"the check ended with {status}"] if found is None else list(found)


def _copy(folder: Path, name: str = "copy") -> Path:
    return Path(shutil.copytree(folder / "template", folder / f"{name}-{os.getpid()}"))


def _prepare(folder: Path) -> dict[str, Any]:
    """Make the template; what main serves before and after each operation, and its steps."""
    template = folder / "template"
    _must(in_child(lambda: prepare(template)))
    known: dict[str, Any] = {"after": {}}
    known["before"] = _must(in_child(lambda: observe(open_knowledge_base(template))))
    for name, operation in OPERATIONS.items():
        root = _copy(folder)
        known["after"][name] = _must(in_child(functools.partial(record, root, name)))
        documents = known["after"][name]["served"]["documents"]
        assert documents == hashes(operation.documents), f"{name}: {sorted(documents)}"
        shutil.rmtree(root)
    return known


def _must(ended: tuple[int, Any]) -> Any:
    assert ended[0] == 0, f"ended with {ended[0]}"
    return ended[1]


def _refuse_threads() -> None:
    """A fork takes along no thread but its own, and every lock the others held."""
    threads = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    # pyarrow's allocator starts its thread anew after a fork.
    alive = [name for name in threads if name != "jemalloc_bg_thd"]
    assert len(alive) <= 1, f"cannot fork with {threads}"


def main() -> None:
    """With a folder as argument: make the template there, or try what standard input lists."""
    folder = Path(sys.argv[1])
    for module in _SLOW_IMPORTS:
        importlib.import_module(module)
    _refuse_threads()
    memory = folder / "known.json"
    if not memory.exists():
        memory.write_text(json.dumps(_prepare(folder)))
        return
    known = json.loads(memory.read_text())
    for line in sys.stdin:
        trial = json.loads(line)
        run = kill_trial if "seed" in trial else fault_trial
        count, found = run(folder, known, **trial)
        print(json.dumps([trial, count, found]), flush=True)


if __name__ == "__main__":
    main()
