"""What the library's open-loop environment says of some traffic on a measured table: the simulator's own prediction.

The traffic is counted into seconds, as any request log is, and the compiled step serves it. ``replay`` is its
request-by-request counterpart.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from inferencegym_jax.environment import Environment
from inferencegym_jax.episodes.policy import Policy, act, init_carry
from inferencegym_jax.live.trial.traffic import Traffic
from inferencegym_jax.table.latency_table import LatencyTable
from inferencegym_jax.tasks import NOT_NORMALISED, get_task, make_params
from inferencegym_jax.traffic.dispersion import Moments, arrival_scv
from inferencegym_jax.traffic.request_log import RequestLog

TRACE_TASK = 4  # whose dynamics serve a log; its objectives are not read


def request_log(traffic: Traffic) -> RequestLog:
    """The traffic as the simulator reads a log: requests, mean prompt and mean output of every second, and how the
    requests of a second differ."""
    seconds = max(int(np.ceil(traffic.seconds)), 1)
    second = np.minimum(traffic.time_s.astype(int), seconds - 1)
    counts = np.bincount(second, minlength=seconds)
    lengths = [np.asarray(values, np.float64) for values in (traffic.prompt, traffic.output)]
    sums = [np.bincount(second, weights=values, minlength=seconds) for values in lengths]
    prompts, outputs = (
        np.where(counts, total / np.maximum(counts, 1), values.mean()).astype(np.float32)
        for total, values in zip(sums, lengths, strict=True)
    )
    moments = Moments()
    moments.add(*lengths)
    prompt_cv, output_cv, correlation = moments.within(counts.astype(np.float64), *sums)
    return RequestLog(
        counts.astype(np.int32),
        prompts,
        outputs,
        len(traffic),
        prompt_cv=prompt_cv,
        output_cv=output_cv,
        length_correlation=correlation,
        arrival_scv=arrival_scv(traffic.time_s),
        short_outputs=moments.short_outputs(len(traffic)),
    )


def simulate_traffic(
    table: LatencyTable, traffic: Traffic, policy: Policy, *, warmup_s: float = 0.0
) -> dict[str, float]:
    """Serve ``traffic`` by the compiled open-loop step, noise off.

    Args:
        table: measured.
        traffic: what arrives when.
        policy: what it remembers (``init_carry``) is never reset.
        warmup_s: seconds from the start that are not counted.

    Returns:
        itl_ms, mean over the gaps between tokens, and ttft_mean_ms, mean over requests, both after ``warmup_s``.

    Raises:
        TableError: the table says too little of the engine; the message names what to add.
    """
    log = request_log(traffic)
    params = make_params(get_task(TRACE_TASK), table, NOT_NORMALISED, trace=log)
    params = params.replace(noise_sigma=np.float32(0.0), episode_length=np.int32(log.seconds + 1))
    env = Environment(table, params, log).suited_to(params)

    def second(loop: Any, _: Any) -> Any:
        state, observation, carry = loop
        action, carry = act(policy, state, observation, carry)
        observation, state, _, _, info = env.step_env(None, state, action, params)
        metrics, asked = info["metrics"], info["workload"].arrivals
        row = (asked, info["ttft_mean_ms"], metrics.tokens_per_sec, metrics.tpot_ms, state.engine.waiting.sum(-1))
        return (state, observation, carry), jnp.stack([jnp.asarray(x, jnp.float32) for x in row])

    observation, state = env.reset_seed(0, params)
    _, rows = jax.jit(lambda loop: jax.lax.scan(second, loop, length=log.seconds))(
        (state, observation, init_carry(policy))
    )
    arrivals, ttft, tokens, tpot, waiting = np.asarray(rows, np.float64).T
    first = arrivals - np.diff(waiting, prepend=0.0)  # first tokens, which no gap precedes
    after = tokens - first
    arrivals, ttft, after, tpot = (column[int(warmup_s) :] for column in (arrivals, ttft, after, tpot))
    return {
        "itl_ms": float(np.average(tpot, weights=np.maximum(after, 1e-9))),
        "ttft_mean_ms": float(np.average(ttft, weights=np.maximum(arrivals, 1e-9))),
    }
