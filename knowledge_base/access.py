"""Who may read which document: the groups that documents name, and those that plumbline.toml names for paths.

Every rule that applies to a document must let a caller in: its own `allow`, and each pattern of `[access]`
that its path matches. So a rule can close a document further and never open it.
"""

import fnmatch
import re
import unicodedata
from collections.abc import Mapping, Sequence

import yaml

GROUP = r"[A-Za-z0-9][A-Za-z0-9._@:/-]{0,99}"
"""What a group may be called."""

_GROUP = re.compile(GROUP)
_OPENS = re.compile(r"[\s\ufeff]*---")
_FRONT_MATTER = re.compile(r"[\s\ufeff]*---[ \t]*\n(.*?)^(?:---|\.\.\.)[ \t]*$", re.DOTALL | re.MULTILINE)
_SAYS = re.compile(r"""\ballow["']?[ \t]*:""", re.IGNORECASE)
_HEAD = 1000
"""Characters in which front matter without an end is looked for."""


def declared_groups(text: str) -> tuple[str, ...] | None:
    """The groups in a document's front matter (`allow: [hr, board]`), None where it says nothing.

    An `allow` that cannot be read as names of groups lets nobody in: ().
    """
    if not _OPENS.match(text):
        return None
    front = _FRONT_MATTER.match(text)
    if not _SAYS.search(front[1] if front else text[:_HEAD]):
        return None
    try:
        keys = yaml.safe_load(front[1]) if front else None
    except (yaml.YAMLError, ValueError):  # ValueError: a date that is none
        keys = None
    if not isinstance(keys, dict):
        return ()
    said = [value for key, value in keys.items() if str(key).strip().lower() == "allow"]
    if not said:
        return None
    groups = [said[0]] if isinstance(said[0], str) else said[0]
    readable = len(said) == 1 and isinstance(groups, list)
    if readable and all(isinstance(group, str) and _GROUP.fullmatch(group) for group in groups):
        return tuple(dict.fromkeys(groups))
    return ()


class Access:
    """Who may read which document of one release."""

    def __init__(
        self, patterns: Mapping[str, Sequence[str]], declared: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        self._patterns = [(_matcher(pattern), frozenset(groups)) for pattern, groups in patterns.items()]
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


def _matcher(pattern: str) -> re.Pattern[str]:
    """As in `--where path=`, upper and lower case alike; the name of a folder means all that is in it."""
    folded = unicodedata.normalize("NFC", pattern).lower().strip("/")
    return re.compile("|".join(fnmatch.translate(form) for form in (folded, f"{folded}/*")))
