"""What the server counts, in the text format of Prometheus."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from secure_infer.serve.base import Done

Gauges = Callable[[], Mapping[str, float]]
_SECONDS = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900)


class Metrics:
    """Counters of one server.

    Args:
        gauges: Read at every collection, each under its own prefix.
    """

    def __init__(self, gauges: Mapping[str, Gauges]) -> None:
        self.registry = CollectorRegistry()
        counter = partial(Counter, namespace="secure_infer", registry=self.registry)
        self._requests = counter("http_requests", "Requests by route and status.", ["route", "status"])
        self._bytes = counter("http_bytes", "Bytes of bodies.", ["direction"])
        self._phases = counter("inference_seconds", "Seconds by phase: queue, load, run, cpu.", ["phase"])
        self._inferences = counter("inferences", "Requests that workers have answered.", ["model"])
        self._wall = Histogram(
            "http_seconds",
            "Seconds to the last byte.",
            ["route"],
            "secure_infer",
            "",
            "",
            self.registry,
            None,
            _SECONDS,
        )
        self.registry.register(_Gauges(gauges))

    def request(self, route: str, status: int, seconds: float, received: int, sent: int) -> None:
        """Count a request."""
        self._requests.labels(route, str(status)).inc()
        self._wall.labels(route).observe(seconds)
        self._bytes.labels("in").inc(received)
        self._bytes.labels("out").inc(sent)

    def inference(self, model: str, done: Done) -> None:
        """Count an answered inference."""
        self._inferences.labels(model).inc()
        for phase in ("queue", "load", "run", "cpu"):
            self._phases.labels(phase).inc(max(0.0, getattr(done, f"{phase}_s")))

    def text(self) -> bytes:
        """All metrics."""
        return generate_latest(self.registry)


class _Gauges(Collector):
    def __init__(self, sources: Mapping[str, Gauges]) -> None:
        self._sources = sources

    def collect(self) -> Iterator[GaugeMetricFamily]:
        for prefix, source in self._sources.items():
            for name, value in source().items():
                yield GaugeMetricFamily(f"secure_infer_{prefix}_{name}", f"{prefix}: {name}.", value)


class Meter:
    """Middleware that counts every request under its route, never under what a client made up."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status, received, sent = time.perf_counter(), 0, 0, 0

        async def reading() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            return message

        async def writing(message: Message) -> None:
            nonlocal status, sent
            status = message.get("status", status)
            sent += len(message.get("body", b""))
            await send(message)

        try:
            await self._app(scope, reading, writing)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.request(route, status, time.perf_counter() - start, received, sent)
