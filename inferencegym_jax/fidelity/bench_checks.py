"""Whether a benchmark's run was what its rate says: caps on concurrency, drafts, and a client that sent at the rate.

``fields of a run -> RunError``, whose message names field, value and what is wanted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from inferencegym_jax.models import shown
from inferencegym_jax.table.bench_files import told

UNCAPPED = frozenset(("inf", "infinity", "none", "unlimited", "-1"))  # what stands for no cap, or for no rate
TWICE = 1.5  # latency over the one that TTFT and TPOT make, from which they contradict each other
DRAFTED = {  # fields of drafts -> what they hold at most where there are none
    **dict.fromkeys(("accept_length", "acceptance_length", "spec_decode_acceptance_length"), 1.01),
    **dict.fromkeys(("spec_length", "spec_decode_acceptance_rate", "spec_decode_num_drafts"), 0.0),
}
OFF_RATE = 0.1  # share by which the rate of a client may differ from the one that it was asked for
LATE, TAIL_S = 1.2, 5.0  # a run lasts so many times as long as its arrivals take, and some latencies, at most


class RunError(ValueError):
    """A file of measured runs that cannot be used; the message names file, row, column and what is wanted."""


def positive(source: str, name: str, value: Any) -> float:
    """``value`` as a finite number above 0.

    Raises:
        RunError: it is none.
    """
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not (math.isfinite(number) and number > 0):
        raise RunError(f"{source}: {name} is {shown(value)}; wanted: a number above 0")
    return number


def count_of(source: str, name: str, value: Any) -> float:
    """``value`` as a finite number of at least 0; 0 where there is none.

    Raises:
        RunError: it is no such number.
    """
    return 0.0 if value in (None, "", 0) else positive(source, name, value)


def check_load(source: str, run: Mapping[str, Any], rate: float, latency_ms: float) -> None:
    """Whether the load was what the rate says and each token was computed: a cap on concurrency, drafts.

    Raises:
        RunError: it was not.
    """
    check_cap(source, run, rate, latency_ms)
    _check_drafts(source, run)
    apart = str(told(run, "disaggregation_mode") or "null").lower()
    if apart not in ("null", "none", "false"):
        raise RunError(
            f"{source}: disaggregation_mode is {shown(apart)}: prefill and decode ran on GPUs of their own; wanted: one"
            " engine"
        )


def odd_duration(source: str, run: Mapping[str, Any], done: float, rate: float, latency_ms: float) -> list[str]:
    """A notice where a run did not last as long as its arrivals take and the last answers: its client may not have sent
    at that rate.

    Raises:
        RunError: the duration is no number above 0.
    """
    if run.get("duration") is None:
        return []
    duration, arrivals = positive(source, "duration", run["duration"]), done / rate
    longer = duration > LATE * arrivals + 4.0 * latency_ms / 1000.0 + TAIL_S
    if not longer and duration >= arrivals - 4.0 * math.sqrt(done) / rate - 1.0 / rate:
        return []
    return [
        f"{source}: duration is {duration:g} s, and {done:g} requests at {rate:g}/s arrive in {arrivals:.3g} s: did the"
        " client send at that rate?"
    ]


def check_cap(source: str, run: Mapping[str, Any], rate: float, latency_ms: float) -> None:
    """A cap on concurrency may not bind: Little's law, and four deviations of a Poisson count above it."""
    cap = told(run, "max_concurrency")
    if cap is None or str(cap).strip().lower() in UNCAPPED:
        return
    cap, mean = positive(source, "max_concurrency", cap), rate * latency_ms / 1000.0
    if cap < mean + 4.0 * math.sqrt(mean) + 1.0:
        raise RunError(
            f"{source}: max_concurrency is {cap:g}, and {rate:g} requests/s of {latency_ms / 1000:.3g} s are {mean:.3g}"
            " at once: the client held requests back; wanted: a run without --max-concurrency"
        )


def check_rate(source: str, name: str, reached: Any, wanted: float) -> None:
    """The rate at which a client sent is the one that it was asked for.

    Raises:
        RunError: it is further from it than 10 %.
    """
    if reached is None:
        return
    rate = positive(source, name, reached)
    if not 1.0 - OFF_RATE <= rate / wanted <= 1.0 + OFF_RATE:
        raise RunError(
            f"{source}: {name} is {rate:g} where {wanted:g} requests/s were asked for: the client did not send at that"
            " rate; wanted: a run whose client keeps up"
        )


def odd_latency(source: str, latency_ms: float, ttft_ms: float, tpot_ms: float, output: float) -> list[str]:
    """A notice where a run's mean latency is another one than its TTFT and TPOT make."""
    made = ttft_ms + tpot_ms * (output - 1.0)
    if 1.0 / TWICE <= latency_ms / made <= TWICE:
        return []
    return [
        f"{source}: the mean latency is {latency_ms:g} ms, and TTFT and TPOT of {output:g} tokens make {made:.4g}; the"
        " latency is used"
    ]


def _check_drafts(source: str, run: Mapping[str, Any]) -> None:
    algorithm = told(run, "speculative_algorithm", "speculative_config", "num_speculative_tokens")
    if algorithm not in (None, False, 0, "0"):
        raise RunError(f"{source}: the engine drafted tokens ({shown(algorithm)}); wanted: a run without drafts")
    for name, most in DRAFTED.items():
        value = told(run, name)
        if value is not None and positive_or_zero(value) > most:
            raise RunError(
                f"{source}: {name} is {shown(value)}: the engine drafted tokens; wanted: a run without drafts"
            )


def positive_or_zero(value: Any) -> float:
    """The value as a number; 0 where it is none."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return 0.0
