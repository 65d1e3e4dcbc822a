"""Traffic from arrays: the same log as a file of the same requests, and errors that name array, index and value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import inferencegym_jax as ig


def requests(count: int = 900) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(4)
    return np.sort(rng.uniform(5, 300, count)), rng.integers(40, 2000, count), rng.integers(5, 300, count)


def test_it_is_the_log_that_a_file_of_the_same_requests_is(tmp_path: Path) -> None:
    time, prompt, output = requests()
    path = tmp_path / "mine.csv"
    rows = [f"{t!r},{p},{o}" for t, p, o in zip(time.tolist(), prompt, output, strict=True)]
    path.write_text("\n".join(["time_s,prompt_tokens,output_tokens", *rows]))
    log = ig.RequestLog.from_arrays(time, prompt, output, name="mine")
    assert log == ig.load_trace(path) and hash(log) == hash(ig.load_trace(path))
    assert (log.name, log.requests, log.start_s, log.seconds) == ("mine", 900, 5.0, 295)
    assert log.mean_prompt == pytest.approx(prompt.mean(), rel=1e-6)


def test_units_dates_lists_and_order_do_not_matter() -> None:
    time, prompt, output = requests()
    log = ig.RequestLog.from_arrays(time, prompt, output)
    assert ig.RequestLog.from_arrays(time * 1e3, prompt, output, unit="ms") == log
    dates = np.datetime64("2025-01-01T00:00:00") + (time * 1e9).astype("timedelta64[ns]")
    assert ig.RequestLog.from_arrays(dates, prompt, output) == log
    assert ig.RequestLog.from_arrays(time.tolist(), prompt.tolist(), output.tolist()) == log
    order = np.random.default_rng(0).permutation(len(time))
    with pytest.warns(UserWarning, match="rows are earlier than a row before them; sorted by time"):
        assert ig.RequestLog.from_arrays(time[order], prompt[order], output[order]) == log


@pytest.mark.slow
def test_it_is_replayed_as_a_tasks_traffic() -> None:
    log = ig.RequestLog.from_arrays(*requests())
    env, params = ig.make(4, trace=log)
    found = ig.evaluate(env, params, ig.policies.baseline, np.array([0]))
    assert int(found.arrivals[0]) == int(log.counts[:200].sum())


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        (([], [], []), "no requests; wanted: at least one"),
        (([1.0, 2.0], [5], [6, 6]), "time has 2, prompt has 1, output has 2; one entry a request"),
        (([1.0, float("nan")], [5, 5], [6, 6]), r"time\[1\] = nan: must be finite"),
        (([1.0, 2.0], [5, float("inf")], [6, 6]), r"prompt\[1\] = inf: must be finite"),
        (([1.0, 2.0], [5, 5], [6, -1]), r"output\[1\] = -1: must be a number of tokens from 0"),
        (([1.0, 2.0], [5, 5], [6, 1e9]), r"output\[1\] = 1e\+09"),
        ((["a", "b"], [5, 5], [6, 6]), r"time: dtype <U1 \(the first is 'a'\); must be numbers"),
        (([1.0, 2.0], [True, False], [6, 6]), r"prompt: dtype bool \(the first is True\)"),
        (([1.0, 2.0], [5, None], [6, 6]), r"prompt: dtype object"),
        (([[1.0, 2.0]], [5, 5], [6, 6]), r"time: shape \(1, 2\); must be a vector"),
        ((3.0, 5, 6), r"time: shape \(\); must be a vector"),
        ((["NaT", "2024-01-01"], [5, 5], [6, 6]), "time"),
        (([0.0, 4e6], [5, 5], [6, 6]), "entry 1: time is 4000000, 46 days from the first row.*at most 31 days"),
        (([0.0, 1e6], [5, 5], [6, 6]), "requests/s, which no log has"),
    ],
)
def test_arrays_that_are_no_log_are_named(arrays: tuple[Any, Any, Any], said: str) -> None:
    with pytest.raises(ig.TraceError, match=said):
        ig.RequestLog.from_arrays(*arrays)


def test_a_date_that_is_none_and_an_unknown_unit_are_named() -> None:
    dates = np.array(["2024-01-01", "NaT"], "datetime64[s]")
    with pytest.raises(ig.TraceError, match=r"time\[1\] = NaT"):
        ig.RequestLog.from_arrays(dates, [1, 2], [1, 2])
    with pytest.raises(ValueError, match="unit = 'min': must be one of s, ms, us, ns"):
        ig.RequestLog.from_arrays([1.0], [1], [1], unit="min")
