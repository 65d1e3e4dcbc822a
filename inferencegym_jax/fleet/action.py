"""The knobs of a fleet: range, default and meaning of each, written once in ``FLEET_KNOBS``."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from inferencegym_jax.models import KNOBS, Knob, Scalar, check_knob, is_traced

GPUS = 8
"""The most GPUs that a fleet has."""

FLEET_KNOBS: dict[str, Knob] = {
    "gpus": Knob(
        "int", GPUS, "GPUs that are asked for", 1, GPUS, unit="GPUs", title="GPUs", grid=tuple(range(1, GPUS + 1))
    ),
    "prefill_gpus": Knob(
        "int",
        0,
        "of them, those that compute prompts for the others; 0: every GPU computes its own",
        0,
        GPUS - 1,
        unit="GPUs",
        title="Prefill GPUs",
        grid=tuple(range(GPUS)),
    ),
    "batch_size": dataclasses.replace(KNOBS["batch_size"], default=128, description="most requests running on a GPU"),
    "spec_length": KNOBS["spec_length"],
}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FleetAction:
    """The knobs of a fleet. Fields may be batched."""

    gpus: Scalar = FLEET_KNOBS["gpus"].default
    prefill_gpus: Scalar = FLEET_KNOBS["prefill_gpus"].default
    batch_size: Scalar = FLEET_KNOBS["batch_size"].default
    spec_length: Scalar = FLEET_KNOBS["spec_length"].default

    def replace(self, **changes: Any) -> FleetAction:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def as_arrays(self) -> FleetAction:
        """The same action as int32 arrays, so that every caller compiles to one signature."""
        return FleetAction(**{name: jnp.asarray(getattr(self, name), k.dtype) for name, k in FLEET_KNOBS.items()})

    def to_dict(self) -> dict[str, float | int | bool]:
        """The action of one fleet as plain Python numbers (JSON-ready)."""
        return {name: knob.plain(getattr(self, name)) for name, knob in FLEET_KNOBS.items()}


def check_fleet_action(action: Any, gpus: Any = GPUS) -> None:
    """Raise if a concrete action, single or batched, cannot be carried out; do nothing for a traced one.

    Args:
        action: the knobs.
        gpus: GPUs that the fleet has, one or one an environment.

    Raises:
        TypeError: no ``FleetAction``, or a knob that is no whole number.
        ValueError: a knob outside its range, more GPUs than the fleet has, or a split that leaves none to decode; the
            message names knob, value and what is allowed.
    """
    if not isinstance(action, FleetAction):
        raise TypeError(f"action: got {type(action).__name__}; pass a FleetAction")
    if is_traced((action, gpus)):
        return
    for name, knob in FLEET_KNOBS.items():
        check_knob(name, knob, getattr(action, name))
    fields = (np.asarray(x) for x in (action.gpus, gpus, action.prefill_gpus))
    asked, there, split = np.broadcast_arrays(*fields)
    more, whole = asked > there, split >= asked
    if more.any():
        raise ValueError(
            f"gpus = {asked[more].flat[0]}: the fleet has {there[more].flat[0]}; must be a whole number from 1 to that"
        )
    if whole.any():
        raise ValueError(
            f"prefill_gpus = {split[whole].flat[0]}: leaves no GPU of gpus = {asked[whole].flat[0]} to decode; must be "
            "below gpus"
        )
