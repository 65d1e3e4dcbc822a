"""Measured GPU kernels: read from the `aiconfigurator-core` package and interpolated. Nothing here is modelled.

Data flow: parquet files of one (system, engine, version) -> `Kernels` -> `GemmGrid` and `AttentionGrid`, which answer
in milliseconds for any shape. `step_time.py` sums them into forward passes. A measured point is returned exactly;
between points latency is linear in each coordinate (a product a + b n + c k + d n k is therefore exact in n and k);
outside the measured range the nearest edge is scaled by the roofline ratio, that is by bytes moved or operations
done, whichever binds.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

PACKAGE = "aiconfigurator-core"
PACKAGE_VERSION = "0.12.0"
WEIGHT_BYTES = {"bfloat16": 2.0, "fp8": 1.0, "sq": 1.0, "int8_wo": 1.0, "int4_wo": 0.5}


class KernelDataError(ValueError):
    """The measured kernels that were asked for are not there; the message says what is."""


def data_root() -> Path:
    """Folder of the measured systems inside the installed package.

    Raises:
        KernelDataError: the package is not installed.
    """
    spec = importlib.util.find_spec("aiconfigurator_core")
    if spec is None or not spec.submodule_search_locations:
        raise KernelDataError(
            f"the measured kernels are not installed: pip install --no-deps {PACKAGE}=={PACKAGE_VERSION} "
            "(or use --source synthetic, which needs none)"
        )
    return Path(next(iter(spec.submodule_search_locations))) / "systems" / "data"


def measured_versions(system: str, engine: str) -> list[str]:
    """Versions of `engine` that have both matrix products and attention measured on `system`."""
    root = data_root() / system
    found = [{p.name for p in (root / op / engine).glob("*")} for op in ("gemm", "attention")]
    return sorted(found[0] & found[1])


def interpolate(axis: np.ndarray, values: np.ndarray, at: float) -> float:
    """Linear interpolation of `values` (n) over the ascending `axis` (n), held constant beyond its ends."""
    return float(np.interp(at, axis, values))


@dataclass(frozen=True)
class Roofline:
    """Time a kernel would take at the card's peak: `bandwidth` bytes/ms, `peak` operations/ms at 16 bits."""

    bandwidth: float
    peak: float

    def gemm_ms(self, m: float, n: float, k: float, weight_bytes: float) -> float:
        """Lower bound for an (m, k) x (k, n) product: weights at their width, activations at 16 bits."""
        moved = weight_bytes * n * k + 2.0 * m * (n + k)
        operations = 2.0 * m * n * k
        return max(moved / self.bandwidth, operations / self.peak)


class GemmGrid:
    """Latency of dense products (m tokens, n outputs, k inputs) of one data type, milliseconds."""

    def __init__(
        self, m: np.ndarray, n: np.ndarray, k: np.ndarray, latency: np.ndarray, roofline: Roofline, dtype: str
    ):
        """Build from columns of equal length (one row a measured point)."""
        self.m, self.n, self.k = (np.unique(x) for x in (m, n, k))
        self.roofline, self.weight_bytes = roofline, WEIGHT_BYTES[dtype]
        self.latency = np.full((len(self.m), len(self.n), len(self.k)), np.nan)
        at = tuple(np.searchsorted(axis, x) for axis, x in ((self.m, m), (self.n, n), (self.k, k)))
        self.latency[at] = latency
        self._fill_missing()

    def _fill_missing(self) -> None:
        """Give the few unmeasured corners of the grid (largest n x k) their measured neighbour's roofline ratio."""
        for i, j, q in np.argwhere(np.isnan(self.latency)).tolist():
            here = (float(self.m[i]), float(self.n[j]), float(self.k[q]))
            for di, dj, dl in ((1, 0, 0), (0, 1, 0), (0, 0, 1)):
                near = (i - di, j - dj, q - dl)
                if min(near) >= 0 and not np.isnan(self.latency[near]):
                    there = (float(self.m[near[0]]), float(self.n[near[1]]), float(self.k[near[2]]))
                    self.latency[i, j, q] = self.latency[near] * self._ratio(here, there)
                    break

    def _ratio(self, wanted: tuple[float, float, float], edge: tuple[float, float, float]) -> float:
        return self.roofline.gemm_ms(*wanted, self.weight_bytes) / self.roofline.gemm_ms(*edge, self.weight_bytes)

    def column(self, n: int, k: int) -> np.ndarray:
        """Latency at every measured m, shape (len(m),), for one weight matrix: bilinear in (n, k), scaled beyond."""
        inside_n = float(np.clip(n, self.n[0], self.n[-1]))
        inside_k = float(np.clip(k, self.k[0], self.k[-1]))
        i, u = _cell(self.n, inside_n)
        j, v = _cell(self.k, inside_k)
        low = (1 - v) * self.latency[:, i, j] + v * self.latency[:, i, j + 1]
        high = (1 - v) * self.latency[:, i + 1, j] + v * self.latency[:, i + 1, j + 1]
        values = (1 - u) * low + u * high
        if (n, k) == (inside_n, inside_k):
            return values
        return values * [self._ratio((float(m), n, k), (float(m), inside_n, inside_k)) for m in self.m]

    def __call__(self, m: float, n: int, k: int) -> float:
        """Milliseconds of one product."""
        edge = float(np.clip(m, self.m[0], self.m[-1]))
        inside = interpolate(self.m, self.column(n, k), edge)
        return inside if edge == m else inside * self._ratio((m, n, k), (edge, n, k))


def _cell(axis: np.ndarray, at: float) -> tuple[int, float]:
    """Index of the cell of `axis` that holds `at`, and the place in it (0 to 1)."""
    i = int(np.clip(np.searchsorted(axis, at, side="right") - 1, 0, len(axis) - 2))
    return i, float((at - axis[i]) / (axis[i + 1] - axis[i]))


class AttentionGrid:
    """Latency of one layer's attention over (sequences, length), milliseconds.

    Decode: one query a sequence, `length` tokens of context; beyond the measured range it grows with the cache bytes
    read (sequences x length). Prefill: `length` queries a sequence; beyond the range it grows with the operations
    (length squared).
    """

    def __init__(self, points: dict[tuple[int, int], float], decode: bool, fold: int = 1, scale: float = 1.0):
        """Build from measured {(sequences, length): ms}; `fold` and `scale` as `Kernels.attention` explains."""
        self.power = 1 if decode else 2
        self.fold, self.scale = fold, scale
        self.batches = np.array(sorted({b for b, _ in points}), dtype=float)
        self.rows: list[tuple[np.ndarray, np.ndarray]] = []
        for b in self.batches:
            row = sorted((length, ms) for (batch, length), ms in points.items() if batch == b)
            self.rows.append((np.array([x for x, _ in row], dtype=float), np.array([y for _, y in row])))

    def _row(self, index: int, length: float) -> float:
        lengths, values = self.rows[index]
        beyond = max(1.0, length / lengths[-1]) ** self.power
        return interpolate(lengths, values, length) * beyond

    def __call__(self, batch: float, length: float) -> float:
        """Milliseconds of one layer for `batch` sequences of `length` tokens."""
        sequences = batch * self.fold
        last = self.batches[-1]
        if sequences >= last:
            return float(self.scale * self._row(len(self.rows) - 1, length) * sequences / last)
        i, u = _cell(self.batches, max(sequences, self.batches[0]))
        return float(self.scale * ((1 - u) * self._row(i, length) + u * self._row(i + 1, length)))


def choose_heads(measured: set[tuple[int, int]], heads: int, kv_heads: int) -> tuple[int, int, int]:
    """Measured head layout that stands for (heads, kv_heads): returns (heads, kv_heads, fold).

    The same layout if it was measured; else the nearest head count with the same KV heads (same cache bytes read);
    else the layout split in `fold` groups, since B sequences with kv heads are the same independent work as B x fold
    with kv / fold.

    Raises:
        KernelDataError: no measured layout fits.
    """
    if (heads, kv_heads) in measured:
        return heads, kv_heads, 1
    same_kv = [h for h, kv in measured if kv == kv_heads]
    if same_kv:
        return min(same_kv, key=lambda h: (abs(h - heads), -h)), kv_heads, 1
    folds = [f for f in range(2, kv_heads + 1) if kv_heads % f == 0 and (heads // f, kv_heads // f) in measured]
    if not folds:
        raise KernelDataError(
            f"attention with {heads} heads and {kv_heads} KV heads was not measured; there are {sorted(measured)}"
        )
    return heads // folds[0], kv_heads // folds[0], folds[0]


@dataclass(frozen=True)
class Kernels:
    """All measured kernels of one (system, engine, version)."""

    system: str
    engine: str
    version: str
    roofline: Roofline

    @classmethod
    def load(cls, system: str, engine: str, version: str, bandwidth_gb_s: float, bf16_tflops: float) -> Kernels:
        """Point at a measured set; the card's peaks are used outside the measured range only.

        Raises:
            KernelDataError: that version was not measured; the message lists those that were.
        """
        there = measured_versions(system, engine)
        if version not in there:
            raise KernelDataError(
                f"no kernels of {engine} {version} measured on {system}; there are {there or 'none of that engine'}"
            )
        return cls(system, engine, version, Roofline(bandwidth_gb_s * 1e6, bf16_tflops * 1e9))

    def file(self, operation: str, name: str) -> Path:
        """Path of one measured file."""
        return data_root() / self.system / operation / self.engine / self.version / f"{name}_perf.parquet"

    @cache  # noqa: B019 - a handful of frozen instances live as long as the process
    def gemm(self, dtype: str) -> GemmGrid:
        """Matrix products of one data type (bfloat16, fp8, sq, int4_wo, ...)."""
        table = pq.read_table(self.file("gemm", "gemm"), columns=["gemm_dtype", "m", "n", "k", "latency"])
        there = sorted(set(table["gemm_dtype"].to_pylist()) & set(WEIGHT_BYTES))
        if dtype not in there:
            raise KernelDataError(
                f"no {dtype} products of {self.engine} {self.version} measured on {self.system}; there are {there}"
            )
        table = table.filter(pc.field("gemm_dtype") == dtype)
        m, n, k, latency = (table[name].to_numpy() for name in ("m", "n", "k", "latency"))
        return GemmGrid(m, n, k, latency, self.roofline, dtype)

    @cache  # noqa: B019
    def attention(self, phase: str, heads: int, kv_heads: int, head_dim: int) -> AttentionGrid:
        """One layer's attention, 16-bit cache, no window; `phase` is "generation" (decode) or "context" (prefill).

        Where the layout was not measured, `choose_heads` names the one that stands for it; a prefill is then scaled
        with the number of heads, since its time is operations; a decode is not, since its time is the cache read.
        """
        filters = [("head_dim", "=", head_dim), ("attn_dtype", "=", "bfloat16"), ("kv_cache_dtype", "=", "bfloat16")]
        rows = pq.read_table(self.file("attention", f"{phase}_attention"), filters=filters).to_pylist()
        rows = [r for r in rows if not r.get("window_size")]
        measured = {(r["num_heads"], r["num_key_value_heads"]) for r in rows}
        h, kv, fold = choose_heads(measured, heads, kv_heads)
        decode = phase == "generation"
        points = {
            (r["batch_size"], r["isl"] + (r["step"] if decode else 0)): r["latency"]
            for r in rows
            if (r["num_heads"], r["num_key_value_heads"]) == (h, kv)
        }
        return AttentionGrid(points, decode, fold, 1.0 if decode else heads / (h * fold))
