"""The stages ``second-instance`` and ``drift``: a live scenario on our own engine, drawn and printed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from inferencegym_jax.cli.scenario_report import plot_scenario, scenario_table, verdict
from inferencegym_jax.live.capacity.settings import SpareSettings
from inferencegym_jax.live.scenarios.run import ScenarioRequest, run_scenario
from inferencegym_jax.live.server.streaming import Endpoint


@dataclass(frozen=True)
class ScenarioLengths:
    """Length (s) and number of a scenario's runs, and the rivals; None for those that were written down."""

    seconds: int
    repeats: int
    policies: tuple[str, ...] | None


def scenario_stage(
    name: str,
    endpoint: Endpoint,
    table: Path,
    spare: SpareSettings | None,
    lengths: ScenarioLengths,
    max_num_seqs: int,
    out: Path,
    console: Console,
) -> dict[str, Any]:
    """Run one scenario, print its table and its verdict, draw ``out/NAME.png``, keep what is drawn in
    ``out/NAME.timeline.json``; the rest of the result is JSON-ready."""
    request = ScenarioRequest(
        name,
        endpoint,
        table,
        spare,
        policies=lengths.policies,
        seconds=lengths.seconds,
        repeats=lengths.repeats,
        max_num_seqs=max_num_seqs,
    )
    found = run_scenario(request, lambda text: console.print(text, highlight=False))
    lines = verdict(found)
    console.print(scenario_table(found))
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)
    plot_scenario(found, out / f"{name}.png")
    (out / f"{name}.timeline.json").write_text(json.dumps(found.pop("timeline"), separators=(",", ":")))
    return {**found, "verdict": lines}
