"""``trial --scenario``: a scenario that was written down, on the user's engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer

from inferencegym_jax.cli.output import answers, fail, notices
from inferencegym_jax.cli.scenario_report import plot_scenario, scenario_table, verdict
from inferencegym_jax.live.capacity.settings import SpareSettings
from inferencegym_jax.live.measure.beside import BESIDE_S
from inferencegym_jax.live.scenarios.calibration import CALIBRATION_RUNS
from inferencegym_jax.live.scenarios.plan_search import SEARCHED, searched_in
from inferencegym_jax.live.scenarios.run import ScenarioRequest, run_scenario
from inferencegym_jax.live.server.streaming import Endpoint
from inferencegym_jax.policies.plan_file import save_plan

FIXED = (
    "trace",
    "unit",
    "columns",
    "start",
    "end",
    "last",
    "task",
    "load",
    "rate_scale",
    "prompt_scale",
    "slo_ttft_ms",
    "slo_itl_ms",
    "classes",
)
"""Options that a scenario leaves to nobody."""
FLAGS = {"start": "from", "end": "to"}


def scenario_trial(
    context: typer.Context, name: str, endpoint: Endpoint, spare: SpareSettings | None, policies: list[str]
) -> None:
    """Run a scenario and print what it came to.

    Args:
        context: of the command ``trial``, whose options are taken where they were given.
        name: of the scenario.
        endpoint: the engine.
        spare: the second instance.
        policies: names that were split already.

    Raises:
        ValueError, EngineError: see ``run_scenario``.
    """
    user_options = {key: value for key, value in context.params.items() if _is_given(context, key)}
    for option in FIXED:
        if option in user_options:
            flag = FLAGS.get(option, option.replace("_", "-"))
            fail(f"--{flag} {user_options[option]}: contradicts --scenario, which fixes it")
    beside_s, calibration_runs = context.params["beside_seconds"], context.params["calibration_runs"]
    request = ScenarioRequest(
        name=name,
        endpoint=endpoint,
        table=context.params["table"],
        spare=spare,
        policies=tuple(policies) if "policies" in user_options else None,
        seconds=user_options.get("seconds"),
        repeats=user_options.get("repeats"),
        warmup_s=user_options.get("warmup"),
        max_num_seqs=context.params["max_num_seqs"],
        seed=context.params["seed"],
        beside_s=BESIDE_S if beside_s is None else beside_s,
        calibration_runs=CALIBRATION_RUNS if calibration_runs is None else calibration_runs,
    )
    folder = context.params["save_policies"]
    if folder is not None and not set(SEARCHED) & set(request.names):
        names = " or ".join(map(repr, SEARCHED))
        fail(f"--save-policies {folder}: no settings are searched; --policies must name {names}")
    console = notices()
    with console.status("starting") as status:
        results = run_scenario(request, status.update if console.is_terminal else console.print)
    if folder is not None:
        for path in save_searched(results, request, folder):
            console.print(f"[bold]{path}[/]: for --policy of control and --policies of trial")
    show(results, context.params["plot"], bool(context.params["json_output"]))


def save_searched(found: dict[str, Any], request: ScenarioRequest, folder: Path) -> list[Path]:
    """Write the settings that a scenario's rivals were searched for as policy files into a folder; the paths."""
    paths = []
    for name, plan in searched_in(found["choices"]).items():
        if name in request.names:
            paths.append(folder / f"{name.replace(' ', '-')}.npz")
            about = {"task": request.scenario.task, "scenario": request.name, "table": str(request.table)}
            save_plan(paths[-1], plan, about | {"foretold": found["choices"][name]["foretold"]})
    return paths


def show(found: dict[str, Any], plot: Path | None, as_json: bool) -> None:
    """Print a scenario's result; draw it where a file is named."""
    console = notices() if as_json else answers()
    console.print(scenario_table(found))
    for line in verdict(found):
        console.print(line, highlight=False, soft_wrap=True)
    if plot is not None:
        plot_scenario(found, plot)
        console.print(f"[bold]{plot}[/]: load, instances and share on time over the first repeat")
    if as_json:
        print(json.dumps(found))


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
