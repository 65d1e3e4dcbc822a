"""PPO's pure parts: advantages and objective against slow references, the distribution against scipy, running
statistics."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import inferencegym_jax as ig
from inferencegym_jax.models import FLAT_OBSERVATION_SIZE, KNOBS
from inferencegym_jax.numerics import draws as counters
from inferencegym_jax.policies.layout import CONTINUOUS
from inferencegym_jax.policies.network import HEAD_SIZE, decode, mode, sample, split_heads
from training.distribution import log_prob_and_entropy
from training.losses import advantages_and_targets, clipped_objective
from training.networks import matmul
from training.statistics import initial_statistics, merge


def load_reference() -> ModuleType:
    path = Path(__file__).parents[1] / "reference" / "ppo.py"
    spec = importlib.util.spec_from_file_location("reference_ppo", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SLOW = load_reference()
ALL = jnp.ones(len(KNOBS), bool)


def random_rollout(steps: int = 40, environments: int = 3) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    draw = {
        name: rng.normal(size=(steps, environments)).astype(np.float32) for name in ("reward", "value", "next_value")
    }
    return draw | {name: rng.random((steps, environments)) < 0.1 for name in ("terminated", "truncated")}


def test_advantages_equal_the_definition() -> None:
    data = random_rollout()
    found, targets = advantages_and_targets(**data, discount=0.97, gae_lambda=0.9)
    slow = SLOW.generalised_advantages(**data, discount=0.97, gae_lambda=0.9)
    np.testing.assert_allclose(found, slow, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(targets, slow + data["value"], rtol=1e-4, atol=1e-5)


def test_truncation_bootstraps_and_termination_does_not() -> None:
    zero = jnp.zeros((1, 1))
    yes, no = jnp.ones((1, 1), bool), jnp.zeros((1, 1), bool)
    truncated, _ = advantages_and_targets(zero, zero, zero + 5.0, no, yes, 0.9, 0.95)
    terminated, _ = advantages_and_targets(zero, zero, zero + 5.0, yes, no, 0.9, 0.95)
    assert float(truncated[0, 0]) == pytest.approx(4.5)
    assert float(terminated[0, 0]) == 0.0


@pytest.mark.parametrize("ratio", [0.5, 0.85, 1.0, 1.15, 2.0])
@pytest.mark.parametrize("advantage", [-1.5, 0.7])
def test_objective_equals_the_definition(ratio: float, advantage: float) -> None:
    found = clipped_objective(jnp.log(ratio), jnp.float32(0.0), jnp.float32(advantage), 0.2)
    assert float(found) == pytest.approx(SLOW.clipped_objective(np.log(ratio), 0.0, advantage, 0.2), rel=1e-5)


def head(seed: int = 0) -> tuple[jax.Array, jax.Array]:
    rng = np.random.default_rng(seed)
    log_std = -0.7 - 0.4 * np.arange(len(CONTINUOUS))
    return jnp.asarray(rng.normal(size=HEAD_SIZE), jnp.float32), jnp.asarray(log_std, jnp.float32)


def laws(outputs: jax.Array, log_std: jax.Array) -> list[Any]:
    """scipy's distribution of each knob's raw value."""
    scales, each = iter(np.exp(np.asarray(log_std, np.float64)).tolist()), []
    for name, part in split_heads(outputs).items():
        logits = np.asarray(part, np.float64)
        if KNOBS[name].kind == "choice":
            law: Any = stats.rv_discrete(values=(np.arange(len(logits)), np.exp(logits) / np.exp(logits).sum()))
        elif KNOBS[name].kind == "bool":
            law = stats.bernoulli(1 / (1 + np.exp(-logits[0])))
        else:
            law = stats.norm(np.tanh(logits[0]), next(scales))
        each.append(law)
    return each


RAW = jnp.asarray([0.3 if name in CONTINUOUS else 1.0 for name in KNOBS], jnp.float32)


def test_log_probability_and_entropy_equal_scipy() -> None:
    outputs, log_std = head()
    expected, entropy = 0.0, 0.0
    for value, (name, law) in zip(RAW.tolist(), zip(KNOBS, laws(outputs, log_std), strict=True), strict=True):
        expected += law.logpdf(value) if name in CONTINUOUS else law.logpmf(value)
        entropy += float(law.entropy())
    log_prob, bits = log_prob_and_entropy(outputs, log_std, RAW, ALL)
    assert float(log_prob) == pytest.approx(expected, rel=1e-4)
    assert float(bits) == pytest.approx(entropy, rel=1e-4)


@pytest.mark.parametrize("task", [1, 2, 3])
def test_locked_knobs_get_no_gradient_and_free_ones_do(task: int) -> None:
    active = jnp.asarray(ig.make(task)[1].active)
    outputs, log_std = head()

    def both(outputs: jax.Array, log_std: jax.Array) -> jax.Array:
        log_prob, entropy = log_prob_and_entropy(outputs, log_std, RAW, active)
        return log_prob + 0.1 * entropy

    gradient, spread = jax.grad(both, argnums=(0, 1))(outputs, log_std)
    for on, (name, part) in zip(np.asarray(active), split_heads(gradient).items(), strict=True):
        assert bool(np.any(np.asarray(part) != 0)) == bool(on), name
    assert np.all(np.asarray(spread) != 0)  # kv_budget and batch_size are free in every task


def test_samples_follow_the_distribution() -> None:
    outputs, log_std = head(1)
    count = 20000
    keys = counters.policy_key(jnp.arange(count, dtype=jnp.uint32), jnp.zeros(count, jnp.int32))
    raw = np.asarray(sample(jnp.broadcast_to(outputs, (count, HEAD_SIZE)), log_std, keys))
    for column, (name, law) in zip(raw.T, zip(KNOBS, laws(outputs, log_std), strict=True), strict=True):
        if name in CONTINUOUS:
            assert stats.kstest(column, law.cdf).pvalue > 1e-3, name
        else:
            counts = np.bincount(column.astype(int))
            assert stats.chisquare(counts, law.pmf(np.arange(len(counts))) * count).pvalue > 1e-3, name
    assert np.abs(np.corrcoef(raw.T) - np.eye(len(KNOBS))).max() < 0.03


def test_every_raw_vector_is_a_legal_action_and_the_mode_has_the_highest_probability() -> None:
    raw = jnp.asarray(np.random.default_rng(0).normal(scale=3.0, size=(500, len(KNOBS))), jnp.float32)
    for column, knob in enumerate(KNOBS.values()):
        if knob.kind in ("choice", "bool"):
            raw = raw.at[:, column].set(jnp.arange(500) % len(knob.options))
    ig.make(3)[0].check_action(jax.tree.map(np.asarray, decode(raw)))
    outputs, log_std = head(2)
    best, _ = log_prob_and_entropy(outputs, log_std, mode(outputs), ALL)
    others, _ = log_prob_and_entropy(jnp.broadcast_to(outputs, (500, HEAD_SIZE)), log_std, raw, ALL)
    assert float(best) >= float(others.max())


def test_positions_reach_every_edge_of_the_ranges() -> None:
    for sign, kv, batch in ((-1.0, KNOBS["kv_budget"].low, 1), (1.0, KNOBS["kv_budget"].high, 512)):
        action = decode(jnp.asarray([sign if name in CONTINUOUS else 0.0 for name in KNOBS]))
        assert float(action.kv_budget) == pytest.approx(kv)
        assert int(action.batch_size) == batch


def test_running_statistics_equal_those_of_all_batches_at_once() -> None:
    rng = np.random.default_rng(0)
    batches = [rng.normal(i, 1 + i, size=(50, 4, FLAT_OBSERVATION_SIZE)).astype(np.float32) for i in range(4)]
    found = initial_statistics()
    for batch in batches:
        found = merge(found, jnp.asarray(batch))
    everything = np.concatenate(batches).reshape(-1, FLAT_OBSERVATION_SIZE)
    assert float(found.count) == len(everything)
    np.testing.assert_allclose(found.mean, everything.mean(axis=0), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.variance, everything.var(axis=0), rtol=1e-4)


@pytest.mark.parametrize("shape", [(14, 64), (64, 64), (64, 11)])
def test_the_layers_product_has_the_gradients_of_the_plain_one(shape: tuple[int, int]) -> None:
    draw = np.random.default_rng(0)
    x, w = jnp.asarray(draw.normal(size=(96, shape[0]))), jnp.asarray(draw.normal(size=shape))
    weight = jnp.asarray(draw.normal(size=(96, shape[1])))
    mine, plain = (
        jax.grad(lambda x, w, product=product: (jnp.sin(product(x, w)) * weight).sum(), argnums=(0, 1))(x, w)
        for product in (matmul, jnp.matmul)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), mine, plain)
