"""Open-loop runs on the engine at shares of its saturation, kept in a file, so that any table can predict them later.

``table, plan -> traffic -> engine -> Sent, runs.json``. The rates are shares of what the measured table can finish at
most; the requests that were sent are in the file, with what became of each.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import inferencegym_jax as ig
from benchmarks.live.kept import columns_of, records_of, traffic_of
from inferencegym_jax.live.server.streaming import Endpoint
from inferencegym_jax.live.trial.live_env import LiveEnv
from inferencegym_jax.live.trial.profile_engine import saturation
from inferencegym_jax.live.trial.runs import run_policy
from inferencegym_jax.live.trial.session import Record
from inferencegym_jax.live.trial.traffic import Traffic, poisson_traffic
from inferencegym_jax.models import ServeAction
from inferencegym_jax.table.latency_table import LatencyTable

OPEN_GATE = ServeAction(batch_size=512)  # so that the engine's own scheduler is what is predicted


@dataclass(frozen=True)
class Sent:
    """One run: its prompt length, its share of saturation and rate (requests/s), its length, the engine's limit on
    running requests, and how each request went."""

    prompt: int
    share: float
    rate: float
    seconds: float
    max_num_seqs: int
    records: list[Record]

    @property
    def traffic(self) -> Traffic:
        """What was sent, as a prediction takes it."""
        return traffic_of(self.records, self.seconds)


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
) -> list[Sent]:
    """Send Poisson traffic at every share of saturation with every prompt length; ``path`` is written after each run.

    Args:
        endpoint: the engine.
        table: measured on it; its mean output length is that of the requests.
        shares: of saturation.
        prompts: lengths, tokens.
        seconds: of each run.
        max_num_seqs: the engine's own limit, for the predictions.
        path: file of the runs.
        report: told what runs.
    """
    _, params = ig.make(1, table=table)
    policy = ig.policies.static(OPEN_GATE)
    output = int(table.output_length)
    runs: list[Sent] = []
    for prompt in prompts:
        most = saturation(table, prompt, output)
        for share in shares:
            traffic = poisson_traffic(share * most, seconds, prompt, output, seed=int(100 * share) + prompt)
            report(f"prompts of {prompt} at {share:g} of saturation ({share * most:.2f} requests/s)")
            with LiveEnv(endpoint, params, lambda _, traffic=traffic: traffic) as env:
                records, _ = run_policy(env, policy, 0, traffic)
            runs.append(Sent(prompt, share, share * most, seconds, max_num_seqs, records))
            write_runs(path, runs)
    return runs


def write_runs(path: Path, runs: list[Sent]) -> None:
    """Keep runs as JSON, one column a field of their records."""
    rows: list[dict[str, Any]] = []
    for run in runs:
        row = {field.name: getattr(run, field.name) for field in dataclasses.fields(run) if field.name != "records"}
        rows.append(row | {"records": columns_of(run.records)})
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
    rows = json.loads(path.read_text())
    return [Sent(records=records_of(row.pop("records")), **row) for row in rows]
