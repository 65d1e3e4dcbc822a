"""The stages ``second-instance`` and ``drift``: a live scenario on our own engine, drawn and printed."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.live.foretold_again import foretold_on
from benchmarks.live.kept import columns_of
from inferencegym_jax.cli.scenario_report import plot_scenario, scenario_table, verdict
from inferencegym_jax.live.capacity.settings import SpareSettings
from inferencegym_jax.live.scenarios.run import ScenarioRequest, run_scenario
from inferencegym_jax.live.server.streaming import Endpoint
from inferencegym_jax.live.trial.engine_speed import speed_of
from inferencegym_jax.live.trial.runs import Trial
from inferencegym_jax.table.latency_table import load_table

LEARNED = "learned"


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
    """
    on_table = load_table(table)
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
        slowdown, foretold = found["how"].get("spare", {}).get("slowdown", 1.0), foretold_on(on_table, found["how"])
        then = {policy: speed_of(runs, foretold, slowdown) for policy, runs in trial.measured.items()}
        kept["speeds"] = {policy: dataclasses.asdict(speed) for policy, speed in then.items() if speed is not None}
        keep(lengths.named(kept))

    run_scenario(request, lambda text: console.print(text, highlight=False), show)


def requests(trial: Trial) -> dict[str, Any]:
    """What became of every request, measured and foretold: side -> policy -> repeats -> field -> a value a request."""
    sides = {"measured": trial.measured, "predicted": trial.predicted}
    return {
        side: {name: [columns_of(one) for one in repeats] for name, repeats in policies.items()}
        for side, policies in sides.items()
    }
