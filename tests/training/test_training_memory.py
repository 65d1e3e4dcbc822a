"""PPO with memory: sequences are recomputed as they were collected, episodes begin with nothing, runs export what they
evaluated."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import inferencegym_jax as ig
from inferencegym_jax.encoding import History
from inferencegym_jax.policies.network import decode, first_carry
from inferencegym_jax.policies.policy_file import load_network
from inferencegym_jax.traffic.days import SEED_STRIDE
from tests.training.test_training_losses import SLOW
from tests.training.test_training_runs import SMALL, parameters, start, values
from training.config import TrainConfig, from_mapping
from training.memory import mean_by_unit, pick, remember, with_hidden
from training.networks import to_policy
from training.runner import Result, run
from training.trainer import (
    VALIDATION_SEED,
    TrainState,
    apply,
    collect,
    initial_state,
    make_update,
    minibatch_loss,
    step_all,
)

MEMORY = SMALL.replace(task=3, memory="gru", memory_size=8, history=(15,), history_last=1)


@dataclasses.dataclass
class Collected:
    config: TrainConfig
    env: Any
    params: Any
    state: TrainState  # before the rollout
    batch: Any


@pytest.fixture(scope="module")
def collected() -> Collected:
    """Two rollouts of eight environments at different moments of episodes of 20 s; the second one's batch."""
    config = MEMORY.replace(rollout_length=16)
    env, params = ig.make(3)
    params = params.replace(episode_length=jnp.int32(20))
    gather = jax.jit(lambda s: collect(env, params, config, s, config.hyper))
    state = initial_state(env, params, config.replace(stagger=False), 0, config.hyper)
    draw = np.random.default_rng(0)  # fresh networks hardly listen to their memory: these do
    variables = jax.tree.map(lambda x: x + draw.normal(0, 0.3, x.shape).astype(np.float32), state.variables)
    statistics = jax.tree.map(lambda x: x + 0.1, state.statistics)
    state = dataclasses.replace(state, variables=variables, statistics=statistics)
    state = gather(state)[0]
    return Collected(config, env, params, state, gather(state)[1])


def test_a_minibatch_recomputes_what_was_collected(collected: Collected) -> None:
    config, batch, variables = collected.config, collected.batch, collected.state.variables
    assert bool(batch.is_first.any()) and not bool(batch.is_first[0].any())  # episodes end within the sequences
    assert float(jnp.abs(batch.hidden).max()) > 0  # which begin with something remembered
    active = jnp.asarray(collected.params.active)
    kl = jax.jit(lambda part: minibatch_loss(variables, config, active, part, config.hyper)[1]["kl"])
    for chosen in np.arange(config.column_block).reshape(config.minibatches, -1):
        assert float(kl(pick(config, batch, jnp.asarray(chosen)))) == pytest.approx(0.0, abs=1e-6)
    assert float(kl(batch._replace(hidden=jnp.zeros_like(batch.hidden)))) > 1e-3


@pytest.mark.slow
def test_minibatches_part_the_rollout_and_their_gradients_make_up_the_whole_ones(collected: Collected) -> None:
    config, batch, variables = collected.config, collected.batch, collected.state.variables
    active, units = jnp.asarray(collected.params.active), np.random.default_rng(0).permutation(config.column_block)
    parts = [pick(config, batch, jnp.asarray(chosen)) for chosen in units.reshape(config.minibatches, -1)]
    everything = np.concatenate([np.ravel(part.target) for part in parts])
    np.testing.assert_array_equal(np.sort(everything), np.sort(np.ravel(batch.target)))
    gradient = jax.jit(jax.grad(lambda v, part: minibatch_loss(v, config, active, part, config.hyper)[0]))
    whole, several = gradient(variables, batch), [gradient(variables, part) for part in parts]
    mean = jax.tree.map(lambda *xs: sum(xs) / len(xs), *several)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), mean, whole)
    assert all(float(jnp.abs(x).max()) > 0 for x in jax.tree.leaves(whole["params"]["_gru"]))


def test_means_by_unit_are_those_of_what_the_unit_holds(collected: Collected) -> None:
    config, batch = collected.config, collected.batch
    means = mean_by_unit(config, batch.advantage)
    assert means.shape == (config.column_block,)
    for unit in range(config.column_block):
        part = pick(config, batch, jnp.asarray([unit]))
        assert float(means[unit]) == pytest.approx(float(part.advantage.mean()), rel=1e-4, abs=1e-6)


def test_advantages_are_those_of_a_loop_that_bootstraps_the_finished_episode(collected: Collected) -> None:
    """Second by second: an episode begins with nothing, its last value is of its final observation and memory."""
    config, env, params, state = collected.config, collected.env, collected.params, collected.state
    variables, statistics, batch = state.variables, state.statistics, collected.batch
    see = jax.jit(lambda seen, carry: remember(config, variables, statistics, seen, carry)[1:])
    judge = jax.jit(lambda x: apply(config, variables, x, "critic"))
    step = jax.jit(lambda s, a: step_all(env, params, s, a))
    fresh = first_carry(config.observed, config.hidden_size, (config.environments,))
    env_state, seen, carry, rows, inputs = state.env_state, state.observation, state.carry, [], []
    for t in range(config.rollout_length):
        begins = np.asarray(env_state.time) == 0
        carry = jax.tree.map(lambda a, b, at=begins: np.where(at.reshape(-1, *[1] * (b.ndim - 1)), a, b), fresh, carry)
        x, carry = see(seen, carry)
        inputs.append(np.asarray(x))
        seen, env_state, reward, terminated, truncated, info = step(env_state, decode(batch.raw[t]))
        after = judge(see(info["final_observation"], carry)[0])
        rows.append([np.asarray(v) for v in (reward, judge(x), after, terminated, truncated)])
    reward, value, after, terminated, truncated = (np.stack(column) for column in zip(*rows, strict=True))
    assert truncated.any()
    found = SLOW.generalised_advantages(
        reward=reward, value=value, next_value=after, terminated=terminated, truncated=truncated,
        discount=float(config.hyper.discount), gae_lambda=float(config.hyper.gae_lambda),
    )  # fmt: skip
    np.testing.assert_allclose(batch.advantage, found, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(np.concatenate(inputs), with_hidden(variables, batch), rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    folder = tmp_path_factory.mktemp("run")
    return folder, run(MEMORY, folder)


@pytest.mark.ci
def test_a_run_with_memory_exports_what_it_evaluated(trained: tuple[Path, Result]) -> None:
    folder, result = trained
    network, about = load_network(folder / "policy.npz")
    assert network.gru is not None and network.gru.size == 8 and network.history == History((15.0,), 1)
    assert about["config"]["memory"] == "gru" and from_mapping(about["config"]) == MEMORY
    jax.tree.map(np.testing.assert_array_equal, network, result.network)
    problem = ig.problem(3)
    policy = ig.policies.policy_of(str(folder), problem)
    seeds = VALIDATION_SEED + SEED_STRIDE * np.arange(MEMORY.evaluation_episodes)
    score = problem.score(ig.evaluate(problem.env, problem.params, policy, seeds)).mean()
    assert score == pytest.approx(result.rows[-1]["score"], rel=1e-4)


@pytest.mark.slow
def test_a_resumed_run_with_memory_reaches_the_parameters_of_an_uninterrupted_one(
    tmp_path: Path, trained: tuple[Path, Result]
) -> None:
    def once(report: Any) -> None:
        raise KeyboardInterrupt

    assert run(MEMORY, tmp_path, report=once).interrupted
    np.testing.assert_array_equal(parameters(run(MEMORY, tmp_path, resume=True)), parameters(trained[1]))


def test_a_history_alone_needs_no_sequences() -> None:
    config = SMALL.replace(history=(15, 120), minibatches=8)  # minibatches of steps, as without memory
    env, params = ig.make(2)

    def trained(hyper: Any) -> Any:
        state, _ = make_update(env, params, config)(initial_state(env, params, config, 0, hyper), hyper)
        return to_policy(state.variables, state.statistics, config.observed)

    network = jax.eval_shape(trained, config.hyper)
    assert network.gru is None and network.layers[0][0].shape[0] == 14 * 3 and network.history == History((15.0, 120.0))


def test_memory_is_set_from_text() -> None:
    config = from_mapping({"memory": "gru", "memory_size": "16", "history": "15,120", "history_last": "2"})
    assert (config.hidden_size, config.observed, config.features) == (16, History((15.0, 120.0), 2), 14 * 5)
    assert from_mapping({"history": "none"}, config).history == () and from_mapping({"history": 30}).history == (30,)
    assert from_mapping(config.to_dict()) == config


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"memory": "lstm"}, "memory = 'lstm': must be one of none, gru"),
        ({"memory_size": 0}, "memory_size = 0"),
        ({"history": "15,x"}, "history, history_last: averages_s = 'x'"),
        ({"memory": "gru", "environments": 6, "minibatches": 4}, "must divide environments = 6"),
    ],
)
def test_a_memory_that_cannot_be_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        TrainConfig().replace(**changes)


@pytest.mark.slow
def test_two_devices_reach_the_parameters_of_one_with_memory() -> None:
    config = MEMORY.replace(environments=16, total_steps=512)
    found = values(start("2", config=config))
    np.testing.assert_allclose(found, parameters(run(config)), rtol=2e-3, atol=2e-4)


@pytest.mark.slow
def test_training_with_memory_learns_task_1() -> None:
    config = TrainConfig(task=1).replace(memory="gru", total_steps=100_000, environments=64, history=(15,))
    assert run(config).rows[-1]["score"] >= 0.65
