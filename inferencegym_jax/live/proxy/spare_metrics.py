"""The spare engine's Prometheus metrics; all are there, at 0, where there is no spare."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from inferencegym_jax.live.capacity.spare import FAILURES, STATES, Spare

SECONDS = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0)


class SpareMetrics:
    """Gauges and counters of one spare, brought up to date when the page is asked for."""

    def __init__(self, prefix: str, registry: CollectorRegistry):
        self.state = Gauge(f"{prefix}_spare_state", "1 for what the spare is doing", ("state",), registry=registry)
        self.serving = Gauge(f"{prefix}_spare_serving", "1 while new requests go to the spare", registry=registry)
        self.running = Gauge(f"{prefix}_spare_running_requests", "Requests at the spare", registry=registry)
        self.billed = Counter(
            f"{prefix}_spare_billed_seconds", "From each asking until the spare had stopped", registry=registry
        )
        self.failures = Counter(
            f"{prefix}_spare_failures",
            "Failed starts and stops, and spares that died",
            ("kind",),
            registry=registry,
        )
        self.passed_on = Counter(
            f"{prefix}_passed_on_requests", "Requests that an engine refused and the other one got", registry=registry
        )
        self.start_s = Histogram(
            f"{prefix}_spare_start_seconds", "Asking to first healthy answer", buckets=SECONDS, registry=registry
        )
        self.stop_s = Histogram(
            f"{prefix}_spare_stop_seconds", "Of a stop, after the spare was empty", buckets=SECONDS, registry=registry
        )
        self._counted: dict[str, float] = {}
        for state in STATES:
            self.state.labels(state)
        for kind in FAILURES:
            self.failures.labels(kind)

    def update(self, passed_on: int, spare: Spare | None) -> None:
        """Bring the figures up to date."""
        self.passed_on.inc(self._risen("passed_on", passed_on))
        if spare is None:
            return
        for state in STATES:
            self.state.labels(state).set(float(spare.state == state))
        self.serving.set(float(spare.serves))
        self.running.set(spare.inside)
        self.billed.inc(self._risen("billed", spare.billed_s))
        for kind, count in spare.history.failures.items():
            self.failures.labels(kind).inc(self._risen(kind, count))
        for name, histogram, seconds in (
            ("starts", self.start_s, spare.history.start_s),
            ("stops", self.stop_s, spare.history.stop_s),
        ):
            seen = int(self._counted.get(name, 0.0))
            for value in seconds[seen:]:
                histogram.observe(value)
            self._counted[name] = float(len(seconds))

    def _risen(self, name: str, now: float) -> float:
        before = self._counted.get(name, 0.0)
        self._counted[name] = now
        return max(now - before, 0.0)
