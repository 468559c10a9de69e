"""Commit messages of the embedded store: the text, then one readable trailer a metadata key.

Nothing is lost: what a trailer cannot hold as it is (odd keys, a message git would trim) goes into JSON.
"""

import json
import re
from collections.abc import Mapping

_TRAILER = "Plumbline-"
_LINE = re.compile(r"Plumbline-([^:\n]+): (.*)")
_PLAIN_KEY = re.compile(r"[A-Za-z0-9_.-]+", re.ASCII)
_OTHER = "Other"
_MESSAGE = "Message"
_MARK = "Version"
_RESERVED = (_OTHER, _MESSAGE, _MARK)


def format_message(message: str, metadata: Mapping[str, str]) -> str:
    """The message, then one trailer a key; the last trailer marks the block as ours."""
    lines = []
    for key, value in sorted(metadata.items()):
        plain = _PLAIN_KEY.fullmatch(key) and key not in _RESERVED
        lines.append(
            f"{_TRAILER}{key}: {_json(value)}" if plain else f"{_TRAILER}{_OTHER}: {_json({key: value})}"
        )
    shown = message.lstrip("\n").replace("\0", "\N{REPLACEMENT CHARACTER}")
    shown = shown.encode("utf-8", "replace").decode()
    if shown != message:
        lines.append(f"{_TRAILER}{_MESSAGE}: {_json(message)}")
    return f"{shown}\n\n" + "\n".join([*lines, f"{_TRAILER}{_MARK}: 1"]) + "\n"


def parse_message(text: str) -> tuple[str, dict[str, str]]:
    """Message and metadata; a commit made with git itself is all message."""
    message, _, block = text.rstrip("\n").rpartition("\n\n")
    *lines, mark = block.split("\n")
    if mark != f"{_TRAILER}{_MARK}: 1":
        return text, {}
    metadata: dict[str, str] = {}
    for line in lines:
        matched = _LINE.fullmatch(line)
        try:
            value = json.loads(matched[2]) if matched else None
        except ValueError:
            return text, {}
        if matched and matched[1] == _MESSAGE:
            message = str(value)
        elif matched and matched[1] == _OTHER and isinstance(value, dict):
            metadata.update(value)
        elif matched and isinstance(value, str):
            metadata[matched[1]] = value
        else:
            return text, {}
    return message, metadata


def _json(value: object) -> str:
    """JSON on one line, readable; escaped throughout only where it could not be shown otherwise."""
    text = json.dumps(value, ensure_ascii=False)
    return text if text.isprintable() else json.dumps(value)
