"""A request log as live traffic: each row is one request, at its own moment.

Files, column names, units and errors are the library's (``trace_files``, ``traces``); the simulator counts the same
rows into seconds.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from inferencegym_jax.live.trial.traffic import Traffic, log_traffic


def read_log(path: Path, rate_scale: float, longest_prompt: int, seconds: int) -> Traffic:
    """The first ``seconds`` of a log, sent ``rate_scale`` times as fast.

    Args:
        path: CSV or JSON lines with time, prompt tokens and output tokens under one of their usual names.
        rate_scale: 2 halves every gap.
        longest_prompt: longer prompts are cut there.
        seconds: of the sending, not of the log.

    Raises:
        FileNotFoundError: no such file.
        TraceError: a row that cannot be used; the line is named.
        ValueError: ``rate_scale`` is not above 0, or nothing falls into these seconds.
    """
    from inferencegym_jax.traffic.log_files import open_log
    from inferencegym_jax.traffic.request_log import seconds_a_unit

    if not 0 < rate_scale < np.inf:
        raise ValueError(f"rate_scale = {rate_scale}: must be a number above 0")
    if not path.is_file():
        raise FileNotFoundError(f"trace = {str(path)!r}: no such file; give a CSV or JSON-lines request log")
    names, blocks = open_log(path)
    columns: list[list[np.ndarray]] = [[], [], []]
    scale = first = None
    for block in blocks:
        if scale is None:
            scale, _ = seconds_a_unit(path.name, names[0], block, None)
            first = float(block.times.min()) * scale
        assert first is not None
        times = block.times * scale - first
        wanted = times < seconds * rate_scale
        for column, values in zip(columns, (times, block.prompts, block.outputs), strict=True):
            column.append(values[wanted])
        if times.min() > 2 * seconds * rate_scale:
            break  # logs are about in order
    times, prompts, outputs = (np.concatenate(column) if column else np.zeros(0) for column in columns)
    if not len(times):
        raise ValueError(f"trace = {str(path)!r}: no requests in its first {seconds * rate_scale:g} s")
    return log_traffic(times, prompts, outputs, rate_scale=rate_scale, longest_prompt=longest_prompt)
