"""The requests of one second: the task's own draws, the fitted traffic's, or a log's."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from inferencegym_jax.models import EPISODE_LENGTH, EnvParams, EnvState, WorkloadState
from inferencegym_jax.traffic import fitted as open_traffic
from inferencegym_jax.traffic.fitted import Requests


def replay(seed: jax.Array, step: jax.Array, rows: jax.Array, length: int) -> Requests:
    """Second ``(seed x length + step) mod seconds`` of a log: seed 0 starts at its first second, seed 1 one episode
    later.

    Args:
        seed: uint32.
        step: int32.
        rows: float32[seconds, 3]: requests, mean prompt, mean output.
        length: steps of an episode.
    """
    seconds = rows.shape[0]
    episode = (seed % jnp.uint32(seconds)).astype(jnp.int32) * (length % seconds) % seconds
    row = rows[(episode + step) % seconds]
    mean = jnp.maximum(rows[:, 0].mean(), 1e-6)
    return Requests(row[..., 0].astype(jnp.int32), row[..., 1], row[..., 2], row[..., 0] / mean)


def requests_of(trace: np.ndarray | None, state: EnvState, params: EnvParams, task: WorkloadState) -> Requests:
    """The second's requests: the task's own draws, the fitted traffic's or a log's."""
    engine, seed, step = params.engine, state.seed, state.time

    def own() -> Requests:
        output = open_traffic.mean_output(seed, step, engine, task.arrivals)
        return Requests(task.arrivals, task.mean_prompt_len, output, jnp.ones_like(output))

    def fitted() -> Requests:
        return open_traffic.draw_fitted(seed, step, engine)

    def logged() -> Requests:
        return replay(seed, step, jnp.asarray(trace), EPISODE_LENGTH)

    # a batch of one task draws its own traffic only; where tasks are mixed, all are drawn and one is chosen
    kinds = (own, fitted) if trace is None else (own, fitted, logged)
    return jax.lax.switch(engine.traffic, kinds)
