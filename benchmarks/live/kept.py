"""Requests in a file: a column for each field of their records, JSON-ready, and back."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np

from inferencegym_jax.live.trial.session import Record
from inferencegym_jax.live.trial.traffic import Traffic, joined

RECORDED = ("arrival_s", "prompt", "output", "outcome", "wait_ms", "ttft_ms", "tpot_ms", "tokens", "error", "on_spare")
DIGITS = 5  # of the seconds at which tokens came


def columns_of(records: Sequence[Record]) -> dict[str, list[Any]]:
    """Field -> a value a request; of its tokens, when they came."""
    columns = {name: [getattr(record, name) for record in records] for name in RECORDED}
    return columns | {"token_s": [[round(at, DIGITS) for at in record.token_s] for record in records]}


def records_of(columns: dict[str, list[Any]]) -> list[Record]:
    """The records that ``columns_of`` kept; their class, which is not in the file, is the first one.

    Raises:
        ValueError: a column is missing, as in files from before it was kept.
    """
    if missing := [name for name in (*RECORDED, "token_s") if name not in columns]:
        raise ValueError(f"requests: lack {missing[0]}; this version keeps it of what it sends, so send them again")
    lines = zip(*(columns[name] for name in RECORDED), columns["token_s"], strict=True)
    return [
        Record(klass=0, **dict(zip(RECORDED, values, strict=True)), token_s=array("d", moments))
        for *values, moments in lines
    ]


def traffic_of(records: Sequence[Record], seconds: float) -> Traffic:
    """What was sent in a run of so many seconds, as a prediction takes it."""
    names = ("arrival_s", "prompt", "output", "klass")
    columns = tuple(np.array([getattr(record, name) for record in records]) for name in names)
    return joined([columns], float(seconds), np.ones(max(int(np.ceil(seconds)), 1), np.int64))
