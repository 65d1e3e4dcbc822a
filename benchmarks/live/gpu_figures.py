"""A run on a GPU as Markdown: the measured table and the table of published kernels beside the engine.

``results of make live --base-url URL --against TABLE -> lines``. Nothing of the second table is fitted on the run.
"""

from __future__ import annotations

from typing import Any

from benchmarks.live.prediction import PERCENTILES

TARGETS = {"itl": 0.06, "ttft": 0.05, "ttft_p99": 0.30, "on_time": 0.05}
TITLES = {"itl": "mean ITL", "ttft": "mean TTFT", "ttft_p99": "p99 TTFT", "on_time": "share on time"}
UNDERLOAD = 1.0  # shares of saturation below it are those that medians are taken over: above it a queue only grows


def gpu_block(results: dict[str, Any]) -> list[str]:
    """The lines for a run on a GPU, for the stages that were run."""
    run = results["run"]
    lines = [f"{run['gpu']}; measured on {run['date']}, `{run['command']}`; client on Python {run['python']}."]
    if "measure" in results:
        lines += ["", learned(results["measure"])]
    if "predict" in results:
        found = results["predict"]
        sides = {"measured table": found} | ({"published kernels": found["against"]} if "against" in found else {})
        lines += ["", *errors(sides), "", *runs(sides)]
        if "against" in found:
            lines += ["", *iteration_table(found["against"]["iterations"])]
    return lines


def learned(found: dict[str, Any]) -> str:
    """What ``measure`` learned."""
    prompts = ", ".join(map(str, found["prompt_lengths"]))
    added = ", ".join(f"{x:.1f}" for x in found["prefill_ms"])
    return (
        f"`measure` on {found['engine']} {found['version']}: {found['cells']} cells in {found['seconds']:.0f} s; an "
        f"iteration takes {found['iteration_ms']:.2f} ms and {found['running_ms']:.3f} ms a running request, prompts "
        f"of {prompts} tokens add {added} ms; h {found['request_overhead_ms']:.1f} ms, extra iterations of a first "
        f"token {found['first_token_extra_iterations']}, pool {found['kv_cache_tokens']:,.0f} tokens."
    )


def errors(sides: dict[str, dict[str, Any]]) -> list[str]:
    """Median errors over the runs below saturation, a column a table."""
    lines = ["| median error, runs below saturation | target | " + " | ".join(sides) + " |"]
    lines.append("| --- | --- |" + " --- |" * len(sides))
    for label, title in TITLES.items():
        unit = "points" if label == "on_time" else "%"
        cells = [
            f"{100 * middle([row[f'{label}_error'] for row in below(side)]):.1f} {unit}" for side in sides.values()
        ]
        lines.append(f"| {title}, replay | {100 * TARGETS[label]:.0f} {unit} | " + " | ".join(cells) + " |")
    for label in ("itl", "ttft"):
        cells = []
        for side in sides.values():
            off = [row[f"{label}_simulated"] / row[f"{label}_measured"] - 1.0 for row in below(side)]
            cells.append(f"{100 * middle(off):.1f} %")
        lines.append(f"| {TITLES[label]}, compiled step | {100 * TARGETS[label]:.0f} % | " + " | ".join(cells) + " |")
    return lines


def below(side: dict[str, Any]) -> list[dict[str, Any]]:
    """Its runs below saturation."""
    return [row for row in side["rows"] if row["share"] < UNDERLOAD]


def middle(values: list[float]) -> float:
    """Median of sizes."""
    ordered = sorted(map(abs, values))
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else 0.5 * (ordered[half - 1] + ordered[half])


def runs(sides: dict[str, dict[str, Any]]) -> list[str]:
    """Run by run: measured, and foretold by the replay from each table."""
    heads = ["prompt", "share", "requests/s", "mean ITL, ms", "mean TTFT, ms"]
    heads += [f"p{p} TTFT, ms" for p in PERCENTILES] + ["on time"]
    lines = [f"Measured / {' / '.join(sides)}, by the replay:", "", "| " + " | ".join(heads) + " |"]
    lines.append("|" + " --- |" * len(heads))
    for rows in zip(*(side["rows"] for side in sides.values()), strict=True):
        first = rows[0]
        cells = [str(first["prompt"]), f"{first['share']:g}", f"{first['rate']:.1f}"]
        for key in ("itl", "ttft", *(f"ttft_p{p}" for p in PERCENTILES)):
            values = [first[f"{key}_measured"], *(row[f"{key}_predicted"] for row in rows)]
            cells.append(" / ".join(f"{value:.1f}" for value in values))
        shares = [first["on_time_measured"], *(row["on_time_predicted"] for row in rows)]
        cells.append(" / ".join(f"{value:.1%}" for value in shares))
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def iteration_table(rows: list[dict[str, float]]) -> list[str]:
    """Iterations of the two tables, at the batch sizes and prompts that were measured."""
    lines = ["Iterations, ms, at the measured cells: measured / published kernels and their difference:", ""]
    lines += ["| running | prompt | decode iteration | what a lone prompt adds |", "| --- | --- | --- | --- |"]
    for row in rows:
        found = []
        for name in ("decode", "prompt"):
            seen, foretold = row[f"{name}_ms_measured"], row[f"{name}_ms_against"]
            found.append(f"{seen:.2f} / {foretold:.2f}" + (f" ({foretold / seen - 1.0:+.0%})" if seen > 0 else ""))
        lines.append(f"| {row['running']:.0f} | {row['prompt']:.0f} | " + " | ".join(found) + " |")
    return lines
