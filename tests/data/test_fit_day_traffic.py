"""The committed pools are what the script fits to the public logs."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from data import fit_day_traffic as fit
from inferencegym_jax.tasks.pools import pools
from tests.tools.public_logs import require_log


def agree(found: Any, committed: Any, where: str = "") -> None:
    """Nested numbers to 2 %, which is what a kernel's time may move the load by; all else exactly."""
    if isinstance(committed, dict):
        assert found.keys() == committed.keys(), where
        for key in committed:
            agree(found[key], committed[key], f"{where}.{key}")
    elif isinstance(committed, list):
        assert len(found) == len(committed), where
        for i, (one, other) in enumerate(zip(found, committed, strict=True)):
            agree(one, other, f"{where}[{i}]")
    elif isinstance(committed, float | int):
        assert found == pytest.approx(committed, rel=0.02, abs=0.01), where
    else:
        assert found == committed, where


@pytest.mark.slow
def test_the_pools_are_the_logs() -> None:
    folder = require_log("servegen_top_clients_hourly.csv").parent
    for name in ("AzureLLMInferenceTrace_code.csv", "AzureLLMInferenceTrace_conv.csv"):
        require_log(name)
    agree(json.loads(json.dumps(fit.azure(folder))), pools()["azure-day"])
    large = fit.servegen(folder / "servegen_top_clients_hourly.csv", "m-large")
    committed = pools()["m-large"]
    agree(large["kinds"][1]["hours"], committed["kinds"][1]["hours"])
    agree([kind["prompt"] for kind in large["kinds"]], [kind["prompt"] for kind in committed["kinds"]])
    agree([kind["levels"] for kind in large["kinds"]], [kind["levels"] for kind in committed["kinds"]])


def test_kinds_are_told_by_lengths() -> None:
    assert [fit.kind_of(*x) for x in ((2402, 114), (919, 365), (647, 4), (69, 17))] == [
        "long documents",
        "chat",
        "coding",
        "agents",
    ]


def test_noise_of_known_weights_is_found_again() -> None:
    rng = np.random.default_rng(0)
    lattice = rng.normal(size=4000 // 12 + 2)
    at = np.arange(4000) / 12
    u = at % 1
    slow = (lattice[at.astype(int)] * (1 - u) + lattice[at.astype(int) + 1] * u) / np.sqrt(1 - 2 * u * (1 - u))
    series = np.exp(0.8 * slow + 0.6 * rng.normal(size=4000))
    periods, (weights,), _ = fit.fit_noise([series])
    share = {period: float(weight**2) for period, weight in zip(periods, weights, strict=True)}
    assert sum(value for period, value in share.items() if period > 3) == pytest.approx(0.64, abs=0.12)


def test_levels_have_mean_one_under_the_noise() -> None:
    nodes = fit.level_nodes(np.random.default_rng(1).gamma(2.0, size=2000))
    z = np.random.default_rng(2).normal(size=200_000)
    assert np.interp(z, fit.DEVIATIONS, nodes).mean() == pytest.approx(1.0, abs=0.01)
