"""The embedded version store: a folder of bare git repositories; `git log` and `git show` work on them."""

import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

import pygit2

from knowledge_base.durable import disk_errors, exclusive_lock, remove_folder, sync_folder, write_bytes
from knowledge_base.errors import AlreadyExistsError, NotFoundError
from knowledge_base.naming import validate_branch_name, validate_repository_name
from knowledge_base.version_store_git_messages import format_message
from knowledge_base.version_store_git_objects import Committer, Git, Objects, signature, translated
from knowledge_base.version_store_git_repair import CONFIG, repair
from knowledge_base.version_store_git_repository import GitRepository

__all__ = ["GitRepository", "GitVersionStore"]


class GitVersionStore:
    """Bare repositories `<root>/<name>.git`; commits are signed as git's `user.name` without a committer."""

    def __init__(self, root: Path, *, committer: Committer = None) -> None:
        self._root = root
        self._committer = committer

    def create_repository(
        self, repository: str, *, default_branch: str = "main", exist_ok: bool = False
    ) -> GitRepository:
        """Built aside and renamed, so that a repository is there whole or not at all."""
        final = self._path(repository)
        validate_branch_name(default_branch)
        if not final.exists():
            with disk_errors(str(final)):
                self._root.mkdir(parents=True, exist_ok=True)
                temporary = Path(tempfile.mkdtemp(prefix=f".{repository}-", dir=self._root))
            try:
                self._build(temporary, default_branch)
                with disk_errors(str(final)):
                    if _renamed(temporary, final):
                        return self.get_repository(repository)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        if exist_ok:
            return self.get_repository(repository)
        raise AlreadyExistsError(f"Repository {repository!r} exists already.")

    def _build(self, folder: Path, default_branch: str) -> None:
        with translated("creating the repository", writing=True):
            pygit2.init_repository(str(folder), bare=True, initial_head=default_branch)
            for name in ("description", "hooks", "info"):  # samples and comments
                remove_folder(folder / name)
                (folder / name).unlink(missing_ok=True)
            write_bytes(folder / "config", CONFIG)
            Objects(folder).expire(frozenset())
            git = Git(folder)
            author = signature(git, self._committer)
            message = format_message("Repository created", {})
            empty = git.TreeBuilder().write()
            git.create_commit(f"refs/heads/{default_branch}", author, author, message, empty, [])

    def get_repository(self, repository: str) -> GitRepository:
        """Raises NotFoundError, UnavailableError (there is one, but it cannot be opened)."""
        path = self._existing(repository)
        return GitRepository(repository, path, self._committer)

    def repair_repository(
        self,
        repository: str,
        *,
        default_branch: str = "main",
        backup: Path | None = None,
        spares: Iterable[bytes] = (),
    ) -> list[str]:
        """Restore what logs, a backup or equal files still say. Raises NotFoundError, StorageError."""
        path = self._existing(repository)
        with exclusive_lock(path / "plumbline.lock", wait_seconds=60.0):
            return repair(path, default_branch, backup, spares)

    def list_repositories(self, prefix: str = "") -> list[str]:
        """Names in byte order."""
        names = (path.name.removesuffix(".git") for path in self._root.glob("*.git") if path.name[0] != ".")
        return sorted(name for name in names if name.startswith(prefix))

    def delete_repository(self, repository: str) -> None:
        """Renamed first, so that it is gone at once."""
        path = self._existing(repository)
        with disk_errors(str(path)):
            aside = Path(tempfile.mkdtemp(prefix=f".{repository}-deleted-", dir=self._root))
            os.replace(path, aside / "repository")
            shutil.rmtree(aside)

    def _existing(self, repository: str) -> Path:
        path = self._path(repository)
        if not path.exists():
            raise NotFoundError("repository", repository)
        return path

    def _path(self, repository: str) -> Path:
        return self._root / f"{validate_repository_name(repository)}.git"


def _renamed(temporary: Path, final: Path) -> bool:
    """False when another process made `final` in the meantime."""
    try:
        os.replace(temporary, final)
    except OSError:
        if final.exists():
            return False
        raise
    sync_folder(final.parent)
    return True
