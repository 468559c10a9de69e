"""What one client may take: bytes, requests a minute, a place among those being answered, time.

A small body is read whole before its request gets a place, so that a client that sends slowly holds no place
and no thread. A place is given back when the work has really ended: a thread cannot be stopped, and a place
that is free too early would let more work in than the limit says.
"""

import asyncio
import hashlib
import ipaddress
import math
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

import anyio.to_thread
from fastapi import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.observe import Metrics
from api.refusals import Refused, Reply, busy, out_of_time, too_long, too_many, too_slow
from api.request_context import VERIFIED_KEY
from api.serve_settings import ServeSettings

_ALWAYS = ("/healthz", "/readyz")
# Looked at when there is too much to do, so it waits in no line; its rate is limited all the same.
_NO_WAITING = "/metrics"
_UPLOADS = (("POST", "/v1/documents"), ("POST", "/documents"))
_REMEMBERED = 10_000
_UNAUTHORIZED = 401
_SPARE_THREADS = 8
_WEIGHT = 0.1
"""Of the latest request in the mean of how long requests hold a place."""


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

    A request counts for its key, if the application has found before that it is one, else for its address.
    So whoever makes keys up gains nothing, on routes that ask for none either.
    """

    def __init__(self, app: ASGIApp, settings: ServeSettings, metrics: Metrics) -> None:
        self._app = app
        self._settings = settings
        self._metrics = metrics
        self._rate = _Rate(settings.requests_per_minute)
        self._keys = _KnownKeys()
        self._work = _Line(settings.concurrent_requests, settings.queued_requests, settings.queue_seconds)
        self._uploads = _Line(settings.concurrent_uploads, settings.queued_requests, settings.queue_seconds)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or refuse it."""
        if scope["type"] != "http" or scope["path"] in _ALWAYS:
            return await self._app(scope, receive, send)
        key = dict(scope["headers"]).get(b"authorization", b"")
        allowance = self._rate.take(self._keys.find(key) or client_address(scope))

        def said(status: int) -> None:
            self._keys.learn(key, scope.get(VERIFIED_KEY), refused=status == _UNAUTHORIZED)

        reply = Reply(send, allowance.headers, said)
        try:
            if allowance.wait:
                raise too_many(self._settings.requests_per_minute, allowance.wait)
            if scope["path"] == _NO_WAITING:
                await self._app(scope, receive, reply.send)
            elif (scope["method"], scope["path"]) in _UPLOADS:
                await self._answer(scope, self._counted(scope, receive), reply, upload=True)
            else:
                body = await self._read(scope, receive)
                await self._answer(scope, body, reply, upload=False, left=receive)
        except _Left:
            pass  # nobody is there to be told anything
        except Refused as refusal:
            self._metrics.refused.labels(refusal.reason).inc()
            await reply.problem(refusal)
        return None

    async def _answer(
        self, scope: Scope, receive: Receive, reply: Reply, *, upload: bool, left: Receive | None = None
    ) -> None:
        """Answer in a place of the line; `left` ends when the client leaves, if that can be waited for."""
        line = self._uploads if upload else self._work
        seconds = self._settings.upload_seconds if upload else self._settings.request_seconds
        with self._metrics.queued.track_inprogress():
            since = await line.enter(left)
        work = asyncio.ensure_future(self._app(scope, receive, reply.send))
        work.add_done_callback(lambda done: _leave(line, since, done))
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
        refusal = out_of_time(seconds)
        if not reply.status:
            raise refusal
        self._metrics.refused.labels(refusal.reason).inc()
        await reply.break_off(refusal)
        return None

    async def _read(self, scope: Scope, receive: Receive) -> Receive:
        """The whole of a small body, given again at once; after it what the server has to say."""
        limit = self._settings.max_body_bytes
        if _announced(scope) > limit:
            raise too_long(limit)
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
                        raise too_long(limit)
        except TimeoutError:
            raise too_slow(self._settings.body_seconds) from None
        body = b"".join(message.get("body", b"") for message in messages)
        again = [{**messages[-1], "body": body}] if messages[-1]["type"] == "http.request" else messages[-1:]

        async def replay() -> Message:
            return again.pop() if again else await receive()

        return replay

    def _counted(self, scope: Scope, receive: Receive) -> Receive:
        """A long body as it comes, counted; what is raised reaches the route that reads it."""
        limit, patience = self._settings.max_upload_bytes, self._settings.body_seconds
        if _announced(scope) > limit:
            raise too_long(limit)
        received, complete = 0, False

        async def counted() -> Message:
            nonlocal received, complete
            try:
                # After the body only the client's leaving is waited for, and that may take its time.
                async with asyncio.timeout(None if complete else patience):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, too_slow(patience).detail) from None
            received += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if received > limit:
                raise HTTPException(413, too_long(limit).detail)
            return message

        return counted


def _leave(line: "_Line", since: float, done: "asyncio.Future[Any]") -> None:
    line.leave(since)
    if not done.cancelled():
        done.exception()  # looked at, so that work whose client was refused meanwhile is not reported as lost


def _announced(scope: Scope) -> int:
    given = dict(scope["headers"]).get(b"content-length", b"0")
    return int(given) if given.isdigit() else 0


class _Left(Exception):
    """The client left while it waited for a place."""


class _KnownKeys:
    """Authorization headers that were found to hold a key, by their hash, and the ids of those keys."""

    def __init__(self) -> None:
        self._ids: OrderedDict[bytes, str] = OrderedDict()

    def find(self, header: bytes) -> str | None:
        """The id of a header's key, if it is known."""
        return self._ids.get(hashlib.sha256(header).digest()) if header else None

    def learn(self, header: bytes, id: str | None, *, refused: bool) -> None:
        """Take note of what the application found, and forget a key that it refused."""
        known = hashlib.sha256(header).digest()
        if id or refused:
            self._ids.pop(known, None)
        if id:
            self._ids[known] = id
            if len(self._ids) > _REMEMBERED:
                self._ids.popitem(last=False)


class _Line:
    """A number of places, and a short line of those who wait for one.

    A refusal is worth most at once: whoever could hardly be served within `seconds`, as fast as places have
    been given back so far, is not let into the line to be refused at its end.
    """

    def __init__(self, places: int, length: int, seconds: float) -> None:
        self._places = asyncio.Semaphore(places)
        self._number = places
        self._length = length
        self._seconds = seconds
        self._waiting = 0
        self._held = 0.0
        self._moved = time.monotonic()

    async def enter(self, left: Receive | None = None) -> float:
        """Take a place; returns since when it is held.

        Raises:
            Refused: There will be none in time.
            _Left: The client has left, so that it needs none.
        """
        if self._places.locked() and not self._is_worth_waiting():
            raise busy()
        if self._places.locked():
            await self._wait(left)
        else:
            await self._places.acquire()
        self._moved = time.monotonic()
        return self._moved

    async def _wait(self, left: Receive | None) -> None:
        place = asyncio.ensure_future(self._places.acquire())
        gone = [asyncio.ensure_future(left())] if left else []
        self._waiting += 1
        try:
            await asyncio.wait([place, *gone], timeout=self._seconds, return_when=asyncio.FIRST_COMPLETED)
            if not place.done():
                raise _Left if any(one.done() for one in gone) else busy()
        finally:
            self._waiting -= 1
            for one in (place, *gone):
                one.cancel()  # of a place that was taken this does nothing

    def leave(self, since: float) -> None:
        """Give back the place that was held since then."""
        self._moved = time.monotonic()
        held = self._moved - since
        self._held += _WEIGHT * (held - self._held) if self._held else held
        self._places.release()

    def _is_worth_waiting(self) -> bool:
        ahead = self._waiting * self._held / self._number
        still = time.monotonic() - self._moved
        # Half of the time, because places are held for longer at one moment than at another.
        return self._waiting < self._length and ahead + still <= self._seconds / 2


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
        """Count a request."""
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
