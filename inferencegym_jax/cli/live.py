"""The commands ``measure``, ``trial`` and ``control``; the main command line takes them from ``app``."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from inferencegym_jax.cli.control import control
from inferencegym_jax.cli.options import BaseMemory, LogColumns, LogFrom, LogLast, LogTo, LogUnit, parse_slo, task_of
from inferencegym_jax.cli.output import answers, fail, notices, sentences
from inferencegym_jax.cli.spare_options import (
    BesideSeconds,
    CalibrationRuns,
    HealthPath,
    Lease,
    SleepPath,
    SpareUrl,
    StartCmd,
    StartTimeout,
    StopCmd,
    StopTimeout,
    WakePath,
    spare_of,
)
from inferencegym_jax.policies.names import POLICY_HELP

if TYPE_CHECKING:
    from inferencegym_jax.live.server.streaming import Endpoint

PLAIN_TASK, LEASING_TASK = "2", "7"
app = typer.Typer(no_args_is_help=True, help="Measure a live engine, try policies on it, control it.")
console = notices()

BaseUrl = Annotated[
    str, typer.Option(help="root URL of an OpenAI-compatible server, for example http://127.0.0.1:8000")
]
Model = Annotated[str, typer.Option(help="name of the model, as the server knows it")]
ApiKeyEnv = Annotated[
    str, typer.Option(help="environment variable that holds the server's API key; the key itself is never an argument")
]
Json = Annotated[bool, typer.Option("--json", help="print the result as JSON")]


@app.callback()
def main() -> None:
    """Measure a live engine, try policies on it, control it."""


def server(base_url: str, model: str, api_key_env: str) -> Endpoint:
    """The server that a command is about, with the key that the environment holds for it."""
    from inferencegym_jax.live.server.streaming import Endpoint

    return Endpoint(base_url, model, os.environ.get(api_key_env, ""))


def parse_shares(text: str) -> tuple[float, float, float]:
    """Shares "0.2,0.5,0.3" of interactive, batch and best-effort requests; ``TrialRequest`` checks their sum."""
    try:
        first, second, third = map(float, text.split(","))
    except ValueError:
        fail(f"--classes {text!r}: must be three numbers such as 0.2,0.5,0.3")
    return first, second, third


def duration(text: str) -> float:
    """Seconds of "90", "90s", "10m" or "1.5h"."""
    word = text.strip().lower()
    unit = {"s": 1.0, "m": 60.0, "h": 3600.0}.get(word[-1:], None)
    try:
        seconds = float(word[:-1]) * unit if unit else float(word)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        fail(f"--budget {text!r}: must be a time above 0, such as 90s, 10m or 1h")
    return seconds


@app.command()
def measure(
    base_url: BaseUrl,
    model: Model,
    out: Annotated[Path, typer.Option(help="latency table to write (parquet)")] = Path("measured.parquet"),
    budget: Annotated[
        str,
        typer.Option(help="time for the whole, earlier runs included: 90s, 10m, 1h; the grid is always finished"),
    ] = "10m",
    output_tokens: Annotated[int, typer.Option(help="mean output length")] = 64,
    max_concurrency: Annotated[int, typer.Option(help="largest batch size")] = 64,
    max_prompt: Annotated[int, typer.Option(help="longest prompt, tokens")] = 2048,
    precision: Annotated[
        float, typer.Option(help="95 % half-width of a cell, as a share, that is small enough")
    ] = 0.05,
    base_memory_gb: BaseMemory = 0.0,
    kv_cache_tokens: Annotated[
        float, typer.Option(help="size of the KV cache, tokens, where the server's /metrics do not tell it")
    ] = 0.0,
    kv_bytes_per_token: Annotated[
        float,
        typer.Option(help="KV cache a token: 2 x layers x KV heads x head size x bytes; open-loop tasks need it"),
    ] = 0.0,
    max_num_batched_tokens: Annotated[
        int,
        typer.Option(help="the engine's token budget of an iteration, where it does not tell; default: as the shipped"),
    ] = 0,
    seed: Annotated[int, typer.Option(help="of prompts and lengths")] = 0,
    restart: Annotated[bool, typer.Option("--restart", help="forget what an earlier run measured")] = False,
    api_key_env: ApiKeyEnv = "OPENAI_API_KEY",
    json_output: Json = False,
) -> None:
    """Build a latency table from a live server in minutes.

    Closed-loop runs over concurrency and prompt length; where and how often is decided by what was seen so far.
    Interrupt it with Ctrl-C and run the same command to go on: what was measured is in OUT.state.json.
    """
    from inferencegym_jax.cli.measure_report import measure_and_report
    from inferencegym_jax.live.measure.plan import MeasureSettings
    from inferencegym_jax.live.server.probe import EngineError

    try:
        with sentences(EngineError):
            settings = MeasureSettings(
                budget_s=duration(budget),
                output_tokens=output_tokens,
                most_concurrency=max_concurrency,
                longest_prompt=max_prompt,
                precision=precision,
                base_memory_gb=base_memory_gb,
                kv_cache_tokens=kv_cache_tokens,
                kv_bytes_per_token=kv_bytes_per_token,
                token_budget=max_num_batched_tokens,
                seed=seed,
            )
            endpoint, stdout = server(base_url, model, api_key_env), console if json_output else answers()
            summary = measure_and_report(endpoint, settings, out, restart, console, stdout)
    except KeyboardInterrupt:
        console.print(f"interrupted; the same command goes on from {out}.state.json")
        raise typer.Exit(130) from None
    if json_output:
        print(json.dumps(summary))


@app.command()
def trial(
    context: typer.Context,
    base_url: BaseUrl,
    model: Model,
    table: Annotated[Path, typer.Option(help="latency table that `measure` made of this server")],
    policies: Annotated[str, typer.Option(help=f"Names separated by commas or semicolons: {POLICY_HELP}")] = (
        "baseline,best_static,reactive"
    ),
    trace: Annotated[Path | None, typer.Option(help="request log to send; without it the task's traffic")] = None,
    unit: LogUnit = None,
    columns: LogColumns = None,
    start: LogFrom = None,
    end: LogTo = None,
    last: LogLast = None,
    task: Annotated[
        str | None, typer.Option(help="whose calendar, SLOs and grader; default: 2, or 7 with a spare")
    ] = None,
    load: Annotated[float, typer.Option(help="mean rate over the task's calendar, as a share of saturation")] = 0.8,
    rate_scale: Annotated[float, typer.Option(help="sends a trace that many times faster")] = 1.0,
    prompt_scale: Annotated[float, typer.Option(help="multiplies the task's prompt lengths")] = 1.0,
    seconds: Annotated[int, typer.Option(help="length of a run; a trace is cut there")] = 60,
    repeats: Annotated[int, typer.Option(help="runs of each policy")] = 2,
    warmup: Annotated[float, typer.Option(help="seconds of each run that are not counted")] = 10.0,
    slo_ttft_ms: Annotated[
        str, typer.Option(help="TTFT objective: one, or by class 200,2000,none; default: task's")
    ] = "",
    slo_itl_ms: Annotated[float, typer.Option(help="objective on a request's mean ITL")] = math.inf,
    classes: Annotated[
        str, typer.Option(help="shares of interactive, batch, best-effort requests: 0.2,0.5,0.3; default: task's")
    ] = "",
    max_num_seqs: Annotated[int, typer.Option(help="the engine's own limit on running requests")] = 256,
    seed: Annotated[int, typer.Option(help="of the first repeat's traffic")] = 0,
    plot: Annotated[
        Path | None, typer.Option(help="PNG or SVG: predicted against measured; of a scenario, a run")
    ] = None,
    scenario: Annotated[
        str | None,
        typer.Option(help="second-instance or drift: traffic, objectives and rivals are fixed, lengths may be given"),
    ] = None,
    save_policies: Annotated[
        Path | None,
        typer.Option(help="folder for policy files of what second-instance searched (tuned, fewest instances)"),
    ] = None,
    spare: SpareUrl = None,
    start_cmd: StartCmd = None,
    stop_cmd: StopCmd = None,
    wake_path: WakePath = None,
    sleep_path: SleepPath = None,
    health_path: HealthPath = None,
    lease: Lease = None,
    start_timeout: StartTimeout = None,
    stop_timeout: StopTimeout = None,
    beside_seconds: BesideSeconds = None,
    calibration_runs: CalibrationRuns = None,
    api_key_env: ApiKeyEnv = "OPENAI_API_KEY",
    json_output: Json = False,
) -> None:
    """Send the same traffic under each policy to a live server; measured beside predicted.

    Gains are taken to the first policy named.
    """
    from inferencegym_jax.cli.scenario_trial import scenario_trial
    from inferencegym_jax.cli.trial_report import plot_trial, trial_table, verdict
    from inferencegym_jax.live.measure.beside import BESIDE_S
    from inferencegym_jax.live.server.probe import EngineError
    from inferencegym_jax.live.trial.request import TrialRequest, compare
    from inferencegym_jax.live.trial.runs import TrialSettings
    from inferencegym_jax.traffic.log_rows import ReadOptions

    separator = ";" if ";" in policies else ","  # knobs have commas of their own
    names = [name.strip() for name in policies.split(separator) if name.strip()]
    found_options = {
        "start_cmd": start_cmd,
        "stop_cmd": stop_cmd,
        "wake_path": wake_path,
        "sleep_path": sleep_path,
        "health_path": health_path,
        "lease_s": lease,
        "start_timeout_s": start_timeout,
        "stop_timeout_s": stop_timeout,
    }
    if scenario is not None:
        with sentences(EngineError):
            endpoint, second = server(base_url, model, api_key_env), spare_of(spare, found_options)
            scenario_trial(context, scenario, endpoint, second, names)
        return
    if save_policies is not None:
        fail(f"--save-policies {save_policies}: needs --scenario second-instance, which searches settings")
    if calibration_runs is not None:
        fail(f"--calibration-runs {calibration_runs}: needs --scenario, whose traffic it sends")
    with sentences(EngineError):
        second = spare_of(spare, found_options)
        default = PLAIN_TASK if second is None else LEASING_TASK
        request = TrialRequest(
            endpoint=server(base_url, model, api_key_env),
            policies=names,
            table=table,
            trace=trace,
            reading=ReadOptions.of(unit, columns, start, end, last),
            task=task_of(default if task is None else task),
            load=load,
            rate_scale=rate_scale,
            prompt_scale=prompt_scale,
            seconds=seconds,
            slo_ttft_ms=parse_slo(slo_ttft_ms) if slo_ttft_ms else None,
            slo_itl_ms=slo_itl_ms,
            class_shares=parse_shares(classes) if classes else None,
            settings=TrialSettings(repeats=repeats, warmup_s=warmup, seed=seed, max_num_seqs=max_num_seqs),
            spare=second,
            beside_s=BESIDE_S if beside_seconds is None else beside_seconds,
        )
        with console.status("starting") as status:
            comparison = compare(request, status.update if console.is_terminal else console.print)
    stdout = console if json_output else answers()
    stdout.print(trial_table(comparison))
    for line in verdict(comparison, names[0]):
        stdout.print(line, highlight=False, soft_wrap=True)
    if plot is not None:
        plot_trial(comparison, plot)
        stdout.print(f"[bold]{plot}[/]: predicted against measured")
    if json_output:
        print(json.dumps(comparison))


app.command()(control)
