"""Whatever ends a command, and whenever: main serves the release before it or the one after it, whole.

Faults hit every durable step that an operation takes; kills hit real commands at random moments. After
each, main must serve the old or the new release to the last byte of every document, vector ranking and
answer; what was acknowledged must be the new one; fsck must find nothing; and the next commands must
work. What is not tested is a power cut, where the disk loses what was not flushed.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(os.name != "posix", reason="forks and kills with SIGKILL")

PROJECT = Path(__file__).parents[1]
SERVERS = 2
KILLED = ("ingest", "merge", "promote", "rollback", "gc")
KILLS_OF_ONE_COPY = 5

Trial = dict[str, Any]


@dataclass
class Tally:
    """Trials that were carried out, by several servers at once."""

    trials: Iterator[Trial]
    wanted: float = float("inf")
    count: int = 0
    violations: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def next_trial(self) -> Trial | None:
        with self.lock:
            return next(self.trials, None) if self.count < self.wanted else None

    def add(self, trial: Trial, count: int, violations: list[str]) -> None:
        with self.lock:
            before, self.count = self.count, self.count + count
            self.violations += [f"{trial}: {violation}" for violation in violations]
            if self.count // 100 > before // 100:  # a thousand kills take an hour or two
                print(f"{self.count} so far, {len(self.violations)} violations", flush=True)


def server(folder: Path) -> "subprocess.Popen[str]":
    # One thread: a process with several cannot be forked.
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.crash_trials", str(folder)]
    return subprocess.Popen(
        command, cwd=PROJECT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def carry_out(folder: Path, tally: Tally) -> None:
    with server(folder) as process:
        assert process.stdin and process.stdout
        while (trial := tally.next_trial()) is not None:
            process.stdin.write(json.dumps(trial) + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
            assert answer, f"the server died of {trial}"
            tally.add(*json.loads(answer))
        process.stdin.close()


def carry_out_all(folder: Path, tally: Tally) -> float:
    started = time.monotonic()
    with ThreadPoolExecutor(SERVERS) as pool:
        list(pool.map(lambda _: carry_out(folder, tally), range(SERVERS)))
    return time.monotonic() - started


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the template, and what each operation makes of it."""
    folder = tmp_path_factory.mktemp("crash")
    with server(folder) as process:
        process.communicate()
    assert process.returncode == 0
    return folder


def fault_trials(folder: Path, *, every_kind: bool) -> Iterator[Trial]:
    from tests.crash_trials import KINDS, possible  # forks: not to be had on every platform

    known = json.loads((folder / "known.json").read_text())
    for name, after in known["after"].items():
        for number, step in enumerate(after["steps"], 1):
            kinds = [kind for kind in KINDS if possible(kind, tuple(step))]
            for kind in kinds if every_kind else [kinds[number % len(kinds)]]:
                yield {"name": name, "number": number, "kind": kind}


@pytest.mark.parametrize("every_kind", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_fault_at_any_durable_step_leaves_one_whole_release(prepared: Path, every_kind: bool) -> None:
    tally = Tally(fault_trials(prepared, every_kind=every_kind))
    seconds = carry_out_all(prepared, tally)
    print(f"\n{tally.count} faults in {seconds:.0f} s, {len(tally.violations)} violations")
    assert tally.count and not tally.violations, "\n".join(tally.violations)


@pytest.mark.parametrize(
    "kills",
    [10, pytest.param(int(os.environ.get("PLUMBLINE_TEST_KILLS", "50")), marks=pytest.mark.slow)],
)
def test_a_kill_at_any_moment_leaves_one_whole_release(prepared: Path, kills: int) -> None:
    share = min(KILLS_OF_ONE_COPY, -(-kills // len(KILLED)))
    tally = Tally(
        ({"name": KILLED[seed % len(KILLED)], "seed": seed, "kills": share} for seed in count()), kills
    )
    seconds = carry_out_all(prepared, tally)
    print(
        f"\n{tally.count} kills in {seconds:.0f} s, {len(tally.violations)} violations; with none, fewer "
        f"than {3 / tally.count:.1%} of all kills do harm (95 % confidence, rule of three)"
    )
    assert not tally.violations, "\n".join(tally.violations)
