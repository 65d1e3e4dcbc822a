"""What in a log's rows may mean another thing than requests, or arrivals at another time: counted block by block.

``blocks of rows -> Oddities -> one sentence for each, which asks; nothing is put right here``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from inferencegym_jax.traffic.log_rows import Block
from inferencegym_jax.traffic.log_units import EPOCH_S

LEAST_ROWS = 20  # from which rows say something
LEAST_STEP_S = 10.0  # between rows that are evenly spaced, from which they may be sums
AT_ONCE = 2.0  # requests at one time, where times are whole seconds, from which times are coarse
LATE_A_FALL = 20  # rows that are late for each fall of the times from which a clock has started anew
AGAIN = 0.1  # share of rows that are the same as the row before from which they may be there twice
CHUNKS = 0.5  # share of rows with the prompt of the row before from which they may be chunks of an answer
GROW = 0.95  # share of those that have more output tokens than the row before


@dataclass
class Oddities:
    """Counts over all rows of a log, in the order of the file.

    Attributes:
        rows: how many.
        earliest, latest: of their times, s.
        disordered: rows that are earlier than a row before them.
    """

    rows: int = 0
    earliest: float = np.inf
    latest: float = -np.inf
    disordered: int = 0
    _falls: int = 0  # rows that are earlier than the row before them
    _gaps: tuple[float, float] = (np.inf, -np.inf)
    _step: float = np.inf  # least difference of a row's time from the row before, but 0
    _steps: int = 0  # rows whose time differs from the row before
    _whole: bool = True  # whether all times are whole seconds
    _rising: bool = True
    _same_prompt: int = 0
    _more_output: int = 0
    _again: int = 0
    _before: tuple[float, float, float] | None = None

    def add(self, block: Block) -> None:
        """Count a block's rows, times in seconds."""
        times, prompts, outputs = block.times, block.prompts, block.outputs
        steps = np.diff(times)
        self._gaps = (min(self._gaps[0], steps.min(initial=np.inf)), max(self._gaps[1], steps.max(initial=-np.inf)))
        first = (np.nan, 0.0, np.nan) if self._before is None else self._before
        gap, wider, longer = (
            np.diff(values, prepend=before) for values, before in zip((times, prompts, outputs), first, strict=True)
        )
        latest = np.maximum.accumulate(np.concatenate(([self.latest], times)))
        self.disordered += int((times < latest[:-1]).sum())
        self._falls += int((gap < 0).sum())
        self._whole = self._whole and bool((times == np.floor(times)).all())
        moved = np.abs(gap[gap != 0])
        self._step = min(self._step, float(np.nanmin(moved, initial=np.inf)))
        self._steps += len(moved)
        self._rising = self._rising and bool((wider > 0).all())
        self._same_prompt += int((wider == 0).sum())
        self._more_output += int(((wider == 0) & (longer > 0)).sum())
        self._again += int(((gap == 0) & (wider == 0) & (longer == 0)).sum())
        self._before = (float(times[-1]), float(prompts[-1]), float(outputs[-1]))
        self.rows += len(times)
        self.earliest, self.latest = min(self.earliest, float(times.min())), float(latest[-1])

    def notices(self) -> list[str]:
        """One sentence each."""
        said = self._of_rows() if self.rows >= LEAST_ROWS else []
        if self.disordered:
            said.append(f"{self.disordered} of {self.rows} rows are earlier than a row before them; sorted by time")
        return said

    def _of_rows(self) -> list[str]:
        said: list[str] = []
        even = self._gaps[0]
        if LEAST_STEP_S <= even == self._gaps[1]:
            said.append(f"every row is {even:g} s after the one before: are they requests, or sums over {even:g} s?")
        elif self._whole and self._steps and self.rows >= AT_ONCE * self._steps:
            said.append(
                f"times are written in steps of {self._step:g} s: the requests of one step,"
                f" {self.rows / self._steps:.3g} in the mean, are taken to arrive evenly over its first second"
            )
        if self._rising:
            said.append("the prompt tokens rise from every row to the next: are they a running total?")
        if self._again > AGAIN * self.rows and self._same_prompt < (1.0 - AGAIN) * self.rows:
            said.append(
                f"{self._again} of {self.rows} rows are the same as the row before them: is every request there twice?"
            )
        if CHUNKS * self.rows < self._same_prompt < (1.0 - AGAIN / 2) * self.rows:
            if self._more_output > GROW * self._same_prompt:
                said.append(
                    f"{self._more_output} of {self.rows} rows have the prompt of the row before and more output tokens:"
                    " are they chunks of streamed answers? wanted: one row a request"
                )
        if self.latest < EPOCH_S[0] and self._falls and self.disordered > LATE_A_FALL * self._falls:
            said.append(
                f"the times fall back and rise again, {self._falls} times, as if a clock had started anew: are these"
                " several logs, one after the other? They are laid over each other"
            )
        return said
