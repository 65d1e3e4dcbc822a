"""A policy file outlives the fields and knobs that come after it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import inferencegym_jax as ig
from inferencegym_jax.models import KNOBS, OBSERVATION
from inferencegym_jax.policies.layout import HEAD_SIZES, layout
from inferencegym_jax.policies.network import (
    HEAD_SIZE,
    ObservationStatistics,
    PolicyNetwork,
    decode,
    forward,
    mode,
    network_policy,
)
from inferencegym_jax.policies.policy_file import load_network, save_network
from inferencegym_jax.table.latency_table import data_path


def rewrite(path: Path, change: Any) -> Path:
    """The shipped policy of task 2 with its arrays and metadata changed by ``change(arrays, metadata)``."""
    with np.load(data_path("policies/task2.npz")) as archive:
        arrays = dict(archive)
    metadata = json.loads(arrays["metadata"].tobytes())
    change(arrays, metadata)
    arrays["metadata"] = np.frombuffer(json.dumps(metadata).encode(), np.uint8)
    with path.open("wb") as file:
        np.savez(file, **arrays)
    return path


def without(name: str) -> Any:
    """A change that makes a file as it was before this field or knob was there."""

    def change(arrays: dict[str, Any], metadata: dict[str, Any]) -> None:
        part = "knobs" if name in KNOBS else "observation"
        sizes = metadata[part]
        names = np.repeat(list(sizes), list(sizes.values()))
        keep = names != name
        last = max(int(key.split("_")[1]) for key in arrays if key.startswith("weights_"))
        if part == "observation":
            for key in ("mean", "variance", "weights_0"):
                arrays[key] = arrays[key][keep]
        else:
            arrays[f"weights_{last}"], arrays[f"bias_{last}"] = (
                arrays[f"weights_{last}"][:, keep], arrays[f"bias_{last}"][keep]
            )  # fmt: skip
            numbers = [knob for knob in sizes if KNOBS[knob].kind in ("float", "int")]
            arrays["log_std"] = arrays["log_std"][[knob != name for knob in numbers]]
        del sizes[name]

    return change


def observations(count: int = 64) -> ig.ServeObservation:
    env, params = ig.make(3)
    steps = ig.rollout(env, params, ig.policies.random, np.arange(count), length=3).observation
    return jax.tree.map(lambda x: x[2], steps)


def actions(path: Path) -> ig.ServeAction:
    network, _ = load_network(path)
    return jax.tree.map(np.asarray, decode(mode(forward(network, observations())[0])))


@pytest.mark.parametrize("name", list(KNOBS))
def test_a_policy_from_before_a_knob_leaves_it_at_its_default(tmp_path: Path, name: str) -> None:
    whole, older = (
        actions(Path(data_path("policies/task2.npz"))),
        actions(rewrite(tmp_path / "older.npz", without(name))),
    )
    assert np.all(getattr(older, name) == np.asarray(KNOBS[name].default, KNOBS[name].dtype))
    for other in set(KNOBS) - {name}:
        assert np.array_equal(getattr(older, other), getattr(whole, other)), other


@pytest.mark.parametrize("name", ["queue_depth", "priority_distribution", "cost_so_far"])
def test_a_policy_from_before_a_field_does_not_see_it(tmp_path: Path, name: str) -> None:
    path = rewrite(tmp_path / "older.npz", without(name))
    network, _ = load_network(path)
    seen = observations()
    changed = jax.tree.map(lambda x: x, seen)
    changed = ig.ServeObservation(**{**vars(changed), name: getattr(changed, name) * 0 + OBSERVATION[name].full})
    assert np.array_equal(forward(network, seen)[0], forward(network, changed)[0])
    shipped, _ = load_network(data_path("policies/task2.npz"))
    assert not np.array_equal(forward(shipped, seen)[0], forward(shipped, changed)[0])


def test_a_sampled_policy_keeps_a_later_knob_at_its_default_too(tmp_path: Path) -> None:
    network, _ = load_network(rewrite(tmp_path / "older.npz", without("batch_size")))
    env, params = ig.make(3)
    policy = network_policy(network, sample_actions=True)
    assert np.all(np.asarray(ig.rollout(env, params, policy, np.arange(16)).action.batch_size) == 32)


def test_a_knob_that_is_gone_or_has_other_choices_is_named(tmp_path: Path) -> None:
    def gone(arrays: dict[str, Any], metadata: dict[str, Any]) -> None:
        metadata["knobs"]["page_size"] = 1

    def other(arrays: dict[str, Any], metadata: dict[str, Any]) -> None:
        metadata["knobs"]["spec_length"] = 4

    with pytest.raises(ValueError, match=r"page_size \(knobs\), which is gone today"):
        load_network(rewrite(tmp_path / "gone.npz", gone))
    with pytest.raises(ValueError, match=r"4 numbers for spec_length \(knobs\), which takes 5 today"):
        load_network(rewrite(tmp_path / "other.npz", other))


def test_a_saved_policy_says_what_it_reads_and_sets(tmp_path: Path) -> None:
    size = sum(field.size for field in OBSERVATION.values())
    rng = np.random.default_rng(0)
    layers = ((rng.normal(size=(size, 4)), np.zeros(4)), (rng.normal(size=(4, HEAD_SIZE)), np.zeros(HEAD_SIZE)))
    statistics = ObservationStatistics(np.float32(1), np.zeros(size), np.ones(size))  # type: ignore[arg-type]
    save_network(tmp_path / "mine.npz", PolicyNetwork(layers, np.zeros(2), statistics), {"task": "mine"})  # type: ignore[arg-type]
    network, metadata = load_network(tmp_path / "mine.npz")
    assert metadata.items() >= layout().items() and metadata["knobs"] == HEAD_SIZES
    assert np.array_equal(network.layers[0][0], layers[0][0].astype(np.float32))
