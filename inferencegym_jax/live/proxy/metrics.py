"""The proxy's Prometheus metrics, in a registry of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from inferencegym_jax.live.loop.admission_line import CLASSES, AdmissionLine
from inferencegym_jax.live.proxy.spare_metrics import SpareMetrics

if TYPE_CHECKING:
    from inferencegym_jax.live.proxy.controller import Controller

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
            "Most requests on an engine at once; +Inf is plain pass-through",
            registry=self.registry,
        )
        self.fallback = Gauge(f"{prefix}_fallback", "1 while the policy is out of use", registry=self.registry)
        self.policy_failures = Counter(
            f"{prefix}_policy_failures", "Seconds without a usable answer", registry=self.registry
        )
        self.policy_reloads = Counter(
            f"{prefix}_policy_reloads", "Policies that were asked for at run time", ("result",), registry=self.registry
        )
        self.observes = Gauge(f"{prefix}_observe", "1 in a dry run", registry=self.registry)
        self.policy_batch_size = Gauge(
            f"{prefix}_policy_batch_size", "What the policy last answered, obeyed or not", registry=self.registry
        )
        self.policy_kv_budget = Gauge(f"{prefix}_policy_kv_budget", "The same", registry=self.registry)
        self.policy_second_gpu = Gauge(
            f"{prefix}_policy_second_gpu", "The same: 1 where it asks for a second GPU", registry=self.registry
        )
        self.would_wait = Gauge(
            f"{prefix}_would_wait_requests",
            "Requests that wait, or in a dry run would wait under the policy's batch size",
            registry=self.registry,
        )
        self.spare = SpareMetrics(prefix, self.registry)
        for result in ("loaded", "refused"):
            self.policy_reloads.labels(result)
        for name in CLASSES:
            for outcome in OUTCOMES:
                self.requests.labels(name, outcome)

    def page(self, gate: AdmissionLine[Any], controller: Controller) -> bytes:
        """The metrics as Prometheus text."""
        engines = controller.engines
        for name, count in zip(CLASSES, gate.waiting_by_class, strict=True):
            self.waiting.labels(name).set(count)
        self.running.set(gate.inside)
        self.batch_size.set(float("inf") if engines.batch_size is None else engines.batch_size)
        self.fallback.set(float(controller.fallback is not None))
        self.observes.set(float(controller.observes))
        self.would_wait.set(controller.would_wait())
        if (action := controller.action) is not None:
            self.policy_batch_size.set(float(action.batch_size))
            self.policy_kv_budget.set(float(action.kv_budget))
            self.policy_second_gpu.set(float(action.prefill_disagg))
        self.spare.update(engines.passed_on, controller.spare)
        return generate_latest(self.registry)
