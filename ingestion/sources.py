"""What there is to read: folders, files, globs and standard input become document paths."""

import glob
import os
import stat
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from knowledge_base.errors import DocumentError, InvalidPathError, SourceError
from knowledge_base.release import DOCUMENTS_PREFIX
from knowledge_base.version_store import validate_path

_SKIPPED_FOLDERS = frozenset({"node_modules", "__pycache__", "site-packages"})


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
            facts = self.local.stat()
            if not stat.S_ISREG(facts.st_mode):
                raise DocumentError("not a regular file")
            self._limited(b"", facts.st_size, max_bytes)
            return self.local.read_bytes()
        except OSError as error:
            raise DocumentError(f"cannot be read: {(error.strerror or str(error)).lower()}") from error

    @staticmethod
    def _limited(content: bytes, size: int, max_bytes: int) -> bytes:
        if size > max_bytes:
            raise DocumentError(
                f"too large: {size / 1e6:.0f} MB, the limit is {max_bytes / 1e6:.0f} MB (--max-mb)"
            )
        return content


@dataclass(frozen=True)
class Sources:
    """Files to read in byte order of their paths, and (path, reason) of those that cannot even be named."""

    files: tuple[SourceFile, ...]
    skipped: tuple[tuple[str, str], ...] = ()


@dataclass
class _Collector:
    prefix: str
    exclude: Sequence[str]
    files: dict[str, SourceFile] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def add(self, relative: str, local: Path | None, content: bytes | None = None) -> None:
        # A name that is not UTF-8 carries surrogates: shown escaped, never stored.
        shown = relative.encode("utf-8", "backslashreplace").decode()
        path = unicodedata.normalize("NFC", self.prefix + relative)
        if self._excluded(relative):
            return
        try:
            validate_path(DOCUMENTS_PREFIX + path)
        except InvalidPathError as error:
            self.skipped[self.prefix + shown] = error.message
            return
        other = self.files.get(path)
        if other is not None and (other.local is None or local is None or not _same(other.local, local)):
            raise SourceError(
                f"Two sources would both be the document {path!r}: {other.local or 'standard input'} and "
                f"{local or 'standard input'}.",
                hint="Ingest them in two commands, one with --prefix.",
            )
        self.files[path] = SourceFile(path, local, content)

    def _excluded(self, relative: str) -> bool:
        if not self.exclude:
            return False
        import pathspec

        return pathspec.PathSpec.from_lines("gitwildmatch", self.exclude).match_file(relative)


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
    node_modules, __pycache__ and site-packages, are passed over; `exclude` takes gitignore patterns.

    Raises:
        SourceError: A path does not exist, or two files would have the same document path.
    """
    clean = prefix.strip("/")
    if clean:
        validate_path(DOCUMENTS_PREFIX + clean)
    collector = _Collector(f"{clean}/" if clean else "", exclude)
    for argument in arguments:
        if argument == "-":
            if stdin is None:
                raise SourceError("There is no standard input to read.")
            collector.add(stdin[0], None, stdin[1])
        else:
            _collect(collector, argument)
    ordered = sorted(collector.files.values(), key=lambda source: source.path.encode())
    return Sources(tuple(ordered), tuple(sorted(collector.skipped.items())))


def _collect(collector: _Collector, argument: str) -> None:
    path = Path(argument).expanduser()
    try:
        if path.is_dir():
            _add_folder(collector, path)
        elif os.path.lexists(path):
            collector.add(path.name, path)
        elif glob.has_magic(argument):
            _add_glob(collector, argument)
        else:
            raise SourceError(f"There is no such file or folder: {argument}", hint="Check the path.")
    except (OSError, ValueError) as error:
        raise SourceError(f"{argument!r} cannot be read: {error}.", hint="Check the path.") from error


def _add_folder(collector: _Collector, folder: Path) -> None:
    for local in _walk(folder):
        relative = local.relative_to(folder).as_posix()
        if local.is_symlink() and not _inside(local, folder):
            collector.skipped[collector.prefix + relative] = "a link that leads outside the folder"
        else:
            collector.add(relative, local)


def _walk(folder: Path) -> Iterator[Path]:
    # os.walk does not follow links to folders: no loops, nothing from outside.
    for current, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name[0] != "." and name not in _SKIPPED_FOLDERS)
        for name in sorted(names):
            if name[0] != ".":
                yield Path(current) / name


def _inside(link: Path, folder: Path) -> bool:
    return link.resolve().is_relative_to(folder.resolve())


def _add_glob(collector: _Collector, pattern: str) -> None:
    parts = Path(pattern).expanduser().parts
    plain = 0
    while plain < len(parts) and not glob.has_magic(parts[plain]):
        plain += 1
    root = Path(*parts[:plain])
    found = [root / name for name in glob.glob(str(Path(*parts[plain:])), root_dir=root, recursive=True)]
    files = sorted(path for path in found if path.is_file())
    if not files:
        raise SourceError(f"Nothing matches {pattern}", hint="Quote the pattern, and check it with `ls`.")
    for local in files:
        collector.add(local.relative_to(root).as_posix(), local)


def _same(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()
