"""A request log as live traffic: each row is one request, at its own moment.

Files, column names, units and errors are the library's (``traffic.log_files``); the simulator counts the same rows into
seconds.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from inferencegym_jax.live.trial.traffic import Traffic, log_traffic
from inferencegym_jax.traffic.log_files import ReadOptions, open_log
from inferencegym_jax.traffic.log_source import regular_file


def read_log(
    path: Path, rate_scale: float, longest_prompt: int, seconds: int, options: ReadOptions | None = None
) -> Traffic:
    """The first ``seconds`` of a log, sent ``rate_scale`` times as fast.

    Args:
        path: a file that ``load_trace`` reads.
        rate_scale: 2 halves every gap.
        longest_prompt: longer prompts are cut there.
        seconds: of the sending, not of the log.
        options: unit, columns and window, where the log does not say so itself.

    Raises:
        FileNotFoundError: no such file.
        TraceError: a row that cannot be used; the line is named.
        ValueError: ``rate_scale`` is not above 0, or nothing falls into these seconds.
    """
    if not 0 < rate_scale < np.inf:
        raise ValueError(f"rate_scale = {rate_scale}: must be a number above 0")
    columns: list[list[np.ndarray]] = [[], [], []]
    with regular_file(path) as file:
        log = open_log(file, options)
        first = min((float(block.times.min()) for block in log.blocks()), default=0.0)
        for block in log.blocks():
            times = block.times - first
            wanted = times < seconds * rate_scale
            for column, values in zip(columns, (times, block.prompts, block.outputs), strict=True):
                column.append(values[wanted])
    times, prompts, outputs = (np.concatenate(column) if column else np.zeros(0) for column in columns)
    if not len(times):
        raise ValueError(f"trace = {str(path)!r}: no requests in its first {seconds * rate_scale:g} s")
    return log_traffic(times, prompts, outputs, rate_scale=rate_scale, longest_prompt=longest_prompt)
