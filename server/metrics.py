"""What the server counts, for Prometheus."""

from __future__ import annotations

import os

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

LATENCY_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)  # seconds


class Metrics:
    """Counters of one application. With several workers (PROMETHEUS_MULTIPROC_DIR set) the page sums over them."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "inferencegym_requests_total", "HTTP requests", ("method", "route", "status"), registry=self.registry
        )
        self.latency = Histogram(
            "inferencegym_request_seconds",
            "Time to answer an HTTP request",
            ("route",),
            buckets=LATENCY_BUCKETS,
            registry=self.registry,
        )
        steps = Counter("inferencegym_steps_total", "Environment steps taken", ("transport",), registry=self.registry)
        self.http_steps, self.ws_steps = steps.labels("http"), steps.labels("websocket")
        self.rollout_steps = steps.labels("rollout")
        self.sessions = Gauge(
            "inferencegym_sessions",
            "Live sessions",
            ("transport",),
            registry=self.registry,
            multiprocess_mode="livesum",
        )

    def page(self) -> bytes:
        """The exposition in Prometheus' text format."""
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            return generate_latest(self.registry)
        registry = CollectorRegistry()
        MultiProcessCollector(registry)
        return generate_latest(registry)
