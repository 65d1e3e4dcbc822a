"""Measured runs of a real engine under a known request rate: read from a CSV of runs or a benchmark tool's result.

``file -> rows (bench_runs.py reads the tools') -> list[MeasuredRun], and why others are left out``. ``validation.py``
predicts them; nothing here knows about models or GPUs.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inferencegym_jax.fidelity.bench_checks import RunError, check_load, positive, positive_or_zero
from inferencegym_jax.fidelity.bench_runs import format_of, parallel_of, row_of
from inferencegym_jax.models import finite_number, shown
from inferencegym_jax.table.bench_files import MOST_FAILED
from inferencegym_jax.traffic.log_rows import TraceError
from inferencegym_jax.traffic.log_source import LogSource

__all__ = ["MeasuredRun", "RunError", "read_measured", "read_runs", "share"]

REQUIRED = ("rate_rps", "mean_prompt_tokens", "mean_output_tokens", "ttft_mean_ms", "latency_mean_ms")
DEFAULTS: dict[str, Any] = {"max_num_seqs": 128, "max_num_batched_tokens": 2048, "requests": None, "tp": 1}
ENGINE = ("max_num_seqs", "max_num_batched_tokens")  # which an engine chooses itself, by its GPU
QUANTILES = ("p50", "p90", "p99")
ARRIVALS = ("constant", "poisson")
DEFAULT_DURATION_S = 600.0
LONGEST_DURATION_S = 7200.0
MOST = {  # beyond these a number is none that a run has
    "rate_rps": 1e5, "requests": 1e8, "mean_prompt_tokens": 1e7, "mean_output_tokens": 1e7, "tp": 1024.0,
    "max_num_seqs": 1e6, "max_num_batched_tokens": 1e8, "ttft_mean_ms": 1e8, "latency_mean_ms": 1e8,
}  # fmt: skip
LEAST_TTFT_MS = 0.5  # a first token takes an iteration and a way over the network


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
    engine: str = "vllm"
    engine_version: str | None = None
    dtype: str | None = None  # field and number format, where the run states one that is not of 16 bits
    assumed: tuple[str, ...] = ()  # of ENGINE, those that the file does not hold

    @property
    def duration_s(self) -> float:
        """Seconds over which the requests arrive."""
        return min(self.requests / self.rate_rps, LONGEST_DURATION_S)


def read_runs(path: str | Path) -> list[MeasuredRun]:
    """The runs of ``read_measured``.

    Raises:
        RunError: see there.
    """
    return read_measured(path)[0]


def read_measured(path: str | Path) -> tuple[list[MeasuredRun], list[str]]:
    """Runs of a CSV (columns of ``data/measured/vllm_open_loop.csv``; further ones are ignored), or of the JSON that
    ``vllm bench serve``, SGLang, genai-perf, aiperf or inference-perf write: an object, several, or one a line.

    Returns:
        (the runs that can be used, sentences: which were left out and why, and what was taken note of).

    Raises:
        RunError: no such file, no rows, a column is missing, or no run can be used; row and column are named.
    """
    file = Path(path)
    if not file.is_file():
        raise RunError(
            f"{file}: no such file; give a CSV of runs or the JSON that `vllm bench serve --save-result` writes"
        )
    try:
        source = LogSource(file)
        with source.guard(), source.open_text() as opened:
            text = opened.read()
    except TraceError as error:
        raise RunError(str(error).replace("a request log with time, prompt tokens, output tokens", "runs")) from None
    json_text = text.lstrip("\ufeff \t\r\n")[:1] in ("{", "[")
    runs: list[MeasuredRun] = []
    said: list[str] = []
    reasons: list[str] = []
    for place, row in _reports(file.name, text) if json_text else _rows(file.name, text):
        try:
            if isinstance(row, RunError):
                raise row
            if json_text:
                row, notices = row_of(place, row)
                said += [f"note: {notice}" for notice in notices]
            else:
                _check_csv(place, row)
                row = row | parallel_of(place, row) | {"dtype": format_of(place, row)}
            runs.append(_from_row(place, row))
        except RunError as error:
            reasons.append(str(error))
    if not runs:
        raise RunError("; ".join(reasons[:3]) if reasons else f"{file.name}: {'no runs' if json_text else 'no rows'}")
    return runs, [f"left out: {reason}" for reason in reasons] + said


def _rows(name: str, text: str) -> Iterator[tuple[str, dict[str, Any] | RunError]]:
    """(what a message calls it, cells by column) of a CSV's rows."""
    text = text.lstrip("\ufeff\r\n ")
    header = text.split("\n", 1)[0]
    before = 0
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t|", key=header.count))
    columns = [column.strip() for column in next(reader)]
    missing = [column for column in REQUIRED if column not in columns]
    if missing:
        raise RunError(f"{name}: lacks the column {', '.join(missing)}; wanted: {', '.join(REQUIRED)} and more")
    twice = sorted({column for column in columns if column and columns.count(column) > 1})
    if twice:
        raise RunError(f"{name}: the column {twice[0]} is there twice; leave one")
    before = reader.line_num
    for cells in reader:
        place, before = f"{name} line {before + 1}", reader.line_num
        if len(cells) not in (0, len(columns)):
            yield place, RunError(f"{place}: {len(cells)} cells where the header has {len(columns)}")
        elif any(cell.strip() for cell in cells):
            yield place, {c: cell.strip() for c, cell in zip(columns, cells, strict=True)}


def _reports(name: str, text: str) -> Iterator[tuple[str, Any]]:
    """(what a message calls it, value) of every report: one, several in an array, or one a line."""
    try:
        parsed = json.loads(text)
    except ValueError:
        lines = [(i, line) for i, line in enumerate(text.splitlines(), start=1) if line.strip()]
        for i, (number, line) in enumerate(lines, start=1):
            try:
                yield f"{name} run {i}", json.loads(line)
            except ValueError as error:
                said = str(error).split(":")[0]
                yield f"{name} line {number}", RunError(f"{name} line {number}: not JSON: {said}")
        return
    for i, report in enumerate(parsed if isinstance(parsed, list) else [parsed], start=1):
        yield f"{name} run {i}", report


def _check_csv(source: str, row: Mapping[str, Any]) -> None:
    """What a CSV's further columns say against the run, as far as they are those of the tools."""
    failed, requests = positive_or_zero(row.get("failed")), positive_or_zero(row.get("requests"))
    if failed > MOST_FAILED * max(requests, failed):
        raise RunError(f"{source}: failed is {failed:g} of {requests:g} requests; wanted: at most {MOST_FAILED:.0%}")
    check_load(
        source,
        row,
        positive(source, "rate_rps", row["rate_rps"]),
        positive(source, "latency_mean_ms", row["latency_mean_ms"]),
    )


def share(source: str, value: Any) -> float:
    """A ``prefix_share`` as a number from 0 to 1.

    Raises:
        RunError: it is none; ``source`` is named.
    """
    number = finite_number(value)
    if isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            number = None
    if number is None or not 0.0 <= number <= 1.0:
        raise RunError(f"{source}: prefix_share is {shown(value)}; wanted: a number from 0 to 1")
    return number


def _from_row(source: str, row: Mapping[str, Any]) -> MeasuredRun:
    def number(name: str) -> float:
        value = row.get(name)
        if value in (None, "") and name in DEFAULTS:
            value = DEFAULTS[name]
        size = positive(source, name, value)
        if size > MOST[name]:
            raise RunError(f"{source}: {name} is {shown(value)}; wanted: at most {MOST[name]:g}")
        return size

    rate, prompt, output = number("rate_rps"), number("mean_prompt_tokens"), number("mean_output_tokens")
    if output <= 1:
        raise RunError(
            f"{source}: mean_output_tokens is {output:g}; wanted: more than 1, or there is no time between tokens"
        )
    ttft, latency = number("ttft_mean_ms"), number("latency_mean_ms")
    if latency <= ttft:
        raise RunError(f"{source}: latency_mean_ms is {latency:g}; wanted: more than ttft_mean_ms, {ttft:g}")
    if ttft < LEAST_TTFT_MS:
        raise RunError(
            f"{source}: ttft_mean_ms is {ttft:g}, less than any engine takes; is it in seconds? wanted: milliseconds"
        )
    gpu = row.get("gpu")
    if gpu is not None and not isinstance(gpu, str):
        raise RunError(f"{source}: gpu is {shown(gpu)}; wanted: a name as in `table list`, '2x' before it for two")
    arrivals = str(row.get("arrivals") or "poisson").strip().lower()
    if arrivals not in ARRIVALS:
        raise RunError(f"{source}: arrivals is {shown(arrivals)}; wanted: one of {', '.join(ARRIVALS)}")
    requests, cached = row.get("requests"), row.get("prefix_share")
    prefix_share = 0.0 if cached in (None, "") else share(source, cached)
    stated = [q for q in QUANTILES if row.get(f"ttft_{q}_ms") not in (None, "")]
    quantiles = {q: positive(source, f"ttft_{q}_ms", row[f"ttft_{q}_ms"]) for q in stated}
    if sorted(quantiles.values()) != list(quantiles.values()):
        said = ", ".join(f"ttft_{q}_ms {value:g}" for q, value in quantiles.items())
        raise RunError(f"{source}: {said}; wanted: quantiles that rise")
    return MeasuredRun(
        source=source,
        model=row.get("model") or None,
        gpu=gpu or None,
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
        engine=str(row.get("engine") or "vllm").strip().lower(),
        engine_version=str(row["engine_version"]) if row.get("engine_version") else None,
        dtype=row.get("dtype"),
        assumed=tuple(name for name in ENGINE if row.get(name) in (None, "")),
    )
