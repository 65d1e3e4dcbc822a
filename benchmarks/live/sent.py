"""Open-loop runs on the engine at shares of its saturation, kept in a file, so that any table can predict them later.

``table, plan -> traffic -> engine -> Sent, runs.json``. The rates are shares of what the measured table can finish at
most; the requests that were sent are in the file, with what became of each.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import inferencegym_jax as ig
from benchmarks.live.engine_speed import SLICE_S, slowdown_now
from inferencegym_jax.live.server.streaming import Endpoint
from inferencegym_jax.live.trial.live_env import LiveEnv
from inferencegym_jax.live.trial.profile_engine import saturation
from inferencegym_jax.live.trial.runs import run_policy
from inferencegym_jax.live.trial.session import Record
from inferencegym_jax.live.trial.traffic import Traffic, poisson_traffic
from inferencegym_jax.models import ServeAction
from inferencegym_jax.table.latency_table import LatencyTable

OPEN_GATE = ServeAction(batch_size=512)  # so that the engine's own scheduler is what is predicted
RECORDED = ("arrival_s", "prompt", "output", "outcome", "ttft_ms", "tpot_ms", "tokens", "error")


@dataclass(frozen=True)
class Sent:
    """One run: its prompt length, its share of saturation and rate (requests/s), its length, the engine's limit on
    running requests, how each request went, and by what the engine's iterations took longer just before and after it
    than the table says (the mean; None where that was not measured)."""

    prompt: int
    share: float
    rate: float
    seconds: float
    max_num_seqs: int
    records: list[Record]
    slowdown: float | None = None

    @property
    def traffic(self) -> Traffic:
        """What was sent, as a prediction takes it."""
        return self.traffic_in(1.0)

    def traffic_in(self, unit_s: float) -> Traffic:
        """The same with times counted in so many seconds: what an engine that is ``unit_s`` times as slow does with
        these requests is what the engine itself does with those, in that unit."""
        time_s = np.array([record.arrival_s for record in self.records], np.float64) / unit_s
        prompt, output = (
            np.array([getattr(record, name) for record in self.records], np.int64) for name in ("prompt", "output")
        )
        seconds = self.seconds / unit_s
        phase = np.ones(max(int(np.ceil(seconds)), 1), np.int64)
        return Traffic(time_s, prompt, output, np.zeros(len(time_s), np.int64), seconds, phase)


def send(
    endpoint: Endpoint,
    table: LatencyTable,
    *,
    shares: Sequence[float],
    prompts: Sequence[int],
    seconds: float,
    max_num_seqs: int,
    path: Path,
    report: Callable[[str], None],
    slice_s: float = SLICE_S,
) -> list[Sent]:
    """Send Poisson traffic at every share of saturation with every prompt length; ``path`` is written after each run.
    Before the first and after each the engine's speed is measured.

    Args:
        endpoint: the engine.
        table: measured on it; its mean output length is that of the requests.
        shares: of saturation.
        prompts: lengths, tokens.
        seconds: of each run.
        max_num_seqs: the engine's own limit, for the predictions.
        path: file of the runs.
        report: told what runs.
        slice_s: of the measurements of its speed, seconds.
    """
    _, params = ig.make(1, table=table)
    policy = ig.policies.static(OPEN_GATE)
    output = int(table.output_length)
    runs: list[Sent] = []
    before = slowdown_now(endpoint, table, len(runs), slice_s)
    for prompt in prompts:
        most = saturation(table, prompt, output)
        for share in shares:
            traffic = poisson_traffic(share * most, seconds, prompt, output, seed=int(100 * share) + prompt)
            report(f"prompts of {prompt} at {share:g} of saturation ({share * most:.2f} requests/s)")
            with LiveEnv(endpoint, params, lambda _, traffic=traffic: traffic) as env:
                records, _ = run_policy(env, policy, 0, traffic)
            after = slowdown_now(endpoint, table, len(runs) + 1, slice_s)
            slowdown = math.sqrt(before * after)
            report(f"iterations took {before:.3f} times as long as in the table before it, {after:.3f} after it")
            runs.append(Sent(prompt, share, share * most, seconds, max_num_seqs, records, slowdown))
            before = after
            write_runs(path, runs)
    return runs


def write_runs(path: Path, runs: list[Sent]) -> None:
    """Keep runs as JSON, one column a field of their records."""
    rows: list[dict[str, Any]] = []
    for run in runs:
        row = {field.name: getattr(run, field.name) for field in dataclasses.fields(run) if field.name != "records"}
        rows.append(row | {"records": {name: [getattr(record, name) for record in run.records] for name in RECORDED}})
    path.write_text(json.dumps(rows, separators=(",", ":")))


def read_runs(path: Path) -> list[Sent]:
    """The runs that ``write_runs`` kept.

    Raises:
        FileNotFoundError: nothing was sent yet; the stage that sends is named.
    """
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: there are no runs to predict; take the stage send too (--stages send,predict)"
        )
    runs = []
    for row in json.loads(path.read_text()):
        columns = row.pop("records")
        lines = zip(*(columns[name] for name in RECORDED), strict=True)
        records = [Record(klass=0, **dict(zip(RECORDED, values, strict=True))) for values in lines]
        runs.append(Sent(records=records, **row))
    return runs
