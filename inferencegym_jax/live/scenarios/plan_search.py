"""Settings of the load-following controller, searched by replay on the user's engine, on days that are not sent.

``Foretold, fixed actions -> searched_plans -> name -> LoadPlan``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from inferencegym_jax.live.scenarios.unsent_days import Foretold, Tried
from inferencegym_jax.models import ServeAction, ServeObservation
from inferencegym_jax.policies.engine_units import Engine, engine_of
from inferencegym_jax.policies.load_following import LoadPlan, Memory, act

TUNED, FEWEST = SEARCHED = "tuned", "fewest instances"
DAYS = 4  # not sent, on which settings are judged
SETTINGS = 32  # of which all but two are drawn
LOWER = 0.01  # of the share on time that ``FEWEST`` may be below the reference, half of what it may be on a sent day


class Following:
    """The load-following controller, asked second by second; one compiled program for all settings."""

    def __init__(self, engine: Engine, plan: LoadPlan):
        self._engine, self._plan, self._memory = engine, plan.as_arrays(), Memory.start()

    def reset(self, seed: int = 0) -> None:
        """Start an episode; the controller draws nothing."""
        del seed
        self._memory = Memory.start()

    def ask(self, observation: ServeObservation) -> ServeAction:
        """The action of a second."""
        seen = jax.tree.map(lambda x: np.asarray(x, np.float32), observation)
        action, self._memory = _act(self._engine, self._plan, np.full(1, np.nan, np.float32), seen, self._memory)
        return jax.tree.map(lambda x: np.asarray(x).item(), action)


_act = jax.jit(act)


def searched_plans(
    foretold: Foretold,
    shipped: LoadPlan,
    fixed: Mapping[str, ServeAction],
    reference: str,
    most: int,
    count: int = SETTINGS,
) -> dict[str, tuple[LoadPlan, dict[str, float]]]:
    """Settings of the load-following controller, chosen among the shipped ones, those with the reference's batch
    size, and drawn ones that limit the running to a share of what keeps the objective on the time per token.

    Args:
        foretold: runs on days that are not sent.
        shipped: settings.
        fixed: actions that never change, of which the best measures cost.
        reference: the one whose share on time is kept.
        most: running requests, up to which thresholds on them are drawn.
        count: of settings.

    Returns:
        ``TUNED``: the settings with the highest score foretold. ``FEWEST``: those that pay for the fewest instances
        among the settings whose share on time is foretold not more than ``LOWER`` below the reference's, or, where none
        has it, those with the highest share. Each with its score, share on time and instances, and the reference's
        share on time.
    """
    rng = np.random.default_rng(0)

    def spread(low: float, high: float) -> float:
        return float(np.exp(rng.uniform(np.log(low), np.log(high))))

    engine = engine_of(foretold.setting.problem.table, foretold.setting.problem.params)
    plans = [shipped, shipped.replace(batch_size=int(fixed[reference].batch_size), slots_share=0.0, kv_budget=1.0)]
    while len(plans) < count:
        plans.append(
            plans[1].replace(
                average_s=spread(2.0, 60.0),
                up_load=rng.uniform(0.6, 1.4),
                down_share=rng.uniform(0.5, 1.0),
                up_waiting=spread(1.0, 50.0),
                up_running=spread(8.0, most),
                hold_s=spread(1.0, 60.0),
                slots_share=rng.uniform(0.5, 1.0),
            )
        )
    tried: dict[Any, Tried] = dict(fixed)
    tried |= {i: Following(engine, plan) for i, plan in enumerate(plans)}
    totals = {key: foretold.totals(policy) for key, policy in tried.items()}
    scores = foretold.scored(totals, list(fixed))
    on_time = {key: float(one.on_time_share[0]) for key, one in totals.items()}
    paid = {key: float(one.gpus[0]) for key, one in totals.items()}
    every = range(len(plans))
    kept = [i for i in every if on_time[i] >= on_time[reference] - LOWER]
    fewest = min(kept, key=lambda i: paid[i]) if kept else max(every, key=lambda i: on_time[i])
    best = {TUNED: max(every, key=lambda i: scores[i]), FEWEST: fewest}

    def figures(i: int) -> dict[str, float]:
        own = {"score": scores[i], "on_time_share": on_time[i], "instances": paid[i]}
        return own | {"reference_on_time_share": on_time[reference]}

    return {name: (plans[i], figures(i)) for name, i in best.items()}


def searched_in(choices: Mapping[str, Any]) -> dict[str, LoadPlan]:
    """The searched settings among ``Rivals.choices``, which may have been JSON, by name."""
    return {
        name: LoadPlan(**{key: value for key, value in choices[name].items() if key != "foretold"})
        for name in SEARCHED
        if name in choices
    }
