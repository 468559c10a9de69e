"""What a server tells about itself in numbers: /metrics, in the words of Prometheus.

Names follow prometheus.io/docs/practices/naming: base units, `_total` for counters, and no label whose values
a client could choose, since every value is a series that stays.
"""

from collections.abc import Iterable, Iterator

from fastapi import APIRouter
from fastapi.responses import Response
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from api.access import Visitor
from api.hosting import Hosted
from api.observe_results import Results
from knowledge_base.configuration import EXTRACTIVE
from rag.answer import Answer

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS")


class Metrics:
    """The counters of one server."""

    def __init__(self, host: Iterable[Hosted]) -> None:
        self.registry = made = CollectorRegistry()
        ProcessCollector(namespace="plumbline", registry=made)
        made.register(_Releases(host))
        made.register(Results(host))

        def seconds(name: str, told: str, *labels: str) -> Histogram:
            return Histogram(f"plumbline_{name}_seconds", told, labels, buckets=_SECONDS, registry=made)

        def count(name: str, told: str, *labels: str) -> Counter:
            return Counter(f"plumbline_{name}_total", told, labels, registry=made)

        def gauge(name: str, told: str) -> Gauge:
            return Gauge(f"plumbline_{name}", told, registry=made)

        self._requests = seconds(
            "http_request_duration", "Time to the last byte of a response.", "method", "route", "status"
        )
        self.in_progress = gauge("http_requests_in_progress", "Requests not answered yet.")
        self.queued = gauge("http_requests_queued", "Requests that wait for a place.")
        self.refused = count(
            "http_requests_refused", "Requests that met a limit: body, slow, rate, busy or time.", "reason"
        )
        self._answers = count(
            "answers",
            "Answers: answered, abstained, or unfinished when nobody waited for the end.",
            "kb",
            "outcome",
        )
        self._retrieval = seconds("retrieval_duration", "Time to find the passages of an answer.", "kb")
        self._answering = seconds("answer_duration", "Time to an answer, retrieval included.", "kb")
        self._first_text = seconds(
            "llm_time_to_first_text",
            "Time from the question to the first checked sentence of a language model.",
            "model",
        )
        self._tokens = count("llm_tokens", "Language-model tokens.", "direction", "model")
        self._cost = count("llm_cost", "What they cost at the release's prices.", "model")
        self._failures = count("llm_failures", "Times that a model was asked and failed.", "model")

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request that was answered; `route` is the template, never the path itself."""
        known = method if method in _METHODS else "other"
        self._requests.labels(known, route, str(status)).observe(seconds)

    def unfinished(self, kb: str) -> None:
        """Count a stream that nobody waited for the end of."""
        self._answers.labels(kb, "unfinished").inc()

    def answer(self, kb: str, answer: Answer) -> None:
        """Count an answer."""
        self._answers.labels(kb, "abstained" if answer.abstained else "answered").inc()
        for name, histogram in (("retrieve", self._retrieval), ("total", self._answering)):
            if name in answer.timings_ms:
                histogram.labels(kb).observe(answer.timings_ms[name] / 1000)
        for attempt in answer.attempts:
            self._failures.labels(attempt.model).inc()
        if answer.model == EXTRACTIVE:
            return
        if "first_text" in answer.timings_ms:
            self._first_text.labels(answer.model).observe(answer.timings_ms["first_text"] / 1000)
        self._tokens.labels("input", answer.model).inc(answer.usage.input_tokens)
        self._tokens.labels("output", answer.model).inc(answer.usage.output_tokens)
        self._cost.labels(answer.model).inc(answer.cost)


class _Releases(Collector):
    """What is served at the moment somebody looks."""

    def __init__(self, host: Iterable[Hosted]) -> None:
        self._host = host

    def collect(self) -> Iterator[Metric]:
        """The families, one sample for each knowledge base."""
        info = GaugeMetricFamily(
            "plumbline_serving_release_info", "What is served: always 1.", labels=("kb", "commit", "embedder")
        )
        stale = GaugeMetricFamily(
            "plumbline_serving_stale", "1 while main's newest release cannot be opened.", labels=("kb",)
        )
        documents = GaugeMetricFamily(
            "plumbline_documents", "Documents of what is served, without closed ones.", labels=("kb",)
        )
        chunks = GaugeMetricFamily(
            "plumbline_chunks", "Chunks of what is served, without those of closed documents.", labels=("kb",)
        )
        for one in self._host:
            engine = one.live.engine()
            embedder = engine.release.settings.embedder.model
            info.add_metric((one.name, engine.release_ref.commit, embedder), 1)
            stale.add_metric((one.name,), float(bool(one.live.problem)))
            # Any key may read this page, so closed documents are not counted.
            manifest = engine.seen_by(frozenset()).release.manifest
            documents.add_metric((one.name,), manifest.documents)
            chunks.add_metric((one.name,), manifest.chunks)
        yield from (info, stale, documents, chunks)


def metrics_routes(metrics: Metrics) -> APIRouter:
    """The route."""
    router = APIRouter()

    @router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    def read_metrics(visit: Visitor) -> Response:
        """Tell what is counted, of all knowledge bases: for a key that is not kept to some."""
        visit.require_whole_server()
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return router
