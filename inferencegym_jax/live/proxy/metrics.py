"""The proxy's Prometheus metrics, in a registry of their own."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from inferencegym_jax.live.loop.admission_line import CLASSES
from inferencegym_jax.live.loop.gate import Gate

TTFT_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
OUTCOMES = ("completed", "refused", "rejected", "client_gone", "upstream_error", "truncated")


class ControlMetrics:
    """Counters and gauges; ``page`` is what ``GET /metrics`` answers."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        prefix = "inferencegym_control"
        self.requests = Counter(
            f"{prefix}_requests",
            "Generation requests by class and outcome",
            ("priority", "outcome"),
            registry=self.registry,
        )
        self.tokens = Counter(f"{prefix}_output_tokens", "Output tokens passed on", registry=self.registry)
        self.opaque_answers = Counter(
            f"{prefix}_opaque_answers",
            "Answers in a compression that is not read: their tokens are not counted",
            registry=self.registry,
        )
        self.ttft = Histogram(
            f"{prefix}_ttft_seconds",
            "Arrival to first token, waiting included",
            ("priority",),
            buckets=TTFT_BUCKETS,
            registry=self.registry,
        )
        self.waiting = Gauge(
            f"{prefix}_waiting_requests", "Requests in the queue", ("priority",), registry=self.registry
        )
        self.running = Gauge(f"{prefix}_running_requests", "Requests at the upstream", registry=self.registry)
        self.batch_size = Gauge(
            f"{prefix}_batch_size",
            "Most requests at the upstream at once; +Inf is plain pass-through",
            registry=self.registry,
        )
        self.fallback = Gauge(f"{prefix}_fallback", "1 while the policy is out of use", registry=self.registry)
        self.policy_failures = Counter(
            f"{prefix}_policy_failures", "Seconds without a usable answer", registry=self.registry
        )
        for name in CLASSES:
            for outcome in OUTCOMES:
                self.requests.labels(name, outcome)

    def page(self, gate: Gate, fallback: bool) -> bytes:
        """The metrics as Prometheus text."""
        for name, count in zip(CLASSES, gate.waiting_by_class, strict=True):
            self.waiting.labels(name).set(count)
        self.running.set(gate.inside)
        self.batch_size.set(float("inf") if gate.limit is None else gate.limit)
        self.fallback.set(float(fallback))
        return generate_latest(self.registry)
