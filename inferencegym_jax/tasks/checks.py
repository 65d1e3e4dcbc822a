"""What each field of a task may be, and the sentences that say so."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from inferencegym_jax.models import (
    KNOBS,
    LONGEST_EPISODE,
    OBSERVATION,
    REWARD_WEIGHTS,
    TIME_SCALES,
    finite_number,
    shown,
)
from inferencegym_jax.tasks.draws import check_draws
from inferencegym_jax.tasks.pools import check_kinds

DYNAMICS = ("closed_loop", "open_loop")
NAME = re.compile(r"[a-z][a-z0-9-]{0,63}")
CLASSES = 3  # interactive, batch, best effort
MOST_RATE = 1e4  # requests/s
LEAST_OBJECTIVE_MS = 1e-3  # a latency over its objective must stay a float32, and a weight of 0 times it 0
MOST_CONFIG = 1e9  # of an objective (ms) or a reward weight
LEAST_CLASS_RATE = 0.5  # requests/s; Poisson draws by inversion miss the mean of smaller ones by more than 1 %
PROMPT = OBSERVATION["mean_prompt_len"]
PROMPT_KEYS: dict[str, Any] = {
    "uniform": ("low", "high"),
    "mixture": ("low", "high", "long_low", "long_high", "long_share"),
    "lognormal": ("low", "high", "log_mean", "log_sigma"),
}
ARRIVAL_KEYS = ("rate", "burst_rate", "burst_period", "burst_start", "burst_length")
SECOND_GPU = ("prefill", "replica")  # in the order of EngineParams.second_gpu
SWITCHING_KEYS = ("second_gpu", "start_s", "lease_s", "restart_s")
TRAFFIC_KEYS = ("rate", "sigma", "periods", "prompt", "output")


def three(spec: Any, name: str, missing: float) -> tuple[float, ...]:
    """A field with a number a class, as three floats; missing ones, and None, are ``missing``.

    Raises:
        TypeError, ValueError: no sequence of one to three numbers.
    """
    values = getattr(spec, name)
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise TypeError(
            f"task {shown(spec.name)}: {name} = {shown(values)}: must be a sequence of numbers, one a class"
        )
    numbers = [math.inf if value is None else value for value in values]
    if not 1 <= len(numbers) <= CLASSES:
        raise ValueError(f"task {shown(spec.name)}: {name} = {shown(values)}: must be one to {CLASSES} numbers")
    for number in numbers:
        if number != math.inf and finite_number(number) is None:
            raise ValueError(f"task {shown(spec.name)}: {name} = {shown(values)}: {shown(number)} is no number")
    return (*(float(number) for number in numbers), *[missing] * (CLASSES - len(numbers)))


class _Checker:
    """Checks of one task, whose name begins each message."""

    def __init__(self, task: Any):
        self.task = task

    def fail(self, name: str, value: Any, allowed: str) -> None:
        raise ValueError(f"task {shown(self.task)}: {name} = {shown(value)}: must be {allowed}")

    def number(self, name: str, value: Any, low: float, high: float, above: bool = False, whole: bool = False) -> float:
        """A finite number from ``low`` (or above it) to ``high``."""
        number = finite_number(value)
        good = number is not None and (low < number if above else low <= number) and number <= high
        if number is None or not good or (whole and number != math.floor(number)):
            kind = "a whole number" if whole else "a finite number"
            self.fail(
                name,
                value,
                f"{kind} {'above' if above else 'from'} {low:g} {'and at most' if above else 'to'} {high:g}",
            )
        return float(number or 0.0)

    def mapping(self, name: str, value: Any, needed: Sequence[str], allowed: Sequence[str] | None) -> Mapping[str, Any]:
        """A mapping with the keys ``needed``, and no others than ``allowed`` (None: any)."""
        if not isinstance(value, Mapping):
            raise TypeError(
                f"task {shown(self.task)}: {name} = {shown(value)}: must be a mapping with {', '.join(needed)}"
            )
        for key in needed:
            if key not in value:
                raise ValueError(f"task {shown(self.task)}: {name}: {key!r} is missing; needed are {', '.join(needed)}")
        for key in value:
            if allowed is not None and key not in allowed:
                raise ValueError(
                    f"task {shown(self.task)}: {name}: unknown key {shown(key)}; allowed are {', '.join(allowed)}"
                )
        return value


def check_fields(spec: Any) -> None:
    """Raise ``ValueError`` or ``TypeError`` for the first field of a ``TaskSpec`` that is out of range."""
    check = _Checker(spec.name)
    if not isinstance(spec.name, str) or NAME.fullmatch(spec.name) is None:
        check.fail("name", spec.name, "small letters, digits and hyphens (at most 64), beginning with a letter")
    if isinstance(spec.id, bool) or not isinstance(spec.id, int):
        check.fail("id", spec.id, "a whole number above 0")
    check.number("id", spec.id, 0, 2**31 - 1, above=True)
    for name in ("title", "difficulty", "description"):
        if not isinstance(getattr(spec, name), str):
            check.fail(name, getattr(spec, name), "a text")
    _check_arrivals(check, spec.arrivals, spec.class_shares)
    _check_prompts(check, spec.prompts)
    _check_classes(check, spec.slo_ttft_ms, spec.class_shares, spec.class_weights)
    for name in ("memory_limit_gb", "gpu_memory_gb"):
        if getattr(spec, name) is not None:
            check.number(name, getattr(spec, name), 0, 1e6, above=True)
    check.number("acceptance", spec.acceptance, 0, 1, above=True)
    if not spec.active_knobs or len(set(spec.active_knobs)) < len(spec.active_knobs):
        check.fail("active_knobs", spec.active_knobs, f"one or more of {', '.join(KNOBS)}, each once")
    for knob in spec.active_knobs:
        if knob not in KNOBS:
            check.fail("active_knobs", knob, f"one or more of {', '.join(KNOBS)}")
    needed = [key for key, weight in REWARD_WEIGHTS.items() if weight.default]
    for key, weight in check.mapping("reward", spec.reward, needed, tuple(REWARD_WEIGHTS)).items():
        check.number(f"reward {key}", weight, 0, MOST_CONFIG)
    if spec.cost_budget is not None:
        check.number("cost_budget", spec.cost_budget, 0, 1e12, above=True)
    check.number("episode_length", spec.episode_length, 1, LONGEST_EPISODE, whole=True)
    for objective in spec.tpot_objectives_ms:
        if objective != math.inf:
            check.number("slo_tpot_ms", objective, LEAST_OBJECTIVE_MS, MOST_CONFIG)
    _check_switching(check, spec.switching)
    if spec.dynamics not in DYNAMICS:
        check.fail("dynamics", spec.dynamics, f"one of {', '.join(DYNAMICS)}")
    if spec.draws is not None:
        check.mapping("draws", spec.draws, (), None)
        if spec.dynamics != "open_loop" or not spec.has_kinds:
            check.fail("draws", spec.draws, "absent where traffic is not by kind and hour, open-loop")
        check_draws(check, spec.draws)
    if spec.traffic is not None:
        if spec.dynamics != "open_loop":
            check.fail("dynamics", spec.dynamics, "'open_loop' where traffic is fitted to a log")
        if isinstance(spec.traffic, Mapping) and "kinds" in spec.traffic:
            check_kinds(check, spec.traffic)
        else:
            _check_traffic(check, spec.traffic)


def _check_switching(check: _Checker, switching: Any) -> None:
    for key, value in check.mapping("switching", switching, (), SWITCHING_KEYS).items():
        if key == "second_gpu":
            if not isinstance(value, str) or value not in SECOND_GPU:
                check.fail("switching second_gpu", value, f"one of {', '.join(SECOND_GPU)}")
        else:
            check.number(f"switching {key}", value, 0, 86400)


def _check_arrivals(check: _Checker, arrivals: Any, shares: Sequence[float]) -> None:
    check.mapping("arrivals", arrivals, ("rate",), ARRIVAL_KEYS)
    rates = [check.number("arrivals rate", arrivals["rate"], 0, MOST_RATE, above=True)]
    if "burst_rate" in arrivals:
        rates.append(check.number("arrivals burst_rate", arrivals["burst_rate"], 0, MOST_RATE))
    for key in ("burst_period", "burst_start", "burst_length"):
        if key in arrivals:
            check.number(f"arrivals {key}", arrivals[key], 1 if key == "burst_period" else 0, 2**22, whole=True)
    period = arrivals.get("burst_period", math.inf)
    if arrivals.get("burst_start", 0) + arrivals.get("burst_length", 0) > period:
        check.fail(
            "arrivals burst_length", arrivals.get("burst_length", 0), f"with burst_start at most the period, {period}"
        )
    for rate in rates:
        for share in shares:
            if 0 < rate * share < LEAST_CLASS_RATE:
                check.fail(
                    "arrivals rate",
                    rate,
                    f"at least {LEAST_CLASS_RATE} requests/s of each class that has a share ({share:g})",
                )


def _check_prompts(check: _Checker, prompts: Any) -> None:
    check.mapping("prompts", prompts, ("kind",), None)
    kind = prompts["kind"]
    if not isinstance(kind, str) or kind not in PROMPT_KEYS:
        check.fail("prompts kind", kind, f"one of {', '.join(PROMPT_KEYS)}")
    check.mapping("prompts", prompts, PROMPT_KEYS[kind], ("kind", *PROMPT_KEYS[kind]))
    for low, high in (("low", "high"), ("long_low", "long_high")):
        if low in prompts:
            least = check.number(f"prompts {low}", prompts[low], PROMPT.low, PROMPT.high)
            check.number(f"prompts {high}", prompts[high], least, PROMPT.high)
    if kind == "mixture":
        check.number("prompts long_share", prompts["long_share"], 0, 1)
    if kind == "lognormal":
        check.number("prompts log_mean", prompts["log_mean"], 0, 20)
        check.number("prompts log_sigma", prompts["log_sigma"], 0, 10)


def _check_classes(
    check: _Checker, slo_ttft_ms: Sequence[float], shares: Sequence[float], weights: Sequence[float]
) -> None:
    for limit in slo_ttft_ms:
        if limit != math.inf:
            check.number("slo_ttft_ms", limit, LEAST_OBJECTIVE_MS, MOST_CONFIG)
    for share in shares:
        check.number("class_shares", share, 0, 1)
    if not math.isclose(sum(shares), 1.0, abs_tol=1e-6):
        check.fail("class_shares", tuple(shares), "shares that add up to 1")
    for weight in weights:
        check.number("class_weights", weight, 0, 1e9)
    if not sum(share * weight for share, weight in zip(shares, weights, strict=True)) > 0:
        check.fail("class_weights", tuple(weights), "above 0 for a class that has requests")


def _check_traffic(check: _Checker, traffic: Any) -> None:
    check.mapping("traffic", traffic, TRAFFIC_KEYS, None)
    check.number("traffic rate", traffic["rate"], 0, MOST_RATE, above=True)
    for key, low, high in (("sigma", 0, 5), ("periods", 1, 2**22)):
        values = traffic[key]
        if isinstance(values, str) or not isinstance(values, Sequence) or len(values) != TIME_SCALES:
            check.fail(f"traffic {key}", values, f"{TIME_SCALES} numbers, one a time scale")
        for value in values:
            check.number(f"traffic {key}", value, low, high, whole=key == "periods")
    for part in ("prompt", "output"):
        check.mapping(f"traffic {part}", traffic[part], ("mean", "cv"), None)
        check.number(f"traffic {part} mean", traffic[part]["mean"], 1, PROMPT.high)
        check.number(f"traffic {part} cv", traffic[part]["cv"], 0, 100)
