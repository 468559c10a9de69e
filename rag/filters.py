"""Conditions on documents and passages, applied before anything is ranked (`--where`)."""

import fnmatch
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from knowledge_base.errors import NotFoundError, UsageError
from knowledge_base.home import MAIN
from knowledge_base.release import DOCUMENTS_PREFIX
from knowledge_base.snapshot import Selection, Snapshot
from knowledge_base.version_store import Repository

_CONDITION = re.compile(r"\s*([a-z]+(?:\.[^=~<>!]+?)?)\s*(!=|>=|<=|=|~|>|<)\s*(.+?)\s*", re.DOTALL)
CONDITION_PATTERN = (
    r"^\s*((path|title|heading)\s*(=|!=|~)|type\s*(=|!=)|meta\.[^=~<>!]+(=|!=|~|>=|<=|>|<))\s*\S.*$"
    r"|^\s*page\s*(=|!=|>=|<=|>|<)\s*[0-9]{1,9}\s*$"
    r"|^\s*changed\s*(>=|<)\s*20[0-9]{2}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])\s*$"
)
"""The conditions that everybody writes, for machines that read a schema; `parse_conditions` takes more."""
_FRONT_MATTER = re.compile(r"\A---[ \t]*\n(.*?)\n---[ \t]*(?:\n|\Z)", re.DOTALL)
_FIELDS = "path, type, title, heading, page, meta.KEY and changed"
_HINT = f'For example --where "path=guides/*", with one of {_FIELDS}; see docs/answers.md.'
_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "=": operator.eq,
    "!=": operator.ne,
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
_ALLOWED = {
    "path": ("=", "!=", "~"),
    "type": ("=", "!="),
    "title": ("=", "!=", "~"),
    "heading": ("=", "!=", "~"),
    "page": tuple(_COMPARE),
    "changed": (">=", "<"),
}


@dataclass(frozen=True)
class Condition:
    """`field operator value`, all three as they were written."""

    field: str
    operator: str
    value: str


def parse_conditions(texts: Sequence[str]) -> tuple[Condition, ...]:
    """Conditions that must all hold. Raises UsageError."""
    found = []
    for text in texts:
        match = _CONDITION.fullmatch(text)
        known = match and (match[1] in _ALLOWED or match[1].startswith("meta."))
        if not match or not known:
            raise UsageError(f"{text!r} is not a condition.", hint=_HINT)
        condition = Condition(match[1], match[2], match[3])
        if condition.operator not in _ALLOWED.get(condition.field, (*_COMPARE, "~")):
            raise UsageError(f"{text!r}: {condition.field} knows no {condition.operator}.", hint=_HINT)
        found.append(condition)
    return tuple(found)


def select(snapshot: Snapshot, conditions: Sequence[Condition], repository: Repository) -> Selection:
    """The chunks of a release that meet all conditions.

    `changed>=2026-11-01` holds for documents that are not what they were on that day, as `main` had them.

    Raises:
        UsageError: A value that the field cannot have.
    """
    keep = np.ones(snapshot.chunk_count, bool)
    for condition in conditions:
        if condition.field in ("heading", "page"):
            keep &= _chunk_mask(snapshot, condition)
            continue
        test = _document_test(snapshot, condition, repository)
        holds = np.fromiter((test(path) for path in snapshot.paths), bool, len(snapshot.paths))
        keep &= holds[snapshot.chunk_documents] if len(holds) else False
    return snapshot.select(keep)


def _chunk_mask(snapshot: Snapshot, condition: Condition) -> NDArray[np.bool_]:
    if condition.field == "page":
        pages = snapshot.chunk_pages
        holds: NDArray[np.bool_] = _COMPARE[condition.operator](pages, _number(condition)) & (pages > 0)
        return holds
    test = _text_test(condition)
    headings = snapshot.chunk_headings
    known = {heading: any(map(test, heading.split("\n"))) for heading in set(headings.tolist())}
    return np.fromiter((known[heading] for heading in headings.tolist()), bool, len(headings))


def _document_test(snapshot: Snapshot, condition: Condition, repository: Repository) -> Callable[[str], bool]:
    if condition.field == "path":
        return _text_test(condition)
    if condition.field == "type":
        wanted = condition.value.lower().removeprefix(".")
        same = condition.operator == "="
        return lambda path: (PurePosixPath(path).suffix.lower().removeprefix(".") == wanted) == same
    if condition.field == "title":
        test = _text_test(condition)
        return lambda path: test(snapshot.titles(path))
    if condition.field == "changed":
        recent = _changed_since(snapshot, condition, repository)
        return lambda path: (path in recent) == (condition.operator == ">=")
    key = condition.field.removeprefix("meta.")
    return lambda path: _meta_holds(_front_matter(snapshot.document_text(path)).get(key), condition)


def _text_test(condition: Condition) -> Callable[[str], bool]:
    wanted = condition.value.lower()
    if condition.operator == "~":
        return lambda text: wanted in text.lower()
    same = condition.operator == "="
    return lambda text: fnmatch.fnmatchcase(text.lower(), wanted) == same


def _changed_since(snapshot: Snapshot, condition: Condition, repository: Repository) -> set[str]:
    try:
        when = datetime.fromisoformat(condition.value)
    except ValueError as error:
        raise UsageError(
            f"changed{condition.operator}{condition.value}: not a date.", hint="Write it as 2026-11-01."
        ) from error
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    try:
        then = repository.resolve(f"{MAIN}@{{{when.isoformat()}}}")
    except NotFoundError:  # before the first release: everything is newer
        return set(snapshot.paths)
    changes = repository.diff(then, snapshot.release.commit, type="two_dot", prefix=DOCUMENTS_PREFIX)
    return {change.path.removeprefix(DOCUMENTS_PREFIX) for change in changes}


def _front_matter(text: str) -> dict[str, object]:
    """The keys a document declares at its head; none when that is not YAML."""
    found = _FRONT_MATTER.match(text)
    try:
        keys = yaml.safe_load(found[1]) if found else None
    except (yaml.YAMLError, ValueError):  # ValueError: a date that is none
        return {}
    return keys if isinstance(keys, dict) else {}


def _meta_holds(value: object, condition: Condition) -> bool:
    values = value if isinstance(value, list) else [value] if value is not None else []
    if condition.operator in ("=", "!=", "~"):
        positive = Condition(condition.field, condition.operator.replace("!=", "="), condition.value)
        return any(map(_text_test(positive), map(str, values))) == (condition.operator != "!=")
    return any(_compares(condition, one) for one in values)


def _compares(condition: Condition, value: object) -> bool:
    """As numbers when both are; else as text, in which dates are in order."""
    compare = _COMPARE[condition.operator]
    try:
        return bool(compare(float(str(value)), float(condition.value)))
    except ValueError:
        return bool(compare(str(value), condition.value))


def _number(condition: Condition) -> int:
    try:
        return int(condition.value)
    except ValueError as error:
        raise UsageError(f"{condition.field} is a number, not {condition.value!r}.", hint=_HINT) from error
