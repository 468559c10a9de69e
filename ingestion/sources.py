"""What there is to read: folders, files, globs and standard input become document paths."""

import glob
import math
import os
import stat
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from knowledge_base.configuration import SETTINGS_PATH
from knowledge_base.errors import DocumentError, InvalidPathError, SourceError
from knowledge_base.home import FOLDER
from knowledge_base.naming import validate_path
from knowledge_base.release import DOCUMENTS_PREFIX, GOLDEN_PREFIX, PROMPTS_PREFIX

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

# What a folder that holds a knowledge base has beside it: settings, prompts and questions are no documents.
_OWN = (SETTINGS_PATH, PROMPTS_PREFIX.rstrip("/"), GOLDEN_PREFIX.rstrip("/"))
_SKIPPED_FOLDERS = frozenset({"node_modules", "__pycache__", "site-packages"})
_EVERYTHING = ("**",)


@dataclass(frozen=True)
class SourceFile:
    """One file to read: `path` is its document path, `local` where it lies, or `content` what it holds."""

    path: str
    local: Path | None = None
    content: bytes | None = None

    def read(self, max_bytes: int) -> bytes:
        """Its bytes.

        Raises:
            DocumentError: It cannot be read, is not a regular file, or is larger than `max_bytes`.
        """
        if self.content is not None:
            return self._limited(self.content, len(self.content), max_bytes)
        assert self.local is not None
        try:
            # Opening a pipe or a device could block for ever, so look before.
            facts = os.stat(self.local)
            if not stat.S_ISREG(facts.st_mode):
                raise DocumentError("not a regular file")
            self._limited(b"", facts.st_size, max_bytes)
            with open(self.local, "rb", buffering=0) as file:
                return file.readall()
        except OSError as error:
            raise DocumentError(f"cannot be read: {(error.strerror or str(error)).lower()}") from error

    @staticmethod
    def _limited(content: bytes, size: int, max_bytes: int) -> bytes:
        if size > max_bytes:
            # Rounded up: a file just above the limit must not seem to be as large as the limit.
            shown = math.ceil(size / 1e5) / 10
            raise DocumentError(
                f"too large: {shown:.10g} MB, the limit is {max_bytes / 1e6:.10g} MB (--max-mb)"
            )
        return content


@dataclass(frozen=True)
class Sources:
    """Files to read in byte order of their paths, and (path, reason) of those that cannot even be named.

    Every path starts with `prefix`: what these sources do not hold, they can miss below it alone.
    """

    files: tuple[SourceFile, ...]
    skipped: tuple[tuple[str, str], ...] = ()
    prefix: str = ""


@dataclass
class _Collector:
    prefix: str
    exclude: Sequence[str]
    files: dict[str, SourceFile] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def skip(self, relative: str, reason: str) -> None:
        # A name that is not UTF-8 carries surrogates: shown escaped, never stored.
        self.skipped[self.prefix + relative.encode("utf-8", "backslashreplace").decode()] = reason

    def add(self, relative: str, local: Path | None, content: bytes | None = None) -> None:
        path = unicodedata.normalize("NFC", self.prefix + relative)
        if self.excludes(relative):
            return
        try:
            validate_path(DOCUMENTS_PREFIX + path)
        except InvalidPathError as error:
            if local is None:  # a name the caller typed, not one that was found
                raise SourceError(
                    f"{relative!r} cannot be a document's path.",
                    hint="Say --stdin-name like notes/today.txt.",
                ) from error
            self.skip(relative, error.message)
            return
        other = self.files.get(path)
        if other is not None and (other.local is None or local is None or not _same(other.local, local)):
            raise SourceError(
                f"Two sources would both be the document {path!r}: {other.local or 'standard input'} and "
                f"{local or 'standard input'}.",
                hint="Ingest them in two commands, one with --prefix.",
            )
        self.files[path] = SourceFile(path, local, content)

    def excludes(self, relative: str) -> bool:
        return bool(self.exclude) and self._patterns.match_file(relative)

    @cached_property
    def _patterns(self) -> "GitIgnoreSpec":
        from pathspec import GitIgnoreSpec

        return GitIgnoreSpec.from_lines(self.exclude)


def list_sources(
    arguments: Sequence[str],
    *,
    prefix: str = "",
    stdin: tuple[str, bytes] | None = None,
    exclude: Sequence[str] = (),
) -> Sources:
    """Every file the arguments name.

    A folder gives paths relative to itself, a single file its name, a glob paths relative to its part
    before the first wildcard, `-` the name and bytes of `stdin`. Hidden files and folders, and
    node_modules, __pycache__ and site-packages, are passed over, and so are linked folders; `exclude`
    takes gitignore patterns. Links that lead outside and names that cannot be stored are in `skipped`.

    Raises:
        SourceError: A path does not exist, a folder cannot be listed, or two files would have the same
            document path.
    """
    clean = prefix.strip("/")
    if clean:
        try:
            validate_path(DOCUMENTS_PREFIX + clean)
        except InvalidPathError as error:
            raise SourceError(
                f"{prefix!r} cannot be a folder of documents.", hint="Say --prefix like handbook/hr."
            ) from error
    collector = _Collector(f"{clean}/" if clean else "", exclude)
    for argument in arguments:
        if argument == "-":
            if stdin is None:
                raise SourceError("There is no standard input to read.")
            collector.add(stdin[0], None, stdin[1])
        else:
            _collect(collector, argument)
    ordered = sorted(collector.files.values(), key=lambda source: source.path.encode())
    return Sources(tuple(ordered), tuple(sorted(collector.skipped.items())), collector.prefix)


def named_sources(files: Iterable[tuple[str, Path]]) -> Sources:
    """Files under the paths of the documents that they are to be. Raises SourceError: two share one."""
    collector = _Collector("", ())
    for path, local in files:
        collector.add(path, local)
    return Sources(tuple(sorted(collector.files.values(), key=lambda source: source.path.encode())))


def _collect(collector: _Collector, argument: str) -> None:
    if not argument:
        raise SourceError("A source path is empty.", hint="Give '.' for the current folder.")
    try:
        path = Path(argument).expanduser()
        if path.is_dir():
            _add_folder(collector, path, _EVERYTHING)
        elif os.path.lexists(path):
            collector.add(path.name, path)
        elif glob.has_magic(argument):
            _add_glob(collector, argument)
        else:
            raise SourceError(f"There is no such file or folder: {argument}", hint="Check the path.")
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: ~name of no user
        raise SourceError(f"{argument!r} cannot be read: {error}.", hint="Check the path.") from error


def _add_folder(collector: _Collector, folder: Path, pattern: Sequence[str]) -> int:
    """Add what `pattern`, one part for each folder and the name, matches below `folder`; how many that is."""
    found = 0
    for relative, local in _walk(collector, folder, None if "**" in pattern else len(pattern)):
        if pattern == _EVERYTHING or _matches(relative.split("/"), pattern):
            found += 1
            if os.path.islink(local) and not _inside(local, folder):
                collector.skip(relative, "a link that leads outside the folder")
            else:
                collector.add(relative, Path(local))
    return found


def _walk(collector: _Collector, folder: Path, depth: int | None) -> Iterator[tuple[str, str]]:
    """Path below `folder` and path as given of each file; strings, because Paths cost five times as much."""

    def fail(error: OSError) -> None:
        # Not merely skipped: --prune would delete every document below.
        raise SourceError(
            f"The folder {error.filename} cannot be listed: {error.strerror}.",
            hint="Make it readable, or leave it out with --exclude.",
        ) from error

    # os.walk does not follow links to folders: no loops, nothing from outside.
    for here, folders, names in os.walk(folder, onerror=fail):
        above = Path(here).relative_to(folder).parts
        inside = "".join(f"{part}/" for part in above)
        if depth is not None and len(above) + 1 >= depth:
            folders.clear()
        own = _OWN if FOLDER in folders else ()
        wanted = (name for name in folders if name[0] != "." and name not in {*_SKIPPED_FOLDERS, *own})
        folders[:] = sorted(name for name in wanted if not collector.excludes(f"{inside}{name}/"))
        for name in folders:
            link = os.path.join(here, name)
            if os.path.islink(link) and not _inside(link, folder):
                collector.skip(f"{inside}{name}", "a link that leads outside the folder")
        for name in sorted(names):
            if name[0] != "." and name not in own:
                yield inside + name, os.path.join(here, name)


def _inside(link: str, folder: Path) -> bool:
    # Not Path.resolve: it raises RuntimeError on a link to itself.
    return Path(os.path.realpath(link)).is_relative_to(os.path.realpath(folder))


def _add_glob(collector: _Collector, pattern: str) -> None:
    # Not glob.glob: it follows links, even in circles, and enters folders that _walk passes over.
    parts = Path(pattern).expanduser().parts
    plain = next(number for number, part in enumerate(parts) if glob.has_magic(part))
    root = Path(*parts[:plain])
    if not root.is_dir() or not _add_folder(collector, root, parts[plain:]):
        raise SourceError(f"Nothing matches {pattern}", hint="Quote the pattern, and check it with `ls`.")


def _matches(names: Sequence[str], pattern: Sequence[str]) -> bool:
    if not pattern:
        return not names
    if pattern[0] == "**":
        return _matches(names, pattern[1:]) or (bool(names) and _matches(names[1:], pattern))
    return bool(names) and fnmatchcase(names[0], pattern[0]) and _matches(names[1:], pattern[1:])


def _same(one: Path, other: Path) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)
