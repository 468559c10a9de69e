"""What lies in one bare repository: git objects, large files beside them, and the errors both make.

Files of 1 MiB and more are kept as Git LFS keeps them, with a pointer in the tree: libgit2 would hold
each in memory and compress it, which costs seconds for vectors that do not shrink.
"""

import contextlib
import errno
import hashlib
import io
import os
import re
import tempfile
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pygit2

from knowledge_base.durable import disk_errors, halfway, step, sync_folder, write_bytes
from knowledge_base.errors import DamagedError, LockedError, NotFoundError, StorageError, UnavailableError
from knowledge_base.version_store import ObjectInfo
from knowledge_base.version_store_git_trees import find_file, kept

LARGE_FILE_BYTES = 1024 * 1024
_COPY_BYTES = 1024 * 1024
_POINTER_START = b"version https://git-lfs.github.com/spec/"
_POINTER = re.compile(
    rb"version https://git-lfs\.github\.com/spec/v1\noid sha256:([0-9a-f]{64})\nsize ([0-9]{1,18})\n",
    re.ASCII,
)
_POINTER_MAX_BYTES = 200
_MEND = "Run `rag fsck --repair`."
_RESTORE = "Run `rag fsck`; restore it from a clone or backup."
_REFUSALS = (errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.EIO)
_DAMAGE = ("mismatch", "corrupt", "parse", "inflat", "not found", "invalid", "no match", "truncated")
DEFAULT_COMMITTER = ("Plumbline", "plumbline@localhost")
GIT_ERRORS = (pygit2.GitError, OSError, KeyError, ValueError, zlib.error)

Committer = tuple[str, str] | None

pygit2.option(pygit2.enums.Option.SET_OWNER_VALIDATION, False)  # containers often run as another user
pygit2.option(pygit2.enums.Option.ENABLE_FSYNC_GITDIR, True)  # a ref must not outlive what it names


@contextlib.contextmanager
def translated(what: str, *, writing: bool = False) -> Iterator[None]:
    """The one place where libgit2's errors become ours."""
    try:
        yield
    except GIT_ERRORS as error:
        text = str(error).lower()
        if writing and "failed to lock" in text:
            raise LockedError(
                f"Another process is writing here ({what}: {error}).",
                hint="Wait for it to finish, then run the command again.",
            ) from error
        # libgit2 often keeps no reason for a failed write; what it read and disliked, it describes.
        failed = isinstance(error, pygit2.GitError) and not any(word in text for word in _DAMAGE)
        if writing and (failed or isinstance(error, OSError)):
            raise StorageError(
                f"The disk refused {what}: {error}.",
                hint="Nothing was published. Free space or make it writable, then run the command again.",
            ) from error
        if isinstance(error, OSError) and (
            error.errno in _REFUSALS or any(os.strerror(code).lower() in text for code in _REFUSALS)
        ):
            raise UnavailableError(
                f"The disk refused {what}: {error}.", hint="Check the folder's permissions and the disk."
            ) from error
        raise DamagedError(f"The repository is damaged: {what}: {error}.", hint=_RESTORE) from error


class Git(pygit2.Repository):  # type: ignore[misc]
    """libgit2's repository, but one that notices an object file that is cut short.

    libgit2 1.9 never returns from reading one: its inflating loop waits for input that does not come.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), pygit2.enums.RepositoryOpenFlag.BARE)
        self._whole: set[str] = set()

    def __getitem__(self, key: Any) -> Any:
        name = str(key)
        if name not in self._whole:
            loose = Path(self.path) / "objects" / name[:2] / name[2:]
            with contextlib.suppress(FileNotFoundError):  # then it is in a pack
                inflate = zlib.decompressobj()
                inflate.decompress(loose.read_bytes())
                if not inflate.eof:
                    raise ValueError(f"object {name} is cut short")
            self._whole.add(name)
        return super().__getitem__(key)


class Objects:
    """Content of one repository; safe to use from several threads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._threads = threading.local()
        self._verified: dict[str, tuple[int, int]] = {}

    @property
    def git(self) -> Git:
        """libgit2's handle of this thread: it must not be shared between threads."""
        if not hasattr(self._threads, "git"):
            self._threads.git = Git(self.folder)
        handle: Git = self._threads.git
        return handle

    def find(self, commit: Any, path: str) -> str:
        """Blob id of `path` in a commit. Raises NotFoundError."""
        with translated(f"reading {path!r}"):
            blob = find_file(self.git, self.git[commit.tree_id], path)
        if blob is None:
            raise NotFoundError("object", path)
        return blob

    def info(self, path: str, blob: str) -> ObjectInfo:
        """Size and checksum of the file a blob stands for."""
        with translated(f"reading {path!r}"):
            found = self.git[blob]
            pointer = read_pointer(found)
            return ObjectInfo(path, pointer[1] if pointer else found.size, blob)

    def open(self, blob: str, path: str) -> BinaryIO:
        """Small files from memory, large ones from disk after their hash was checked once."""
        with translated(f"reading {path!r}"):
            found = self.git[blob]
            pointer = read_pointer(found)
            if pointer is None:
                return io.BytesIO(found.data)
        try:
            return open(self._checked(*pointer, path), "rb")
        except OSError as error:
            raise DamagedError(f"{path!r} cannot be read: {error}.", hint=_RESTORE) from error

    def local_path(self, blob: str, path: str) -> Path | None:
        """Where a large file lies, its hash checked once; None for a small one."""
        with translated(f"reading {path!r}"):
            pointer = read_pointer(self.git[blob])
        return self._checked(*pointer, path) if pointer else None

    def large_path(self, digest: str) -> Path:
        """Where git-lfs keeps the file of that hash."""
        return self.folder / "lfs" / "objects" / digest[:2] / digest[2:4] / digest

    def _checked(self, digest: str, size: int, path: str) -> Path:
        large = self.large_path(digest)
        try:
            stat = large.stat()
            if self._verified.get(digest) != (stat.st_size, stat.st_mtime_ns):
                with open(large, "rb") as file:
                    if stat.st_size != size or hashlib.file_digest(file, "sha256").hexdigest() != digest:
                        raise DamagedError(f"{path!r} does not match its hash ({large}).", hint=_RESTORE)
                self._verified[digest] = (stat.st_size, stat.st_mtime_ns)
        except OSError as error:
            raise DamagedError(f"{path!r} cannot be read: {error}.", hint=_RESTORE) from error
        return large

    def store(self, content: bytes | BinaryIO | Path) -> str:
        """Write content that no commit names yet; returns its blob id. Raises StorageError."""
        if isinstance(content, Path):
            with open(content, "rb") as file:
                return self.store(file)
        if isinstance(content, bytes):
            content = io.BytesIO(content)
        head = _read_fully(content, LARGE_FILE_BYTES)
        # A small file that looks like a pointer is kept as a large one, so that every pointer is ours.
        if len(head) == LARGE_FILE_BYTES or head.startswith(_POINTER_START):
            head = self._store_large(head, content)
        with translated("storing a file", writing=True), step("store object"):
            self._clear_damaged(head)
            return kept(self.git, self.git.create_blob(head))

    def _clear_damaged(self, content: bytes) -> None:
        """libgit2 writes nothing where it sees a file of that name, be it damaged."""
        name = str(pygit2.hash(content))
        loose = self.folder / "objects" / name[:2] / name[2:]
        if loose.exists():
            try:
                whole = zlib.decompress(loose.read_bytes()).partition(b"\0")[2] == content
            except zlib.error:
                whole = False
            if not whole:
                loose.unlink()

    def _store_large(self, head: bytes, rest: BinaryIO) -> bytes:
        folder = self.folder / "lfs"
        with disk_errors(str(folder)), step("store large file"):
            folder.mkdir(exist_ok=True)
            descriptor, name = tempfile.mkstemp(prefix="tmp-", dir=folder)
            try:
                digest, size = hashlib.sha256(), 0
                with os.fdopen(descriptor, "wb") as file:
                    while head:
                        file.write(head)
                        digest.update(head)
                        size += len(head)
                        halfway("store large file")
                        head = rest.read(_COPY_BYTES)
                    file.flush()
                    os.fsync(file.fileno())
                final = self.large_path(digest.hexdigest())
                final.parent.mkdir(parents=True, exist_ok=True)
                os.replace(name, final)
                sync_folder(final.parent)
            finally:
                Path(name).unlink(missing_ok=True)
        version = "version https://git-lfs.github.com/spec/v1"
        return f"{version}\noid sha256:{digest.hexdigest()}\nsize {size}\n".encode()

    @property
    def ledger(self) -> Path:
        """File that lists the commits whose content gc was told to let go: a hash, then an id a line."""
        return self.folder / "plumbline-expired"

    def expired(self) -> frozenset[str]:
        """Commits whose content gc was told to let go. Raises DamagedError."""
        try:
            digest, _, commits = self.ledger.read_text(encoding="utf-8").partition("\n")
        except (OSError, ValueError) as error:
            raise DamagedError(f"{self.ledger} cannot be read: {error}.", hint=_MEND) from error
        if hashlib.sha256(commits.encode()).hexdigest() != digest:
            raise DamagedError(f"{self.ledger} does not match its hash.", hint=_MEND)
        return frozenset(commits.split())

    def expire(self, commits: frozenset[str]) -> None:
        """Note those commits, and only those, as expired. Raises StorageError."""
        lines = "".join(f"{commit}\n" for commit in sorted(commits))
        write_bytes(self.ledger, f"{hashlib.sha256(lines.encode()).hexdigest()}\n{lines}".encode())

    def require(self, blobs: set[str]) -> None:
        """Refuse to publish staged content that a gc removed; the caller holds the lock gc takes."""
        with translated("checking what was staged"):
            fresh = Git(self.folder)  # the thread's handle would answer from its cache
            for blob in blobs:
                pointer = read_pointer(self.git[blob]) if blob in fresh else None
                if blob not in fresh or (pointer and not self.large_path(pointer[0]).is_file()):
                    raise StorageError(
                        "Staged content was removed before it was published.",
                        hint="It was older than gc's grace period. Run the command again.",
                    )


def read_pointer(blob: Any) -> tuple[str, int] | None:
    """Hash and size of the large file that a blob stands for."""
    matched = _POINTER.fullmatch(blob.data) if blob.size <= _POINTER_MAX_BYTES else None
    return (matched[1].decode(), int(matched[2])) if matched else None


def _read_fully(content: BinaryIO, limit: int) -> bytes:
    """Raw streams may return less than asked for before their end."""
    parts, missing = [], limit
    while missing and (part := content.read(missing)):
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)


def signature(git: Any, committer: Committer) -> Any:
    """Who commits: the one given, else git's `user.name`, else Plumbline."""
    if committer is None:
        config = git.config
        name = config["user.name"].strip() if "user.name" in config else ""
        email = config["user.email"].strip() if "user.email" in config else ""
        committer = (name, email or DEFAULT_COMMITTER[1]) if name else DEFAULT_COMMITTER
    return pygit2.Signature(*committer)
