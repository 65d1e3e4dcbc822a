"""How this package measures: contenders take turns in one run, the figure is the median, and a claim is a ratio."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax

K = TypeVar("K")


def turns(calls: Mapping[K, Callable[[int], Any]], repeats: int) -> dict[K, list[float]]:
    """Seconds of each call in each turn, the calls taking turns, so that a busy machine slows all of them.

    Args:
        calls: name -> function of the turn's number (a new seed each turn), whose every output is waited for.
        repeats: turns, after one that compiles.
    """
    for call in calls.values():
        jax.block_until_ready(call(0))
    seconds: dict[K, list[float]] = {name: [] for name in calls}
    for turn in range(1, repeats + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call(turn))
            seconds[name].append(time.perf_counter() - start)
    return seconds


def alternate(calls: Mapping[K, Callable[[int], Any]], repeats: int) -> dict[K, float]:
    """Median seconds of each call; arguments as ``turns``."""
    return {name: statistics.median(values) for name, values in turns(calls, repeats).items()}
