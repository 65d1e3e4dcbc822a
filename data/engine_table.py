"""A latency table for one measured run: its model, GPU, prompt and output lengths, from measured kernels.

Data flow: kernels -> `StepTimes` -> rows of the table's columns -> `inferencegym_jax` table, on which the compiled
step then plays the run. The table has the run's own prompt as its one prompt length, so nothing is lost to
interpolation over prompts.

Runs on several GPUs, and of models without an entry in `models.json`, are played on the table that `inferencegym table
build` makes (`inferencegym_jax.hardware`), with the constants of that table.

Unlike the shipped table's prefill, a prompt here always rides along with the decode iterations, as vLLM's chunked
prefill does: it adds gemms(chunk + B) - gemms(B) for each chunk of the token budget, and its attention.
"""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from data.engine_profile import profile  # noqa: E402
from data.step_time import StepTimes, UnknownNameError, model_of_alias, models, systems  # noqa: E402
from inferencegym_jax.fidelity.bench_runs import QUANTISED  # noqa: E402
from inferencegym_jax.fidelity.engine_defaults import with_defaults  # noqa: E402
from inferencegym_jax.fidelity.gpu_names import gpu_name  # noqa: E402
from inferencegym_jax.fidelity.measured_runs import MeasuredRun, RunError  # noqa: E402
from inferencegym_jax.fidelity.validation import Constants, EngineTable  # noqa: E402
from inferencegym_jax.hardware import Gpu, Placement, Request, build, gpu_named  # noqa: E402
from inferencegym_jax.hardware.model_files import model_file  # noqa: E402
from inferencegym_jax.table import EngineProfile, TableError  # noqa: E402
from inferencegym_jax.table.latency_table import KEYS, METRICS, table_from_columns  # noqa: E402

BATCH_SIZES = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
TIER = "FP16"
ACTIVATIONS_GB = 2.5  # runtime, CUDA graphs and activations, which vLLM profiles before it sizes the KV pool
MEMORY_SHARE = 0.9  # vLLM's gpu_memory_utilization


def system_of(name: str) -> str:
    """Our name of a GPU known elsewhere as `name`: "h100_sxm", "H100", "NVIDIA A100-SXM4-80GB".

    Raises:
        UnknownNameError: it is the name of no known GPU.
        OtherGpuError: it names another GPU than those whose kernels were measured, or several.
    """
    if name in systems():
        return name
    gpu, there = gpu_name(name), ", ".join(f"{key} ({entry['title']})" for key, entry in sorted(systems().items()))
    if not gpu.family:
        raise UnknownNameError(f"unknown GPU {name!r}; there are: {there}")
    if gpu.gpus != 1:
        raise OtherGpuError(f"gpu is {name!r}, {gpu.gpus} GPUs; the kernels are those of one GPU, wanted: 1")
    for key, entry in systems().items():
        family, _, form = key.partition("_")
        if gpu.family != family:
            continue
        if gpu.form not in (None, form) or gpu.memory_gb not in (None, round(entry["rated_memory_gb"])):
            raise OtherGpuError(
                f"gpu is {name!r}, another card than the one measured, {entry['title']}; wanted: {there}"
            )
        return key
    raise OtherGpuError(f"gpu is {name!r}, which was not measured; there are: {there}")


class OtherGpuError(ValueError):
    """A run on a GPU whose kernels were not measured."""


def chunked_prefill_ms(times: StepTimes, prompt: float, running: float, budget: float) -> float:
    """What one prompt adds to the decode iterations of `running` requests, chunk by chunk of the token budget."""
    room = max(budget - running, 1.0)
    base = times.layers_ms(running, TIER) if running else 0.0
    whole, rest = divmod(prompt, room)
    products = whole * (times.layers_ms(running + room, TIER) - base)
    if rest:
        products += times.layers_ms(running + rest, TIER) - base
    return products + times.prefill_attention_ms(prompt)


def alone_ms(times: StepTimes, prompt: float, budget: float) -> float:
    """A prefill that nothing shares: its chunks, the head over one position, its attention."""
    return chunked_prefill_ms(times, prompt, 0, budget) + times.head_ms(1)


@cache
def engine_table(model: str, system: str, prompt: float, output: float, budget: float) -> EngineTable:
    """The table and the memory limit of a run.

    Raises:
        UnknownNameError, KernelDataError: model or system has no entry or no measured kernels.
    """
    times = StepTimes.load(system, model)
    columns: dict[str, list[float]] = {name: [] for name in (*KEYS, *METRICS)}
    alone = alone_ms(times, prompt, budget)
    weights_gb = times.arch.weight_bytes(TIER) / 1e9
    request_gb = (prompt + output / 2) * times.arch.kv_bytes_per_token / 1e9
    for disagg in (0, 1):
        for batch in BATCH_SIZES:
            decode = times.decode_ms(batch, prompt + output / 2)
            added = 0.0 if disagg else batch / output * chunked_prefill_ms(times, prompt, batch, budget)
            row = {
                "spec_length": 0,
                "quant_tier": 0,
                "prefill_disagg": disagg,
                "batch_size": batch,
                "kv_budget": 1.0,
                "prompt_len_bucket": 0,
                "ttft_p50_ms": alone + (0.0 if disagg else decode),
                "ttft_p99_ms": alone + decode,
                "tpot_ms": decode + added,
                "tps": 1000 * batch / (decode + added),
                "gpu_mem_gb": weights_gb + ACTIVATIONS_GB + batch * request_gb,
                "cost_per_1k": (1 + disagg) * (decode + added) / batch,
            }
            for name, value in row.items():
                columns[name].append(value)
    metadata = {
        "source": f"measured kernels of {system}, {times.kernels.engine} {times.kernels.version}; data/engine_table.py",
        "model": model,
        "system": system,
        "reference_output_length": repr(output),
    }
    table = table_from_columns(columns, metadata, f"{model} on {system}, {prompt:g} in, {output:g} out")
    table = replace(table, engine=EngineProfile.from_dict(profile(times), table.name))
    return EngineTable(table, MEMORY_SHARE * systems()[system]["memory_gb"])


def resolve(run: MeasuredRun, model: str | None, system: str | None) -> tuple[str, str]:
    """Our names of the run's model and GPU; `model` and `system` stand in where the run has none or an unknown one.

    Raises:
        RunError: neither is known, another model or GPU than those measured, or weights that are not of 16 bits; the
            row is named.
    """
    _check_format(run)
    found: list[str] = []
    pairs: Any = (("model", run.model, model, model_of_alias), ("gpu", run.gpu, system, system_of))
    for what, given, fallback, name_of in pairs:
        if given is None and fallback is None:
            raise RunError(f"{run.source}: no {what}; add the column or pass --{'system' if what == 'gpu' else what}")
        try:
            found.append(name_of(given if given is not None else fallback))
        except OtherGpuError as error:
            raise RunError(f"{run.source}: {error}") from error
        except UnknownNameError as error:
            if fallback is None:
                raise RunError(f"{run.source}: {error}") from error
            if what == "model":
                _check_size(run, fallback)
            found.append(name_of(fallback))
    return found[0], found[1]


def _check_format(run: MeasuredRun) -> None:
    stated = run.dtype or next(iter(QUANTISED.findall(run.model or "")), None)
    if stated is not None:
        raise RunError(
            f"{run.source}: {stated} (of the model {run.model!r}): weights or cache are not of 16 bits, as those of the"
            " tables here are"
        )


def _check_size(run: MeasuredRun, fallback: str) -> None:
    """A name that no entry lists may be anybody's name for the model of `--model`, but not that of another size."""
    sizes = [set(re.findall(r"(?<![\w.])(\d+(?:\.\d+)?)b(?![a-z0-9])", n.lower())) for n in (run.model or "", fallback)]
    if sizes[0] and sizes[1] and sizes[0].isdisjoint(sizes[1]):
        raise RunError(f"{run.source}: model is {run.model!r}, not of the size of --model {fallback}")


def completed(run: MeasuredRun, model: str | None, system: str | None) -> tuple[MeasuredRun, list[str]]:
    """The run with what its engine chose itself, and what was assumed, in sentences.

    Raises:
        RunError: see `resolve`; or the engine's choice is not known.
    """
    by_entry = _has_entries(run, model, system)
    if by_entry:
        gpu = systems()[resolve(run, model, system)[1]]
        title, capacity_gb = gpu["title"], gpu["memory_gb"]
    else:
        _check_format(run)
        measured = _package_gpu(run, system)
        title, capacity_gb = measured.title, measured.capacity_gb
    run, notices = with_defaults(run, title, capacity_gb)
    if (
        by_entry
        and run.gpu is not None
        and gpu_name(run.gpu).family
        and gpu_name(run.gpu).form is None
        and "SXM" not in run.gpu
    ):
        if run.gpu not in systems():
            notices.append(f"{run.source}: gpu {run.gpu!r} is taken as {title}")
    return run, notices


def check_names(model: str | None, system: str | None) -> None:
    """Raise UnknownNameError where a model or GPU that the user names has no entry."""
    for name, ours, anyones in ((model, model_of_alias, model_file), (system, system_of, gpu_named)):
        if name is None:
            continue
        try:
            ours(name)
        except UnknownNameError as error:
            try:
                anyones(name)
            except TableError:
                raise error from None


def selected(run: MeasuredRun, model: str | None, system: str | None) -> bool:
    """Whether the run is one of `model` on `system`: where it names its own, and we know them, they must be the
    same."""
    pairs: Any = ((run.model, model, model_of_alias), (run.gpu, system, system_of))
    for given, wanted, name_of in pairs:
        if given is None or wanted is None:
            continue
        try:
            if name_of(given) != name_of(wanted):
                return False
        except UnknownNameError:
            continue
    return True


def _has_entries(run: MeasuredRun, model: str | None, system: str | None) -> bool:
    """Whether a run is one of one GPU whose model and GPU have entries here; else the package's engine is asked.

    Raises:
        RunError: see `resolve`, where it is not a name without an entry.
    """
    if run.tp != 1:
        return False
    try:
        resolve(run, model, system)
    except RunError as error:
        if not isinstance(error.__cause__, UnknownNameError):
            raise
        return False
    return True


def _package_gpu(run: MeasuredRun, system: str | None) -> Gpu:
    name = run.gpu or system
    if name is None:
        raise RunError(f"{run.source}: no gpu; add the column or pass --system")
    try:
        return gpu_named(name)
    except TableError as error:
        raise RunError(f"{run.source}: {error}") from error


def _package_model(run: MeasuredRun, model: str | None) -> str:
    """The run's model as the package or `data/model_configs` has it; `model` where the run has none or a name of its
    own."""
    if run.model is None and model is None:
        raise RunError(f"{run.source}: no model; add the column or pass --model")
    for name in (run.model, model):
        if name is None:
            continue
        known = models()[name]["aliases"][0] if name in models() else name
        try:
            model_file(known)
        except TableError as error:
            if name == model or model is None:
                raise RunError(f"{run.source}: {error}") from error
            _check_size(run, model)
        else:
            return known
    raise AssertionError("a name was known, or the last one raised")


def package_table(run: MeasuredRun, model: str | None = None, system: str | None = None) -> EngineTable:
    """The table that `inferencegym table build` makes of a run's model, GPU and number of GPUs, with its constants.

    Raises:
        RunError: it has no kernels, does not fit, or cannot be cut so; the row is named.
    """
    _check_format(run)
    gpu, name = _package_gpu(run, system), _package_model(run, model)
    request = Request(name, gpu.system, "vllm", Placement(tp=run.tp), "bf16", output_length=run.mean_output_tokens)
    try:
        table = build(request).table
    except TableError as error:
        raise RunError(f"{run.source}: {error}") from error
    assert table.engine is not None
    constants = Constants(table.engine.overhead_ms, table.engine.path_ms)
    return EngineTable(table, table.engine.memory_gb, constants)


def table_of(run: MeasuredRun, model: str | None = None, system: str | None = None) -> EngineTable:
    """`engine_table` of a run on one GPU whose model has an entry (see `resolve`), else `package_table`."""
    if not _has_entries(run, model, system):
        return package_table(run, model, system)
    name, gpu = resolve(run, model, system)
    budget = float(run.max_num_batched_tokens)
    return engine_table(name, gpu, run.mean_prompt_tokens, run.mean_output_tokens, budget)
