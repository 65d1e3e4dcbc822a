"""``TaskSpec``: every field is checked, and the message says which, what it was and what is allowed."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest

import inferencegym_jax as ig
from inferencegym_jax.models import REPLICA
from inferencegym_jax.tasks import NOT_NORMALISED, make_params, shipped_specs

NAN = float("nan")
OWN: dict[str, Any] = {
    "name": "night-shift",
    "id": 60,
    "arrivals": {"rate": 20.0, "burst_rate": 60.0, "burst_period": 50, "burst_start": 10, "burst_length": 10},
    "prompts": {"kind": "uniform", "low": 64, "high": 512},
    "slo_ttft_ms": (400.0,),
}
FITTED = {
    "rate": 4.0,
    "sigma": [0.1, 0.1, 0.1],
    "periods": [100, 20, 2],
    "prompt": {"mean": 500.0, "cv": 1.0},
    "output": {"mean": 200.0, "cv": 1.0},
}

KIND: dict[str, Any] = {
    "name": "chat",
    "class": "interactive",
    "rate": 4.0,
    "hours": [1.0] * 24,
    "weights": [0.0, 0.0, 0.0],
    "levels": [1.0] * 13,
    "gaps_cv": 1.0,
    "prompt": {"mean": 500.0, "cv": 1.0},
    "output": {"mean": 200.0, "cv": 1.0},
    "acceptance": "chat",
}
BY_KIND: dict[str, Any] = {"noise_hours": [1.0, 1.0, 1.0], "kinds": [KIND]}


def spec_of(**changes: Any) -> ig.TaskSpec:
    return ig.TaskSpec(**{**OWN, **changes})


def test_what_is_left_out_has_a_default_and_sequences_are_completed() -> None:
    spec = spec_of()
    assert spec.title == "Night Shift" and spec.slo_ttft_ms == (400.0, math.inf, math.inf)
    assert spec.class_shares == (1.0, 0.0, 0.0) and spec.dynamics == "closed_loop"
    assert spec_of(slo_ttft_ms=[200, None]).slo_ttft_ms == (200.0, math.inf, math.inf)


def test_specs_are_equal_and_hashed_by_content_and_keep_their_own_copy() -> None:
    arrivals = {"rate": 5.0}
    spec = spec_of(arrivals=arrivals)
    same = spec_of(arrivals={"rate": 5.0})
    assert spec == same and hash(spec) == hash(same)
    arrivals["rate"] = 7.0
    assert spec == same
    assert dataclasses.replace(spec, memory_limit_gb=30.0) != spec


def test_the_file_of_shipped_tasks_is_read_as_any_file_is() -> None:
    for name, spec in shipped_specs().items():
        entry = json.loads(json.dumps({k: v for k, v in dataclasses.asdict(spec).items() if k != "name"}))
        assert ig.TaskSpec.from_entry(name, entry) == spec


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": "Night Shift"}, "name = 'Night Shift': must be small letters"),
        ({"name": "7"}, "name = '7'"),
        ({"name": ""}, "name = ''"),
        ({"name": 7}, "name = 7"),
        ({"id": 0}, "id = 0: must be a finite number above 0"),
        ({"id": True}, "id = True: must be a whole number"),
        ({"id": 1.5}, "id = 1.5: must be a whole number"),
        ({"id": 2**31}, "id = 2147483648"),
        ({"title": 3}, "title = 3: must be a text"),
        ({"arrivals": 3}, "arrivals = 3: must be a mapping with rate"),
        ({"arrivals": {}}, "arrivals: 'rate' is missing"),
        ({"arrivals": {"rate": NAN}}, "arrivals rate = nan: must be a finite number above 0"),
        ({"arrivals": {"rate": math.inf}}, "arrivals rate = inf"),
        ({"arrivals": {"rate": "10"}}, "arrivals rate = '10'"),
        ({"arrivals": {"rate": 0.2}}, "arrivals rate = 0.2: must be at least 0.5 requests/s of each class"),
        ({"arrivals": {"rate": 5, "rise": 2}}, "arrivals: unknown key 'rise'; allowed are rate, burst_rate"),
        ({"arrivals": {"rate": 5, "burst_rate": -1}}, "arrivals burst_rate = -1"),
        ({"arrivals": {"rate": 5, "burst_period": 0}}, "arrivals burst_period = 0: must be a whole number from 1"),
        ({"arrivals": {"rate": 5, "burst_length": 2.5}}, "arrivals burst_length = 2.5: must be a whole number"),
        ({"arrivals": {"rate": 5, "burst_period": 10, "burst_start": 6, "burst_length": 5}}, "at most the period, 10"),
        ({"prompts": {"kind": "long"}}, "prompts kind = 'long': must be one of uniform, mixture, lognormal"),
        ({"prompts": {"kind": ["uniform"]}}, r"prompts kind = \['uniform'\]"),
        ({"prompts": {"kind": "uniform", "low": 64}}, "prompts: 'high' is missing"),
        ({"prompts": {"kind": "uniform", "low": 64, "high": 9000}}, "prompts high = 9000: must be .*to 8192"),
        ({"prompts": {"kind": "uniform", "low": 64, "high": 32}}, "prompts high = 32: must be a finite number from 64"),
        ({"prompts": {"kind": "uniform", "low": 8, "high": 32}}, "prompts low = 8: must be a finite number from 32"),
        ({"prompts": {"kind": "uniform", "low": 64, "high": 99, "log_mean": 2}}, "prompts: unknown key 'log_mean'"),
        (
            {"prompts": {"kind": "lognormal", "low": 64, "high": 99, "log_mean": 5, "log_sigma": NAN}},
            "prompts log_sigma = nan",
        ),
        (
            {"prompts": {"kind": "mixture", "low": 64, "high": 99, "long_low": 99, "long_high": 200, "long_share": 2}},
            "prompts long_share = 2",
        ),
        ({"slo_ttft_ms": 300.0}, "slo_ttft_ms = 300.0: must be a sequence"),
        ({"slo_ttft_ms": ()}, "must be one to 3 numbers"),
        ({"slo_ttft_ms": (1, 2, 3, 4)}, "must be one to 3 numbers"),
        ({"slo_ttft_ms": (NAN,)}, "nan is no number"),
        ({"slo_ttft_ms": (0,)}, "slo_ttft_ms = 0.0: must be a finite number from 0.001"),
        ({"class_shares": (0.5, 0.6)}, "shares that add up to 1"),
        ({"class_shares": (1.5, -0.5)}, "class_shares = 1.5"),
        ({"class_shares": (0.99, 0.01)}, r"at least 0.5 requests/s of each class that has a share \(0.01\)"),
        ({"memory_limit_gb": 0}, "memory_limit_gb = 0: must be a finite number above 0"),
        ({"memory_limit_gb": NAN}, "memory_limit_gb = nan"),
        ({"acceptance": 1.01}, "acceptance = 1.01"),
        ({"active_knobs": ()}, r"active_knobs = \(\): must be one or more of kv_budget"),
        ({"active_knobs": ("batch_size", "batch_size")}, "each once"),
        ({"active_knobs": ("batch",)}, "active_knobs = 'batch'"),
        ({"reward": {"alpha": 1}}, "reward: 'beta' is missing"),
        ({"reward": {"alpha": 1, "beta": 1, "gamma": -1, "delta": 1}}, "reward gamma = -1"),
        ({"cost_budget": 0}, "cost_budget = 0"),
        ({"slo_tpot_ms": NAN}, "slo_tpot_ms = nan"),
        ({"dynamics": "open"}, "dynamics = 'open': must be one of closed_loop, open_loop"),
        ({"traffic": FITTED}, "dynamics = 'closed_loop': must be 'open_loop' where traffic is fitted"),
        ({"dynamics": "open_loop", "traffic": FITTED | {"sigma": [1]}}, "traffic sigma = .*3 numbers"),
        ({"dynamics": "open_loop", "traffic": FITTED | {"sigma": [0.1, NAN, 0]}}, "traffic sigma = nan"),
        ({"dynamics": "open_loop", "traffic": FITTED | {"periods": [1, 0, 1]}}, "traffic periods = 0"),
        ({"dynamics": "open_loop", "traffic": FITTED | {"output": {"mean": 2}}}, "traffic output: 'cv' is missing"),
        ({"dynamics": "open_loop", "traffic": {"rate": 2}}, "traffic: 'sigma' is missing"),
        ({"episode_length": 0}, "episode_length = 0: must be a whole number from 1 to 86400"),
        ({"episode_length": 10.5}, "episode_length = 10.5: must be a whole number"),
        ({"slo_tpot_ms": (15.0, -1.0)}, "slo_tpot_ms = -1.0: must be a finite number from 0.001"),
        ({"switching": {"start": 3}}, "switching: unknown key 'start'; allowed are second_gpu, start_s"),
        ({"switching": {"second_gpu": "spare"}}, "switching second_gpu = 'spare': must be one of prefill, replica"),
        ({"switching": {"start_s": -1}}, "switching start_s = -1"),
        ({"dynamics": "open_loop", "traffic": {"pool": "nobody"}}, "traffic pool = 'nobody': must be one of m-large"),
        ({"dynamics": "open_loop", "traffic": {"pool": "m-large", "share": 0}}, "traffic share = 0: must be a number"),
        (
            {"dynamics": "open_loop", "traffic": {"pool": "m-large", "rate": 1}},
            "unknown key 'rate'; allowed beside a pool",
        ),
        ({"dynamics": "open_loop", "traffic": {"pool": "m-large", "clock": 0}}, "traffic clock = 0: must be a finite"),
        ({"dynamics": "open_loop", "traffic": {"kinds": []}}, "traffic: 'noise_hours' is missing"),
        ({"dynamics": "open_loop", "traffic": BY_KIND | {"kinds": []}}, "traffic kinds = .*a list of one to 4 kinds"),
        ({"dynamics": "open_loop", "traffic": BY_KIND | {"kinds": [KIND | {"class": "vip"}]}}, "class = 'vip'"),
        ({"dynamics": "open_loop", "traffic": BY_KIND | {"kinds": [KIND | {"hours": [1]}]}}, "hours = .*24 numbers"),
        ({"dynamics": "open_loop", "traffic": BY_KIND | {"kinds": [KIND | {"weights": [1, 1, 0]}]}}, "squares add up"),
        ({"dynamics": "open_loop", "traffic": BY_KIND, "class_shares": (0.5, 0.5)}, "those of the traffic's kinds are"),
    ],
)
def test_a_field_out_of_range_is_named_with_its_value_and_what_is_allowed(change: dict[str, Any], said: str) -> None:
    with pytest.raises((ValueError, TypeError), match=said):
        spec_of(**change)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (3, "must be an object of the task's fields"),
        ({"id": 60, "arrival": {}}, "unknown field 'arrival'; allowed are id, title"),
        ({"id": 60, "name": "x"}, "unknown field 'name'"),
        ({"id": 60}, "field 'arrivals' is missing; needed are id, arrivals, prompts, slo_ttft_ms"),
    ],
)
def test_an_entry_of_a_file_that_is_no_task_is_named(entry: Any, said: str) -> None:
    with pytest.raises((ValueError, TypeError), match=f"task 'mine'.*{said}"):
        ig.TaskSpec.from_entry("mine", entry)


def test_traffic_by_kind_gives_the_class_shares_and_the_engines_means() -> None:
    coding = KIND | {"name": "coding", "rate": 12.0, "class": "batch", "acceptance": [1.0, 1.5, 2.0, 2.5, 3.0]}
    traffic = BY_KIND | {"kinds": [KIND, coding]}
    spec = spec_of(dynamics="open_loop", traffic=traffic, slo_ttft_ms=(400.0, 900.0), slo_tpot_ms=(20.0, 80.0))
    assert spec.class_shares == (0.25, 0.75, 0.0) and spec.has_kinds
    params = make_params(spec, ig.load_table(), NOT_NORMALISED)
    assert np.asarray(params.engine.slo_tpot_ms).tolist() == [20.0, 80.0, math.inf]
    assert float(params.engine.rate) == 16.0 and float(params.engine.output_mean) == pytest.approx(200.0)
    unknown = BY_KIND | {"kinds": [KIND | {"acceptance": "poetry"}]}
    with pytest.raises(ValueError, match="acceptance = 'poetry': the engine profile has acceptance lengths of coding"):
        make_params(spec_of(dynamics="open_loop", traffic=unknown), ig.load_table(), NOT_NORMALISED)


def test_switching_is_a_tasks_own() -> None:
    switching = {"second_gpu": "replica", "start_s": 5, "lease_s": 0}
    spec = spec_of(dynamics="open_loop", switching=switching)
    engine = make_params(spec, ig.load_table(), NOT_NORMALISED).engine
    assert (int(engine.second_gpu), float(engine.start_s), float(engine.lease_s)) == (REPLICA, 5.0, 0.0)
    assert float(engine.restart_s) == 30.0  # left out: the default
