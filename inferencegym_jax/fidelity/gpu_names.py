"""Names of GPUs as drivers and people write them: how many, which, in which form and with how much memory.

``"2x NVIDIA H100 NVL" -> GpuName(2, "h100", "nvl", None)``. What a table was measured on is the caller's to compare.
"""

from __future__ import annotations

import re
from typing import NamedTuple

FAMILY = re.compile(
    r"(?<![a-z0-9])(gh200|gb200|gb300|b100|b200|b300|h100|h200|h800|h20|a100|a800|a10g?|a30|a40|l40s?|l4|l20|t4|v100|"
    r"mi2\d0x?|mi3\d{2}x?|gaudi\d?|tpu|rtx|rtx\s*\d{4}|[345]090|6000)(?![a-z0-9])"
)
FORM = re.compile(r"(?<![a-z0-9])(pcie|nvl|sxm\d?|hbm3e?|mig)(?![a-z])")
MEMORY = re.compile(r"(?<![a-z0-9.])(\d{2,3})\s*g(?:i?b)?(?![a-z0-9])")
COUNT = re.compile(r"(?:^|[^a-z0-9])(\d{1,3})\s*[x*]\s*(?=[a-z])|(?<=[a-z0-9 ])\s*[x*]\s*(\d{1,3})\s*$|:(\d{1,2})$")
SXM = {"sxm", "hbm3", "hbm3e"}  # "H100 80GB HBM3" is the driver's name of the SXM card


class GpuName(NamedTuple):
    """What a name says of a GPU."""

    gpus: int
    family: str  # "h100"; empty: no known GPU
    form: str | None  # "sxm", "pcie", "nvl", "mig"
    memory_gb: int | None


def gpu_name(text: str) -> GpuName:
    """Read a name such as "NVIDIA A100-SXM4-40GB", "h100_sxm", "2xH100", "H100x4"."""
    plain = re.sub(r"[_\-/,()]+", " ", text.strip().lower())
    plain = re.sub(r"((?:h|a|b|gh|gb|l)\d{2,3}s?)\s*([x*]\d)", r"\1 \2", plain)
    count = COUNT.search(plain)
    several = next((int(group) for group in count.groups() if group), 1) if count else 1
    bare = COUNT.sub(" ", plain)
    family, form, memory = FAMILY.search(bare), FORM.search(bare), MEMORY.search(bare)
    shape = form[1] if form else None
    if shape is not None and (shape.startswith("sxm") or shape in SXM):
        shape = "sxm"
    return GpuName(several, family[1] if family else "", shape, int(memory[1]) if memory else None)
