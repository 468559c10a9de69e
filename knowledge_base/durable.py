"""Every durable step: files written aside, flushed and renamed; and the hook that makes steps fail.

What must survive a crash happens inside a `step`, here and in the git store. A test names a hook and is
called before, during and after each; it may raise what a disk raises, or end the process on the spot.
"""

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from knowledge_base.errors import LockedError, StorageError

if os.name == "posix":
    import fcntl


Phase = Literal["before", "during", "after"]
Hook = Callable[[str, Phase], None]
_hook: Hook | None = None


@contextlib.contextmanager
def faults(hook: Hook) -> Iterator[None]:
    """Call `hook(step, phase)` around every durable step of this process while the block runs."""
    global _hook
    _hook = hook
    try:
        yield
    finally:
        _hook = None


@contextlib.contextmanager
def step(name: str) -> Iterator[None]:
    """One durable step: a kill before it changes nothing, one after it changes nothing back."""
    if _hook is not None:
        _hook(name, "before")
    yield
    if _hook is not None:
        _hook(name, "after")


def halfway(name: str) -> None:
    """Where a step can be torn: some of its bytes are written, the others are not."""
    if _hook is not None:
        _hook(name, "during")


@contextlib.contextmanager
def disk_errors(what: str) -> Iterator[None]:
    """Turn the operating system's refusals into a StorageError that names what was being written."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"Cannot write {what}: {error.strerror or error}.",
            hint="Nothing was published. Free space or make it writable, then run the command again.",
        ) from error


def write_bytes(path: Path, data: bytes) -> None:
    """Replace `path` by `data` in one step: a reader sees the old file or the new one, whole.

    Raises:
        StorageError: The disk refused the write; the old file is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with disk_errors(str(path)), step("write file"):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                file.write(data[: len(data) // 2])
                file.flush()
                halfway("write file")
                file.write(data[len(data) // 2 :])
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(path.parent)


def publish_folder(temporary: Path, final: Path) -> None:
    """Flush every file below `temporary` and rename the folder to `final`, which must not exist.

    Raises:
        StorageError: The disk refused the write.
    """
    with disk_errors(str(final)), step("publish folder"):
        for file in temporary.rglob("*"):
            if file.is_file():
                descriptor = os.open(file, os.O_RDONLY)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
        halfway("publish folder")
        final.parent.mkdir(parents=True, exist_ok=True)
        os.replace(temporary, final)
        sync_folder(final.parent)


def sync_folder(folder: Path) -> None:
    """Make a rename inside `folder` survive a power cut."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_file(path: Path) -> None:
    """Remove one file; a missing one is fine. Raises StorageError."""
    with disk_errors(str(path)), step("remove file"):
        path.unlink(missing_ok=True)


def remove_folder(folder: Path) -> None:
    """Remove a folder that nothing refers to any more; a missing one is fine."""
    with disk_errors(str(folder)), step("remove folder"):
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def exclusive_lock(path: Path, *, wait_seconds: float = 0.0) -> Iterator[None]:
    """Hold an advisory lock; the kernel frees it when the process ends, however it ends.

    Raises:
        LockedError: Another process still holds it after `wait_seconds`.
        StorageError: The lock file cannot be opened.
    """
    with disk_errors(str(path)):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+b")  # noqa: SIM115 - closed below, after the lock's whole life
    deadline = time.monotonic() + wait_seconds
    try:
        while not _try_lock(file.fileno()):
            if time.monotonic() >= deadline:
                raise LockedError(
                    f"Another process is writing here ({path}).",
                    hint="Wait for it to finish; the lock is freed when that process ends.",
                )
            time.sleep(0.05)
        yield
    finally:
        file.close()


def _try_lock(descriptor: int) -> bool:
    try:
        if os.name == "posix":
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
    except OSError:
        return False
    return True
