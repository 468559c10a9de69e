"""Names and paths that every version store can carry unchanged."""

import re
import unicodedata

from knowledge_base.errors import InvalidNameError, InvalidPathError

RESERVED_BRANCH_PREFIX = "plumbline-tx-"

_REPOSITORY = re.compile(r"[a-z0-9][a-z0-9-]{2,62}", re.ASCII)
_BRANCH = re.compile(r"[0-9A-Za-z_][-0-9A-Za-z_]{0,99}", re.ASCII)
_TAG = re.compile(r"[0-9A-Za-z_][-.0-9A-Za-z_]{0,99}", re.ASCII)
_HEX_ID = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}", re.ASCII)
MAX_PATH_BYTES = 1024


def validate_repository_name(name: str) -> str:
    """The name itself when both backends can carry it. Raises InvalidNameError."""
    if not _REPOSITORY.fullmatch(name):
        raise InvalidNameError(
            f"Invalid repository name {name!r}.",
            hint="Use 3 to 63 lower-case letters, digits and hyphens, starting with a letter or digit.",
        )
    return name


def validate_branch_name(name: str) -> str:
    """The name itself when both backends can carry it. Raises InvalidNameError."""
    if not _BRANCH.fullmatch(name) or _HEX_ID.fullmatch(name) or name.startswith(RESERVED_BRANCH_PREFIX):
        raise InvalidNameError(
            f"Invalid branch name {name!r}.",
            hint="Use up to 100 ASCII letters, digits, '_' and '-'; no '-' in front, no commit id.",
        )
    return name


def validate_tag_name(name: str) -> str:
    """The name itself when both backends can carry it. Raises InvalidNameError."""
    bad = ".." in name or name.endswith((".", ".lock"))
    if not _TAG.fullmatch(name) or bad or _HEX_ID.fullmatch(name):
        raise InvalidNameError(
            f"Invalid tag name {name!r}.",
            hint="Use up to 100 ASCII letters, digits, '_', '-' and '.', not starting with '-' or '.'.",
        )
    return name


def validate_path(path: str) -> str:
    """The path itself when both backends can carry it unchanged. Raises InvalidPathError."""
    segments = path.split("/")
    reason = None
    if not path or "" in segments:
        reason = "it is empty, or starts, ends or doubles a slash"
    elif any(ord(character) < 32 or ord(character) == 127 or character == "\\" for character in path):
        reason = "it holds a control character or a backslash"
    elif any(segment in {".", ".."} or segment.lower() == ".git" for segment in segments):
        reason = "it holds a '.', '..' or '.git' segment"
    elif segments[0].startswith("_lakefs") or segments[-1] == ".gitattributes":
        reason = "the name is reserved by a version store"
    else:
        reason = _encoding_fault(path)
    if reason:
        raise InvalidPathError(f"Invalid path {path!r}: {reason}.", hint="Rename the file.")
    return path


def _encoding_fault(path: str) -> str | None:
    try:
        encoded = path.encode("utf-8")
    except UnicodeEncodeError:
        return "it is not valid Unicode"
    if unicodedata.normalize("NFC", path) != path:
        return "it is not in Unicode normal form C"
    if len(encoded) > MAX_PATH_BYTES:
        return f"it is longer than {MAX_PATH_BYTES} bytes"
    return None
