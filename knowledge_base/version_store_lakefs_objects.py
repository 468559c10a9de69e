"""The objects of one lakeFS repository: read by commit through the local cache, written to a branch."""

import hashlib
import io
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

from lakefs_sdk import PathList

from knowledge_base.durable import disk_errors
from knowledge_base.errors import DamagedError, InvalidPathError, NotFoundError, VersionStoreError
from knowledge_base.naming import validate_path
from knowledge_base.object_cache import ObjectCache
from knowledge_base.version_store import CommonPrefix, ObjectInfo
from knowledge_base.version_store_lakefs_client import PARALLEL, Client

RESERVED = "_lakefs"
"""Paths that start so are lakeFS's own (actions): no part of a knowledge base."""

_MD5 = re.compile(r"[0-9a-f]{32}")
_BATCH = 1000
_AUTHENTICATION = ["basic_auth", "cookie_auth", "oidc_auth", "saml_auth", "jwt_token"]


class Objects:
    """Reads by commit id only: what a branch has staged is never seen."""

    def __init__(self, client: Client, repository: str, identity: str, cache: ObjectCache) -> None:
        self._client = client
        self._repository = repository
        self._identity = identity
        self.cache = cache

    # -- listings ------------------------------------------------------------------------------

    def walk(
        self, commit: str, *, prefix: str = "", delimiter: str = "", after: str = ""
    ) -> Iterator[ObjectInfo | CommonPrefix]:
        """Objects of a commit in byte order of their paths."""
        known = self._known(commit, prefix)
        if known is None and not after and not delimiter:
            known = self._list(commit, prefix)
        if known is None:
            yield from self._ask(commit, prefix=prefix, delimiter=delimiter, after=after)
            return
        group = ""
        for path, (size, checksum) in known.items():
            if not path.startswith(prefix) or path.encode() <= after.encode():
                continue
            end = path.find(delimiter, len(prefix)) if delimiter else -1
            if end < 0:
                yield ObjectInfo(path, size, checksum)
            elif group != (group := path[: end + len(delimiter)]) and group.encode() > after.encode():
                yield CommonPrefix(group)

    def _ask(self, ref: str, *, amount: int = 1000, **options: Any) -> Iterator[ObjectInfo | CommonPrefix]:
        function = self._client.api.objects_api.list_objects
        missing = ("ref", ref)
        for page in self._client.pages(
            function, self._repository, ref, user_metadata=False, missing=missing, amount=amount, **options
        ):
            for item in page:
                if item.path.startswith(RESERVED):
                    continue
                if item.path_type == "common_prefix":
                    yield CommonPrefix(item.path)
                else:
                    yield ObjectInfo(item.path, item.size_bytes or 0, item.checksum)

    def _list(self, commit: str, prefix: str) -> dict[str, list[Any]]:
        items = {
            item.path: [item.size_bytes, item.checksum]
            for item in self._ask(commit, prefix=prefix)
            if isinstance(item, ObjectInfo)
        }
        self.cache.keep_fact(self._key(commit, f"list {prefix}"), {"items": items, "complete": True})
        return items

    def _known(self, commit: str, prefix: str) -> dict[str, list[Any]] | None:
        """A complete listing that covers a prefix, if there is one."""
        for covering in dict.fromkeys((prefix, _top(prefix), "")):
            kept = self.cache.fact(self._key(commit, f"list {covering}"))
            if kept is not None and kept["complete"]:
                items: dict[str, list[Any]] = kept["items"]
                return items
        return None

    def _key(self, commit: str, what: str) -> str:
        return f"{self._identity} {commit} {what}"

    # -- single objects ------------------------------------------------------------------------

    def holds(self, commit: str, info: ObjectInfo) -> bool:
        """Whether a commit is known to have exactly that object; asks nobody."""
        known = self._known(commit, info.path) or {}
        return known.get(info.path) == [info.size_bytes, info.checksum]

    def find(self, commit: str, path: str) -> ObjectInfo:
        """What a commit has at a path. Raises NotFoundError.

        The first object asked for of a top folder brings a page of that folder: a release has few
        segments and prompts, and one request tells about all of them.
        """
        try:
            validate_path(path)
        except InvalidPathError as error:
            raise NotFoundError("object", path) from error
        known = self._known(commit, path)
        folder = _top(path)
        if known is None:
            known = self._page(commit, folder)
        if path in known:
            return ObjectInfo(path, *known[path])
        partial = self.cache.fact(self._key(commit, f"list {folder}"))
        last = next(reversed(known), "")
        if partial is None or partial["complete"] or path.encode() <= last.encode():
            raise NotFoundError("object", path)
        return self._stat(commit, path)

    def _page(self, commit: str, folder: str) -> dict[str, list[Any]]:
        """The first page of a top folder; of the root, the files in it."""
        key = self._key(commit, f"list {folder}" if folder else "root")
        kept = self.cache.fact(key)
        if kept is None:
            page = self._client.call(
                self._client.api.objects_api.list_objects,
                self._repository,
                commit,
                user_metadata=False,
                prefix=folder,
                delimiter="" if folder else "/",
                amount=1000,
                missing=("ref", commit),
            )
            items = {
                item.path: [item.size_bytes or 0, item.checksum]
                for item in page.results
                if item.path_type == "object"
            }
            kept = {"items": items, "complete": not page.pagination.has_more}
            self.cache.keep_fact(key, kept)
        found: dict[str, list[Any]] = kept["items"]
        return found

    def _stat(self, commit: str, path: str) -> ObjectInfo:
        key = self._key(commit, f"stat {path}")
        kept = self.cache.fact(key)
        if kept is None:
            stats = self._client.call(
                self._client.api.objects_api.stat_object,
                self._repository,
                commit,
                path,
                user_metadata=False,
                missing=("object", path),
            )
            kept = [stats.size_bytes or 0, stats.checksum]
            self.cache.keep_fact(key, kept)
        return ObjectInfo(path, *kept)

    def open(self, commit: str, path: str) -> BinaryIO:
        """A seekable file with an object's content. Raises NotFoundError, DamagedError."""
        info = self.find(commit, path)
        return self.cache.open(info, lambda: self.fetch(commit, info))

    def fetch(self, ref: str, info: ObjectInfo) -> bytes:
        """An object's content from the server, whatever is cached. Raises DamagedError."""
        content = bytes(
            self._client.call(
                self._client.api.objects_api.get_object,
                self._repository,
                ref,
                info.path,
                missing=("object", info.path),
            )
        )
        if not _matches(info, content):
            raise DamagedError(
                f"lakeFS gave other bytes for {info.path!r} than its checksum {info.checksum} says.",
                hint="Run the command again; if it stays, restore the object in the object store.",
            )
        return content

    # -- writing -------------------------------------------------------------------------------

    def upload(self, branch: str, info: ObjectInfo, content: bytes) -> None:
        """Stage an object on a branch, always as the same content type: it is part of its identity."""
        client = self._client.api.objects_api.api_client

        def send(**options: Any) -> Any:
            # The SDK's own method makes a multipart form of it, and none at all of an empty object.
            return client.call_api(
                "/repositories/{repository}/branches/{branch}/objects",
                "POST",
                {"repository": self._repository, "branch": branch},
                [("path", info.path)],
                {"Accept": "application/json", "Content-Type": "application/octet-stream"},
                body=content,
                response_types_map={"201": "ObjectStats"},
                auth_settings=_AUTHENTICATION,
                _return_http_data_only=True,
                collection_formats={},
                **options,
            )

        stored = self._client.call(send, missing=("branch", branch))
        if not _matches(ObjectInfo(info.path, stored.size_bytes or 0, stored.checksum), content):
            raise DamagedError(f"lakeFS stored other bytes for {info.path!r} than it was sent.")

    def delete(self, branch: str, paths: Iterable[str]) -> None:
        """Stage the removal of any number of paths; missing ones are fine."""
        ordered = sorted(paths)
        batches = [ordered[start : start + _BATCH] for start in range(0, len(ordered), _BATCH)]

        def remove(batch: list[str]) -> None:
            answer = self._client.call(
                self._client.api.objects_api.delete_objects,
                self._repository,
                branch,
                PathList(paths=batch),
                missing=("branch", branch),
            )
            if answer.errors:
                first = answer.errors[0]
                raise VersionStoreError(
                    f"lakeFS did not remove {len(answer.errors)} path(s): {first.path!r}: {first.message}."
                )

        in_parallel(remove, batches)

    # -- a path is no folder -------------------------------------------------------------------

    def refuse_clashes(self, ref: str, paths: Iterable[str]) -> None:
        """Raise InvalidPathError when one of the paths of `ref` is the folder of another object.

        lakeFS allows that and git cannot carry it. Asks twice for each folder on the way to a path.
        """
        folders: dict[str, list[str]] = {}
        above: set[str] = set()
        for path in paths:
            folders.setdefault(path.rpartition("/")[0], []).append(path)
            above.update(folders_above(path))

        def is_object(folder: str) -> None:
            found = self._ask(ref, prefix=folder, amount=1)
            if any(item.path == folder for item in found_first(found)):
                raise clash(folder)

        def has_below(pair: tuple[str, list[str]]) -> None:
            folder, names = pair
            prefix = f"{folder}/" if folder else ""
            page = list(found_first(self._ask(ref, prefix=prefix, delimiter="/"), 1000))
            groups = {item.path for item in page if isinstance(item, CommonPrefix)}
            last = page[-1].path.encode() if len(page) == 1000 else None
            for name in names:
                if last is not None and name.encode() >= last:
                    groups.update(
                        f"{name}/" for _ in found_first(self._ask(ref, prefix=f"{name}/", amount=1))
                    )
                if f"{name}/" in groups:
                    raise clash(name)

        in_parallel(is_object, sorted(above))
        in_parallel(has_below, sorted(folders.items()))


def found_first(found: Iterator[Any], count: int = 1) -> Iterator[Any]:
    """The first of them, without asking for a page more."""
    for _, item in zip(range(count), found, strict=False):
        yield item


def folders_above(path: str) -> list[str]:
    """`a` and `a/b` of `a/b/c`."""
    parts = path.split("/")
    return ["/".join(parts[:end]) for end in range(1, len(parts))]


def clash(path: str) -> InvalidPathError:
    """What to raise for a path that would be a file and a folder."""
    return InvalidPathError(f"{path!r} would be both a file and a folder.", hint="Rename one of the two.")


def describe_content(path: str, content: bytes) -> ObjectInfo:
    """What lakeFS will say of an object uploaded through its API: its checksum is the MD5."""
    return ObjectInfo(path, len(content), hashlib.md5(content, usedforsecurity=False).hexdigest())


def _matches(info: ObjectInfo, content: bytes) -> bool:
    """Size, and the checksum where it is one: of objects uploaded in parts to S3 it is not."""
    if info.size_bytes != len(content):
        return False
    return not _MD5.fullmatch(info.checksum) or describe_content(info.path, content).checksum == info.checksum


def read_all(content: bytes | BinaryIO | Path) -> bytes:
    """All bytes of bytes, a path or a stream that may give little at a time."""
    if isinstance(content, bytes):
        return content
    if isinstance(content, Path):
        with disk_errors(str(content)):
            return content.read_bytes()
    buffer = io.BytesIO()
    while piece := content.read(2**20):
        buffer.write(piece)
    return buffer.getvalue()


def in_parallel(function: Callable[[Any], None], values: Iterable[Any]) -> None:
    """Call a function on each value, a few at once; the first error is raised."""
    values = list(values)
    if len(values) < 2:
        for value in values:
            function(value)
        return
    with ThreadPoolExecutor(PARALLEL) as pool:
        for future in [pool.submit(function, value) for value in values]:
            future.result()


def _top(path: str) -> str:
    """The top folder of a path with its slash, empty for a file in the root."""
    return path.partition("/")[0] + "/" if "/" in path else ""
