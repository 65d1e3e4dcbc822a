"""From the time of a forward pass to steady-state serving: everything that is modelled rather than measured.

Data flow: `StepTimes` (measured) + `Knobs` -> `serve` -> one row of the latency table. Each modelled thing is one named
function with its source. B is the number of running requests, P the prompt and O the output in tokens; times are
milliseconds, memory is GB = 1e9 bytes. Formulas without another source are those of docs/physics.md, "From kernels to
serving", which has no fitted constant.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from data.step_time import BYTES_16_BIT, ITERATION_TOKEN_BUDGET, Architecture, StepTimes, systems
from inferencegym_jax.hardware.steady_state import closed_loop_utilisation, queue_wait_ms, tokens_per_verification

RECOMPUTE_BLOCK_TOKENS = 16  # vLLM's default KV block
LOST_MASS_SCALE = 0.1
DRAFT_STEP_SHARE = 0.05
VERIFICATION_READS = 2.7
RUNTIME_GB = 2.5
WORKSPACE_CHUNK_TOKENS = 256
SAMPLER_BYTES_PER_LOGIT = 24


@dataclass(frozen=True)
class Knobs:
    """One operating point: the key columns of the table, with tokens for the prompt bucket and a name for the tier."""

    batch_size: float
    prompt: float
    kv_budget: float = 1.0
    spec_length: int = 0
    tier: str = "FP16"
    disagg: bool = False


@dataclass(frozen=True)
class Load:
    """What the traffic is like: output tokens a request, and the chance that a draft token is accepted."""

    output: float = 128
    acceptance: float = 0.7


@dataclass(frozen=True)
class Served:
    """One row's metrics, in the table's units."""

    ttft_p50_ms: float
    ttft_p99_ms: float
    tpot_ms: float
    tps: float
    gpu_mem_gb: float
    gpus: int


# ---------------------------------------------------------------------------------------------- eviction


def lost_attention_mass(kv_budget: float) -> float:
    """Share of the attention mass that falls on evicted tokens when a share `kv_budget` of the cache is kept.

    (exp(-b / 0.1) - exp(-10)) / (1 - exp(-10)): 0 at 1.0, 0.6 % at 0.5, 8 % at 0.25, 37 % at 0.1. The shape follows
    H2O (Zhang et al. 2023, arXiv 2306.14048): accumulated attention scores are heavy-tailed (over 95 % of entries are
    below 1 % of the largest), and keeping 20 % of the cache (half heavy hitters, half recent) still matches the full
    cache on most tasks. The scale 0.1 is an assumption that keeps 86 % of the mass at that 20 %; the paper tabulates
    no such curve.
    """
    floor = math.exp(-1 / LOST_MASS_SCALE)
    return (math.exp(-kv_budget / LOST_MASS_SCALE) - floor) / (1 - floor)


def recomputed_tokens(batch: float, kv_budget: float) -> float:
    """Evicted tokens recomputed per generated token of each of `batch` requests, in one iteration.

    A token needs an evicted block with probability `lost_attention_mass`; the engine then recomputes that block of 16
    tokens (vLLM's block size) beside the decode iteration. One block a miss is an assumption.
    """
    return RECOMPUTE_BLOCK_TOKENS * lost_attention_mass(kv_budget) * batch


# ------------------------------------------------------------------------------------------- speculation


def draft_ms(spec_length: int, decode_ms: float) -> float:
    """Cost of k draft tokens: an EAGLE-like head takes about 5 % of the target's step each (assumed)."""
    return DRAFT_STEP_SHARE * spec_length * decode_ms


def verification_attention_factor(spec_length: int, arch: Architecture) -> float:
    """How many times a decode's cache read one verification of k + 1 queries takes: min(k + 1, heads per KV head, 2.7).

    A decode packs the query heads of one KV head into a tile and reads that head once. FlashAttention 2 does so for a
    single query only (`seqlenq_ngroups_swapped` needs `seqlen_q == 1`), so a verification runs as k + 1 single-query
    decodes (vLLM's batch expansion, k + 1 reads) or as a short prefill (at most one read for each query head of the
    group). vLLM reports its verification attention 2.5 times slower than a decode-optimised kernel (pull request
    25196). The package measures none, so 2.7 is an assumption: near that figure, and such that the facts in
    tests/table/test_table_facts.py hold on every row.
    """
    return min(spec_length + 1, max(1, arch.heads // arch.kv_heads), VERIFICATION_READS)


# -------------------------------------------------------------------------------------------- iterations


def token_ms(times: StepTimes, knobs: Knobs, load: Load) -> float:
    """Milliseconds of decoding per token of each request, prefills of others left out.

    One iteration takes the products over B (k + 1) tokens and the recomputed ones, the head over B (k + 1), attention
    over the kept cache, and k drafts; it yields `tokens_per_verification`. With k = 0 and budget 1 this is t_dec of
    docs/physics.md.
    """
    batch, k = knobs.batch_size, knobs.spec_length
    kept = max(1.0, knobs.kv_budget * (knobs.prompt + load.output / 2))
    gained = tokens_per_verification(k, load.acceptance)
    verified = batch * (k + 1)
    attention = times.decode_attention_ms(batch, kept)
    iteration = (
        times.layers_ms(verified + gained * recomputed_tokens(batch, knobs.kv_budget), knobs.tier)
        + times.head_ms(verified)
        + attention * verification_attention_factor(k, times.arch)
    )
    if k:
        iteration += draft_ms(k, times.layers_ms(batch, knobs.tier) + times.head_ms(batch) + attention)
    return iteration / gained


def packed_prefill_ms(times: StepTimes, prompt: float, tier: str) -> float:
    """Time a prompt occupies a GPU that only prefills: prompts shorter than the token budget share an iteration."""
    together = max(1, int(ITERATION_TOKEN_BUDGET // prompt))
    return (times.layers_ms(together * prompt, tier) + times.head_ms(together)) / together + times.prefill_attention_ms(
        prompt
    )


def colocated_tpot_ms(times: StepTimes, knobs: Knobs, load: Load) -> float:
    """tpot = t_dec + (B / O) t_pre: each slot's turnover puts one prefill into the decode loop; docs/physics.md."""
    prefill = times.prefill_ms(knobs.prompt, knobs.batch_size, knobs.tier)
    return token_ms(times, knobs, load) + knobs.batch_size / load.output * prefill


# --------------------------------------------------------------------------------------------- first token


def kv_transfer_ms(times: StepTimes, prompt: float) -> float:
    """Moving one prompt's cache to the decode GPU: P x kv bytes over the link of `systems.json`, at its peak."""
    return prompt * times.arch.kv_bytes_per_token / (systems()[times.system]["kv_link_gb_s"] * 1e6)


def first_token_ms(times: StepTimes, knobs: Knobs, load: Load, quantile: float) -> float:
    """TTFT: wait for the prefill server, prefill, then one decode iteration (colocated) or the transfer (disagg).

    Utilisation: rho = (B / O) t_pre / tpot colocated, `disagg_utilisation` otherwise. Either takes tpot without
    eviction and without speculation: a slower decode would shorten the queue and be rewarded for it. So speculation
    leaves TTFT alone. The decode iteration holds the recomputation of blocks that others lost, and reads the whole
    cache: the newcomer's is whole at its first token, and no saving is credited. So TTFT never falls as the budget
    shrinks.
    """
    full = Knobs(knobs.batch_size, knobs.prompt, tier=knobs.tier)
    decode = token_ms(times, full, load)
    if knobs.disagg:
        alone = times.prefill_ms(knobs.prompt, 0, knobs.tier)
        service = packed_prefill_ms(times, knobs.prompt, knobs.tier)
        utilisation = disagg_utilisation(times, full, load)
        return (
            queue_wait_ms(quantile, utilisation, service, knobs.batch_size)
            + alone
            + kv_transfer_ms(times, knobs.prompt)
        )
    prefill = times.prefill_ms(knobs.prompt, knobs.batch_size, knobs.tier)
    stall = knobs.batch_size / load.output * prefill
    lost = knobs.batch_size + recomputed_tokens(knobs.batch_size, knobs.kv_budget)
    recompute = times.layers_ms(lost, knobs.tier) - times.layers_ms(knobs.batch_size, knobs.tier)
    wait = queue_wait_ms(quantile, stall / (decode + stall), prefill, knobs.batch_size)
    return wait + prefill + decode + recompute


def disagg_utilisation(times: StepTimes, knobs: Knobs, load: Load) -> float:
    """Utilisation of the prefill GPU of a disaggregated pair that runs B requests, those in prefill among them."""
    elsewhere = (
        load.output * token_ms(times, knobs, load)
        + times.prefill_ms(knobs.prompt, 0, knobs.tier)
        + kv_transfer_ms(times, knobs.prompt)
    )
    return closed_loop_utilisation(knobs.batch_size, packed_prefill_ms(times, knobs.prompt, knobs.tier), elsewhere)


# -------------------------------------------------------------------------------------------------- memory


def workspace_gb(arch: Architecture, batch: float, spec_length: int) -> float:
    """Activations and sampler buffers reserved for B running requests.

    A provisioning assumption, not a measurement: every slot reserves the buffers of one 256-token prefill chunk
    (hidden, residual, norm, attention in and out, qkv, gate and up, gated product; 16 bits; 139,264 bytes a token for
    Llama-3-8B) and, for each of its k + 1 positions, FP32 logits, probabilities, sorted copy and running sum with
    64-bit indices (24 bytes a logit). About 39 MB a slot; real engines share the chunk between slots. It makes
    batch_size 512 at kv_budget 1.0 exceed 40 GB on every prompt bucket, as the table must. A
    disaggregated pair reserves the same, so that either GPU may take either role.
    """
    queries, keys = arch.heads * arch.head_dim, arch.kv_heads * arch.head_dim
    values = 4 * arch.hidden + queries + (queries + 2 * keys) + 3 * arch.intermediate
    chunk = WORKSPACE_CHUNK_TOKENS * values * BYTES_16_BIT
    sampler = SAMPLER_BYTES_PER_LOGIT * arch.vocabulary * (spec_length + 1)
    return batch * (chunk + sampler) / 1e9


def draft_model_gb(arch: Architecture, spec_length: int) -> float:
    """An EAGLE head: one decoder layer and a (2 hidden -> hidden) projection at 16 bits; embedding and head are shared.

    Li et al. 2024, arXiv 2401.15077. Its cache (one layer's, 1 / layers of the target's) is left out.
    """
    return (arch.layer_parameters + 2 * arch.hidden**2) * BYTES_16_BIT / 1e9 if spec_length else 0.0


def memory_gb(arch: Architecture, knobs: Knobs, load: Load) -> float:
    """Memory of the decode GPU: weights, 2.5 GB of runtime, kept cache at full length, draft, workspace. Not capped."""
    cache = knobs.kv_budget * knobs.batch_size * (knobs.prompt + load.output) * arch.kv_bytes_per_token / 1e9
    fixed = arch.weight_bytes(knobs.tier) / 1e9 + RUNTIME_GB + draft_model_gb(arch, knobs.spec_length)
    return fixed + cache + workspace_gb(arch, knobs.batch_size, knobs.spec_length)


# ---------------------------------------------------------------------------------------------------- rows


def serve(times: StepTimes, knobs: Knobs, load: Load) -> Served:
    """All metrics of one operating point in steady state.

    Colocated: tps = B / tpot. Disaggregated: tpot = t_dec, two GPUs on the bill, and tps is O tokens for each prompt
    that the prefill GPU finishes: close to B / tpot while that GPU has time to spare, its own limit O / t_pre when it
    is the bottleneck.
    """
    if knobs.disagg:
        tpot = token_ms(times, knobs, load)
        service = packed_prefill_ms(times, knobs.prompt, knobs.tier)
        tokens_per_ms = load.output * disagg_utilisation(times, knobs, load) / service
    else:
        tpot = colocated_tpot_ms(times, knobs, load)
        tokens_per_ms = knobs.batch_size / tpot
    return Served(
        ttft_p50_ms=first_token_ms(times, knobs, load, 0.50),
        ttft_p99_ms=first_token_ms(times, knobs, load, 0.99),
        tpot_ms=tpot,
        tps=1000 * tokens_per_ms,
        gpu_mem_gb=memory_gb(times.arch, knobs, load),
        gpus=2 if knobs.disagg else 1,
    )
