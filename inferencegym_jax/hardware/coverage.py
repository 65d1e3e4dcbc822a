"""What is measured: models x systems x backends x weight formats, and how well tables of them agreed with real runs.

The package's support matrix and kernel files say what is measured; ``data/table_accuracy.json``, written by
``inferencegym validate``, how far predicted TPOT was from measured closed-loop points.
"""

from __future__ import annotations

import csv
import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pyarrow import compute, parquet

from inferencegym_jax.hardware.compiled_engine import BACKENDS, backend_version, require_package
from inferencegym_jax.hardware.gpus import gpus
from inferencegym_jax.hardware.model_files import nearest_names, package_folder, plain_name
from inferencegym_jax.table import TableError, data_path

WORST_MEDIAN = 0.20  # median TPOT error above which a model x system x backend is called not validated
DTYPE_OF_KERNEL = {
    "bfloat16": "bf16",
    "float16": "bf16",
    "fp8": "fp8",
    "fp8_static": "fp8",
    "fp8_block": "fp8",
    "sq": "int8",
    "int8_wo": "int8",
    "int4_wo": "int4",
    "nvfp4": "fp4",
}
MEASURED = {"PASS": "measured", "HYBRID_PASS": "in part"}  # of the package's support matrix


@dataclass(frozen=True)
class Verdict:
    """How a model x system x backend compares with measured points; ``validated`` is None where there are none."""

    validated: bool | None
    text: str


@functools.cache
def accuracy() -> tuple[Mapping[str, Any], ...]:
    """Rows of ``data/table_accuracy.json``: model, system, backend, points, errors as shares, the same of each weight
    format under ``dtypes``, cause."""
    return tuple(json.loads(data_path("table_accuracy.json").read_text())["rows"])


def _row(model: str, system: str, backend: str) -> Mapping[str, Any] | None:
    here = [r for r in accuracy() if r["system"] == system and r["backend"] == backend]
    return next((r for r in here if plain_name(r["model"]) == plain_name(model)), None)


def _error(row: Mapping[str, Any]) -> str:
    return f"median TPOT error {row['tpot_error_median']:.0%} on {row['points']} closed-loop points"


def verdict(model: str, system: str, backend: str, dtype: str | None = None) -> Verdict:
    """What ``data/table_accuracy.json`` says of a model on a system with a backend.

    Args:
        model: name.
        system: GPU.
        backend: engine.
        dtype: weight format, whose points have to be within ``WORST_MEDIAN`` as well as all together; None: all
            together alone.
    """
    row = _row(model, system, backend)
    if row is None:
        return Verdict(None, f"not compared with measurements: no points of {model} on {system} with {backend}")
    cause = f"; {row['cause']}" if row.get("cause") else ""
    good, together = row["tpot_error_median"] <= WORST_MEDIAN, _error(row)
    if dtype is None:
        return Verdict(True, f"validated: {together}") if good else Verdict(False, f"not validated: {together}{cause}")
    own = row["dtypes"].get(dtype)
    if own is None:
        others = ", ".join(row["dtypes"])
        if good:
            return Verdict(None, f"not compared with measurements in {dtype}; in {others}: {together}")
        return Verdict(False, f"not validated: {together}, none of them in {dtype}{cause}")
    alone = f"in {dtype}: {_error(own)}"
    if len(row["dtypes"]) > 1:
        alone += f" ({row['tpot_error_median']:.0%} on {row['points']} in all formats)"
    if good and own["tpot_error_median"] <= WORST_MEDIAN:
        return Verdict(True, f"validated {alone}")
    return Verdict(False, f"not validated {alone}{cause}")


def verdicts_by_dtype(model: str, system: str, backend: str) -> dict[str, Verdict]:
    """``verdict`` of each weight format that has measured points."""
    row = _row(model, system, backend)
    return {} if row is None else {dtype: verdict(model, system, backend, dtype) for dtype in row["dtypes"]}


@dataclass(frozen=True)
class Covered:
    """A model on a system with a backend: what of it is measured, in which weight formats, and the verdicts: of all
    points together and of each weight format that has any."""

    model: str
    system: str
    backend: str
    version: str
    measured: str
    dtypes: tuple[str, ...]
    verdict: Verdict
    by_dtype: Mapping[str, Verdict]


@functools.cache
def measured_dtypes(system: str, backend: str) -> tuple[str, ...]:
    """Weight formats whose matrix products were measured on a system with any version of a backend."""
    require_package()
    folder = package_folder()
    assert folder is not None
    dtypes: set[str] = set()
    for file in sorted((folder / "systems" / "data" / system / "gemm" / backend).glob("*/gemm_perf.parquet")):
        kernels = compute.unique(parquet.read_table(file, columns=["gemm_dtype"])["gemm_dtype"])  # pyright: ignore
        dtypes |= {DTYPE_OF_KERNEL[str(name)] for name in kernels.to_pylist() if str(name) in DTYPE_OF_KERNEL}
    return tuple(name for name in ("bf16", "fp8", "int8", "int4", "fp4") if name in dtypes)


def covered(system: str | None = None, model: str | None = None, backend: str | None = None) -> list[Covered]:
    """Every model x system x backend that the package measures, those of the arguments alone where given.

    Raises:
        TableError: the package is not installed, or nothing is measured of what was asked.
    """
    require_package()
    folder = package_folder()
    assert folder is not None
    systems: list[Covered] = []
    for name in gpus():
        file = folder / "systems" / "support_matrix" / f"{name}.csv"
        if (system is not None and name != system) or not file.is_file():
            continue
        versions = {b: backend_version(name, b) for b in BACKENDS if (backend in (None, b)) and _has_slot(name, b)}
        with file.open(newline="", encoding="utf-8") as lines:
            for row in csv.DictReader(lines):
                own = row["Backend"] in versions and row["Version"] == versions[row["Backend"]]
                if not own or row["Mode"] != "agg" or row["Status"] not in MEASURED:
                    continue
                if model is not None and plain_name(row["HuggingFaceID"]) != plain_name(model):
                    continue
                key = (row["HuggingFaceID"], name, row["Backend"])
                dtypes = measured_dtypes(name, row["Backend"])
                judged = (verdict(*key), verdicts_by_dtype(*key))
                systems.append(Covered(*key, row["Version"], MEASURED[row["Status"]], dtypes, *judged))
    if not systems:
        asked = ", ".join(str(x) for x in (model, system, backend) if x is not None)
        names = [] if model is None else nearest_names(model)
        near = f"near {model} are {', '.join(names)}; " if names else ""
        raise TableError(f"nothing is measured of {asked}; {near}`inferencegym table list` shows what is")
    return systems


def _has_slot(system: str, backend: str) -> bool:
    try:
        return bool(backend_version(system, backend))
    except TableError:
        return False
