"""What every request passes first and every response last: ids, safe headers, the log line, the metrics."""

import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.answering import RELEASE_HEADER
from api.logs import log_answer, log_request
from api.observe import Metrics
from api.request_context import REQUEST_ID, WITNESS
from api.tracing import Tracing
from rag.answer import Answer

REQUEST_HEADER = "X-Request-Id"
_REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_CLIENT_LEFT = 499
# A response that says otherwise for itself, such as a report that is shown in a sandbox, is left alone.
_SECURITY = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; object-src 'none'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
_FOR_A_YEAR = "max-age=31536000"


class Edge:
    """An application whose requests have ids, safe headers, a log line and numbers."""

    def __init__(self, app: ASGIApp, metrics: Metrics, tracing: Tracing, *, log_questions: bool) -> None:
        self._app = app
        self._metrics = metrics
        self._tracing = tracing
        self._log_questions = log_questions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        given = Headers(scope=scope).get(REQUEST_HEADER, "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        REQUEST_ID.set(request_id)
        WITNESS.set(self)
        started, status, release = time.perf_counter(), _CLIENT_LEFT, ""

        async def sending(message: Message) -> None:
            nonlocal status, release
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(raw=list(message["headers"]))
                _secure(headers, scope)
                headers[REQUEST_HEADER] = request_id
                release = headers.get(RELEASE_HEADER, "")
                message = {**message, "headers": headers.raw}
            await send(message)

        with self._metrics.in_progress.track_inprogress(), self._tracing.request(scope) as span:
            try:
                await self._app(scope, receive, sending)
            finally:
                seconds = time.perf_counter() - started
                route = getattr(scope.get("route"), "path", "unmatched")
                self._metrics.request(scope["method"], route, status, seconds)
                span.finish(route, status)
                log_request(
                    method=scope["method"],
                    path=scope["path"],
                    status=status,
                    ms=round(seconds * 1000, 1),
                    release=release,
                    client=scope["client"][0] if scope.get("client") else "",
                )
        return None

    def unfinished(self, kb: str, release: str, question: str) -> None:
        """Count and log a stream that nobody waited for the end of."""
        self._metrics.unfinished(kb)
        log_answer(kb=kb, release=release, unfinished=True, **self._shown(question))

    def answered(self, kb: str, answer: Answer) -> None:
        """Count, trace and log an answer."""
        self._metrics.answer(kb, answer)
        self._tracing.answer(kb, answer)
        log_answer(
            kb=kb,
            answer=answer.id,
            release=answer.release.commit,
            abstained=answer.abstained,
            model=answer.model,
            input_tokens=answer.usage.input_tokens,
            output_tokens=answer.usage.output_tokens,
            cost=answer.cost,
            ms=answer.timings_ms.get("total"),
            **self._shown(answer.question),
        )

    def _shown(self, question: str) -> dict[str, str]:
        return {"question": question} if self._log_questions else {}


def _secure(headers: MutableHeaders, scope: Scope) -> None:
    for name, value in _SECURITY.items():
        headers.setdefault(name, value)
    if scope["scheme"] == "https":
        headers.setdefault("Strict-Transport-Security", _FOR_A_YEAR)
    if scope["path"].startswith("/v1/"):
        headers.setdefault("Cache-Control", "no-store")
