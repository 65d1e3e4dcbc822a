"""The reward of one second: throughput wanted; latency, violations and cost not.

``metrics, workload, outcome, params -> alpha T - beta L - gamma V - delta C``, clipped to [-1, 1]. The closed loop
measures the four terms by the second, the open loop by the request; ENVIRONMENT.md, section 5.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from inferencegym_jax.models import EnvParams, MetricsSnapshot, RequestOutcome, WorkloadState, shown
from inferencegym_jax.numerics.compile_units import compile_unit
from inferencegym_jax.physics.metrics import violation_rate

Reward: TypeAlias = Callable[..., Any]
"""``reward(metrics, workload, params)`` of one second of one environment -> float32 scalar; pure JAX. A function with a
parameter named ``outcome`` is also given what became of the second's requests, as ``outcome=``: a ``RequestOutcome``,
zeros on tasks that do not count requests."""

# Never reached. A minimum between a product and a sum keeps the compiler from contracting the two into one rounding,
# and a product with 1 / x from replacing a division by a loop-invariant x. Which it does depends on the code around it:
# the last bit of a reward would differ between a scan over a batch and a single step.
CAP = 1e30


def mean_slo_ms(class_shares: jax.Array, slo_ms: jax.Array) -> jax.Array:
    """Latency objective (ms) of the mean request that has one; inf where none has.

    Tasks without classes have shares [1, 0, 0], which gives their one SLO. Weighing by share keeps a long prompt of a
    batch tenant from being held to the interactive tenant's objective alone.

    Args:
        class_shares: float32[..., 3].
        slo_ms: float32[..., 3], inf for none.
    """
    total, weighted = jnp.zeros_like(class_shares[..., 0]), jnp.zeros_like(class_shares[..., 0])
    for i in range(slo_ms.shape[-1]):
        bound = jnp.isfinite(slo_ms[..., i])
        share = jnp.where(bound, class_shares[..., i], 0.0)
        total = total + share
        weighted = weighted + jnp.minimum(share * jnp.where(bound, slo_ms[..., i], 0.0), CAP)
    return jnp.where(total > 0, weighted / jnp.maximum(total, 1e-6), jnp.inf)


@compile_unit
def reward(metrics: MetricsSnapshot, workload: WorkloadState, params: EnvParams) -> jax.Array:
    """The reward of a closed-loop second; float32.

    T = tokens_per_sec / the task's optimal, L = ttft_p50 / SLO (``mean_slo_ms``), V = ``violation_rate``, C =
    cost_per_1k / its normaliser.
    """
    throughput = metrics.tokens_per_sec * (1.0 / params.optimal_tps)
    latency = metrics.ttft_p50_ms / mean_slo_ms(workload.priority_distribution, params.slo_ms)
    cost = metrics.cost_per_1k * (1.0 / params.cost_normaliser)
    return _weighed(throughput, latency, violation_rate(metrics, workload.queue_depth), cost, params)


@compile_unit
def request_reward(
    metrics: MetricsSnapshot,
    workload: WorkloadState,
    outcome: RequestOutcome,
    violated_share: jax.Array,
    params: EnvParams,
) -> jax.Array:
    """The reward of an open-loop second; float32.

    T = output tokens of the requests that finished on time / the mean second's demand, so a quiet second earns what
    finishes in it and the sum over an episode is that of its requests on time. L = the worse of ttft_p50 and tpot over
    their objectives. V = requests that were late, rejected or failed / those asked in the second, 0 where there were
    none. C = GPUs paid for / the best static action's.

    Args:
        metrics: of the second.
        workload: its class shares.
        outcome: of its requests.
        violated_share: V, the observation's ``slo_violation_rate``.
        params: the task.
    """
    engine = params.engine
    throughput = outcome.on_time_tokens * (1.0 / engine.demand_tps)
    shares = workload.priority_distribution
    latency = jnp.maximum(
        metrics.ttft_p50_ms / mean_slo_ms(shares, params.slo_ms),
        metrics.tpot_ms / mean_slo_ms(shares, engine.slo_tpot_ms),
    )
    cost = outcome.gpu_seconds * (1.0 / engine.static_gpus)
    return _weighed(throughput, latency, violated_share, cost, params)


def _weighed(
    throughput: jax.Array, latency: jax.Array, violations: jax.Array, cost: jax.Array, params: EnvParams
) -> jax.Array:
    terms = params.alpha * throughput, params.beta * latency, params.gamma * violations, params.delta * cost
    fast, late, violating, dear = (jnp.minimum(term, CAP) for term in terms)
    return jnp.clip(fast - late - violating - dear, -1.0, 1.0)


def _sees_outcome(function: Reward) -> bool:
    """Whether a user's reward has a parameter ``outcome``; not of functions that do not tell their parameters."""
    try:
        return "outcome" in inspect.signature(function).parameters
    except (ValueError, TypeError):
        return False


def _called(
    function: Reward, metrics: MetricsSnapshot, workload: WorkloadState, params: EnvParams, outcome: RequestOutcome
) -> Any:
    seen = {"outcome": outcome} if _sees_outcome(function) else {}
    return function(metrics, workload, params, **seen)


def check_reward(
    function: Any, metrics: MetricsSnapshot, workload: WorkloadState, params: EnvParams, outcome: RequestOutcome
) -> None:
    """Try a user's reward function on the shapes of one second of one environment, without running anything.

    Args:
        function: what is to be the reward.
        metrics: arrays or their shapes.
        workload: the same.
        params: the same.
        outcome: the same.

    Raises:
        TypeError: not a function, not hashable, or it gives no floating-point scalar (what it gives is named); what
            the function itself raises passes through.
    """
    if not callable(function):
        raise TypeError(f"reward = {shown(function)}: must be a function of (metrics, workload, params)")
    try:
        hash(function)
    except TypeError:
        raise TypeError(f"reward = {shown(function)}: must be hashable, as functions are: it names a program") from None
    value = jax.eval_shape(functools.partial(_called, function), metrics, workload, params, outcome)
    number = isinstance(value, jax.ShapeDtypeStruct)
    if not number or value.shape != () or not jnp.issubdtype(value.dtype, jnp.floating):
        returned = f"{value.dtype} of shape {value.shape}" if number else shown(value)
        raise TypeError(f"reward: the function gives {returned}; must be one float32 number, shape ()")


def of_each(
    function: Reward, metrics: MetricsSnapshot, workload: WorkloadState, params: EnvParams, outcome: RequestOutcome
) -> jax.Array:
    """A user's reward, written for one environment, of any batch of them; float32[...]."""
    batch = jnp.shape(metrics.tokens_per_sec)
    if not batch:
        return jnp.asarray(_called(function, metrics, workload, params, outcome), jnp.float32)
    # a field that is the same everywhere may stand without the batch's axis
    metrics, workload = jax.tree.map(lambda x: x if jnp.ndim(x) else jnp.broadcast_to(x, batch), (metrics, workload))
    axis = 0 if jnp.ndim(params.task_id) else None
    return jax.vmap(functools.partial(of_each, function), in_axes=(0, 0, axis, 0))(metrics, workload, params, outcome)
