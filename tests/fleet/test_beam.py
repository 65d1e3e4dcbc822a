"""What a search that knows the future finds: sequences that the fleet played, at costs that a replay gives."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import inferencegym_jax as ig
from inferencegym_jax.fleet.contest import contest
from inferencegym_jax.fleet.rules import fixed
from training.fleet_beam import block_of, search


@pytest.mark.slow
def test_a_found_sequence_costs_what_its_replay_costs_and_no_more_than_a_fixed_size() -> None:
    env, params = ig.make_fleet("fleet-elastic")
    hold, blocks = block_of(params), 12
    assert hold * 5 == float(params.start_s)
    short = params.replace(episode_length=np.int32(hold * blocks))
    price = 60.0 * float(params.work_s)
    found = search(env, short, [0, 7], price)
    assert found["sizes"].shape == (2, blocks)

    def replay(seed: jax.Array, sizes: jax.Array) -> tuple[jax.Array, jax.Array]:
        def body(state: ig.FleetState, size: jax.Array) -> tuple[ig.FleetState, tuple[jax.Array, jax.Array]]:
            _, state, _, _, info = env.step_env(None, state, ig.FleetAction(gpus=size), short)
            outcome = info["outcome"]
            return state, (outcome.gpu_seconds, (outcome.late + outcome.rejected + outcome.failed).sum())

        gpu, late = jax.lax.scan(body, env.reset_seed(seed, short)[1], jnp.repeat(sizes, hold))[1]
        return gpu.sum(), late.sum()

    gpu, late = jax.jit(jax.vmap(replay))(jnp.asarray([0, 7], jnp.uint32), jnp.asarray(found["sizes"]))
    np.testing.assert_allclose(found["gpu_seconds"], gpu, rtol=1e-4)
    np.testing.assert_allclose(found["late"], late, rtol=1e-3, atol=1e-2)
    sizes = contest(env, short, [fixed(size) for size in range(1, 9)], [0, 7])
    held = sizes.gpu_seconds + price * (sizes.judged - sizes.on_time)
    assert (found["gpu_seconds"] + price * found["late"] <= held.min(axis=0) * (1 + 1e-4)).all()
