"""Which fields a policy's network reads and which knobs it sets, as its file says; a network that was trained before a
field or a knob was added is made to fit: it does not see the field, and the knob stays at its default.

``network, layout of its file -> fit -> network of today's OBSERVATION and KNOBS``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np

from inferencegym_jax.models import KNOBS, OBSERVATION, Knob

Layout: TypeAlias = Mapping[str, Mapping[str, int]]
"""``{"observation": field -> numbers, "knobs": knob -> outputs of its head}``, each in the network's order."""


def head_sizes(knobs: Mapping[str, Knob]) -> dict[str, int]:
    """Outputs of the actor for each knob: a position for a number, a logit for a switch, a logit a choice."""
    return {name: max(len(knob.choices), 1) for name, knob in knobs.items()}


def continuous(knobs: Mapping[str, Knob]) -> tuple[str, ...]:
    """Knobs whose head is a position, with a standard deviation of its own."""
    return tuple(name for name, knob in knobs.items() if knob.kind in ("float", "int"))


HEAD_SIZES: dict[str, int] = head_sizes(KNOBS)
"""``head_sizes`` of the single engine's knobs."""
CONTINUOUS = continuous(KNOBS)
"""``continuous`` of the single engine's knobs."""
CERTAIN = 20.0  # a logit, or a position before tanh, that leaves no doubt in float32


def layout() -> dict[str, dict[str, int]]:
    """Today's layout."""
    return {"observation": {name: field.size for name, field in OBSERVATION.items()}, "knobs": dict(HEAD_SIZES)}


class LayoutError(ValueError):
    """A network that reads a field or sets a knob that is gone, or has another size today."""


def check_layout(older: Layout) -> None:
    """Raise ``LayoutError`` for a network that cannot be made to fit; names the field or knob."""
    for part, today in layout().items():
        for name, size in older[part].items():
            if today.get(name) != size:
                known = f"takes {today[name]}" if name in today else "is gone"
                raise LayoutError(
                    f"trained with {size} numbers for {name} ({part}), which {known} today; train it again"
                )


def fit_arrays(arrays: Mapping[str, np.ndarray], older: Layout) -> dict[str, np.ndarray]:
    """The arrays of a policy file with rows for the fields, and heads for the knobs, that were added since.

    What reads observations has a row for each of their numbers, one such set of rows for each of a history's copies,
    and ``weights_0`` after them the rows of the hidden state.

    Args:
        arrays: ``weights_0`` ..., ``bias_0`` ..., ``mean``, ``variance``, ``log_std``; see
            ``policy_file.save_network``.
        older: the file's layout, or metadata that hold it; a file without one is taken to have today's.

    Raises:
        LayoutError: see ``check_layout``.
    """
    if not older.keys() >= layout().keys():
        return dict(arrays)
    check_layout(older)
    fields, heads = older["observation"], older["knobs"]
    numbers = {name: 1 for name in heads if name in CONTINUOUS}
    last = sum(name.startswith("weights_") for name in arrays) - 1
    fitted = dict(arrays)
    numbers_of_old = sum(fields.values())
    copies = len(arrays["mean"]) // numbers_of_old
    for name, fill in (("mean", 0.0), ("variance", 1.0), ("weights_0", 0.0), ("gru_inputs", 0.0)):
        if name not in arrays:
            continue
        *parts, rest = np.split(arrays[name], np.arange(1, copies + 1) * numbers_of_old)
        parts = [_join(fields, layout()["observation"], part, fill) for part in parts]
        fitted[name] = np.concatenate([*parts, rest]).astype(np.float32)
    fitted[f"weights_{last}"] = _join(heads, HEAD_SIZES, fitted[f"weights_{last}"].T, 0.0).T
    fitted[f"bias_{last}"] = _join(heads, HEAD_SIZES, arrays[f"bias_{last}"], _default_heads())
    fitted["log_std"] = _join(numbers, dict.fromkeys(CONTINUOUS, 1), arrays["log_std"], -CERTAIN)
    return fitted


def _join(older: Mapping[str, int], today: Mapping[str, int], rows: np.ndarray, fill: Any) -> np.ndarray:
    """Rows in today's order, those of names that the file lacks taken from ``fill``, a number or one a row."""
    ends = dict(zip(older, np.cumsum(list(older.values())).tolist(), strict=True))
    fill = np.broadcast_to(np.asarray(fill, np.float32), (sum(today.values()), *rows.shape[1:]))
    parts, start = [], 0
    for name, size in today.items():
        parts.append(rows[ends[name] - size : ends[name]] if name in older else fill[start : start + size])
        start += size
    return np.concatenate(parts).astype(np.float32)


def _default_heads() -> np.ndarray:
    """float32[HEAD_SIZE], the actor's bias with which every knob stands at its default."""
    return np.concatenate([_default(knob) for knob in KNOBS.values()]).astype(np.float32)


def _default(knob: Knob) -> np.ndarray:
    """A head's bias with which the knob stands at its default."""
    if knob.kind == "choice":
        return np.where(np.asarray(knob.choices) == knob.default, CERTAIN, 0.0)
    if knob.kind == "bool":
        return np.asarray([CERTAIN if knob.default else -CERTAIN])
    low, high, value = (float(x) for x in (knob.low, knob.high, knob.default))
    share = np.log(value / low) / np.log(high / low) if knob.scale == "log" else (value - low) / (high - low)
    with np.errstate(divide="ignore"):
        return np.clip(np.arctanh([2.0 * share - 1.0]), -CERTAIN, CERTAIN)
