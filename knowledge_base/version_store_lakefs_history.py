"""Commits of a lakeFS repository in the protocol's words: metadata, order, merges that cannot be."""

import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from knowledge_base.errors import HookFailedError, PlumblineError
from knowledge_base.version_store import Change, Commit, Strategy
from knowledge_base.version_store_lakefs_client import Client
from knowledge_base.version_store_lakefs_objects import clash, folders_above
from knowledge_base.version_store_rules import in_log_order

TRANSACTION = "plumbline-tx"
"""Metadata key that names one transaction: how an answer that was lost is found again."""

_MESSAGE = "plumbline-message"
_OURS = (TRANSACTION, _MESSAGE)
_SERVER = ".lakefs."


def to_metadata(message: str, metadata: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """The message and metadata to send: a new transaction id is among them.

    lakeFS writes a message of its own where it is given none, so an empty one travels as metadata.
    """
    sent = {**metadata, TRANSACTION: secrets.token_hex(16)}
    if not message.strip():
        sent[_MESSAGE] = message
        message = "(no message)"
    return message, sent


def describe(record: Mapping[str, Any]) -> Commit:
    """A commit as it was given to the store."""
    metadata = dict(record["metadata"])
    message = metadata.get(_MESSAGE, record["message"])
    kept = {key: value for key, value in metadata.items() if key not in _OURS and not key.startswith(_SERVER)}
    return Commit(
        id=record["id"],
        parents=tuple(record["parents"]),
        committer=record["committer"],
        message=message,
        creation_date=record["creation_date"],
        metadata=kept,
    )


def newest_first(found: Iterator[Commit], start: str, first_parent: bool) -> Iterator[Commit]:
    """Commits newest first, parents after all their children; on first parents as they come."""
    if first_parent:
        yield from found
        return
    commits = {commit.id: commit for commit in found}
    parents = {commit.id: commit.parents for commit in commits.values()}
    dates = {commit.id: commit.creation_date for commit in commits.values()}
    yield from (commits[name] for name in in_log_order(start, parents, dates))


def refuse_merge_clashes(
    theirs: Sequence[Change], ours: Callable[[], Iterable[Change]], strategy: Strategy | None
) -> None:
    """Raise InvalidPathError when a merge would make one path the folder of another.

    `theirs` is what the source changed since the merge base, `ours` what the destination changed. Each
    side is sound by itself, so only a path that one side added can clash with one that the other has.
    """
    taken = {
        change.path
        for change in theirs
        if change.type in ("added", "changed") or (change.type == "conflict" and strategy == "source-wins")
    }
    if not taken:
        return
    gone = {change.path for change in theirs if change.type == "removed"}
    there = {change.path for change in ours() if change.type != "removed"} - gone
    for one, other in ((taken, there), (there, taken)):
        for path in sorted(one):
            for folder in folders_above(path):
                if folder in other:
                    raise clash(folder)


def hook_report(client: Client, repository: str, error: PlumblineError) -> None:
    """Add what the hooks wrote to an error that says one refused: lakeFS keeps it in the run's log."""
    run = re.search(r"run id '([^']+)'", error.message)
    if not isinstance(error, HookFailedError) or run is None:
        return
    api = client.api.actions_api
    with suppress(PlumblineError):  # the refusal counts, with or without its report
        for page in client.pages(api.list_run_hooks, repository, run[1]):
            for hook in page:
                if hook.status == "failed":
                    said = bytes(client.call(api.get_run_hook_output, repository, run[1], hook.hook_run_id))
                    error.message += "\n" + said.decode("utf-8", "replace").strip()
                    error.args = (error.message,)
