"""Traces in OpenTelemetry's words, sent when the environment names where to.

Names are those of the semantic conventions for generative AI (v1.41), which are still in development: they
are written here and nowhere else. OpenTelemetry's own variables (OTEL_EXPORTER_OTLP_ENDPOINT,
OTEL_SERVICE_NAME, OTEL_TRACES_SAMPLER, ...) mean what its documentation says.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from starlette.datastructures import Headers
from starlette.types import Scope

from knowledge_base.configuration import EXTRACTIVE
from knowledge_base.errors import MissingExtraError
from rag.answer import Answer

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

_PER_MILLISECOND = 1_000_000
_SERVER_ERROR = 500


class RequestSpan:
    """The span of a request; one that is not traced forgets what it is told."""

    def __init__(self, span: "Span | None", method: str = "") -> None:
        self._span = span
        self._method = method

    def finish(self, route: str, status: int) -> None:
        """Say what the request turned out to be."""
        if self._span is None:
            return
        from opentelemetry.trace import StatusCode

        self._span.set_attributes({"http.route": route, "http.response.status_code": status})
        self._span.update_name(f"{self._method} {route}")
        if status >= _SERVER_ERROR:
            self._span.set_status(StatusCode.ERROR)


class Tracing:
    """The spans of one server; `contents` lets passages and questions into them.

    Raises:
        MissingExtraError: The extra `tracing` is not installed.
    """

    def __init__(self, *, wanted: bool = False, contents: bool = False) -> None:
        self._provider = _provider() if wanted else None
        self._tracer = self._provider.get_tracer("plumbline") if self._provider else None
        self._contents = contents

    @contextmanager
    def request(self, scope: Scope) -> Iterator[RequestSpan]:
        """The span of a request, child of the caller's if it sent a `traceparent`."""
        if self._tracer is None:
            yield RequestSpan(None)
            return
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        about = {"http.request.method": scope["method"], "url.path": scope["path"]}
        caller = TraceContextTextMapPropagator().extract(dict(Headers(scope=scope)))
        with self._tracer.start_as_current_span(
            scope["method"], caller, kind=SpanKind.SERVER, attributes=about
        ) as span:
            yield RequestSpan(span, scope["method"])

    def answer(self, kb: str, answer: Answer) -> None:
        """The spans of an answer that was just made, from the times that it carries."""
        if self._tracer is None:
            return
        from opentelemetry.trace import SpanKind

        end = time.time_ns()
        begin = end - int(answer.timings_ms.get("total", 0) * _PER_MILLISECOND)
        found = begin + int(answer.timings_ms.get("retrieve", 0) * _PER_MILLISECOND)
        spans = [(f"retrieval {kb}", begin, found, self._about_retrieval(kb, answer))]
        if answer.model != EXTRACTIVE:
            spans.append((f"chat {_name(answer.model)}", found, end, _about_chat(answer)))
        for name, start, stop, about in spans:
            span = self._tracer.start_span(name, kind=SpanKind.CLIENT, attributes=about, start_time=start)
            span.end(stop)

    def close(self) -> None:
        """Send what is left."""
        if self._provider:
            self._provider.shutdown()

    def _about_retrieval(self, kb: str, answer: Answer) -> dict[str, Any]:
        about = {
            "gen_ai.operation.name": "retrieval",
            "gen_ai.data_source.id": kb,
            "plumbline.release": answer.release.commit,
            "plumbline.passages": len(answer.contexts),
        }
        if self._contents:
            documents = [{"id": passage.chunk_id, "score": passage.score} for passage in answer.contexts]
            about["gen_ai.retrieval.documents"] = json.dumps(documents)
            about["gen_ai.retrieval.query.text"] = answer.queries[0] if answer.queries else answer.question
        return about


def _about_chat(answer: Answer) -> dict[str, Any]:
    provider, _, _ = answer.model.partition(":")
    about = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": provider,
        "gen_ai.request.model": _name(answer.model),
        "gen_ai.usage.input_tokens": answer.usage.input_tokens,
        "gen_ai.usage.output_tokens": answer.usage.output_tokens,
        "gen_ai.prompt.name": "answer",
        "plumbline.prompt.hash": answer.prompt,
        "plumbline.cost": answer.cost,
        "plumbline.abstained": answer.abstained,
    }
    if "first_text" in answer.timings_ms:
        waited = answer.timings_ms["first_text"] - answer.timings_ms.get("retrieve", 0)
        about["gen_ai.response.time_to_first_chunk"] = waited / 1000
    return about


def _name(model: str) -> str:
    return model.partition(":")[2] or model


def _provider() -> "TracerProvider":
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise MissingExtraError(
            f"Tracing needs {error.name}, which is not installed.",
            hint="Run: pip install 'plumbline[tracing]', or unset OTEL_EXPORTER_OTLP_ENDPOINT.",
        ) from error
    resource = Resource({SERVICE_NAME: "plumbline"}).merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider
