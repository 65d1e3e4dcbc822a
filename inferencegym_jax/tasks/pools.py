"""Traffic by kind and hour as a task states it: a pool of ``data/traffic_pools.json``, or the kinds themselves.

``{"pool", "share", "clock", "windows_a_day"} -> resolve -> {"kinds", "noise_hours", ...} -> day_traffic``.
"""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from inferencegym_jax.models import DRAFTS, HOURS, KINDS, LEVELS, TIME_SCALES, DayTraffic, shown
from inferencegym_jax.table import EngineProfile
from inferencegym_jax.table.latency_table import data_path

CLASS_NAMES = ("interactive", "batch", "best_effort")
DAY_SECONDS = 86400
POOL_KEYS = ("pool", "share", "clock", "windows_a_day")
KIND_KEYS = ("name", "class", "rate", "hours", "weights", "levels", "gaps_cv", "prompt", "output", "acceptance")
MOST_TOKENS = 1e6


@functools.cache
def pools() -> dict[str, Any]:
    """The pools that ship, by name: kinds with their rates, hours, noise and lengths, source and licence."""
    return json.loads(data_path("traffic_pools.json").read_text())


def resolve(traffic: Any) -> Any:
    """A task's traffic with the kinds of the pool that it names; anything else as it is.

    A share of a pool is its requests thinned at random: rates fall, and gaps become more even, by ``1 + share (cv^2 -
    1)``.

    Raises:
        ValueError: an unknown pool, or a share that is no number above 0.
    """
    if not isinstance(traffic, Mapping) or "pool" not in traffic:
        return traffic
    name, share = traffic["pool"], traffic.get("share", 1.0)
    if name not in pools():
        raise ValueError(f"traffic pool = {shown(name)}: must be one of {', '.join(pools())}")
    for key in traffic:
        if key not in POOL_KEYS:
            raise ValueError(f"traffic: unknown key {shown(key)}; allowed beside a pool are {', '.join(POOL_KEYS)}")
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1e3:
        raise ValueError(f"traffic share = {shown(share)}: must be a number above 0 and at most 1000")
    whole = copy.deepcopy(pools()[name])
    kinds = [
        {
            **kind,
            "rate": kind["rate"] * share,
            "gaps_cv": float(np.sqrt(max(1.0 + share * (kind["gaps_cv"] ** 2 - 1.0), 0.0))),
        }
        for kind in whole["kinds"]
    ]
    kept = {key: whole[key] for key in ("source", "licence", "fitted_by", "noise_hours") if key in whole}
    ours = {key: traffic[key] for key in ("clock", "windows_a_day") if key in traffic}
    return {"of_pool": name, "share_of_pool": share, **kept, **ours, "kinds": kinds}


def check_kinds(check: Any, traffic: Mapping[str, Any]) -> None:
    """Raise for the first entry of traffic by kind that is out of range; ``check`` says the task (``tasks.checks``)."""
    check.mapping("traffic", traffic, ("kinds", "noise_hours"), None)
    check.number("traffic clock", traffic.get("clock", 1.0), 0, DAY_SECONDS, above=True)
    check.number("traffic windows_a_day", traffic.get("windows_a_day", 1), 1, DAY_SECONDS, whole=True)
    _numbers(check, "traffic noise_hours", traffic["noise_hours"], TIME_SCALES, 1e-4, 1e4)
    kinds: Any = traffic["kinds"]
    if isinstance(kinds, str | Mapping) or not isinstance(kinds, Sequence) or not 1 <= len(kinds) <= KINDS:
        check.fail("traffic kinds", kinds, f"a list of one to {KINDS} kinds")
    for i in range(len(kinds)):
        kind: Any = kinds[i]
        place = f"traffic kinds[{i}]"
        check.mapping(place, kind, KIND_KEYS, None)
        check.number(f"{place} rate", kind["rate"], 0, 1e4, above=True)
        _numbers(check, f"{place} hours", kind["hours"], HOURS, 0, 1e4)
        _numbers(check, f"{place} weights", kind["weights"], TIME_SCALES, 0, 1)
        _numbers(check, f"{place} levels", kind["levels"], LEVELS, 0, 1e4)
        squares = sum(weight**2 for weight in kind["weights"])
        if squares and abs(squares - 1.0) > 0.01:
            check.fail(f"{place} weights", kind["weights"], "numbers whose squares add up to 1, or all 0")
        check.number(f"{place} gaps_cv", kind["gaps_cv"], 0, 1e3)
        if kind["class"] not in CLASS_NAMES:
            check.fail(f"{place} class", kind["class"], f"one of {', '.join(CLASS_NAMES)}")
        for part in ("prompt", "output"):
            check.mapping(f"{place} {part}", kind[part], ("mean", "cv"), None)
            check.number(f"{place} {part} mean", kind[part]["mean"], 1, MOST_TOKENS)
            check.number(f"{place} {part} cv", kind[part]["cv"], 0, 100)
        check.number(f"{place} correlation", kind.get("correlation", 0.0), -1, 1)
        check.number(f"{place} prefix_share", kind.get("prefix_share", 0.0), 0, 1)
        if not isinstance(kind["acceptance"], str):
            _numbers(check, f"{place} acceptance", kind["acceptance"], DRAFTS, 1, 64)


def _numbers(check: Any, name: str, values: Any, count: int, low: float, high: float) -> None:
    if isinstance(values, str | Mapping) or not isinstance(values, Sequence) or len(values) != count:
        check.fail(name, values, f"{count} numbers")
    for value in values:
        check.number(name, value, low, high)


def class_shares(traffic: Mapping[str, Any]) -> tuple[float, ...]:
    """Shares of the three classes among the requests of a mean day."""
    rates = dict.fromkeys(CLASS_NAMES, 0.0)
    for kind in traffic["kinds"]:
        rates[kind["class"]] += kind["rate"]
    total = sum(rates.values())
    return tuple(rate / total for rate in rates.values())


def day_traffic(traffic: Mapping[str, Any], profile: EngineProfile) -> DayTraffic:
    """The kinds as numbers, float32 and int32 arrays; a place without a kind has rate 0.

    Args:
        traffic: checked by ``check_kinds``; ``hours`` are scaled to mean 1.
        profile: of the engine, whose acceptance lengths a kind names.

    Raises:
        ValueError: the profile has no acceptance lengths of a kind's name.
    """
    kinds = traffic["kinds"]
    empty = len(kinds)

    def column(value: Any, fill: Any) -> np.ndarray:
        return np.asarray([value(kind) for kind in kinds] + [fill] * (KINDS - empty), np.float32)

    def acceptance(kind: Mapping[str, Any]) -> Any:
        name = kind["acceptance"]
        if not isinstance(name, str):
            return name
        if name not in profile.acceptance_lengths:
            raise ValueError(
                f"traffic kind {kind['name']!r}: acceptance = {name!r}: the engine profile has acceptance lengths of "
                f"{', '.join(profile.acceptance_lengths)}"
            )
        return profile.acceptance_lengths[name]

    return DayTraffic(
        clock=np.float32(traffic.get("clock", 1.0)),
        windows=np.int32(traffic.get("windows_a_day", 1)),
        noise_hours=np.asarray(traffic["noise_hours"], np.float32),
        rate=column(lambda kind: kind["rate"], 0.0),
        hours=column(lambda kind: np.asarray(kind["hours"]) / np.mean(kind["hours"]), np.ones(HOURS)),
        weights=column(lambda kind: kind["weights"], np.zeros(TIME_SCALES)),
        levels=column(lambda kind: kind["levels"], np.ones(LEVELS)),
        gaps_scv=column(lambda kind: kind["gaps_cv"] ** 2, 1.0),
        prompt_mean=column(lambda kind: kind["prompt"]["mean"], 1.0),
        prompt_cv=column(lambda kind: kind["prompt"]["cv"], 0.0),
        output_mean=column(lambda kind: kind["output"]["mean"], 1.0),
        output_cv=column(lambda kind: kind["output"]["cv"], 0.0),
        correlation=column(lambda kind: kind.get("correlation", 0.0), 0.0),
        prefix_share=column(lambda kind: kind.get("prefix_share", 0.0), 0.0),
        of_class=column(lambda kind: np.eye(3)[CLASS_NAMES.index(kind["class"])], np.zeros(3)),
        acceptance=column(acceptance, np.ones(DRAFTS)),
    )
