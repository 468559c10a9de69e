"""The version store for teams: repositories of a lakeFS server."""

import secrets
import tempfile
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lakefs_sdk import Repository, RepositoryCreation

from knowledge_base.durable import remove_folder
from knowledge_base.errors import (
    AlreadyExistsError,
    NotFoundError,
    UnavailableError,
    UnsupportedError,
)
from knowledge_base.naming import validate_branch_name, validate_repository_name
from knowledge_base.object_cache import ObjectCache
from knowledge_base.version_store_lakefs_client import Client, LostAnswerError
from knowledge_base.version_store_lakefs_repository import LakeFSRepository

__all__ = ["LakeFSRepository", "LakeFSVersionStore"]


class LakeFSVersionStore:
    """The server that lakeFS's own variables or ~/.lakectl.yaml name.

    Args:
        cache: Folder for what is fetched; a temporary one without it.
        storage: Where new repositories keep their objects, such as `s3://bucket/prefix`; without it
            the server's default namespace, or its local disk.
        client: How to reach the server, if not with the usual time-outs.
    """

    def __init__(
        self, *, cache: Path | None = None, storage: str | None = None, client: Client | None = None
    ) -> None:
        self._client = client or Client()
        self._storage = storage
        if cache is None:
            cache = Path(tempfile.mkdtemp(prefix="plumbline-objects-"))
            weakref.finalize(self, remove_folder, cache)
        self._cache = ObjectCache(cache)

    def create_repository(
        self, repository: str, *, default_branch: str = "main", exist_ok: bool = False
    ) -> LakeFSRepository:
        """A new repository has one commit with an empty tree. Raises AlreadyExistsError, InvalidNameError."""
        wanted = RepositoryCreation(
            name=validate_repository_name(repository),
            storage_namespace=self._namespace(repository),
            default_branch=validate_branch_name(default_branch),
        )
        function = self._client.api.repositories_api.create_repository
        try:
            record = self._client.call(function, wanted, repeat=False)
        except AlreadyExistsError as error:
            if exist_ok:
                return self.get_repository(repository)
            raise AlreadyExistsError(f"Repository {repository!r} exists already.") from error
        except LostAnswerError as error:
            try:
                record = self._record(repository)
            except NotFoundError:
                raise error from None
            if record.storage_namespace != wanted.storage_namespace:  # somebody else's
                raise
        return LakeFSRepository(self._client, record, self._cache)

    def _namespace(self, repository: str) -> str:
        """A place of its own for each repository: lakeFS refuses one that was used before."""
        if self._storage:
            return f"{self._storage.rstrip('/')}/{repository}-{secrets.token_hex(4)}"
        storage = self._client.call(self._client.api.config_api.get_config).storage_config
        prefix = (storage.default_namespace_prefix or "") if storage else ""
        if not prefix and storage and storage.blockstore_type in ("local", "mem"):
            prefix = f"{storage.blockstore_type}://"
        if not prefix:
            raise UnsupportedError(
                "The lakeFS server has no default place for new repositories.",
                hint="Name one: `rag init --kb lakefs://NAME --storage s3://BUCKET/PREFIX`.",
            )
        return f"{prefix if prefix.endswith('/') else prefix + '/'}{repository}-{secrets.token_hex(4)}"

    def get_repository(self, repository: str) -> LakeFSRepository:
        """What is cached of a repository is there while the server is not.

        Raises:
            NotFoundError: There is no such repository.
            UnavailableError: The server does not answer, and this machine never saw the repository.
        """
        key = f"{self._client.endpoint} repository {repository}"
        try:
            record = self._record(repository)
            known = [record.id, record.default_branch, record.storage_namespace, record.creation_date]
            if self._cache.fact(key) != known:
                self._cache.keep_fact(key, known)
        except UnavailableError:
            kept = self._cache.fact(key)
            if kept is None:
                raise
            record = Repository(
                id=kept[0], default_branch=kept[1], storage_namespace=kept[2], creation_date=kept[3]
            )
        return LakeFSRepository(self._client, record, self._cache)

    def _record(self, repository: str) -> Any:
        function = self._client.api.repositories_api.get_repository
        missing = ("repository", repository)
        return self._client.call(function, validate_repository_name(repository), missing=missing)

    def repair_repository(
        self,
        repository: str,
        *,
        default_branch: str = "main",
        backup: Path | None = None,
        spares: Iterable[bytes] = (),
    ) -> list[str]:
        """Raises UnsupportedError."""
        raise UnsupportedError(
            "Plumbline cannot repair a lakeFS repository.",
            hint="Restore lakeFS's own database and object store from their backups.",
        )

    def list_repositories(self, prefix: str = "") -> list[str]:
        """Names in byte order."""
        function = self._client.api.repositories_api.list_repositories
        return [item.id for page in self._client.pages(function, prefix=prefix) for item in page]

    def delete_repository(self, repository: str) -> None:
        """Raises NotFoundError."""
        function = self._client.api.repositories_api.delete_repository
        missing = ("repository", repository)
        self._client.call(function, validate_repository_name(repository), repeat=False, missing=missing)
