"""A real server in this process, and `rag serve` in one of its own."""

import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import uvicorn
from fastapi import FastAPI

RAG = [sys.executable, "-c", "from api.cli import main; main()"]


@contextmanager
def running(application: FastAPI) -> Iterator[str]:
    """The address of a server in a thread; it ends with the block."""
    server = uvicorn.Server(uvicorn.Config(application, port=0, log_level="critical"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        thread.join(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def rag_serve(root: Path, *options: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """`rag serve` over a folder, and its address, from when it is ready."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [*RAG, "serve", "--kb", str(root), "--port", str(port), *options]
    url = f"http://127.0.0.1:{port}"
    # Not into a pipe: nobody reads it, and a server that writes a line for each request would fill it.
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            while True:
                assert process.poll() is None, (log.seek(0), log.read())
                try:
                    httpx.get(f"{url}/readyz", timeout=30).raise_for_status()
                    break
                except httpx.TransportError:
                    threading.Event().wait(0.1)
            yield process, url
        finally:
            process.kill()
            process.wait()
