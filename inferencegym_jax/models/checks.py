"""Values as error messages and JSON show them, and the checks that every input passes."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

SEEDS = 2**32  # episodes of a task: seeds are 0 to SEEDS - 1


def plain(tree: Any) -> Any:
    """A pytree of scalars and short arrays as JSON-ready dicts, lists and Python numbers."""
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        return {f.name: plain(getattr(tree, f.name)) for f in dataclasses.fields(tree)}
    if isinstance(tree, dict):
        return {key: plain(value) for key, value in tree.items()}
    return np.asarray(tree).tolist()


def shown(value: Any) -> str:
    """A given value as an error message shows it: cut to 60 characters, whatever it is."""
    try:
        text = repr(value)
    except ValueError:  # Python refuses to print whole numbers of more than 4,300 digits
        return "a number of thousands of digits"
    return text if len(text) <= 60 else text[:57] + "..."


def finite_number(value: Any) -> float | None:
    """The value as a float where it is a finite number (not a bool, not text), else None."""
    if isinstance(value, bool | np.bool_ | str | bytes) or value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def is_traced(tree: Any) -> bool:
    """Whether any leaf is a tracer: inside jit, vmap or grad no value can be inspected."""
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tree))


def check_whole(name: str, value: Any, least: int = 1, most: int | None = None) -> int:
    """The value as an int, where it is a whole number in a range.

    Args:
        name: what it is called in the message.
        value: as it came in.
        least: smallest that is allowed.
        most: largest that is allowed; None: as large as one likes.

    Raises:
        ValueError: it is none (no bool, no text, no float), or out of the range.
    """
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or value < least or (most is not None and value > most):
        allowed = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name} = {shown(value)}: must be a whole number {allowed}")
    return int(value)


def check_seed(seed: Any) -> int:
    """The seed of one episode as an int.

    Raises:
        ValueError: it is no whole number from 0 to 4294967295.
    """
    return check_whole("seed", seed, 0, SEEDS - 1)
