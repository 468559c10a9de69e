"""A server that speaks OpenAI's chat completions over a real socket and says what a test tells it to.

No language model can be fetched to this machine, and no vendor's server gives exact replies or faults.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PROMPT_TOKENS_PER_CHARACTER = 0.25


@dataclass(frozen=True)
class Reply:
    """What the server does with one request.

    `text` is streamed word by word when the request asks for a stream. `break_after` words the
    connection is cut; `wait` seconds pass before anything is sent.
    """

    text: str = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    break_after: int | None = None
    wait: float = 0.0
    refusal: str = ""
    finish_reason: str = "stop"
    body: bytes | None = None
    """Sent as it is, in place of JSON."""


Request = dict[str, Any]
Script = Callable[[Request], Reply]


class ScriptedServer(ThreadingHTTPServer):
    """Answers by `script`; keeps every request it got."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requests: list[Request] = []
        self.script: Script = lambda request: Reply("I have nothing to say.")

    @property
    def url(self) -> str:
        """The base URL to configure."""
        return f"http://127.0.0.1:{self.server_port}/v1"

    def say(self, *replies: Reply | str) -> None:
        """Give these replies in turn, the last one for ever."""
        queue = [Reply(reply) if isinstance(reply, str) else reply for reply in replies]
        self.script = lambda request: queue.pop(0) if len(queue) > 1 else queue[0]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ScriptedServer

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append(request)
        reply = self.server.script(request)
        time.sleep(reply.wait)
        if reply.body is not None:
            self._send(reply.status, reply.body, reply.headers)
        elif reply.status != 200:
            error = {"error": {"message": f"scripted status {reply.status}", "type": "test", "code": None}}
            self._send(reply.status, json.dumps(error).encode(), reply.headers)
        elif request.get("stream"):
            self._stream(request, reply)
        else:
            self._send(200, json.dumps(_completion(request, reply)).encode(), reply.headers)

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _stream(self, request: Request, reply: Reply) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        words = [word + " " for word in reply.text.split(" ")]
        words[-1] = words[-1][:-1]
        for number, word in enumerate(words):
            if number == reply.break_after:
                self.close_connection = True
                return
            self._event(_chunk(request, {"role": "assistant", "content": word}, None))
        if reply.refusal:
            self._event(_chunk(request, {"refusal": reply.refusal}, None))
        self._event(_chunk(request, {}, reply.finish_reason))
        if (request.get("stream_options") or {}).get("include_usage"):
            self._event({**_chunk(request, {}, None), "choices": [], "usage": _usage(request, reply)})
        self._write(b"data: [DONE]\n\n")
        self._write(b"")

    def _event(self, value: dict[str, Any]) -> None:
        self._write(b"data: " + json.dumps(value).encode() + b"\n\n")

    def _write(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()


def _usage(request: Request, reply: Reply) -> dict[str, int]:
    asked = sum(len(str(message.get("content", ""))) for message in request["messages"])
    read, written = int(asked * PROMPT_TOKENS_PER_CHARACTER), len(reply.text.split())
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def _completion(request: Request, reply: Reply) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": reply.text}
    if reply.refusal:
        message |= {"content": None, "refusal": reply.refusal}
    choice = {"index": 0, "message": message, "finish_reason": reply.finish_reason}
    return {
        "id": "chatcmpl-test",
        "object": "chat.completion",
        "created": 0,
        "model": request["model"],
        "choices": [choice],
        "usage": _usage(request, reply),
    }


def _chunk(request: Request, delta: dict[str, Any], finish_reason: str | None) -> dict[str, Any]:
    return {
        "id": "chatcmpl-test",
        "object": "chat.completion.chunk",
        "created": 0,
        "model": request["model"],
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}],
    }


@contextmanager
def scripted_server() -> Iterator[ScriptedServer]:
    """A server on a free port of this machine, stopped at the end."""
    server = ScriptedServer()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
