"""The stages ``second-instance`` and ``drift``: a live scenario on our own engine, drawn and printed."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.live.engine_speed import slowdown_now
from inferencegym_jax.cli.scenario_report import plot_scenario, scenario_table, verdict
from inferencegym_jax.live.capacity.settings import SpareSettings
from inferencegym_jax.live.scenarios.run import ScenarioRequest, run_scenario
from inferencegym_jax.live.server.streaming import Endpoint
from inferencegym_jax.live.trial.runs import Trial
from inferencegym_jax.table.latency_table import load_table

LEARNED = "learned"
RECORDED = ("arrival_s", "prompt", "output", "outcome", "wait_ms", "ttft_ms", "tpot_ms", "tokens")


@dataclass(frozen=True)
class ScenarioLengths:
    """Length (s) and number of a scenario's runs, the rivals, None for those that were written down, the seed of the
    first run's traffic, and the policy file that the rival ``LEARNED`` stands for."""

    seconds: int
    repeats: int
    policies: tuple[str, ...] | None
    seed: int = 0
    learned: Path | None = None

    @property
    def played(self) -> tuple[str, ...] | None:
        """The rivals as a trial takes them: ``LEARNED`` by its file."""
        if self.policies is None or self.learned is None:
            return self.policies
        return tuple(str(self.learned) if name == LEARNED else name for name in self.policies)

    def named(self, found: dict[str, Any]) -> dict[str, Any]:
        """JSON-ready figures of a trial, in which the file is ``LEARNED`` again."""
        return found if self.learned is None else learned_named(found, self.learned)


def learned_named(found: dict[str, Any], file: Path) -> dict[str, Any]:
    """JSON-ready figures in which a policy's file is called ``LEARNED``."""
    return json.loads(json.dumps(found).replace(json.dumps(str(file)), json.dumps(LEARNED)))


def scenario_stage(
    name: str,
    endpoint: Endpoint,
    table: Path,
    spare: SpareSettings | None,
    lengths: ScenarioLengths,
    max_num_seqs: int,
    out: Path,
    console: Console,
    keep: Callable[[dict[str, Any]], None],
) -> None:
    """Run one scenario; after every run that the reference is in, print table and verdict, draw ``out/NAME.png``, write
    what is drawn to ``out/NAME.timeline.json`` and the requests to ``out/NAME.requests.json``, and give the rest, which
    is JSON-ready, to ``keep``: a run that is cut leaves what it found.

    Before the first run and after every one the first engine's speed is measured; ``slowdowns`` has by policy by what
    its iterations took longer than in the table, the mean of both sides of the policy's last run.
    """
    measured, speeds = load_table(table), list[float]()
    found_last: dict[str, Any] = {}
    request = ScenarioRequest(
        name,
        endpoint,
        table,
        spare,
        policies=lengths.played,
        seconds=lengths.seconds,
        repeats=lengths.repeats,
        max_num_seqs=max_num_seqs,
        seed=lengths.seed,
    )

    def show(found: dict[str, Any], trial: Trial) -> None:
        found = lengths.named(found)
        lines = verdict(found)
        console.print(scenario_table(found))
        for line in lines:
            console.print(line, highlight=False, soft_wrap=True)
        plot_scenario(found, out / f"{name}.png")
        kept = {key: value for key, value in found.items() if key != "timeline"} | {"verdict": lines}
        (out / f"{name}.timeline.json").write_text(json.dumps(found["timeline"], separators=(",", ":")))
        (out / f"{name}.requests.json").write_text(json.dumps(lengths.named(requests(trial)), separators=(",", ":")))
        found_last.update(kept)
        keep(kept)

    def between() -> None:
        speeds.append(slowdown_now(endpoint, measured, len(speeds)))
        console.print(f"iterations take {speeds[-1]:.3f} times as long as in the table", highlight=False)
        if len(speeds) > 1 and found_last:
            both = [math.sqrt(one * other) for one, other in itertools.pairwise(speeds)]
            keep({**found_last, "slowdowns": dict(zip(found_last["order"], both, strict=False))})

    run_scenario(request, lambda text: console.print(text, highlight=False), show, between)


def requests(trial: Trial) -> dict[str, Any]:
    """What became of every request, measured and foretold: side -> policy -> repeats -> field -> a value a request."""
    sides = {"measured": trial.measured, "predicted": trial.predicted}
    return {
        side: {
            name: [{key: [getattr(record, key) for record in one] for key in RECORDED} for one in repeats]
            for name, repeats in policies.items()
        }
        for side, policies in sides.items()
    }
