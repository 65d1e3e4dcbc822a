"""In-process twins: what the library's ``rollout`` gives for the actions that a test sends over a wire."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import inferencegym_jax as ig
from inferencegym_jax.models import KNOBS, plain


def random_actions(seed: int, count: int) -> list[dict[str, Any]]:
    """Actions over the whole range of every knob."""
    draw = np.random.default_rng(seed)
    return [
        {
            "kv_budget": float(np.float32(draw.uniform(0.1, 1.0))),
            "spec_length": int(draw.choice(KNOBS["spec_length"].choices)),
            "batch_size": int(draw.integers(1, 513)),
            "prefill_disagg": bool(draw.integers(2)),
            "quant_tier": int(draw.integers(3)),
        }
        for _ in range(count)
    ]


def same(found: Any, wanted: Any, task: int) -> bool:
    """Equal bit for bit; on the open-loop tasks, whose longer formulas the compiler may contract differently in two
    programs, floats within 1e-6 relative and everything else exactly."""
    if task <= 3:
        return found == wanted
    if isinstance(wanted, dict):
        return found.keys() == wanted.keys() and all(same(found[key], wanted[key], task) for key in wanted)
    if isinstance(wanted, list | tuple):
        return len(found) == len(wanted) and all(same(a, b, task) for a, b in zip(found, wanted, strict=True))
    if isinstance(wanted, float):
        return abs(found - wanted) <= 1e-6 * max(abs(wanted), 1.0)
    return found == wanted


def _follow(key: Any, observation: Any, carry: Any) -> Any:
    actions, step = carry
    return jax.tree.map(lambda column: column[step], actions), (actions, step + 1)


def episodes(
    task: int,
    seeds: list[int],
    actions: list[list[dict[str, Any]]],
    config: dict[str, float] | None = None,
    trace: Any = None,
) -> list[list[dict[str, Any]]]:
    """One vmapped rollout; per episode and step what a server answers: observation, reward, metrics, workload, oom."""
    env, params = ig.make(task, config=config, trace=trace)
    padded = [row + [ig.ServeAction().to_dict()] * (ig.get_task(task).episode_length - len(row)) for row in actions]
    columns = ig.ServeAction(**{k: np.array([[a[k] for a in row] for row in padded]) for k in KNOBS}).as_arrays()
    count = len(seeds)
    if count == 1:  # a rollout of one episode is compiled for scalars, whose last bits differ
        columns = jax.tree.map(lambda x: jnp.concatenate([x, x]), columns)
        seeds = seeds * 2
    found = ig.rollout(env, params, _follow, seeds, carry=(columns, jnp.zeros(len(seeds), jnp.int32)), carry_axis=0)
    found = jax.tree.map(np.asarray, found)
    result = []
    for i in range(count):
        rows = []
        for t in range(len(actions[i])):
            step = jax.tree.map(lambda x, t=t, i=i: x[t, i], found)
            rows.append(
                {
                    "observation": plain(step.next_observation),
                    "reward": float(step.reward),
                    "metrics": plain(step.metrics),
                    "workload": plain(step.workload),
                    "oom": bool(step.oom),
                }
            )
        result.append(rows)
    return result


def seen(answer: dict[str, Any]) -> dict[str, Any]:
    """The same parts of an answer of POST /step."""
    info = answer["info"]
    return {
        "observation": answer["observation"],
        "reward": answer["reward"],
        "metrics": info["metrics"],
        "workload": info["workload"],
        "oom": info["oom"],
    }
