"""Whether an open-loop task's params describe an engine that can serve, before the first step is taken.

``profile, params -> None or a sentence``. Inside ``jit`` nothing can be refused; the environment checks what it is
given outside.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from inferencegym_jax.models import KNOBS, PREFILL_GPU, REPLICA, EngineParams, EnvParams, QuantTier, shown
from inferencegym_jax.physics.kernels import most_tokens
from inferencegym_jax.physics.speculation import DRAFT_LENGTHS
from inferencegym_jax.table import EngineProfile, TableError

SWITCHING = ("restart_s", "start_s", "lease_s")
QUANT_TIER = list(KNOBS).index("quant_tier")
FINITE = "a finite number of at least 0"
SHARE = "a number from 0 to 1"
POSITIVE = "a number above 0, or infinite"
ALLOWED: dict[str, str] = {
    **dict.fromkeys(SWITCHING, f"{FINITE}, in seconds; 0 switches at once"),
    **dict.fromkeys(("overhead_ms", "overhead_ms_per_sequence", "path_ms", "first_token_iterations"), FINITE),
    **dict.fromkeys(("draft_share", "prompt_cv", "output_cv", "arrival_scv", "queue_capacity"), FINITE),
    "token_budget": "a finite number of at least 1",
    "prefix_share": SHARE,
    "link_gb_s": POSITIVE,
    "slo_tpot_ms": POSITIVE,
    "length_correlation": "a number from -1 to 1",
    "second_gpu": f"{PREFILL_GPU} (prefill GPU) or {REPLICA} (replica)",
}
"""What each field may be, in words."""


def check_engine(profile: EngineProfile, params: EnvParams) -> None:
    """Refuse an engine that cannot serve.

    Args:
        profile: what the table says of the engine.
        params: concrete; of one task or a batch of them, open-loop ones among them.

    Raises:
        ValueError: a field out of its range; the message names it, its value and what is allowed.
        TableError: weights of a format that the agent may choose do not fit; the message says what would.
    """
    serves = np.asarray(params.engine.open_loop) > 0
    for name in ALLOWED:
        values = _of(params.engine, name, serves)
        bad = ~_good(name, values)
        if bad.any():
            raise ValueError(f"engine {name} = {shown(values[bad].flat[0].item())}: must be {ALLOWED[name]}")
    budgets, most = _of(params.engine, "token_budget", serves), most_tokens(profile)
    if (budgets > most).any():
        raise ValueError(
            f"engine token_budget = {shown(budgets[budgets > most].flat[0].item())}: must be at most {most:g}, as far "
            "as the table's iterations are looked up; a profile whose tokens_per_iteration is more reaches further"
        )
    _check_acceptance(_of(params.engine, "acceptance_lengths", serves))
    may_choose = np.asarray(params.active)[..., QUANT_TIER][serves].any()
    tiers = list(QuantTier) if may_choose else [QuantTier(KNOBS["quant_tier"].default)]
    for memory_gb in np.unique(_of(params.engine, "memory_gb", serves)):
        for tier in tiers:
            try:
                profile.pool_tokens(tier, float(memory_gb))
            except TableError as error:
                raise TableError(f"{error}{_would_fit(profile, float(memory_gb))}") from None


def _of(engine: EngineParams, name: str, serves: np.ndarray) -> np.ndarray:
    """A field's values of the open-loop tasks, float64[tasks, ...]."""
    return np.asarray(getattr(engine, name), np.float64)[serves]


def _good(name: str, values: np.ndarray) -> Any:
    if name in ("link_gb_s", "slo_tpot_ms"):
        return values > 0
    if name == "second_gpu":
        return (values == PREFILL_GPU) | (values == REPLICA)
    low = {"token_budget": 1.0, "length_correlation": -1.0}.get(name, 0.0)
    high = 1.0 if name in ("prefix_share", "length_correlation") else np.inf
    return np.isfinite(values) & (low <= values) & (values <= high)


def _check_acceptance(lengths: np.ndarray) -> None:
    most = np.array([1.0, *(k + 1.0 for k in DRAFT_LENGTHS)])
    low = np.concatenate([np.ones_like(lengths[..., :1]), lengths[..., :-1]], axis=-1)
    bad = ~((low <= lengths) & (lengths <= most))
    if bad.any():
        place = tuple(np.argwhere(bad)[0])
        i = int(place[-1])
        drafts = (0, *DRAFT_LENGTHS)[i]
        raise ValueError(
            f"engine acceptance_lengths[{i}] = {lengths[place]:g} ({drafts} drafts): must be from {low[place]:g} (what "
            f"fewer drafts yield) to {most[i]:g}"
        )


def _would_fit(profile: EngineProfile, memory_gb: float) -> str:
    smaller = [t.name for t in QuantTier if profile.weights_gb[t] + profile.runtime_gb < memory_gb]
    return f"; or lock quant_tier at a format that fits: {', '.join(smaller)}" if smaller else ""
