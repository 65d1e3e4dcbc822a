"""The knobs that an agent sets: range, default and meaning of each, written once in ``KNOBS``.

A new knob is an entry of ``KNOBS`` and a field of ``ServeAction``, in the same order, and the physics that reads it.
"""

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
    unit: str = ""
    title: str = ""  # what people read on pages and plots
    scale: str = "linear"  # or "log": how a number's place between low and high maps to its value
    labels: tuple[str, ...] = ()  # what people read for each of ``options``; empty: the values themselves
    grid: tuple[float, ...] = ()  # where a discrete view samples a number; empty: its ends

    @property
    def allowed(self) -> str:
        """The allowed values in words, for error messages and help texts."""
        if self.kind == "choice":
            return "one of " + ", ".join(map(str, self.choices))
        if self.kind == "bool":
            return "true or false"
        return f"{'a whole number' if self.kind == 'int' else 'a number'} from {self.low:g} to {self.high:g}"

    @property
    def options(self) -> tuple[Any, ...]:
        """The values that a discrete view offers: all that a choice or a switch has, the grid of a number."""
        if self.kind == "bool":
            return (False, True)
        return self.choices or tuple(map(self.plain, self.grid or (self.low, self.high)))

    @property
    def least(self) -> float:
        """The lowest value of a number or a choice."""
        return min(self.choices, default=self.low)

    @property
    def most(self) -> float:
        """The highest value of a number or a choice."""
        return max(self.choices, default=self.high)

    @property
    def dtype(self) -> Any:
        """The dtype of its arrays: float32, int32 or bool."""
        return {"float": np.float32, "bool": np.bool_}.get(self.kind, np.int32)

    def plain(self, value: Any) -> float | int | bool:
        """A value as a Python number (JSON-ready); a float is the float32 that the simulator uses, printed with the
        fewest digits that name it."""
        if self.kind == "float":
            return float(str(np.float32(value)))
        return bool(value) if self.kind == "bool" else int(value)

    def text(self, value: Any) -> str:
        """A value with the knob's title, as people read it: "Weights INT8", "Batch size 64"."""
        return f"{self.title} {self.labels[self.options.index(value)] if self.labels else f'{value:g}'}"


KNOBS: dict[str, Knob] = {
    "kv_budget": Knob(
        "float",
        1.0,
        "share of the KV cache: that the running requests keep (tasks 1 to 3); up to which new ones enter (open loop)",
        0.1,
        1.0,
        unit="share",
        title="KV budget",
        grid=(0.25, 0.5, 0.75, 1.0),
    ),
    "spec_length": Knob(
        "choice",
        0,
        "speculative draft tokens; 0 is off",
        choices=(0, 1, 2, 4, 8),
        unit="tokens",
        title="Speculative drafts",
        labels=("off", "1", "2", "4", "8"),
    ),
    "batch_size": Knob(
        "int",
        32,
        "most requests running at once",
        1,
        512,
        unit="requests",
        title="Batch size",
        scale="log",
        grid=(8, 16, 32, 64, 128, 256, 512),
    ),
    "prefill_disagg": Knob(
        "bool",
        False,
        "a second GPU, which takes the prefills (on some open-loop tasks: serves as a replica)",
        title="Separate prefill GPU",
        labels=("off", "on"),
    ),
    "quant_tier": Knob(
        "choice",
        0,
        "weight format: 0 FP16, 1 INT8, 2 INT4",
        choices=(0, 1, 2),
        title="Weights",
        labels=tuple(tier.name for tier in QuantTier),
    ),
}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ServeAction:
    """The knobs. Defaults are the baseline agent's action ("naive vLLM defaults"). Fields may be batched."""

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
        return ServeAction(**{name: jnp.asarray(getattr(self, name), knob.dtype) for name, knob in KNOBS.items()})

    def to_dict(self) -> dict[str, float | int | bool]:
        """The action of one environment as plain Python numbers (JSON-ready); see ``Knob.plain``."""
        return {name: knob.plain(getattr(self, name)) for name, knob in KNOBS.items()}


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
        check_knob(name, knob, getattr(action, name))


def _is_plainly_good(knob: Knob, value: Any) -> bool:
    """Whether it is a Python number in range: one environment's usual case, which needs no arrays to be seen."""
    if knob.kind == "bool":
        return type(value) is bool
    if type(value) is not int and type(value) is not float:
        return False
    if knob.kind == "choice":
        return value in knob.choices
    return knob.low <= value <= knob.high and (knob.kind == "float" or value == int(value))


def check_knob(name: str, knob: Knob, value: Any) -> None:
    """Raise unless a concrete value of one knob, single or batched, is of its kind and in its range.

    Raises:
        TypeError, ValueError: see ``check_action``.
    """
    if _is_plainly_good(knob, value):
        return
    array = np.asarray(value)
    if array.dtype == object and isinstance(value, int):  # beyond 64 bits
        raise ValueError(f"{name} = {shown(value)}: must be {knob.allowed}")
    if array.dtype.kind not in ("b" if knob.kind == "bool" else "iuf"):
        raise TypeError(f"{name} = {shown(value)}: must be {knob.allowed}")
    if knob.kind == "bool":
        return
    if knob.kind == "choice":
        good = np.isin(array, knob.choices)
    else:
        # float32(0.1) is below the double 0.1: compare as float32, which is what the simulator uses
        single = array.astype(np.float32)
        good = (single >= np.float32(knob.low)) & (single <= np.float32(knob.high))
        if knob.kind == "int":
            good &= array == np.floor(array)
    if not np.all(good):
        worst = array[~good].flat[0] if array.ndim else value
        raise ValueError(f"{name} = {worst}: must be {knob.allowed}")
