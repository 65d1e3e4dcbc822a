"""One episode of a policy, second by second, as ``inferencegym_jax.adapters.timeline`` draws it."""

from __future__ import annotations

import jax
import numpy as np

import inferencegym_jax as ig
from inferencegym_jax import Problem
from inferencegym_jax.adapters.timeline import PANELS, Timeline, draw
from inferencegym_jax.environment import effective_action
from inferencegym_jax.models import KNOBS
from inferencegym_jax.policies import policy_of

__all__ = ["PANELS", "Timeline", "draw", "record"]


def record(problem: Problem, name: str, seed: int) -> Timeline:
    """Play one episode under the policy of a name."""
    env, params, spec = problem.env, problem.params, problem.spec
    policy = policy_of(name, problem)
    rollout = ig.rollout(env, params, policy, np.asarray([seed]))
    statistics = ig.evaluate(env, params, policy, np.asarray([seed]))
    trajectory = jax.tree.map(lambda x: np.asarray(x)[:, 0], rollout)
    action = effective_action(env.table, trajectory.action.as_arrays(), params)
    score, total = float(problem.score(statistics)[0]), float(trajectory.reward.sum())
    return Timeline(
        title=f"{name.replace('_', ' ')}: score {score:.2f}, return {total:.0f}",
        arrivals=trajectory.workload.arrivals,
        queue=trajectory.workload.queue_depth,
        ttft_p50_ms=trajectory.metrics.ttft_p50_ms,
        ttft_p99_ms=trajectory.metrics.ttft_p99_ms,
        memory_gb=trajectory.metrics.gpu_memory_gb,
        out_of_memory=trajectory.oom,
        burst=trajectory.workload.is_burst,
        knobs={knob: np.asarray(getattr(action, knob)) for knob in KNOBS},
        slo_ms=tuple(x for x in spec.slo_ttft_ms if np.isfinite(x)),
        memory_limit_gb=float(params.memory_limit_gb),
        length=len(trajectory.reward),
    )
