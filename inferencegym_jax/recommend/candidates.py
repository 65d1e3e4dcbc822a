"""What is compared: every static action that an engine can be set to, and the adaptive controllers.

``table, what the user holds fixed -> actions; policies with those knobs held``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from inferencegym_jax import policies
from inferencegym_jax.environment import Environment
from inferencegym_jax.episodes.policy import Policy, init_carry
from inferencegym_jax.episodes.static_search import static_actions
from inferencegym_jax.models import KNOBS, EnvParams, QuantTier, ServeAction, check_action, shown
from inferencegym_jax.recommend.engine_flags import precision
from inferencegym_jax.recommend.gpu_formats import ENGINES, cannot_run
from inferencegym_jax.recommend.log_requests import TRACE_TASK
from inferencegym_jax.table import LatencyTable, TableError, profile_of

SEARCHED = {"kv_budget": (1.0,)}  # no engine has a flag for it: its pool is what the memory leaves


def knobs_of(table: LatencyTable, given: Mapping[str, Any] | None, what: str) -> dict[str, Any]:
    """All knobs: those given, the table's defaults for the rest.

    Raises:
        ValueError: an unknown knob, or a value that the table does not have; ``what`` is what they are called.
    """
    values = dict(table.knob_defaults)
    for name, value in (given or {}).items():
        if name not in KNOBS:
            raise ValueError(f"{what}: unknown knob {shown(name)}; allowed are {', '.join(KNOBS)}")
        values[name] = value
    check_action(ServeAction(**values))
    for name, axis in table.axes.items():
        if name not in KNOBS:
            continue
        if KNOBS[name].kind in ("choice", "bool") or len(axis) == 1:
            if not any(math.isclose(float(values[name]), node) for node in axis):
                nodes = ", ".join(f"{node:g}" for node in axis)
                raise ValueError(f"{what}: {name} = {shown(values[name])}: this table has {nodes}")
    return values


def fixed_knobs(table: LatencyTable, given: Mapping[str, Any] | None) -> dict[str, Any]:
    """The knobs that may not change, with their values.

    Raises:
        ValueError: as ``knobs_of``; or a share of the KV pool, which no engine can be set to.
    """
    values = knobs_of(table, given, "fixed")
    held = {name: values[name] for name in given or {}}
    if held.get("kv_budget", 1.0) < 1.0:
        raise ValueError(
            f"fixed: kv_budget = {held['kv_budget']:g}: must be 1; no engine has a flag for a share of its KV pool"
            " (--memory-gb sets the pool's size)"
        )
    return held


def tiers_that_run(table: LatencyTable) -> list[int]:
    """Weight formats that at least one engine can run on the table's GPU."""
    gpu = profile_of(table).gpu
    runs = [any(cannot_run(engine, precision(tier, table), gpu) is None for engine in ENGINES) for tier in QuantTier]
    return [int(tier) for tier in QuantTier if runs[tier]]


def searched_actions(
    env: Environment, params: EnvParams, held: Mapping[str, Any], memory_gb: float
) -> list[dict[str, Any]]:
    """Every static action of the table that keeps what is held, fits into the memory and runs on the GPU.

    Raises:
        TableError: none fits; the message says what would.
    """
    tiers, profile = tiers_that_run(env.table), profile_of(env.table)
    every = static_actions(env, params, SEARCHED)
    kept = [action for action in every if all(action[name] == held[name] for name in held)]
    if not kept:  # a value between the table's nodes: keep it, vary the rest
        kept = unique([{**action, **held} for action in every])
    kept = [action for action in kept if action["quant_tier"] in tiers]
    if not kept:
        raise TableError(f"fixed: quant_tier = {held.get('quant_tier')}: no engine runs that format on {profile.gpu}")
    needs = {tier: float(profile.weights_gb[tier]) + profile.runtime_gb for tier in {a["quant_tier"] for a in kept}}
    fitting = [action for action in kept if needs[action["quant_tier"]] < memory_gb]
    if not fitting:
        smallest = min(needs, key=lambda tier: needs[tier])
        raise TableError(
            f"memory_gb = {memory_gb:g}: the {QuantTier(smallest).name} weights of {profile.model}"
            f" ({profile.weights_gb[smallest]:g} GB) and the runtime ({profile.runtime_gb:g} GB) leave no room for a KV"
            f" cache; must be above {needs[smallest]:g}"
        )
    return fitting


def unique(actions: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The actions without repetitions, in their order."""
    return list({tuple(action.values()): action for action in actions}.values())


def default_controllers(table: LatencyTable, params: EnvParams) -> dict[str, Policy]:
    """The reactive controller planned for the table and, where one ships for recorded traffic, the trained one."""
    controllers: dict[str, Policy] = {"reactive": policies.reactive_for(table, params)}
    try:
        from inferencegym_jax.policies.policy_file import trained

        controllers["trained"] = trained(TRACE_TASK)
    except (ImportError, FileNotFoundError):
        pass
    return controllers


def controllers_that_fit(
    table: LatencyTable, params: EnvParams, held: Mapping[str, Any], given: Mapping[str, Policy] | None
) -> tuple[dict[str, Policy], str | None]:
    """The controllers to compare, with the held knobs held, and why there are none.

    One that may choose its weights is compared only where all of them fit.
    """
    profile, memory_gb = profile_of(table), float(np.asarray(params.engine.memory_gb))
    if given is None or given:
        tiers = [int(held["quant_tier"])] if "quant_tier" in held else list(map(int, QuantTier))
        # the reactive controller plans with the baseline's weights
        needed = max(float(profile.weights_gb[tier]) for tier in {*tiers, int(table.knob_defaults["quant_tier"])})
        if needed + profile.runtime_gb >= memory_gb:
            return {}, f"no controller is compared: not all weights that one may load fit into {memory_gb:g} GB"
    named = default_controllers(table, params) if given is None else dict(given)
    return {name: holding(policy, held) for name, policy in named.items()}, None


def holding(policy: Policy, held: Mapping[str, Any]) -> Policy:
    """The policy with some knobs held at a value, whatever it wants."""
    if not held:
        return policy

    def held_policy(key: jax.Array, observation: Any, carry: Any) -> Any:
        wanted = policy(key, observation, carry)
        action, after = wanted if isinstance(wanted, tuple) else (wanted, carry)
        fixed = {
            name: jnp.full_like(jnp.asarray(getattr(action, name), KNOBS[name].dtype), value)
            for name, value in held.items()
        }
        return action.replace(**fixed), after

    held_policy.__dict__["init_carry"] = lambda: init_carry(policy)
    return held_policy
