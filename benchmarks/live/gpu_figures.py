"""A run on a GPU as Markdown: the measured table and the table of published kernels beside the engine.

``results of make live --base-url URL --against TABLE -> lines``. Nothing of the second table is fitted on the run.
"""

from __future__ import annotations

from typing import Any

from benchmarks.live.prediction import PERCENTILES, TITLES, median_errors, target_of

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
    medians = [median_errors(below(side)) for side in sides.values()]
    for error, title in TITLES.items():
        unit = "points" if error == "on_time_median_error" else "%"
        cells = " | ".join(f"{100 * of_side[error]:.1f} {unit}" for of_side in medians)
        lines.append(f"| {title.removesuffix(' against engine')} | {100 * target_of(error):.0f} {unit} | {cells} |")
    return lines


def below(side: dict[str, Any]) -> list[dict[str, Any]]:
    """Its runs below saturation."""
    return [row for row in side["rows"] if row["share"] < UNDERLOAD]


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
