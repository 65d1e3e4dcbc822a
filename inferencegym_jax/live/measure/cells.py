"""What has been measured so far: slices by cell, kept in a file after each one, so that a run can go on where it
stopped."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from inferencegym_jax.live.measure.cell_run import Slice

FORMAT = 1
# Student's t, 97.5 %, for 1 to 30 degrees of freedom: intervals of a mean of few slices
T_QUANTILE = (
    12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14, 2.13,
    2.12, 2.11, 2.10, 2.09, 2.09, 2.08, 2.07, 2.07, 2.06, 2.06, 2.06, 2.05, 2.05, 2.05, 2.04,
)  # fmt: skip

Cell = tuple[int, int]
"""(concurrency, prompt_len_bucket)"""


class StateError(ValueError):
    """A state file that is not of this run."""


@dataclass
class Cells:
    """Slices by cell and the seconds they took.

    Attributes:
        config: what makes two runs the same: model, output length and so on.
        slices: cell -> slices.
        elapsed_s: seconds spent so far, over all sittings.
        acceptance: drafts that the engine verifies, and ``engine_figures.acceptance_lengths``; None without drafts.
        single: slices of lone requests whose prompt is a single token.
    """

    config: dict[str, Any]
    slices: dict[Cell, list[Slice]] = field(default_factory=dict)
    elapsed_s: float = 0.0
    acceptance: tuple[int, list[float]] | None = None
    single: list[Slice] = field(default_factory=list[Slice])

    def add(self, cell: Cell, piece: Slice) -> None:
        """Keep a slice."""
        self.slices.setdefault(cell, []).append(piece)

    def gap_ms(self, cell: Cell) -> float:
        """Mean gap between the events of a request, and so an iteration, of the median slice: a slice in which
        something else took the machine is no property of the engine, but a burst of prefills within one is, so that
        slices count by their means."""
        return float(np.median([piece.itl_ms for piece in self.slices[cell]]))

    def tpot_ms(self, cell: Cell) -> float:
        """Mean time per output token, likewise: a gap over the tokens of its event."""
        return float(np.median([piece.itl_ms / piece.per_event for piece in self.slices[cell]]))

    def decode_ms(self, cell: Cell, prefill_ms: float, seen: bool = True) -> float:
        """The same without the prefills of others: an iteration that only decodes, over the tokens that it yields.

        Args:
            cell: measured.
            prefill_ms: what a prompt adds to an iteration.
            seen: of the gaps in which nobody prefilled, where a slice had enough of them. The difference between all
                gaps and the prefills in them is small where there are many, and carries the errors of both.
        """
        return float(np.median([_decode_ms(piece, prefill_ms, seen) / piece.per_event for piece in self.slices[cell]]))

    def beside_ms(self, bucket: int) -> float | None:
        """What a prompt of this length adds to an iteration of requests that decode: by how much the gaps of all cells
        are longer than those in which nobody prefilled, over the prefills in them. None where no cell tells."""
        longer, prefills = 0.0, 0.0
        for (_, of_cell), pieces in self.slices.items():
            for piece in pieces:
                if of_cell == bucket and piece.decode_ms is not None and piece.prefills > 0:
                    longer += piece.itl_ms - piece.decode_ms
                    prefills += piece.prefills
        return max(longer / prefills, 0.0) if prefills else None

    def single_overhead_ms(self) -> float | None:
        """By how much the first token of a lone request with a prompt of one token, which is computed in an iteration
        like any other, comes later than after one; the median of the slices. None where none was sent (a state file of
        an older version)."""
        late = [float(np.median(piece.ttft_ms)) - piece.itl_ms for piece in self.single]
        return float(np.median(late)) if late else None

    def per_event(self, cell: Cell) -> float:
        """Output tokens of an event, of the median slice."""
        return float(np.median([piece.per_event for piece in self.slices[cell]]))

    def ttft_mean_ms(self, cell: Cell) -> float:
        """Mean time to first token of all requests of the cell."""
        return float(np.mean(np.concatenate([piece.ttft_ms for piece in self.slices[cell]])))

    def inside(self, cell: Cell) -> float:
        """Requests in an iteration, as a token sees it."""
        return float(np.median([piece.inside for piece in self.slices[cell]]))

    def tps(self, cell: Cell) -> float:
        """Output tokens a second, of the median slice."""
        return float(np.median([np.mean(piece.tps) for piece in self.slices[cell]]))

    def ttft_ms(self, cell: Cell, percentile: float) -> float:
        """A percentile of all times to first token of the cell."""
        return float(np.percentile(np.concatenate([piece.ttft_ms for piece in self.slices[cell]]), percentile))

    def memory_share(self, cell: Cell) -> float | None:
        """Mean share of the KV cache in use, where the server tells."""
        known = [piece.memory_share for piece in self.slices[cell] if piece.memory_share is not None]
        return float(np.mean(known)) if known else None

    def spread(self, cell: Cell) -> dict[str, float]:
        """Half-widths of the 95 % intervals over the mean, as shares: tpot from sub-windows, ttft from batches of
        requests."""
        ttft = np.concatenate([piece.ttft_ms for piece in self.slices[cell]])
        batches = [float(np.median(part)) for part in np.array_split(ttft, min(8, max(len(ttft) // 4, 1)))]
        return {"tpot": half_width(self._sub(cell, "tpot_ms")), "ttft": half_width(batches)}

    def worst(self, cell: Cell) -> float:
        """The larger of the two half-widths; the median TTFT, of few and bursty samples, may be twice as wide as the
        TPOT."""
        spread = self.spread(cell)
        return max(spread["tpot"], spread["ttft"] / 2.0)

    def cost_s(self, cell: Cell) -> float:
        """About what one more slice of the cell takes, warm-up included."""
        return 2.0 * max(piece.seconds for piece in self.slices[cell])

    def _sub(self, cell: Cell, name: str) -> list[float]:
        return [value for piece in self.slices[cell] for value in getattr(piece, name)]

    def save(self, path: Path) -> None:
        """Write atomically: a reader, or the next sitting, never finds half a file."""
        data = {
            "format": FORMAT,
            "config": self.config,
            "elapsed_s": self.elapsed_s,
            "acceptance": self.acceptance,
            "single": [dataclasses.asdict(piece) for piece in self.single],
            "cells": [
                {"concurrency": n, "bucket": bucket, "slices": [dataclasses.asdict(x) for x in piece]}
                for (n, bucket), piece in sorted(self.slices.items())
            ],
        }
        part = path.with_name(path.name + ".part")
        part.write_text(json.dumps(data))
        os.replace(part, path)

    @classmethod
    def load(cls, path: Path, config: dict[str, Any]) -> Cells:
        """Go on from a file.

        Raises:
            StateError: it cannot be read, or is of a run with another configuration (the first difference is named).
        """
        try:
            data = json.loads(path.read_text())
            cells = cls(data["config"], elapsed_s=float(data["elapsed_s"]))
            if (acceptance := data.get("acceptance")) is not None:
                cells.acceptance = int(acceptance[0]), [float(x) for x in acceptance[1]]
            cells.single = [Slice(**values) for values in data.get("single", [])]
            for entry in data["cells"]:
                slices = [Slice(**values) for values in entry["slices"]]
                cells.slices[(int(entry["concurrency"]), int(entry["bucket"]))] = slices
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StateError(f"state file {path}: cannot be read ({error}); remove it or pass --restart") from None
        for key, value in config.items():
            if data["config"].get(key) != value:
                raise StateError(
                    f"state file {path}: is of a run with {key} = {data['config'].get(key)!r}, not {value!r}; "
                    "remove it, choose another --out, or pass --restart"
                )
        return cells


def _decode_ms(piece: Slice, prefill_ms: float, seen: bool) -> float:
    return piece.decode_ms if seen and piece.decode_ms is not None else piece.itl_ms - piece.prefills * prefill_ms


def half_width(values: list[float]) -> float:
    """Half of the 95 % interval of the mean, as a share of the mean; infinite for fewer than two values."""
    if len(values) < 2:
        return float("inf")
    quantile = T_QUANTILE[min(len(values) - 2, len(T_QUANTILE) - 1)]
    return float(quantile * np.std(values, ddof=1) / np.sqrt(len(values)) / np.mean(values))
