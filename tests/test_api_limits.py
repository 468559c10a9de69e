"""What one client may take, on a real server: bytes, requests, places, time."""

import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from api import limits
from api.access import LOCAL
from api.hosting import Host, Hosted
from api.keys import Keys
from api.limits import client_address
from api.serve_settings import ServeSettings
from api.server import create_app
from api.serving import Live
from knowledge_base.home import KnowledgeBase
from rag.answer_log import AnswerLog
from rag.engine import Engine
from tests.running import running
from tests.test_api_server import PORT_QUESTION
from tests.test_api_server import answer_log as answer_log
from tests.test_api_server import live as live

Serve = Callable[..., httpx.Client]


@pytest.fixture
def serve(knowledge_base: KnowledgeBase, live: Live, answer_log: AnswerLog) -> Iterator[Serve]:
    """Starts a real server with the given settings; gives a client of it."""
    with ExitStack() as stack:

        def start(**settings: Any) -> httpx.Client:
            host = Host([Hosted("kb", knowledge_base, live, answer_log)])
            url = stack.enter_context(running(create_app(host, settings=ServeSettings(**settings))))
            return stack.enter_context(httpx.Client(base_url=url, timeout=60))

        yield start


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Searches and streams wait, in their threads, until this is set."""
    go_on = threading.Event()
    search, stream = Engine.search, Engine.stream

    def held_search(engine: Engine, *given: Any) -> Any:
        go_on.wait(60)
        return search(engine, *given)

    def held_stream(engine: Engine, *given: Any, **more: Any) -> Iterator[Any]:
        events = stream(engine, *given, **more)
        yield next(events)
        go_on.wait(60)
        yield from events

    monkeypatch.setattr(Engine, "search", held_search)
    monkeypatch.setattr(Engine, "stream", held_stream)
    yield go_on
    go_on.set()


def is_problem(reply: httpx.Response, status: int, title: str) -> bool:
    body = reply.json()
    assert reply.headers["content-type"] == "application/problem+json"
    assert body["request_id"] == reply.headers["x-request-id"] and body["detail"] and body["hint"]
    return (reply.status_code, body["status"], body["title"]) == (status, status, title)


def test_a_long_body_is_refused_announced_or_not(serve: Serve) -> None:
    client = serve(max_body_bytes=10_000)
    too_long = b'{"question": "' + b"x" * 20_000 + b'"}'
    assert is_problem(client.post("/v1/search", content=too_long), 413, "ContentTooLarge")
    in_pieces = client.post("/v1/search", content=iter([too_long[:9_000], too_long[9_000:]]))
    assert is_problem(in_pieces, 413, "ContentTooLarge")
    assert client.post("/v1/search", json=PORT_QUESTION).status_code == 200


def test_uploads_have_a_bound_of_their_own(serve: Serve) -> None:
    client = serve(max_body_bytes=10_000, max_upload_bytes=100_000)
    fits = client.post("/v1/documents", files=[("files", ("a.md", b"# A\n\n" + b"word " * 10_000))])
    assert fits.status_code == 202, fits.text
    announced = client.post("/v1/documents", files=[("files", ("a.md", b"word " * 40_000))])
    assert is_problem(announced, 413, "ContentTooLarge")
    boundary = {"content-type": "multipart/form-data; boundary=x"}
    pieces = [
        b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.md"\r\n\r\n',
        *[b"w" * 9_000] * 30,
    ]
    assert client.post("/v1/documents", content=iter(pieces), headers=boundary).status_code == 413


def test_a_client_that_asks_too_often_is_told_when_to_come_back(serve: Serve) -> None:
    client = serve(requests_per_minute=3)
    replies = [client.get("/v1/models") for _ in range(4)]
    assert [reply.status_code for reply in replies] == [200, 200, 200, 429]
    assert is_problem(replies[-1], 429, "TooManyRequests")
    assert 1 <= int(replies[-1].headers["retry-after"]) <= 20
    assert replies[0].headers["ratelimit-policy"] == '"requests";q=3;w=60'
    assert [reply.headers["ratelimit"].split(";")[1] for reply in replies] == ["r=2", "r=1", "r=0", "r=0"]
    assert client.get("/healthz").status_code == 200


@given(st.integers(1, 600), st.lists(st.floats(0, 20), max_size=200))
def test_no_client_gets_more_than_its_rate(per_minute: int, pauses: list[float]) -> None:
    now = 1000.0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("api.limits.time.monotonic", lambda: now)
        rate = limits._Rate(per_minute)
        allowed = 0
        for pause in pauses:
            now += pause
            allowance = rate.take("somebody")
            allowed += not allowance.wait
            assert allowed <= per_minute + (now - 1000.0) * per_minute / 60 + 1e-6
            if allowance.wait:  # what it was told is true
                now += allowance.wait
                assert not rate.take("somebody").wait
                allowed += 1


def test_the_rate_of_one_client_is_not_anothers() -> None:
    rate = limits._Rate(1)
    assert not rate.take("one").wait and rate.take("one").wait and not rate.take("other").wait
    for number in range(limits._REMEMBERED + 10):
        rate.take(str(number))
    assert len(rate._buckets) == limits._REMEMBERED


def test_a_key_has_its_own_rate_once_it_was_found_to_be_one(serve: Serve, answer_log: AnswerLog) -> None:
    client = serve(requests_per_minute=4)
    with closing(Keys(answer_log.url)) as keys:
        (one, _), (two, second) = (keys.create(name, "reader", by=LOCAL) for name in ("one", "two"))

        def ask(key: str, times: int) -> list[int]:
            sent = {"Authorization": key}
            return [client.get("/v1/models", headers=sent).status_code for _ in range(times)]

        assert ask(f"Bearer {one}", 6) == [200] * 5 + [429]  # the first of them counted for the address
        assert ask(f"bearer   {one}", 2) == [200, 429]  # written otherwise it is the same key
        assert ask(f"Bearer {two}", 2) == [200, 200]
        keys.revoke(second.id, by=LOCAL)
        assert ask(f"Bearer {two}", 3) == [401, 401, 429]  # the second one counted for the address, the last


@pytest.mark.parametrize("closed", [True, False])
def test_made_up_keys_gain_nothing_on_routes_that_ask_for_none(
    serve: Serve, answer_log: AnswerLog, closed: bool
) -> None:
    client = serve(requests_per_minute=4)
    if closed:
        with closing(Keys(answer_log.url)) as keys:
            keys.create("somebody", "reader", by=LOCAL)
    paths = ["/openapi.json", "/login", "/static/app.css", "/v1/models"] * 2
    made_up = [{"Authorization": f"Bearer plk_{number:012x}_{'x' * 43}"} for number in range(8)]
    statuses = [client.get(path, headers=sent).status_code for path, sent in zip(paths, made_up, strict=True)]
    assert statuses == [200, 200, 200, 401 if closed else 200, 429, 429, 429, 429]


def test_addresses_of_one_ipv6_network_are_one_client() -> None:
    scopes = [{"client": (address, 1)} for address in ("2001:db8::1", "2001:db8::ffff:2", "10.0.0.1", "x")]
    assert [client_address(scope) for scope in scopes] == ["2001:db8::/64", "2001:db8::/64", "10.0.0.1", "x"]
    assert client_address({"client": None}) == ""


def test_overload_is_refused_quickly_and_passes(serve: Serve, held: threading.Event) -> None:
    client = serve(concurrent_requests=2, queued_requests=2, queue_seconds=30)

    def ask(_: int) -> tuple[httpx.Response, float]:
        started = time.monotonic()
        return client.post("/v1/search", json=PORT_QUESTION), time.monotonic() - started

    with ThreadPoolExecutor(40) as pool:
        asked = [pool.submit(ask, number) for number in range(40)]
        for _ in range(300):
            if sum(one.done() for one in asked) == 36:
                break
            time.sleep(0.1)
        assert client.get("/healthz").status_code == client.get("/metrics").status_code == 200
        held.set()
        replies = [one.result() for one in asked]
    refused = [(reply, seconds) for reply, seconds in replies if reply.status_code == 503]
    assert len(refused) == 36 and sum(reply.status_code == 200 for reply, _ in replies) == 4
    assert all(is_problem(reply, 503, "ServiceUnavailable") for reply, _ in refused)
    assert all(reply.headers["retry-after"] == "1" for reply, _ in refused)
    assert max(seconds for _, seconds in refused) < 10
    assert client.post("/v1/search", json=PORT_QUESTION).status_code == 200


def test_whoever_waits_too_long_for_a_place_is_refused(serve: Serve, held: threading.Event) -> None:
    client = serve(concurrent_requests=1, queue_seconds=0.3)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(client.post, "/v1/query", json={**PORT_QUESTION, "stream": True})
        time.sleep(0.5)
        assert is_problem(client.post("/v1/search", json=PORT_QUESTION), 503, "ServiceUnavailable")
        held.set()
        assert first.result().status_code == 200


def test_whoever_would_not_be_served_in_time_is_refused_at_once(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(*_: Any) -> list[Any]:
        time.sleep(0.4)
        return []

    client = serve(concurrent_requests=1, queue_seconds=4)
    monkeypatch.setattr(Engine, "search", slow)
    assert client.post("/v1/search", json=PORT_QUESTION).status_code == 200

    def ask(_: int) -> tuple[int, float]:
        started = time.monotonic()
        return client.post("/v1/search", json=PORT_QUESTION).status_code, time.monotonic() - started

    with ThreadPoolExecutor(40) as pool:
        replies = list(pool.map(ask, range(40)))
    served = [seconds for status, seconds in replies if status == 200]
    refused = [seconds for status, seconds in replies if status == 503]
    assert len(served) + len(refused) == 40 and 3 <= len(served) <= 15
    # The line has room for 64, and would have refused those at its end after four seconds.
    assert max(refused) < 2


def test_an_answer_that_takes_too_long_is_given_up_and_keeps_its_place_until_it_ends(
    serve: Serve, held: threading.Event
) -> None:
    client = serve(concurrent_requests=1, request_seconds=0.5, queue_seconds=0.3)
    started = time.monotonic()
    assert is_problem(client.post("/v1/search", json=PORT_QUESTION), 504, "GatewayTimeout")
    assert time.monotonic() - started < 10
    assert is_problem(client.post("/v1/search", json=PORT_QUESTION), 503, "ServiceUnavailable")
    held.set()
    time.sleep(0.5)
    assert client.get("/v1/models").status_code == 200


def test_a_stream_comes_piece_by_piece_and_ends_with_an_error_when_it_takes_too_long(
    serve: Serve, held: threading.Event
) -> None:
    client = serve(request_seconds=1.5)
    body = {**PORT_QUESTION, "stream": True}
    with client.stream("POST", "/v1/query", json=body) as reply:
        lines = reply.iter_lines()
        assert next(lines) == "event: retrieval" and not held.is_set()
        told = [line for line in lines if line]
    assert told[1] == "event: error"
    problem = json.loads(told[2].removeprefix("data: "))
    assert (problem["status"], problem["error"]["code"]) == (504, 504)


def counted(client: httpx.Client, sample: str) -> float:
    """A sample of /metrics; 0 when it is not there."""
    found = re.search(rf"^{re.escape(sample)} (\S+)$", client.get("/metrics").text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def becomes(client: httpx.Client, sample: str, value: float) -> bool:
    for _ in range(300):
        if counted(client, sample) == value:
            return True
        time.sleep(0.1)
    return False


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/query", PORT_QUESTION),
        ("/v1/chat/completions", {"model": "kb", "messages": [{"role": "user", "content": "Which port?"}]}),
    ],
)
def test_a_stream_that_its_client_leaves_is_counted_and_is_no_answer(
    serve: Serve, held: threading.Event, answer_log: AnswerLog, path: str, body: dict[str, Any]
) -> None:
    client = serve()
    with client.stream("POST", path, json={**body, "stream": True}) as reply:
        next(reply.iter_lines())
    held.set()
    assert becomes(client, 'plumbline_answers_total{kb="kb",outcome="unfinished"}', 1)
    assert not answer_log.recent(1)
    client.post(path, json={**body, "stream": True}).raise_for_status()
    assert becomes(client, 'plumbline_answers_total{kb="kb",outcome="answered"}', 1)
    assert counted(client, 'plumbline_answers_total{kb="kb",outcome="unfinished"}') == 1
    assert len(answer_log.recent(2)) == 1


def test_whoever_leaves_the_line_gets_no_place(serve: Serve, held: threading.Event) -> None:
    client = serve(concurrent_requests=1, queue_seconds=60)
    place, body = urlsplit(str(client.base_url)), json.dumps(PORT_QUESTION).encode()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(client.post, "/v1/search", json=PORT_QUESTION)
        assert becomes(client, "plumbline_http_requests_in_progress", 2)  # the other one asks for metrics
        with socket.create_connection((place.hostname, place.port), 30) as connection:
            head = "POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            assert becomes(client, "plumbline_http_requests_queued", 1)
        assert becomes(client, "plumbline_http_requests_queued", 0) and not first.done()
        held.set()
        assert first.result().status_code == 200
    searched = 'plumbline_http_request_duration_seconds_count{method="POST",route="/v1/search",status="200"}'
    assert counted(client, searched) == 1


def test_clients_that_send_slowly_hold_no_place(serve: Serve) -> None:
    client = serve(concurrent_requests=2, concurrent_uploads=1, queued_requests=0, body_seconds=2)
    place = urlsplit(str(client.base_url))
    with ExitStack() as stack:
        slow = [
            stack.enter_context(socket.create_connection((place.hostname, place.port), 30)) for _ in range(30)
        ]
        for connection in slow:
            connection.sendall(
                b"POST /v1/search HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                b'Content-Length: 100\r\n\r\n{"question"'
            )
        started = time.monotonic()
        assert client.post("/v1/search", json=PORT_QUESTION).status_code == 200
        assert client.get("/v1/models").status_code == 200
        assert time.monotonic() - started < 10
        replies = [connection.recv(65536) for connection in slow]
    assert all(reply.startswith(b"HTTP/1.1 408 ") for reply in replies)
    assert all(b"connection: close" in reply for reply in replies)


def test_an_upload_that_stops_coming_is_ended(serve: Serve) -> None:
    client = serve(body_seconds=1)
    place = urlsplit(str(client.base_url))
    with socket.create_connection((place.hostname, place.port), 30) as connection:
        connection.sendall(
            b"POST /v1/documents HTTP/1.1\r\nHost: localhost\r\nContent-Length: 90000\r\n"
            b"Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n"
        )
        assert connection.recv(65536).startswith(b"HTTP/1.1 408 ")
    assert client.get("/v1/models").status_code == 200
