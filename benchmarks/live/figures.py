"""The figures of a run as Markdown, and their place in docs/live.md: ``python -m benchmarks.live --write-docs``.

``out/results.json, out/*.png -> the block between MARKS in docs/live.md, docs/images, benchmarks/live/results.json``.
The days of second-instance are added to those that earlier runs left. Nothing in the block is written by hand, so that
the page says what was measured.
"""

from __future__ import annotations

import datetime
import json
import platform
import shutil
from pathlib import Path
from typing import Any

from benchmarks.live import days
from benchmarks.live.foretold_again import SLOWDOWNS
from benchmarks.live.gpu_figures import gpu_block
from benchmarks.live.prediction import PERCENTILES, TITLES, target_of
from benchmarks.live.vllm import ROOT
from inferencegym_jax.cli.scenario_report import markdown
from inferencegym_jax.live.trial.engine_speed import Speed

PAGE = ROOT / "docs" / "live.md"
IMAGES = ROOT / "docs" / "images"
KEPT = Path(__file__).with_name("results.json")
KEPT_GPU = Path(__file__).with_name("gpu.json")
BEGIN, END = "<!-- figures of make live: begin -->", "<!-- figures of make live: end -->"
BEGIN_GPU, END_GPU = "<!-- figures on a GPU: begin -->", "<!-- figures on a GPU: end -->"


def write_figures(out: Path) -> list[Path]:
    """Put a run's figures into the page, its pictures beside it and its results beside this module; those of a run on
    a GPU into a section of their own.

    Args:
        out: folder of ``make live``.

    Returns:
        The files that were written.

    Raises:
        FileNotFoundError: nothing was run there.
        ValueError: the page has no such block.
    """
    results: dict[str, Any] = json.loads((out / "results.json").read_text())
    if results.get("run", {}).get("gpu"):
        fill(BEGIN_GPU, END_GPU, gpu_block(results))
        KEPT_GPU.write_text(json.dumps(results, indent=1) + "\n")
        return [PAGE, KEPT_GPU]
    kept_days = KEPT.with_name(days.NAME)
    every_day = days.kept_days(kept_days)
    timeline = out / "second-instance.timeline.json"
    if "second-instance" in results and timeline.exists():
        new = days.days_of(results["second-instance"], json.loads(timeline.read_text()))
        every_day = days.with_days(every_day, new)
        kept_days.write_text(json.dumps(every_day, separators=(",", ":")) + "\n")
    fill(BEGIN, END, block(results, every_day))
    KEPT.write_text(json.dumps(results, indent=1) + "\n")
    written = [PAGE, KEPT]
    for source, kept in (
        (out / "second-instance.png", IMAGES / "live_second_instance.png"),
        (out / "drift.png", IMAGES / "live_drift.png"),
        (out / "drift.timeline.json", KEPT.with_name("drift.timeline.json")),
    ):
        if source.name.split(".")[0] in results and source.exists():
            shutil.copyfile(source, kept)
            written.append(kept)
    return written


def fill(begin: str, end: str, lines: list[str]) -> None:
    """Replace what stands between two lines of the page.

    Raises:
        ValueError: the page does not have them once, in this order.
    """
    text = PAGE.read_text()
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(f"{PAGE}: must hold the lines {begin!r} and {end!r} once, in this order")
    head, rest = text.split(begin)
    PAGE.write_text(head + begin + "\n\n" + "\n".join(lines) + "\n\n" + end + rest.split(end)[1])


def block(results: dict[str, Any], every_day: list[dict[str, Any]]) -> list[str]:
    """The lines of the block, for the stages that were run and the days of second-instance that are kept."""
    lines = about(results)
    if "measure" in results:
        lines += ["", *measured(results["measure"]), *elsewhere(results, "measure")]
    if "predict" in results:
        lines += ["", *predicted(results["predict"]), *elsewhere(results, "predict")]
    for name, title in (("second-instance", "A second instance that comes and goes"), ("drift", "Drift")):
        if name in results:
            picture = f"images/live_{name.replace('-', '_')}.png"
            lines += ["", f"### {title}", "", *scenario_lines(results[name])]
            if name == "second-instance" and "learn-second" in results:
                lines += learned_second(results["learn-second"])
            lines += elsewhere(results, name)
            again = results.get("speeds", {})
            if name == "drift" and "on_time" in again:
                lines += ["", *at_speeds(again)]
            if name in again:
                lines += ["", *second_again(results[name], again[name])]
            lines += ["", f"![Load, instances and share on time of {name}]({picture})"]
        if name == "second-instance" and (of_days := days.days_lines(every_day)):
            lines += ["", *of_days]
    return lines


def elsewhere(results: dict[str, Any], stage: str) -> list[str]:
    """When and how a stage was run, where that was not the run that the block begins with."""
    run = results[stage].get("run")
    if run is None or run == results.get("run"):
        return []
    return ["", f"These are of {run['date']}, `{run['command']}`; load of the machine at the start {run['load']}."]


def about(results: dict[str, Any]) -> list[str]:
    """When, where and with what."""
    run = results.get("run", {})
    start = results.get("start", {})
    lines = [
        f"Measured on {run.get('date', datetime.date.today().isoformat())}, `{run.get('command', 'make live')}`, "
        f"{run.get('cores', '?')} cores ({platform.machine()}), Python {run.get('python', platform.python_version())}; "
        f"load of the machine at the start {run.get('load', '?')}."
    ]
    if start.get("cold_start_s"):
        took = ", ".join(f"{x:.0f}" for x in start["cold_start_s"])
        computes = start.get("dtype", "bfloat16")
        if len(start["cold_start_s"]) == 1:
            lines.append(f"The instance answered after {took} s. It computes in {computes}.")
        else:
            lines.append(
                f"Both instances were started together; they answered after {took} s. The second one's start in the "
                f"trial: {start.get('spare_start')}. They compute in {computes}."
            )
    if took_s := results.get("took_s"):
        each = ", ".join(f"{name} {seconds / 60:.1f}" for name, seconds in took_s.items() if seconds >= 1.0)
        lines.append(f"Its stages took {sum(took_s.values()) / 60:.0f} minutes in all: {each}.")
    return lines


def measured(found: dict[str, Any]) -> list[str]:
    """What ``measure`` learned."""
    pool, extra = found.get("kv_cache_tokens"), found.get("first_token_extra_iterations", "?")
    prompts = ", ".join(map(str, found["prompt_lengths"]))
    added = ", ".join(f"{x:.0f}" for x in found["prefill_ms"])
    return [
        f"`measure`: {found['cells']} cells in {found['seconds']:.0f} s; an iteration takes {found['iteration_ms']:.1f}"
        f" ms and {found['running_ms']:.2f} ms a running request, prompts of {prompts} tokens add {added} ms; h "
        f"{found['request_overhead_ms']:.1f} ms, extra iterations of a first token {extra}, pool "
        f"{'unknown' if not pool else f'{pool:.0f} tokens'}."
    ]


def predicted(found: dict[str, Any]) -> list[str]:
    """The six runs beside what was foretold for each, also at the engine's speed in them, where that is known."""
    then = found.get("then")
    heads = ["median error of the runs", "target", "this run", "met"] + (["at the engine's speed then"] if then else [])
    lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    for key, title in TITLES.items():
        target = target_of(key)
        what = " points" if key == "on_time_median_error" else " %"
        cells = [title, f"{100 * target:.0f}{what}", f"{100 * found[key]:.1f}{what}"]
        cells += ["yes" if found[key] <= target else "no"] + ([f"{100 * then[key]:.1f}{what}"] if then else [])
        lines.append("| " + " | ".join(cells) + " |")
    heads = ["prompt", "share of saturation", "mean ITL, ms", "mean TTFT, ms"]
    heads += [f"p{p} TTFT, ms" for p in PERCENTILES] + ["on time"] + (["iterations then, prompts"] if then else [])
    sides = "Measured / predicted by the replay" + (" / at the engine's speed then" if then else "")
    lines += ["", f"{sides}, run by run:", ""]
    lines += ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    parts = ("measured", "predicted", "then") if then else ("measured", "predicted")
    for row in found["rows"]:
        cells = [str(row["prompt"]), f"{row['share']:g}"]
        for key in ("itl", "ttft", *(f"ttft_p{p}" for p in PERCENTILES)):
            digits = 1 if key == "itl" else 0
            cells.append(" / ".join(f"{row[f'{key}_{part}']:.{digits}f}" for part in parts))
        cells.append(" / ".join(f"{row[f'on_time_{part}']:.1%}" for part in parts))
        lines.append("| " + " | ".join(cells + ([Speed(**row["speed"]).shown] if then else [])) + " |")
    if then:
        lines += [
            "",
            "The engine's speed then: by what the run's iterations took longer than the table says, read off when its "
            "tokens came: those in which nobody prefilled, and what prompts added to the others.",
        ]
    return lines


def learned_second(found: dict[str, Any]) -> list[str]:
    """What the policies that were trained for second-instance are foretold on days that are not sent."""
    scores = ", ".join(f"{name} {score:.3f}" for name, score in found["scores"].items())
    return [
        f"- learned: {found['chosen']} of those that `learn-second` trained in {found['seconds']:.0f} s, with the best "
        f"score foretold on two days that were not sent: {scores}."
    ]


def at_speeds(found: dict[str, Any]) -> list[str]:
    """What is foretold of drift on a slower engine, and at its speed in each policy's runs, a row a policy."""
    heads = ["share on time, foretold", *(f"iterations x {factor:g}" for factor in SLOWDOWNS)]
    lines = ["| " + " | ".join([*heads, "at the engine's speed then"]) + " |", "|" + " --- |" * (len(heads) + 1)]
    for name, row in found["on_time"].items():
        cells = [name, *(f"{one['share']:.1%}" for one in row)]
        for one in row[len(SLOWDOWNS) :]:
            cells[-1] += f" ({Speed(one['decode'], one['prompt']).shown})"
        lines.append("| " + " | ".join(cells + [""] * (len(heads) + 1 - len(cells))) + " |")
    return lines


def second_again(found: dict[str, Any], again: dict[str, Any]) -> list[str]:
    """What is foretold of second-instance at the engines' speed in each policy's runs, a row a policy."""
    heads = ["policy", "on time: measured", "foretold", "at the engines' speed then", "instances: measured", "foretold"]
    lines = ["| " + " | ".join([*heads, "at that speed", "decode, prompts; all iterations by fifths"]) + " |"]
    lines.append("|" + " --- |" * (len(heads) + 2))
    for name, one in again.items():
        sides = [found[side][name] for side in ("measured", "predicted")]
        cells = [name, *(f"{side['on_time_share']['mean']:.1%}" for side in sides), f"{one['on_time_share']:.1%}"]
        cells += [*(f"{side['instances']['mean']:.2f}" for side in sides), f"{one['instances']:.2f}"]
        each = [
            ("unknown" if speed is None else Speed(**speed).shown)
            + "; "
            + " / ".join("unknown" if part is None else f"{part:.2f}" for part in parts)
            for speed, parts in zip(one["speeds"], one["parts"], strict=True)
        ]
        lines.append("| " + " | ".join([*cells, "<br>".join(each)]) + " |")
    return lines


def scenario_lines(found: dict[str, Any]) -> list[str]:
    """A scenario's table, verdict and what was chosen."""
    how = found["how"]
    lines = [
        f"{how['repeats']} x {how['seconds']} s of each policy, {how['warmup_s']:g} s of each not counted; objectives "
        f"{how['ttft_objective_ms']:.0f} ms to the first token, {how['tpot_objective_ms']:.0f} ms a token."
    ]
    if "spare" in how:
        times = how["spare"]
        lines.append(
            f"The second instance takes {times['start_s']:.2f} s to start and {times['stop_s']:.2f} s to stop, as "
            f"measured; least lease {times['lease_s']:g} s."
        )
        if (beside := times.get("beside")) is not None:
            lines.append(
                f"While both work, an iteration takes {beside['slowdown']:.3f} (+- {100 * beside['half_width']:.1f} %) "
                "times as long as beside an idle one, measured before the runs; the prediction has it."
            )
        if (longer := times.get("under_load")) is not None:
            lines.append(
                f"At the peaks of days that no rival was sent it took {longer:.3f} times as long as that, "
                f"on both; the prediction has {times['slowdown']:.3f} while both work."
            )
    if (seen := how.get("calibration")) is not None:
        lines.append(
            "Just before, both kinds by turns, as no rival was sent them, took this many times as long as in the table "
            f"(iterations, and what prompts add): {Speed(**seen).shown}; the prediction has that."
        )
    if then := found.get("speeds"):
        each = "; ".join(f"{name} {Speed(**speed).shown}" for name, speed in then.items())
        lines.append(f"Iterations in each policy's runs, and what prompts added, over what was foretold: {each}.")
    choices = {name: value for name, value in found["choices"].items() if name != "grid"}
    lines += ["", *markdown(found), f"- Chosen by replay on days that were not sent: `{json.dumps(choices)}`."]
    return lines
