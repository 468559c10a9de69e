"""Refusals of a request that meets a limit, and the reply that they are sent in place of."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass

from starlette.types import Message, Send

from api.problems import openai_error, problem

_LAST_WORD_SECONDS = 1.0


@dataclass
class Refused(Exception):
    """A limit was met; `retry` is the number of seconds after which another try makes sense."""

    status: int
    reason: str
    title: str
    detail: str
    hint: str
    retry: int = 0
    close: bool = False


def too_long(limit: int) -> Refused:
    """The body is longer than it may be."""
    detail = f"The body is longer than {limit} bytes."
    return Refused(413, "body", "ContentTooLarge", detail, "Send less at a time.", close=True)


def too_slow(seconds: float) -> Refused:
    """The body does not come in."""
    detail = f"The body did not come in within {seconds:g} seconds."
    return Refused(408, "slow", "RequestTimeout", detail, "Send it without a pause.", close=True)


def too_many(limit: int, wait: int) -> Refused:
    """The client asks too often."""
    detail = f"More than {limit} requests a minute."
    return Refused(429, "rate", "TooManyRequests", detail, f"Wait {wait} seconds.", retry=wait)


def busy() -> Refused:
    """Every place is taken, and so is the line."""
    detail = "The server has as many requests as it can answer in time."
    return Refused(503, "busy", "ServiceUnavailable", detail, "Try again in a second.", retry=1)


def out_of_time(seconds: float) -> Refused:
    """The answer takes too long."""
    detail = f"The answer took longer than {seconds:g} seconds."
    return Refused(504, "time", "GatewayTimeout", detail, "Ask for less, or raise request_seconds.")


class Reply:
    """What goes back to the client: from the application, or once in its place from us.

    `said` is told the application's status before the client is.
    """

    def __init__(self, send: Send, headers: list[tuple[bytes, bytes]], said: Callable[[int], None]) -> None:
        self._send = send
        self._headers = headers
        self._said = said
        self._closed = False
        self._stream = False
        self.status = 0
        """What the application said; 0 until it does."""

    async def send(self, message: Message) -> None:
        """Pass on what the application says, while it is still its turn."""
        if self._closed:
            raise OSError("The client was told that it takes too long.")
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self._said(self.status)
            self._stream = dict(message["headers"]).get(b"content-type", b"").startswith(b"text/event-stream")
            message = {**message, "headers": [*message["headers"], *self._headers]}
        await self._send(message)

    async def problem(self, refusal: Refused) -> None:
        """Refuse a request that nothing was said to yet."""
        self._closed = True
        body = _problem(refusal)
        headers = [
            (b"content-type", b"application/problem+json"),
            (b"content-length", str(len(body)).encode()),
            *self._headers,
        ]
        if refusal.retry:
            headers.append((b"retry-after", str(refusal.retry).encode()))
        if refusal.close:  # what the client still sends would otherwise be read to its end
            headers.append((b"connection", b"close"))
        await self._send({"type": "http.response.start", "status": refusal.status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})

    async def break_off(self, refusal: Refused) -> None:
        """End a stream with an error event; anything else just ends, and the connection with it."""
        self._closed = True
        if not self._stream:
            return
        event = b"event: error\ndata: " + _problem(refusal) + b"\n\n"
        try:
            async with asyncio.timeout(_LAST_WORD_SECONDS):
                await self._send({"type": "http.response.body", "body": event})
        except TimeoutError:  # it does not read: the server closes the connection
            pass


def _problem(refusal: Refused) -> bytes:
    body = problem(refusal.status, refusal.title, refusal.detail, refusal.hint)
    return json.dumps({**body, "error": openai_error(body)}).encode()
