"""The gate on lakeFS: an action file that makes the server ask Plumbline before it moves main or tags.

lakeFS reads it from the SOURCE of a merge. A branch that was made before the file came, or that deleted
it, merges without being asked: so the file is a help, and what binds is that nothing is served whose
commit carries no verdict.
"""

import re
from typing import TYPE_CHECKING

from knowledge_base.errors import UsageError
from knowledge_base.version_store import Commit

if TYPE_CHECKING:
    from knowledge_base.version_store_lakefs_repository import LakeFSRepository

ACTION_PATH = "_lakefs_actions/plumbline-gate.yaml"
GATE_ROUTE = "/v1/gate/lakefs"
"""Where the server answers lakeFS's webhooks: 2xx lets the change through."""

_ACTION = """\
# Made by `rag init --gate`. The server's environment must have LAKEFSACTION_PLUMBLINE_TOKEN.
name: Plumbline gate
description: Asks Plumbline for the verdict on a release before it becomes main's or gets a tag.
on:
  pre-merge:
    branches: ["{branch}"]
  pre-create-tag:
hooks:
  - id: plumbline_gate
    type: webhook
    description: Looks up a stored verdict, which takes moments; it evaluates nothing.
    properties:
      url: "{url}"
      timeout: 30s
      headers:
        Authorization: "Bearer {{{{ ENV.LAKEFSACTION_PLUMBLINE_TOKEN }}}}"
"""


def gate_action(server: str, branch: str) -> bytes:
    """The action file that asks `server` (`http://host:port`) before `branch` moves. Raises UsageError."""
    if not re.fullmatch(r"https?://[-.:\w\[\]]+/?", server, re.ASCII):
        raise UsageError(
            f"{server!r} is no server.", hint="Write the address of `rag serve`: http://host:port."
        )
    return _ACTION.format(url=server.rstrip("/") + GATE_ROUTE, branch=branch).encode()


def install_gate(repository: "LakeFSRepository", server: str, metadata: dict[str, str]) -> Commit | None:
    """Commit the action file on the default branch; None when it is there already.

    `metadata` is what the commit says of its release, which is that of the head.
    Raises UsageError, VersionStoreError.
    """
    return repository.commit_reserved(
        ACTION_PATH,
        gate_action(server, repository.default_branch),
        message="Ask Plumbline's gate before main moves",
        metadata=metadata,
    )
