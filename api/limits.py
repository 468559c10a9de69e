"""What one client may take: bytes, requests a minute, a place among those being answered, time.

A small body is read whole before its request gets a place, so that a client that sends slowly holds no place
and no thread. A place is given back when the work has really ended: a thread cannot be stopped, and a place
that is free too early would let more work in than the limit says.
"""

import asyncio
import ipaddress
import json
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import anyio.to_thread
from fastapi import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.observe import Metrics
from api.problems import problem
from api.serve_settings import ServeSettings

ALWAYS_ANSWERED = ("/healthz", "/readyz", "/metrics")
"""What machines ask to find out how a server is: never refused for being busy."""
_UPLOADS = (("POST", "/v1/documents"), ("POST", "/documents"))
_REMEMBERED = 10_000
_SPARE_THREADS = 8
_LAST_WORD_SECONDS = 1.0


def client_address(scope: Scope) -> str:
    """Who a request counts for: the address, of IPv6 the network, since one host has 2^64 of them."""
    address = scope["client"][0] if scope.get("client") else ""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    return str(ipaddress.ip_network((parsed, 64), strict=False)) if parsed.version == 6 else address


class Limited:
    """An application within limits.

    `identify` says for whom a request counts; whatever it gives must not be free for the client to choose.
    """

    def __init__(
        self,
        app: ASGIApp,
        settings: ServeSettings,
        metrics: Metrics,
        identify: Callable[[Scope], str] = client_address,
    ) -> None:
        self._app = app
        self._settings = settings
        self._metrics = metrics
        self._identify = identify
        self._rate = _Rate(settings.requests_per_minute)
        self._work = _Line(settings.concurrent_requests, settings.queued_requests, settings.queue_seconds)
        self._uploads = _Line(settings.concurrent_uploads, settings.queued_requests, settings.queue_seconds)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or refuse it."""
        if scope["type"] != "http" or scope["path"] in ALWAYS_ANSWERED:
            return await self._app(scope, receive, send)
        allowance = self._rate.take(self._identify(scope))
        reply = _Reply(send, allowance.headers)
        try:
            if allowance.wait:
                raise _too_many(self._settings.requests_per_minute, allowance.wait)
            if (scope["method"], scope["path"]) in _UPLOADS:
                await self._answer(scope, self._counted(scope, receive), reply, upload=True)
            else:
                await self._answer(scope, await self._read(scope, receive), reply, upload=False)
        except _Refused as refusal:
            self._metrics.refused.labels(refusal.reason).inc()
            await reply.problem(refusal)
        return None

    async def _answer(self, scope: Scope, receive: Receive, reply: "_Reply", *, upload: bool) -> None:
        line = self._uploads if upload else self._work
        seconds = self._settings.upload_seconds if upload else self._settings.request_seconds
        with self._metrics.queued.track_inprogress():
            await line.enter()
        work = asyncio.ensure_future(self._app(scope, receive, reply.send))
        work.add_done_callback(lambda done: _leave(line, done))
        try:
            # The pool of threads is made here, where its loop runs; one request needs one at a time.
            pool = anyio.to_thread.current_default_thread_limiter()
            pool.total_tokens = max(pool.total_tokens, self._settings.concurrent_requests + _SPARE_THREADS)
            await asyncio.wait({work}, timeout=seconds)
        except asyncio.CancelledError:
            work.cancel()
            raise
        if work.done():
            return work.result()
        refusal = _out_of_time(seconds)
        if not reply.started:
            raise refusal
        self._metrics.refused.labels(refusal.reason).inc()
        await reply.break_off(refusal)
        return None

    async def _read(self, scope: Scope, receive: Receive) -> Receive:
        """The whole of a small body, given again at once; after it what the server has to say."""
        limit = self._settings.max_body_bytes
        if _announced(scope) > limit:
            raise _too_long(limit)
        messages: list[Message] = []
        received, more = 0, True
        try:
            async with asyncio.timeout(self._settings.body_seconds):
                while more:
                    message = await receive()
                    messages.append(message)
                    received += len(message.get("body", b""))
                    more = message.get("more_body", False)
                    if received > limit:
                        raise _too_long(limit)
        except TimeoutError:
            raise _too_slow(self._settings.body_seconds) from None
        body = b"".join(message.get("body", b"") for message in messages)
        again = [{**messages[-1], "body": body}] if messages[-1]["type"] == "http.request" else messages[-1:]

        async def replay() -> Message:
            return again.pop() if again else await receive()

        return replay

    def _counted(self, scope: Scope, receive: Receive) -> Receive:
        """A long body as it comes, counted; what is raised reaches the route that reads it."""
        limit, patience = self._settings.max_upload_bytes, self._settings.body_seconds
        if _announced(scope) > limit:
            raise _too_long(limit)
        received, complete = 0, False

        async def counted() -> Message:
            nonlocal received, complete
            try:
                # After the body only the client's leaving is waited for, and that may take its time.
                async with asyncio.timeout(None if complete else patience):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, _too_slow(patience).detail) from None
            received += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if received > limit:
                raise HTTPException(413, _too_long(limit).detail)
            return message

        return counted


def _leave(line: "_Line", done: "asyncio.Future[Any]") -> None:
    line.leave()
    if not done.cancelled():
        done.exception()  # looked at, so that work whose client was refused meanwhile is not reported as lost


def _announced(scope: Scope) -> int:
    given = dict(scope["headers"]).get(b"content-length", b"0")
    return int(given) if given.isdigit() else 0


# -- refusing ----------------------------------------------------------------------------------


@dataclass
class _Refused(Exception):
    """A limit was met; `retry` is the number of seconds after which another try makes sense."""

    status: int
    reason: str
    title: str
    detail: str
    hint: str
    retry: int = 0
    close: bool = False


def _too_long(limit: int) -> _Refused:
    detail = f"The body is longer than {limit} bytes."
    return _Refused(413, "body", "ContentTooLarge", detail, "Send less at a time.", close=True)


def _too_slow(seconds: float) -> _Refused:
    detail = f"The body did not come in within {seconds:g} seconds."
    return _Refused(408, "slow", "RequestTimeout", detail, "Send it without a pause.", close=True)


def _too_many(limit: int, wait: int) -> _Refused:
    detail = f"More than {limit} requests a minute."
    return _Refused(429, "rate", "TooManyRequests", detail, f"Wait {wait} seconds.", retry=wait)


def _busy() -> _Refused:
    detail = "The server has as many requests as it can answer in time."
    return _Refused(503, "busy", "ServiceUnavailable", detail, "Try again in a second.", retry=1)


def _out_of_time(seconds: float) -> _Refused:
    detail = f"The answer took longer than {seconds:g} seconds."
    return _Refused(504, "time", "GatewayTimeout", detail, "Ask for less, or raise request_seconds.")


class _Reply:
    """What goes back to the client: from the application, or once in its place from us."""

    def __init__(self, send: Send, headers: list[tuple[bytes, bytes]]) -> None:
        self._send = send
        self._headers = headers
        self._closed = False
        self._stream = False
        self.started = False

    async def send(self, message: Message) -> None:
        """Pass on what the application says, while it is still its turn."""
        if self._closed:
            raise OSError("The client was told that it takes too long.")
        if message["type"] == "http.response.start":
            self.started = True
            self._stream = dict(message["headers"]).get(b"content-type", b"").startswith(b"text/event-stream")
            message = {**message, "headers": [*message["headers"], *self._headers]}
        await self._send(message)

    async def problem(self, refusal: _Refused) -> None:
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

    async def break_off(self, refusal: _Refused) -> None:
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


def _problem(refusal: _Refused) -> bytes:
    body = problem(refusal.status, refusal.title, refusal.detail, refusal.hint)
    # The second member is what clients of OpenAI's protocol look for.
    error = {"message": refusal.detail, "type": refusal.title, "code": refusal.status}
    return json.dumps({**body, "error": error}).encode()


# -- counting ----------------------------------------------------------------------------------


class _Line:
    """A number of places, and a short line of those who wait for one."""

    def __init__(self, places: int, length: int, seconds: float) -> None:
        self._places = asyncio.Semaphore(places)
        self._length = length
        self._seconds = seconds
        self._waiting = 0

    async def enter(self) -> None:
        """Take a place. Raises _Refused when the line is full, or does not move."""
        if self._places.locked() and self._waiting >= self._length:
            raise _busy()
        self._waiting += 1
        try:
            async with asyncio.timeout(self._seconds):
                await self._places.acquire()
        except TimeoutError:
            raise _busy() from None
        finally:
            self._waiting -= 1

    def leave(self) -> None:
        """Give the place back."""
        self._places.release()


@dataclass(frozen=True)
class _Allowance:
    """What is left to a client; `wait` is not zero when it must wait that many seconds."""

    wait: int
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)


class _Rate:
    """A token bucket for each client: a minute's worth at once, then as fast as it fills."""

    def __init__(self, per_minute: int) -> None:
        self._size = per_minute
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, client: str) -> _Allowance:
        """Count one request."""
        if not self._size:
            return _Allowance(0)
        now, each = time.monotonic(), 60 / self._size
        left, when = self._buckets.pop(client, (float(self._size), now))
        left = min(self._size, left + (now - when) / each)
        allowed = left >= 1
        left -= allowed
        self._buckets[client] = (left, now)
        # The longest unseen is forgotten: it starts with a full bucket, which by then it mostly has.
        if len(self._buckets) > _REMEMBERED:
            self._buckets.popitem(last=False)
        full = math.ceil((self._size - left) * each)
        headers = [
            (b"ratelimit-policy", b'"requests";q=%d;w=60' % self._size),
            (b"ratelimit", b'"requests";r=%d;t=%d' % (int(left), full)),
        ]
        return _Allowance(0 if allowed else max(1, math.ceil((1 - left) * each)), headers)
