"""When a second GPU that takes the prompts alone is worth its lease: where the prompts of a second stall who decodes.

``Engine, observation -> stall``, the time that a second's prompts add to a token of those that decode beside them, over
what the TPOT objective leaves; above 1 the GPU is asked for, and kept while such seconds come back. It is arithmetic of
the engine's profile and the objective; nothing in it is tuned or learned.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from inferencegym_jax.models import Scalar, ServeObservation
from inferencegym_jax.policies.engine_units import Engine
from inferencegym_jax.policies.relative import AVERAGES_S

KEPT_S = AVERAGES_S[1]  # without a stall, until it is given back: the longest span over which a load is averaged
LEAST_MS = 1e-3


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Stalls:
    """What is remembered of the seconds before."""

    kept_s: Scalar = 0.0  # float32, seconds for which the GPU is still asked for

    @classmethod
    def start(cls) -> Stalls:
        """Before the first second."""
        return cls(np.float32(0.0))


def stall(engine: Engine, observation: ServeObservation) -> jax.Array:
    """Time that the second's prompts add to an output token, over what the TPOT objective leaves beside a token alone;
    0 where nothing is left, which no other GPU mends; float32.

    A request of O tokens decodes for O - 1 iterations; n prompts of p ms that come meanwhile add ``n p / (O - 1)``.

    Args:
        engine: of one environment.
        observation: of it.
    """
    prompts_ms = observation.arrival_rate * engine.work_token_ms * observation.mean_prompt_len
    added = prompts_ms / jnp.maximum(jnp.asarray(engine.output) - 1.0, 1.0)
    left = engine.tpot_objective_ms(observation) - jnp.asarray(engine.tpot_ms)[..., 0]
    return jnp.where(left > 0, added / jnp.maximum(left, LEAST_MS), 0.0)


def prefill_lease(engine: Engine, observation: ServeObservation, before: Stalls) -> tuple[jax.Array, Stalls]:
    """Whether a second GPU that takes the prompts is asked for, bool, and what is remembered.

    Args:
        engine: of one environment; ``may_prefill`` says whether there is such a GPU to ask for.
        observation: of it.
        before: of the second before.
    """
    kept_s = jnp.where(stall(engine, observation) > 1.0, KEPT_S, jnp.maximum(before.kept_s - 1.0, 0.0))
    return (kept_s > 0) & (jnp.asarray(engine.may_prefill) > 0), Stalls(kept_s.astype(jnp.float32))
