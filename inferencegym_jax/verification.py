"""Re-simulation: regenerate an episode from (task, seed, config, actions) and compare a claimed log with it.

A score computed from a log that somebody wrote can be forged; the metrics of an episode cannot, because every draw is
a function of (seed, step).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from inferencegym_jax import registry
from inferencegym_jax.environment import Environment
from inferencegym_jax.models import KNOBS, EnvParams, ServeAction, check_seed, plain
from inferencegym_jax.registry import make
from inferencegym_jax.scoring.episode_log import BY_CLASS, log_entry
from inferencegym_jax.scoring.grader import grade
from inferencegym_jax.table.latency_table import LatencyTable
from inferencegym_jax.tasks import TaskSpec, get_task

# relative, of what became of requests to all that a second had; a log that went through JSON, another batch shape or
# another machine differs by a few ulps
TOLERANCE = 1e-5
COUNTS: frozenset[str] = frozenset({f"outcome.{name}" for name in (*BY_CLASS, "present")} | {"metrics.slo_violations"})


def action_from(given: Any, where: str = "action", baseline: Mapping[str, Any] | None = None) -> ServeAction:
    """A ``ServeAction`` of Python numbers from a mapping or an action; a missing knob takes the baseline's value
    (default: ``Knob.default``).

    Raises:
        ValueError, TypeError: an unknown knob or a value out of range; ``where`` is named.
    """
    if isinstance(given, ServeAction):
        return given
    if not isinstance(given, Mapping):
        raise TypeError(f"{where}: got {type(given).__name__}; must be a mapping with knobs among {', '.join(KNOBS)}")
    unknown = [key for key in given if key not in KNOBS]
    if unknown:
        raise ValueError(f"{where}: unknown knob {unknown[0]!r}; allowed are {', '.join(KNOBS)}")
    return ServeAction(**{**(baseline or {}), **given})


@functools.partial(jax.jit, static_argnums=0)
def _replay(env: Environment, params: EnvParams, seed: jax.Array, actions: ServeAction) -> Any:
    def body(state: Any, action: ServeAction) -> Any:
        _, state, reward, _, info = env.step_env(None, state, action, params)
        return state, (reward, info["metrics"], info["outcome"])

    _, state = env.reset_seed(seed, params)
    return jax.lax.scan(body, state, actions)[1]


def resimulate(
    task: int | str | TaskSpec,
    seed: int,
    config: Mapping[str, Any] | None,
    actions: Sequence[Any],
    table: str | LatencyTable | None = None,
) -> list[dict[str, Any]]:
    """The episode log that these actions give.

    Args:
        task: id or name.
        seed: 0 to 4294967295.
        config: overrides of the reset, or None.
        actions: actions or mappings of knobs, at most one a step of the task's episode.
        table: latency table; default the shipped one.

    Returns:
        Entries of plain Python numbers, see ``scoring.episode_log.LogEntry``.

    Raises:
        ValueError, TypeError: naming the action's index, the knob, the value and what is allowed.
    """
    spec = get_task(task)
    env, params = make(spec, table=table, config=config)
    seed = check_seed(seed)
    if isinstance(actions, str | bytes | Mapping) or not isinstance(actions, Sequence):
        raise TypeError(f"actions: got {type(actions).__name__}; must be a list of actions")
    if len(actions) > spec.episode_length:
        raise ValueError(f"actions: {len(actions)} given; an episode has at most {spec.episode_length} steps")
    if not actions:
        return []
    taken = []
    for i, asked in enumerate(actions):
        try:
            action = action_from(asked, baseline=env.table.knob_defaults)
            env.check_action(action)
        except (TypeError, ValueError) as error:
            raise type(error)(f"actions[{i}]: {error}") from error
        taken.append(action)
    # one compiled length serves every log: the actions are padded with the default and the padding's rows dropped
    padded = taken + [ServeAction()] * (spec.episode_length - len(taken))
    columns = ServeAction(**{name: np.asarray([getattr(a, name) for a in padded]) for name in KNOBS}).as_arrays()
    replayed = jax.tree.map(np.asarray, _replay(env, params, jnp.asarray(seed, jnp.uint32), columns))
    log = list[dict[str, Any]]()
    for i, action in enumerate(taken):
        reward, metrics, outcome = jax.tree.map(lambda x, row=i: x[row], replayed)
        log.append(log_entry(spec, action.to_dict(), float(reward), plain(metrics), plain(outcome)))
    return log


def verify(
    task: int | str | TaskSpec,
    seed: int,
    config: Mapping[str, Any] | None,
    actions: Sequence[Any],
    episode_log: Sequence[Mapping[str, Any]] | None = None,
    *,
    table: str | LatencyTable | None = None,
) -> dict[str, Any]:
    """Score the episode that (task, seed, config, actions) really gives, and say whether a claimed log is that episode.

    Args:
        task: id or name.
        seed: the episode's seed.
        config: the reset's overrides, or None.
        actions: actions or mappings of knobs, at most one a step of the task's episode.
        episode_log: the claimed log; None only scores.
        table: latency table; default the shipped one.

    Returns:
        ``grade``'s dict of the regenerated log, with ``verified`` (bool; true where nothing was claimed),
        ``episode_log`` (the regenerated one) and, where the claim differs, ``first_difference`` {"step", "field",
        "claimed", "simulated"}.
    """
    log = resimulate(task, seed, config, actions, table)
    result = grade(task, log, registry.problem(task, table=table).normalisers)
    difference = None if episode_log is None else first_difference(episode_log, log)
    result |= {"verified": difference is None, "episode_log": log}
    if difference is not None:
        result["first_difference"] = difference
        result["feedback"] += (
            f" Not verified: the log differs at step {difference['step']}, {difference['field']}:"
            f" claimed {difference['claimed']}, simulated {difference['simulated']}."
        )
    return result


def first_difference(
    claimed: Sequence[Mapping[str, Any]], simulated: Sequence[Mapping[str, Any]]
) -> dict[str, Any] | None:
    """Where a claimed log first leaves the simulated one, or None: integers exactly, floats to 1e-5 relative, and what
    became of a second's requests to 1e-5 of them all: of ten that came a processor finds 0 late, another 0.00001."""
    for step, (claim, truth) in enumerate(zip(claimed, simulated, strict=False)):
        whole = _requests(truth.get("outcome"))
        for part, right in truth.items():
            left = claim.get(part) if isinstance(claim, Mapping) else None
            pairs = (
                [
                    (f"{part}.{name}", left.get(name) if isinstance(left, Mapping) else None, x)
                    for name, x in right.items()
                ]
                if isinstance(right, Mapping)
                else [(part, left, right)]
            )
            for name, claimed_value, true in pairs:
                if not _same(claimed_value, true, whole if name in COUNTS else 1.0):
                    return {"step": step, "field": name, "claimed": claimed_value, "simulated": true}
    if len(claimed) != len(simulated):
        step = min(len(claimed), len(simulated))
        return {"step": step, "field": "length", "claimed": len(claimed), "simulated": len(simulated)}
    return None


def _requests(outcome: Any) -> float:
    """Requests that a second had, 1 at least."""
    known = outcome if isinstance(outcome, Mapping) else {}
    return max(1.0, sum(float(np.sum(known.get(name, 0.0))) for name in ("asked", "present")))


def _same(claimed: Any, true: Any, whole: float) -> bool:
    if isinstance(true, list):
        return (
            isinstance(claimed, list | tuple)
            and len(claimed) == len(true)
            and all(_same(*pair, whole) for pair in zip(claimed, true, strict=True))
        )
    if isinstance(true, bool | int) and not isinstance(true, float):
        return isinstance(claimed, bool | int | float) and claimed == true
    if isinstance(claimed, bool) or not isinstance(claimed, int | float):
        return False
    return math.isclose(claimed, true, rel_tol=TOLERANCE, abs_tol=TOLERANCE * whole)
