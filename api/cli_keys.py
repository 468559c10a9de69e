"""`rag key` and `rag audit`: who may use the server, and what they did."""

import sys
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from api.cli_common import Json, Kb, answer_log_url, open_knowledge_base, print_json
from knowledge_base.errors import UsageError

if TYPE_CHECKING:
    from datetime import datetime

    from api.keys import Caller, Keys

app = typer.Typer(help="Create, list and revoke the keys of a server.", no_args_is_help=True)

_Role = Literal["reader", "writer", "admin"]


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Whose key it is, such as website.")],
    role: Annotated[_Role, typer.Option(help="What it may do: ask, change, or all.")] = "reader",
    group: Annotated[
        list[str] | None, typer.Option(help="A group whose documents it sees; may be given several times.")
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", help="A knowledge base of the server that it is for (default: all)."),
    ] = None,
    expires: Annotated[str | None, typer.Option(help="When it ends: 90d, 12h or 2027-01-31.")] = None,
    kb: Kb = None,
    as_json: Json = False,
) -> None:
    """Create a key and print it, this once; from then on every request needs one."""
    keys = _open(kb)
    secret, key = keys.create(
        name,
        role,
        groups=group or (),
        knowledge_bases=only or (),
        expires_at=_moment(expires) if expires else None,
        by=_on_this_machine(),
    )
    if as_json:
        print_json({**key.as_json(), "key": secret})
        return
    sys.stderr.write("Keep it now: it cannot be shown again. Send it as Authorization: Bearer KEY.\n")
    sys.stdout.write(f"{secret}\n")


@app.command("list")
def list_keys(kb: Kb = None, as_json: Json = False) -> None:
    """List every key that was ever created, newest first."""
    found = [key.as_json() for key in _open(kb).list()]
    if as_json:
        print_json(found)
        return
    from api.render import print_table

    columns = ("state", "id", "name", "role", "groups", "knowledge_bases", "expires_at", "used_at")
    print_table(columns, found)


@app.command()
def revoke(
    id: Annotated[str, typer.Argument(help="Its id, or its prefix as `rag key list` shows it.")],
    kb: Kb = None,
    as_json: Json = False,
) -> None:
    """Close a key for good; a running server refuses it from the next request on."""
    key = _open(kb).revoke(id.removeprefix("plk_").rstrip("_"), by=_on_this_machine())
    if as_json:
        print_json(key.as_json())
    else:
        sys.stdout.write(f"{key.prefix}... of {key.name} is revoked.\n")


def audit(
    number: Annotated[int, typer.Option("-n", "--number", min=1, help="How many rows.")] = 50,
    kb: Kb = None,
    as_json: Json = False,
) -> None:
    """Show who changed what over HTTP, and every key made or revoked, newest first."""
    rows = [entry.model_dump(mode="json") for entry in _open(kb).audit.entries(number)]
    if as_json:
        print_json(rows)
        return
    from api.render import print_table

    print_table(("at", "name", "key_id", "action", "kb", "outcome", "about"), rows)


def _open(kb: str | None) -> "Keys":
    from api.keys import Keys

    return Keys(answer_log_url(open_knowledge_base(kb)))


def _on_this_machine() -> "Caller":
    import getpass
    import os

    from api.keys import Caller

    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container whose user has no name
        user = str(os.getuid())
    return Caller(key_id="", name=f"local {user}", role="admin")


def _moment(text: str) -> "datetime":
    """What `--expires` means. Raises UsageError."""
    import re
    from datetime import UTC, datetime, timedelta

    if span := re.fullmatch(r"(\d{1,5})([dh])", text):
        hours: Any = int(span[1]) * (24 if span[2] == "d" else 1)
        return datetime.now(UTC) + timedelta(hours=hours)
    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        raise UsageError(f"--expires {text}: no time.", hint="Write 90d, 12h or 2027-01-31.") from error
    return found if found.tzinfo else found.replace(tzinfo=UTC)
