"""`rag serve`: the HTTP API over one or several knowledge bases."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from api.cli_common import open_answer_log, open_knowledge_base
from api.settings import read_environment
from knowledge_base.errors import UsageError

if TYPE_CHECKING:
    import socket

    from fastapi import FastAPI

    from api.hosting import Host, Hosted

app = typer.Typer()

_DRAIN_SECONDS = 30
"""How long requests that are under way at the end have."""


@app.command()
def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on.")] = 8000,
    kb: Annotated[
        list[str] | None,
        typer.Option("--kb", help="DIR, lakefs://REPOSITORY or NAME=either; may be given several times."),
    ] = None,
    settings: Annotated[
        Path | None, typer.Option(help="Server file: limits, logs, browsers (default: PLUMBLINE_SERVER).")
    ] = None,
    linger: Annotated[
        float,
        typer.Option(
            min=0, help="Seconds after SIGTERM in which /readyz says 503 and all is still answered."
        ),
    ] = 1.0,
) -> None:
    """Serve the console (`/`) and the HTTP API: POST /v1/query, POST /v1/search, /v1/chat/completions."""
    from api.hosting import Host
    from api.logs import configure_logging
    from api.serve_settings import read_serve_settings
    from api.server import create_app
    from api.tracing import Tracing

    environment = read_environment()
    chosen = read_serve_settings(settings or environment.server)
    tracing = Tracing(wanted=environment.tracing, contents=chosen.log_questions)
    configure_logging()
    served = Host(map(_hosted, kb or ("",)))
    _refuse_strangers(served, host)
    listening = _listen(host, port)
    shown, number = f"[{host}]" if ":" in host else host, listening.getsockname()[1]
    for one in served:
        release = one.live.engine().release_ref.commit[:12]
        sys.stderr.write(f"Serving {release} of {one.name} on http://{shown}:{number}\n")
    sys.stderr.write("Ctrl-C stops.\n")
    application = create_app(served, gate_token=environment.gate_token, settings=chosen, tracing=tracing)
    _run(served, application, listening, linger)


def _hosted(given: str) -> "Hosted":
    """What `--kb` names: `NAME=` in front of a place decides what it is called."""
    from api.hosting import Hosted
    from api.serving import Live

    name, place = "", given
    if "=" in given and not Path(given).exists():
        name, _, place = given.partition("=")
    opened = open_knowledge_base(place or None)
    return Hosted(name or opened.root.name, opened, Live(opened), open_answer_log(opened))


def _run(served: "Host", application: "FastAPI", listening: "socket.socket", linger: float) -> None:
    """Serve until a signal; at SIGTERM stay for `linger` seconds, then finish what is under way."""
    import signal
    import time
    from types import FrameType

    import uvicorn

    class Server(uvicorn.Server):  # type: ignore[misc]
        """uvicorn's stops listening the moment it is told to: a load balancer would learn it from errors."""

        leave = float("inf")

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            if sig == signal.SIGTERM:  # a second one ends the lingering
                self.leave = time.monotonic() + (0 if served.draining else linger)
                served.draining = True
            else:
                super().handle_exit(sig, frame)

        async def on_tick(self, counter: int) -> bool:
            return await super().on_tick(counter) or time.monotonic() > self.leave

    config = uvicorn.Config(
        application,
        log_config=None,  # ours, as JSON
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_DRAIN_SECONDS,
    )
    Server(config).run(sockets=[listening])


def _refuse_strangers(served: "Host", host: str) -> None:
    """Without a key whoever can reach the server is an admin: that may be this machine alone."""
    from api.access import is_loopback

    if not is_loopback(host) and not served.keys.exist():
        raise UsageError(
            f"Without a key nobody but this machine may ask; {host} can be reached by others.",
            hint="Create one: `rag key create NAME --role admin`.",
        )


def _listen(host: str, port: int) -> "socket.socket":
    import socket

    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise UsageError(
            f"Cannot listen on {host}:{port}: {error.strerror or error}.",
            hint="Choose another --host or --port.",
        ) from error
