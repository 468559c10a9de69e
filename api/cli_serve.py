"""`rag serve`: the HTTP API over one or several knowledge bases."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from api.cli_common import answer_log_url, open_knowledge_base
from knowledge_base.errors import UsageError

if TYPE_CHECKING:
    import socket

    from api.hosting import Hosted

app = typer.Typer()


@app.command()
def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on.")] = 8000,
    kb: Annotated[
        list[str] | None,
        typer.Option("--kb", help="DIR, lakefs://REPOSITORY or NAME=either; may be given several times."),
    ] = None,
) -> None:
    """Serve the HTTP API: POST /v1/query, POST /v1/search, GET /healthz."""
    import uvicorn

    from api.hosting import Host
    from api.server import create_app

    served = Host(map(_hosted, kb or ("",)))
    listening = _listen(host, port)
    shown, number = f"[{host}]" if ":" in host else host, listening.getsockname()[1]
    for one in served:
        release = one.live.engine().release_ref.commit[:12]
        sys.stderr.write(f"Serving {release} of {one.name} on http://{shown}:{number}\n")
    sys.stderr.write("Ctrl-C stops.\n")
    uvicorn.Server(uvicorn.Config(create_app(served), log_level="warning")).run(sockets=[listening])


def _hosted(given: str) -> "Hosted":
    """What `--kb` names: `NAME=` in front of a place decides what it is called."""
    from api.hosting import Hosted
    from api.serving import Live
    from rag.answer_log import AnswerLog

    name, place = "", given
    if "=" in given and not Path(given).exists():
        name, _, place = given.partition("=")
    opened = open_knowledge_base(place or None)
    return Hosted(name or opened.root.name, opened, Live(opened), AnswerLog(answer_log_url(opened)))


def _listen(host: str, port: int) -> "socket.socket":
    import socket

    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise UsageError(
            f"Cannot listen on {host}:{port}: {error.strerror or error}.",
            hint="Choose another --host or --port.",
        ) from error
