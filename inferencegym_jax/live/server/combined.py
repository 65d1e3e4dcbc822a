"""Readings of several engines as those of one: what the observation and the gate see of an upstream and its spare."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Hashable, Mapping

import httpx

from inferencegym_jax.live.server.probe import EngineMetrics, read_metrics

COUNTERS = ("preemptions", "draft_tokens", "accepted_tokens")


async def read_all(clients: Mapping[Hashable, httpx.AsyncClient], timeout_s: float) -> dict[Hashable, EngineMetrics]:
    """One reading of each engine at the same time, without those that tell nothing or are late."""
    readings = await asyncio.gather(*(read_metrics(client, timeout_s) for client in clients.values()))
    return {key: metrics for key, metrics in zip(clients, readings, strict=True) if metrics is not None}


class Combined:
    """Engines that come and go, read as one.

    Requests are added up. The share of the cache in use is the mean of the engines that serve, as the simulator's
    occupancy is; the pool is theirs together, its GB those of one engine. Counters rise by what each engine's rose, so
    that neither a start from 0 nor one that goes on from an old count shows.
    """

    def __init__(self) -> None:
        self._last: dict[Hashable, EngineMetrics] = {}
        self._totals: dict[str, float] = {}

    def read(self, readings: Mapping[Hashable, EngineMetrics], serving: set[Hashable]) -> EngineMetrics | None:
        """Add a reading of every engine that runs requests.

        Args:
            readings: by engine; those that told nothing are left out.
            serving: engines that take new requests, whether they told anything or not.

        Returns:
            The one reading; None where no engine told anything.
        """
        for key, metrics in readings.items():
            before = self._last.get(key)
            for name in COUNTERS:
                now = getattr(metrics, name)
                if now is None:
                    continue
                earlier = getattr(before, name) if before is not None else None
                risen = max(now - earlier, 0.0) if earlier is not None else 0.0
                self._totals[name] = self._totals.get(name, 0.0) + risen
        self._last = dict(readings)
        if not readings:
            return None

        def known(name: str, keys: set[Hashable]) -> list[float]:
            values = [getattr(metrics, name) for key, metrics in readings.items() if key in keys]
            return [value for value in values if value is not None]

        def mean(name: str) -> float | None:
            values = known(name, serving)
            return sum(values) / len(values) if values else None

        def total(name: str) -> float | None:
            values = known(name, set(readings))
            return sum(values) if values else None

        pool = mean("kv_cache_tokens")
        return dataclasses.replace(
            EngineMetrics(),
            **{name: self._totals.get(name) for name in COUNTERS},
            running=total("running"),
            waiting=total("waiting"),
            kv_usage=mean("kv_usage"),
            kv_cache_gb=mean("kv_cache_gb"),
            kv_cache_tokens=None if pool is None else pool * len(serving),
        )
