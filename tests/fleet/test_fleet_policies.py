"""Learned policies of fleets: no correction is the rule, files give back what was saved, names are checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inferencegym_jax.episodes.policy import init_carry
from inferencegym_jax.fleet.action import FLEET_KNOBS, FleetAction
from inferencegym_jax.fleet.observation import FLEET_OBSERVATION, FleetObservation
from inferencegym_jax.fleet.rules import REACTIVE, act_by_rule, calm_rule, rule_start, tuned_rule
from inferencegym_jax.policies import load
from inferencegym_jax.policies.fleet_control import (
    FLEET_CORRECTIONS,
    FLEET_RANGES,
    corrected_rule,
    corrected_rule_policy,
    fleet_network_policy,
    follow_rule,
    knobs_of,
)
from inferencegym_jax.policies.fleet_names import FLEET_NAMES, RULES, fleet_file, fleet_policy_of
from inferencegym_jax.policies.fleet_numbers import FLEET_FIELDS, FLEET_SIZE, fleet_numbers
from inferencegym_jax.policies.layout import head_sizes
from inferencegym_jax.policies.network import ObservationStatistics, PolicyNetwork
from inferencegym_jax.policies.policy_file import load_network, save_network
from training.config import TrainConfig, task_config


def seen(**values: float) -> FleetObservation:
    usual = dict.fromkeys(FLEET_OBSERVATION, 0.0) | {"on_time_share": 1.0, "serving": 2.0}
    return FleetObservation(**{name: jnp.float32(value) for name, value in (usual | values).items()})


def loads(load: float) -> FleetObservation:
    return seen(**dict.fromkeys(("prompt_load", "prompt_load_15s", "prompt_load_2min", "prompt_load_10min"), load))


def network(outputs: int, bias: float = 0.0) -> PolicyNetwork:
    layers = ((jnp.zeros((FLEET_SIZE, outputs)), jnp.full(outputs, bias)),)
    count = ObservationStatistics(jnp.float32(1.0), jnp.zeros(FLEET_SIZE), jnp.ones(FLEET_SIZE))
    return PolicyNetwork(layers, jnp.zeros(2), count)


def asked(policy: Any, rows: list[FleetObservation]) -> list[int]:
    carry, found = init_carry(policy), []
    for row in rows:
        action, carry = policy(jax.random.key(0), row, carry)
        found.append(int(action.gpus))
    return found


DAY = [loads(x) for x in (0.4, 1.3, 2.2, 3.4, 1.0, 0.6, 0.6)]


@pytest.mark.ci
def test_no_correction_is_the_rule_and_spare_gpus_are_spare() -> None:
    memory, by_rule = rule_start(REACTIVE), []
    for row in DAY:
        action, memory = act_by_rule(REACTIVE.as_arrays(), jax.random.key(0), row, memory)
        by_rule.append(int(action.gpus))
    assert asked(corrected_rule_policy(network(len(FLEET_CORRECTIONS)), REACTIVE), DAY) == by_rule
    more = corrected_rule(REACTIVE.as_arrays(), jnp.asarray([0.5, 0.0]))
    assert float(more.spare) == pytest.approx(0.5 * FLEET_RANGES["spare"]) and int(more.hold) == REACTIVE.hold
    action, _ = follow_rule(REACTIVE.as_arrays(), jnp.asarray([0.5, 0.0]), DAY[1], rule_start(REACTIVE))
    assert int(action.gpus) == by_rule[1] + 1  # half of two GPUs
    shorter = corrected_rule(REACTIVE.as_arrays(), jnp.asarray([0.0, -1.0]))
    assert int(shorter.hold) == round(float(REACTIVE.hold) / 6.0)


def test_numbers_are_in_units_of_capacity() -> None:
    found = dict(zip(FLEET_FIELDS, np.asarray(fleet_numbers(loads(4.0))), strict=True))
    assert found["load"] == found["load_2min"] == pytest.approx(0.5) and found["busy_15s"] == pytest.approx(0.5)
    assert found["late"] == 0.0 and found["hour_cosine"] == pytest.approx(1.0)
    extreme = seen(**{name: field.high for name, field in FLEET_OBSERVATION.items()})
    assert np.abs(np.asarray(fleet_numbers(extreme))).max() <= 1.0


def test_heads_come_from_the_fleets_own_table() -> None:
    assert head_sizes(FLEET_KNOBS)["gpus"] == 1
    low = knobs_of(jnp.asarray([-1.0, -1.0, -1.0, 0.0]))
    high = knobs_of(jnp.asarray([1.0, 1.0, 1.0, 4.0]))
    assert low.to_dict()["gpus"] == 1 and high.to_dict()["gpus"] == 8
    assert high.to_dict()["spec_length"] == FLEET_KNOBS["spec_length"].choices[4]
    assert isinstance(high, FleetAction)


@pytest.mark.parametrize("acts", ["correction", "knobs"])
def test_a_file_gives_back_what_was_saved(tmp_path: Path, acts: str) -> None:
    about: dict[str, Any] = {"task": "fleet-elastic", "reads": "fleet"}
    size = sum(head_sizes(FLEET_KNOBS).values())
    if acts == "correction":
        about |= {"acts": acts, "plan": {"metric": 1, "target": 0.6, "hold": 12}}
        size = len(FLEET_CORRECTIONS)
    own = network(size, 0.3)
    save_network(tmp_path / "x.npz", own, about)
    again, metadata = load_network(tmp_path / "x.npz")
    assert metadata["reads"] == "fleet" and again.layers[0][0].shape == own.layers[0][0].shape
    plan = REACTIVE.replace(target=0.6, hold=12, fast=1.0, trend=0.0, floor=0.0)
    direct = corrected_rule_policy(own, plan) if acts == "correction" else fleet_network_policy(own)
    for policy in (load(tmp_path / "x.npz"), fleet_policy_of(str(tmp_path / "x.npz"), "fleet-elastic")):
        assert asked(policy, DAY) == asked(direct, DAY)
    save_network(tmp_path / "y.npz", network(size + 1), about)
    with pytest.raises(ValueError, match=f"gives {size + 1}"):
        load_network(tmp_path / "y.npz")


def test_names() -> None:
    assert asked(fleet_policy_of("gpus=5", "fleet-elastic"), DAY[:2]) == [5, 5]
    assert asked(fleet_policy_of("tuned", "fleet-elastic"), DAY[:1]) != []
    assert tuned_rule("fleet-elastic") != REACTIVE and tuned_rule("plan") == REACTIVE
    assert "hpa-queue" in RULES and set(RULES) < set(FLEET_NAMES)
    for name, words in (("gpus=9", "gpus"), ("gpu=4", "knob"), ("nobody", "must be one of"), ("gpus=x", "gpus = 'x'")):
        with pytest.raises(ValueError, match=words):
            fleet_policy_of(name, "fleet-elastic")


def test_configs_of_fleets() -> None:
    config = task_config("fleet-elastic")
    assert config.is_fleet and config.task_id == 801 and config.episode_length == 1440 and config.features == FLEET_SIZE
    assert task_config("fleet-anywhere").task_name == "fleet-anywhere"
    with pytest.raises(ValueError, match="best_static"):
        config.replace(start="best_static")
    with pytest.raises(ValueError, match="phases = 9999"):
        TrainConfig().replace(phases=9999)


@pytest.mark.parametrize("task", ["fleet-elastic", "fleet-elastic-m-large", "fleet-elastic-m-mid", "fleet-anywhere"])
def test_the_policy_that_ships_for_a_fleet_corrects_the_rule_of_its_task(task: str) -> None:
    shipped, about = load_network(fleet_file(task))
    assert about["task"] == task and about["reads"] == "fleet" and about["acts"] == "correction"
    # files that do not say so correct the tuned rule: they are older than the calm ones
    rule = calm_rule(task) if about["config"].get("base_rule") == "calm" else tuned_rule(task)
    assert {name: about["plan"][name] for name in ("target", "fast", "trend", "floor", "period", "hold")} == {
        name: pytest.approx(getattr(rule, name)) for name in ("target", "fast", "trend", "floor", "period", "hold")
    }
    sizes = asked(fleet_policy_of("trained", task), DAY)
    assert all(1 <= size <= 8 for size in sizes) and len(set(sizes)) > 1
    assert all(np.isfinite(np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(shipped)])))
