"""The five knobs that an agent sets: range, default and meaning of each, written once in ``KNOBS``."""

from __future__ import annotations

import dataclasses
import enum
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from inferencegym_jax.models.checks import is_traced, shown
from inferencegym_jax.models.engine import Scalar


class QuantTier(enum.IntEnum):
    """Weight format of the target model."""

    FP16 = 0
    INT8 = 1
    INT4 = 2


@dataclass(frozen=True)
class Knob:
    """One field of an action: its kind, allowed values, default and meaning."""

    kind: str  # "float", "int", "choice" or "bool"
    default: float | int | bool
    description: str
    low: float = 0.0
    high: float = 1.0
    choices: tuple[int, ...] = ()

    @property
    def allowed(self) -> str:
        """The allowed values in words, for error messages and help texts."""
        if self.kind == "choice":
            return "one of " + ", ".join(map(str, self.choices))
        if self.kind == "bool":
            return "true or false"
        return f"{'a whole number' if self.kind == 'int' else 'a number'} from {self.low:g} to {self.high:g}"


KNOBS: dict[str, Knob] = {
    "kv_budget": Knob(
        "float", 1.0, "share of the running batch's KV cache kept resident; the rest is evicted", 0.1, 1.0
    ),
    "spec_length": Knob("choice", 0, "speculative draft tokens; 0 is off", choices=(0, 1, 2, 4, 8)),
    "batch_size": Knob("int", 32, "most requests running at once", 1, 512),
    "prefill_disagg": Knob("bool", False, "prefill runs on a second GPU"),
    "quant_tier": Knob("choice", 0, "weight format: 0 FP16, 1 INT8, 2 INT4", choices=(0, 1, 2)),
}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ServeAction:
    """The five knobs. Defaults are the baseline agent's action ("naive vLLM defaults"). Fields may be batched."""

    kv_budget: Scalar = KNOBS["kv_budget"].default
    spec_length: Scalar = KNOBS["spec_length"].default
    batch_size: Scalar = KNOBS["batch_size"].default
    prefill_disagg: Scalar = KNOBS["prefill_disagg"].default
    quant_tier: Scalar = KNOBS["quant_tier"].default

    def replace(self, **changes: Any) -> ServeAction:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def as_arrays(self) -> ServeAction:
        """The same action as float32, int32 and bool arrays, so that every caller compiles to one signature."""
        return ServeAction(
            kv_budget=jnp.asarray(self.kv_budget, jnp.float32),
            spec_length=jnp.asarray(self.spec_length, jnp.int32),
            batch_size=jnp.asarray(self.batch_size, jnp.int32),
            prefill_disagg=jnp.asarray(self.prefill_disagg, jnp.bool_),
            quant_tier=jnp.asarray(self.quant_tier, jnp.int32),
        )

    def to_dict(self) -> dict[str, float | int | bool]:
        """The action of one environment as plain Python numbers (JSON-ready).

        The budget is the float32 that the simulator uses, printed with the fewest digits that name it.
        """
        return {
            "kv_budget": float(str(np.float32(self.kv_budget))),
            "spec_length": int(self.spec_length),
            "batch_size": int(self.batch_size),
            "prefill_disagg": bool(self.prefill_disagg),
            "quant_tier": int(self.quant_tier),
        }


def check_action(action: Any) -> None:
    """Raise if a concrete action, single or batched, leaves its range; do nothing for a traced one.

    Raises:
        TypeError: action is no ServeAction, or a knob is not of its kind.
        ValueError: a knob is not finite or outside its range; the message names knob, value and what is allowed.
    """
    if not isinstance(action, ServeAction):
        raise TypeError(f"action: got {type(action).__name__}; pass a ServeAction (or use a wrapper)")
    if is_traced(action):
        return
    for name, knob in KNOBS.items():
        _check_knob(name, knob, getattr(action, name))


def _is_plainly_good(knob: Knob, given: Any) -> bool:
    """Whether it is a Python number in range: one environment's usual case, which needs no arrays to be seen."""
    if knob.kind == "bool":
        return type(given) is bool
    if type(given) is not int and type(given) is not float:
        return False
    if knob.kind == "choice":
        return given in knob.choices
    return knob.low <= given <= knob.high and (knob.kind == "float" or given == int(given))


def _check_knob(name: str, knob: Knob, given: Any) -> None:
    if _is_plainly_good(knob, given):
        return
    value = np.asarray(given)
    if value.dtype == object and isinstance(given, int):  # beyond 64 bits
        raise ValueError(f"{name} = {shown(given)}: must be {knob.allowed}")
    if value.dtype.kind not in ("b" if knob.kind == "bool" else "iuf"):
        raise TypeError(f"{name} = {shown(given)}: must be {knob.allowed}")
    if knob.kind == "bool":
        return
    if knob.kind == "choice":
        good = np.isin(value, knob.choices)
    else:
        # float32(0.1) is below the double 0.1: compare as float32, which is what the simulator uses
        single = value.astype(np.float32)
        good = (single >= np.float32(knob.low)) & (single <= np.float32(knob.high))
        if knob.kind == "int":
            good &= value == np.floor(value)
    if not np.all(good):
        worst = value[~good].flat[0] if value.ndim else given
        raise ValueError(f"{name} = {worst}: must be {knob.allowed}")
