"""Columns of a data frame, or of a mapping of arrays, as vectors of numbers; no data-frame library is imported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from inferencegym_jax.models import shown


def number_columns(frame: Any, wanted: Sequence[str]) -> dict[str, np.ndarray]:
    """The columns that are wanted, those that are there, as float64 vectors of one length.

    Args:
        frame: a mapping of names to sequences, or a data frame of pandas, polars or pyarrow: what has ``columns`` (or
            ``column_names``) and gives a column by ``frame[name]``.
        wanted: names.

    Raises:
        TypeError: neither a mapping nor a data frame.
        ValueError: columns of different lengths, or one that is no vector of numbers (column and row are named).
    """
    if isinstance(frame, Mapping):
        names = list(frame)
    else:
        listed = getattr(frame, "column_names", None)
        listed = getattr(frame, "columns", None) if listed is None else listed
        if listed is None or not hasattr(frame, "__getitem__"):
            raise TypeError(f"columns = {shown(frame)}: must be a mapping of names to sequences, or a data frame")
        names = list(listed)
    columns = {name: _vector(name, np.asarray(frame[name])) for name in names if name in wanted}
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"columns of different lengths: {', '.join(f'{name} has {n}' for name, n in lengths.items())}")
    return columns


def _vector(name: str, column: np.ndarray) -> np.ndarray:
    if column.ndim != 1:
        raise ValueError(f"column {name}: shape {column.shape}; must be a vector")
    if column.dtype.kind in "biuf":
        return column.astype(np.float64)
    for row, value in enumerate(column.tolist()):
        if value is None:
            raise ValueError(f"row {row}: {name} is missing; every cell must hold a number")
        if not isinstance(value, bool | int | float):
            raise ValueError(f"row {row}: {name} = {shown(value)}; must be a number")
    return column.astype(np.float64)
