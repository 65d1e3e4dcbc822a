"""The GPUs that tables are made for: memory, links and what an hour costs.

``data/gpus.json -> Gpu``. Memory, bandwidth and links are those of aiconfigurator-core's ``systems/*.yaml``; prices are
list prices on demand, each with its source and the day it was read.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass

from inferencegym_jax.models import finite_number, shown
from inferencegym_jax.table import TableError, data_path


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU.

    Attributes:
        system: its name here and in aiconfigurator-core.
        title: as ``nvidia-smi`` or its maker names it.
        aliases: other names, in lower case with hyphens.
        memory_gb: what it is sold with; GB = 1e9 bytes.
        capacity_gb: what its driver reports.
        bandwidth_gb_s: of its memory, GB/s.
        gpus_per_node: that share its fast link.
        kv_link, kv_link_gb_s: what a KV cache crosses between GPUs of a node, and its rate one way, GB/s.
        host_link_gb_s: what weights are loaded over, GB/s; four fifths of the bus's peak, an assumption.
        price_per_gpu_hour: dollars; None where no list price is known.
        price_source, price_date: where the price was read, and when.
    """

    system: str
    title: str
    aliases: tuple[str, ...]
    memory_gb: float
    capacity_gb: float
    bandwidth_gb_s: float
    gpus_per_node: int
    kv_link: str
    kv_link_gb_s: float
    host_link_gb_s: float
    price_per_gpu_hour: float | None
    price_source: str | None
    price_date: str | None


@functools.cache
def gpus() -> dict[str, Gpu]:
    """Every GPU of ``data/gpus.json`` by name."""
    entries = json.loads(data_path("gpus.json").read_text())
    return {name: Gpu(system=name, **entry | {"aliases": tuple(entry["aliases"])}) for name, entry in entries.items()}


def gpu_named(name: str) -> Gpu:
    """The GPU of a name: ``h100_sxm``, ``H100``, ``NVIDIA A100-SXM4-80GB``.

    Raises:
        TableError: none is called so; the message lists those there are.
    """
    wanted = _plain(name)
    for gpu in gpus().values():
        if wanted in (_plain(gpu.system), _plain(gpu.title), *gpu.aliases):
            return gpu
    raise TableError(f"system = {shown(name)}: no such GPU; measured are {', '.join(gpus())}")


def _plain(name: str) -> str:
    return name.strip().lower().replace("_", "-").replace(" ", "-").removeprefix("nvidia-")


@dataclass(frozen=True)
class Price:
    """What a GPU costs: dollars an hour (None: unknown) and where that comes from."""

    per_gpu_hour: float | None
    source: str


def price_of(gpu: Gpu, stated: float | None = None) -> Price:
    """The price that was stated, else the list's.

    Raises:
        TableError: the stated price is no finite number above 0.
    """
    if stated is not None:
        number = finite_number(stated)
        if number is None or number <= 0:
            raise TableError(f"price_per_gpu_hour = {shown(stated)}: must be a finite number above 0")
        return Price(number, "stated")
    if gpu.price_per_gpu_hour is None:
        return Price(None, f"no list price of {gpu.system} is known; state one with --price-per-gpu-hour")
    return Price(gpu.price_per_gpu_hour, f"{gpu.price_source}, {gpu.price_date}")


def money_per_million_tokens(gpu_seconds_per_1k: float, price_per_gpu_hour: float) -> float:
    """Dollars a million tokens, from GPU-seconds per 1,000 tokens and dollars a GPU-hour."""
    return gpu_seconds_per_1k * 1000.0 * price_per_gpu_hour / 3600.0
