"""Measured runs of a real engine under a known request rate: read from a CSV of runs or from `vllm bench serve`'s JSON.

``file -> list[MeasuredRun]``. ``validation.py`` predicts them; nothing here knows about models or GPUs.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inferencegym_jax.models import finite_number

REQUIRED = ("rate_rps", "mean_prompt_tokens", "mean_output_tokens", "ttft_mean_ms", "latency_mean_ms")
DEFAULTS: dict[str, Any] = {"max_num_seqs": 128, "max_num_batched_tokens": 2048, "requests": None, "tp": 1}
QUANTILES = ("p50", "p90", "p99")
ARRIVALS = ("constant", "poisson")
DEFAULT_DURATION_S = 600.0
LONGEST_DURATION_S = 7200.0


class RunError(ValueError):
    """A file of measured runs that cannot be used; the message names file, row, column and what is wanted."""


@dataclass(frozen=True)
class MeasuredRun:
    """One run: what the engine was given and what came out; ms, tokens, requests/s."""

    source: str  # file and row, for messages
    model: str | None
    gpu: str | None
    tp: int
    max_num_seqs: int
    max_num_batched_tokens: int
    arrivals: str  # "constant" or "poisson"
    rate_rps: float
    requests: int
    mean_prompt_tokens: float
    mean_output_tokens: float
    ttft_mean_ms: float
    itl_mean_ms: float  # mean time between a request's tokens after the first
    latency_mean_ms: float
    ttft_quantiles_ms: Mapping[str, float] = field(default_factory=dict)  # of QUANTILES, those that were measured
    prefix_share: float = 0.0  # of a prompt's tokens, those that the prefix cache held

    @property
    def duration_s(self) -> float:
        """Seconds over which the requests arrive."""
        return min(self.requests / self.rate_rps, LONGEST_DURATION_S)


def read_runs(path: str | Path) -> list[MeasuredRun]:
    """Runs of a CSV (columns of ``data/measured/vllm_open_loop.csv``; further ones are ignored) or of one or more JSON
    objects as ``vllm bench serve --save-result`` writes them.

    Raises:
        RunError: no such file, no rows, a column is missing, or a cell is not what it must be; row and column are
            named.
    """
    file = Path(path)
    if not file.is_file():
        raise RunError(
            f"{file}: no such file; give a CSV of runs or the JSON that `vllm bench serve --save-result` writes"
        )
    text = file.read_text(encoding="utf-8-sig", errors="replace")
    if not text.strip():
        raise RunError(f"{file.name}: the file is empty")
    if text.lstrip()[0] in "{[":
        return _json_runs(file.name, text)
    reader = csv.DictReader(text.splitlines())
    columns = reader.fieldnames or []
    missing = [c for c in REQUIRED if c not in columns]
    if missing:
        raise RunError(f"{file.name}: lacks the column {', '.join(missing)}; wanted: {', '.join(REQUIRED)} and more")
    runs = [_from_row(f"{file.name} line {reader.line_num}", row) for row in reader]
    if not runs:
        raise RunError(f"{file.name}: no rows")
    return runs


def _positive(source: str, name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not (math.isfinite(number) and number > 0):
        raise RunError(f"{source}: {name} is {value!r}; wanted: a number above 0")
    return number


def share(source: str, value: Any) -> float:
    """A ``prefix_share`` as a number from 0 to 1.

    Raises:
        RunError: it is none; ``source`` is named.
    """
    number = finite_number(value if not isinstance(value, str) else _number(value))
    if number is None or not 0.0 <= number <= 1.0:
        raise RunError(f"{source}: prefix_share is {value!r}; wanted: a number from 0 to 1")
    return number


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _from_row(source: str, row: Mapping[str, Any]) -> MeasuredRun:
    def number(name: str) -> float:
        value = row.get(name)
        if value in (None, "") and name in DEFAULTS:
            value = DEFAULTS[name]
        return _positive(source, name, value)

    rate, prompt, output = number("rate_rps"), number("mean_prompt_tokens"), number("mean_output_tokens")
    if output <= 1:
        raise RunError(
            f"{source}: mean_output_tokens is {output:g}; wanted: more than 1, or there is no time between tokens"
        )
    ttft, latency = number("ttft_mean_ms"), number("latency_mean_ms")
    if latency <= ttft:
        raise RunError(f"{source}: latency_mean_ms is {latency:g}; wanted: more than ttft_mean_ms, {ttft:g}")
    arrivals = str(row.get("arrivals") or "poisson").strip().lower()
    if arrivals not in ARRIVALS:
        raise RunError(f"{source}: arrivals is {arrivals!r}; wanted: one of {', '.join(ARRIVALS)}")
    requests, cached = row.get("requests"), row.get("prefix_share")
    prefix_share = 0.0 if cached in (None, "") else share(source, cached)
    quantiles = {q: float(row[f"ttft_{q}_ms"]) for q in QUANTILES if row.get(f"ttft_{q}_ms") not in (None, "")}
    return MeasuredRun(
        source=source,
        model=row.get("model") or None,
        gpu=row.get("gpu") or None,
        tp=int(number("tp")),
        max_num_seqs=int(number("max_num_seqs")),
        max_num_batched_tokens=int(number("max_num_batched_tokens")),
        arrivals=arrivals,
        rate_rps=rate,
        requests=max(1, round(rate * DEFAULT_DURATION_S)) if requests in (None, "") else int(number("requests")),
        mean_prompt_tokens=prompt,
        mean_output_tokens=output,
        ttft_mean_ms=ttft,
        itl_mean_ms=(latency - ttft) / (output - 1),
        latency_mean_ms=latency,
        ttft_quantiles_ms=quantiles,
        prefix_share=prefix_share,
    )


def _json_runs(name: str, text: str) -> list[MeasuredRun]:
    try:
        parsed = json.loads(text)
    except ValueError:
        try:
            parsed = [json.loads(line) for line in text.splitlines() if line.strip()]
        except ValueError as error:
            raise RunError(f"{name}: not JSON: {error}") from error
    objects = parsed if isinstance(parsed, list) else [parsed]
    if not objects:
        raise RunError(f"{name}: no runs")
    return [_from_bench(f"{name} run {i}", run) for i, run in enumerate(objects, start=1)]


def _from_bench(source: str, run: Any) -> MeasuredRun:
    """A run as `vllm bench serve --save-result` writes it; arrivals are Poisson where its burstiness is 1."""
    if not isinstance(run, Mapping):
        raise RunError(
            f"{source}: got {type(run).__name__}; wanted: an object as `vllm bench serve --save-result` writes"
        )
    done = _positive(source, "completed", run.get("completed"))
    rate = run.get("request_rate")
    if rate in ("inf", None) or rate == math.inf:
        raise RunError(f"{source}: request_rate is {rate!r}; wanted: a finite rate (an open-loop run)")
    prompt = _positive(source, "total_input_tokens", run.get("total_input_tokens")) / done
    output = _positive(source, "total_output_tokens", run.get("total_output_tokens")) / done
    ttft = _positive(source, "mean_ttft_ms", run.get("mean_ttft_ms"))
    itl = _positive(source, "mean_itl_ms", run.get("mean_itl_ms") or run.get("mean_tpot_ms"))
    row: dict[str, Any] = {
        "model": run.get("model_id"),
        "gpu": run.get("gpu"),
        "max_num_seqs": run.get("max_num_seqs"),
        "max_num_batched_tokens": run.get("max_num_batched_tokens"),
        "arrivals": "constant" if float(run.get("burstiness") or 1.0) >= 100 else "poisson",
        "rate_rps": rate,
        "requests": run.get("num_prompts") or done,
        "mean_prompt_tokens": prompt,
        "mean_output_tokens": output,
        "ttft_mean_ms": ttft,
        "latency_mean_ms": run.get("mean_e2el_ms") or ttft + itl * (output - 1),
        "ttft_p50_ms": run.get("median_ttft_ms"),
        "ttft_p90_ms": run.get("p90_ttft_ms"),
        "ttft_p99_ms": run.get("p99_ttft_ms"),
        "tp": run.get("tensor_parallel_size"),
    }
    return _from_row(source, row)
