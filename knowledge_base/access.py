"""Who may read which document: the groups that documents name, and those that plumbline.toml names for paths.

Every rule that applies to a document must let a caller in: its own `allow`, and each pattern of `[access]`
that its path matches. So a rule can close a document further and never open it.
"""

import fnmatch
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

GROUP = r"[A-Za-z0-9][A-Za-z0-9._@:/-]{0,99}"
"""What a group may be called."""

_GROUP = re.compile(GROUP)
_OPENS = re.compile(r"[\s\ufeff]*---")
_FRONT_MATTER = re.compile(r"[\s\ufeff]*---[ \t]*\n(.*?)^(?:---|\.\.\.)[ \t]*$", re.DOTALL | re.MULTILINE)
_KEY = "allow"
# YAML can spell a key in letters, or in escapes of a double-quoted string; without either there is none.
_ESCAPE = r"\\[xuU\r\n]"
_COULD_SAY = re.compile(rf"\b{_KEY}\b|{_ESCAPE}", re.IGNORECASE)
# Of what has no end nobody knows how far it goes: prose may hold the word, a key has a sign beside it.
_LOOKS_LIKE_KEY = re.compile(rf"""\b{_KEY}["']?\s*:|\?\s+["']?{_KEY}\b|{_ESCAPE}""", re.IGNORECASE)


def declared_groups(text: str) -> tuple[str, ...] | None:
    """The groups in a document's front matter (`allow: [hr, board]`), None where it says nothing.

    An `allow` that cannot be read as names of groups lets nobody in: (). So does front matter that may hold
    one and is no YAML, or has no end.
    """
    if not _OPENS.match(text):
        return None
    front = _FRONT_MATTER.match(text)
    if front is None:
        return () if _LOOKS_LIKE_KEY.search(text) else None
    if not _COULD_SAY.search(front[1]):
        return None
    try:
        said = _said(front[1])
    except Exception:  # noqa: BLE001 - whatever is wrong with it, nobody may read the document
        return ()
    if not said:
        return None
    groups = [said[0]] if isinstance(said[0], str) else said[0]
    readable = len(said) == 1 and isinstance(groups, list)
    if readable and all(isinstance(group, str) and _GROUP.fullmatch(group) for group in groups):
        return tuple(dict.fromkeys(groups))
    return ()


def _said(front: str) -> list[Any]:
    """What YAML has under each `allow`, however it is written. Raises errors of many kinds."""
    loader = yaml.SafeLoader(front)
    try:
        node = loader.get_single_node()
        if not isinstance(node, yaml.MappingNode):
            prose = node is None or isinstance(node, yaml.ScalarNode)
            return [] if prose else [None]
        written = sum(_is_key(key.value) for key, _ in node.value)
        keys = loader.construct_document(node)
    finally:
        loader.dispose()
    if not isinstance(keys, dict):  # such as a set
        return [None]
    said = [value for key, value in keys.items() if _is_key(key)]
    return said if written < 2 else [None]  # of two that are spelled alike YAML would take the last


def _is_key(key: object) -> bool:
    return str(key).strip().lower() == _KEY


class Access:
    """Who may read which document of one release."""

    def __init__(
        self, patterns: Mapping[str, Sequence[str]], declared: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        self._named = {pattern: frozenset(groups) for pattern, groups in patterns.items()}
        self._patterns = [(_matcher(pattern), groups) for pattern, groups in self._named.items()]
        self._declared = {path: frozenset(groups) for path, groups in (declared or {}).items()}
        self.groups = frozenset[str]().union(
            *(groups for _, groups in self._patterns), *self._declared.values()
        )
        """Every group that is named anywhere: no other makes a difference."""
        self.open = not self._patterns and not self._declared
        """Whether there is no rule at all."""

    def rules(self, path: str) -> list[frozenset[str]]:
        """The groups of every rule for a document: a caller needs one of each."""
        folded = path.lower()
        found = [groups for matches, groups in self._patterns if matches.match(folded)]
        return found + ([self._declared[path]] if path in self._declared else [])

    def allows(self, path: str, groups: frozenset[str]) -> bool:
        """Whether a caller of those groups may read a document."""
        return all(rule & groups for rule in self.rules(path))

    def opens(self, path: str, closed: "Access") -> bool:
        """Whether somebody may read a document by these rules whom those of `closed` keep out."""
        rules = self.rules(path)
        return any(all(rule - other for rule in rules) for other in closed.rules(path))

    def loosened(self, closed: "Access") -> list[str]:
        """The patterns of `closed` that are missing here, or name more groups."""
        return [
            pattern
            for pattern, groups in closed._named.items()
            if pattern not in self._named or self._named[pattern] - groups
        ]


def _matcher(pattern: str) -> re.Pattern[str]:
    """As in `--where path=`, upper and lower case alike; the name of a folder means all that is in it."""
    folded = unicodedata.normalize("NFC", pattern).lower().strip("/")
    return re.compile("|".join(fnmatch.translate(form) for form in (folded, f"{folded}/*")))
