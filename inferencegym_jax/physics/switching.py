"""What a change of the weight format or of the number of GPUs costs: time without service, starts, leases, drains.

``knobs in force, engine -> Configuration, engine``. An episode begins with the engine that its first action asks for;
every later change takes the task's times. Symbols: docs/physics.md.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from inferencegym_jax.models import REPLICA, EngineParams, EngineState, ServeAction
from inferencegym_jax.numerics.compile_units import compile_unit

SECOND_MS = 1000.0
DRAINED = 0.5  # requests: a replica with fewer is empty


class Switched(NamedTuple):
    """What of the engine's state a change of configuration touches; fields as in ``EngineState``."""

    preempted_tokens: jax.Array
    restart_s: jax.Array
    start_s: jax.Array
    lease_s: jax.Array


class Configuration(NamedTuple):
    """Which GPUs serve in this second, and what they are; float32 unless noted."""

    tier: jax.Array  # int32, weight format in force
    span_ms: jax.Array  # time served
    gpus: jax.Array  # engines that take new requests: 1, up to 2 with a replica
    prefill_gpu: jax.Array  # bool: the second GPU takes the prompts
    apart: jax.Array  # requests that run on a replica which takes no new ones
    second_running: jax.Array  # requests that run on a replica
    stopped: jax.Array  # bool: the engine stops for other weights, what ran is preempted
    paid: jax.Array  # GPUs
    prompt_gpus: jax.Array  # among which prompts are shared: those apart, or the engines that take new requests
    pools: jax.Array  # KV pools in use
    most_running: jax.Array | None = None  # requests on the engine that has most; None: one of two has the rest


@compile_unit
def configure(
    engine: EngineState, action: ServeAction, is_first: jax.Array, params: EngineParams
) -> tuple[Configuration, Switched]:
    """Apply the knobs that need time: ``quant_tier`` and ``prefill_disagg``.

    Another weight format stops the engine for ``restart_s``; what ran is preempted, and recomputed before anything
    else. A second GPU is paid from the second in which it is asked for, for ``lease_s`` at least; it serves after
    ``start_s``, takes nothing new once it is given back, and is paid until it is empty.

    Args:
        engine: before the second.
        action: knobs in force, as arrays.
        is_first: bool, the episode's first second: what is asked for is there.
        params: the switching times.

    Returns:
        The configuration, and what changes of the engine: what was preempted, and the times left after this second.
    """
    changed = (action.quant_tier != engine.tier) & ~is_first
    left_s = jnp.where(is_first, 0.0, jnp.where(changed, params.restart_s, engine.restart_s))
    stopped = changed & (params.restart_s > 0)
    lost = engine.phases[..., 0] + engine.phases[..., 1] + engine.phases[..., 2] + engine.phases[..., 3]
    waited = engine.preempted[..., 0] + engine.preempted[..., 1] + engine.preempted[..., 2] + engine.preempted[..., 3]
    tokens = engine.held / jnp.maximum(lost, 1e-6)
    mean = (waited * engine.preempted_tokens + lost * tokens) / jnp.maximum(waited + lost, 1e-6)
    up = 1.0 - jnp.clip(left_s, 0.0, 1.0)

    asked = action.prefill_disagg
    there = (engine.second_gpu > 0) & ~is_first
    there = there & (asked | (engine.lease_s > 0) | (engine.second_running > DRAINED))
    new = asked & ~there
    start_s = jnp.where(new, jnp.where(is_first, 0.0, params.start_s), engine.start_s)
    lease_s = jnp.where(new, params.lease_s, engine.lease_s)
    paid = there | asked
    serves = jnp.where(asked, 1.0 - jnp.clip(start_s, 0.0, 1.0), 0.0)
    is_replica = params.second_gpu == REPLICA
    second_running = jnp.where(stopped | is_first, 0.0, engine.second_running)
    gpus, given_back = 1.0 + jnp.where(is_replica, serves, 0.0), jnp.where(asked, 0.0, second_running)
    configuration = Configuration(
        tier=action.quant_tier,
        span_ms=SECOND_MS * up,
        gpus=gpus,
        prefill_gpu=~is_replica & (serves > 0.5),
        apart=given_back,
        second_running=second_running,
        stopped=stopped,
        paid=1.0 + paid.astype(jnp.float32),
        prompt_gpus=gpus,
        pools=jnp.maximum(gpus, 1.0 + (given_back > DRAINED)),
    )
    return configuration, Switched(
        preempted_tokens=jnp.where(stopped, mean, engine.preempted_tokens),
        restart_s=jnp.maximum(left_s - 1.0, 0.0),
        start_s=jnp.maximum(start_s - 1.0, 0.0),
        lease_s=jnp.maximum(lease_s - 1.0, 0.0),
    )
