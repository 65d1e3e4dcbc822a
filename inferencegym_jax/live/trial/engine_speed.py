"""How fast the engine was while a run was sent, beside what was measured of it before: a host that other guests share
is not always equally fast, and near saturation a tenth of an iteration decides how long the queue is.

``records with the moments of their tokens, table -> Speed``; ``table, Speed -> the table of an engine that is so much
slower``.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from inferencegym_jax.live.measure.cell_run import FEWEST_GAPS, MOST_OFF, firsts_in, running_in, surfacing_in
from inferencegym_jax.live.trial.profile_engine import EngineTimes, engine_times
from inferencegym_jax.live.trial.session import Record
from inferencegym_jax.table.latency_table import METRICS, LatencyTable


@dataclass(frozen=True)
class Speed:
    """By what a run's iterations took longer than the table says; below 1 where they were shorter.

    Attributes:
        decode: those in which nobody prefilled.
        prompt: what prompts added to the others.
    """

    decode: float
    prompt: float

    @property
    def shown(self) -> str:
        """Both, for a table."""
        return f"{self.decode:.3f}, {self.prompt:.3f}"


def speed_of(runs: Sequence[Sequence[Record]], table: LatencyTable, slowdown: float = 1.0) -> Speed | None:
    """How fast the engine, or the two, were while they served these runs, from when their tokens came.

    A gap between two tokens of a request is an iteration, and those of all that run in it count as one. How many
    requests ran in it and which prompts it held is counted from the tokens of all (``measure.cell_run``), so that how
    long the queue was makes no difference; the table says what such an iteration takes. Requests that had no place yet
    do not count as running.

    Args:
        runs: records of each run with ``token_s``, of an engine that serves nobody else, or of it and its spare.
        table: measured on it.
        slowdown: by what an iteration takes longer while the other engine runs one too; 1 leaves what they cost each
            other in the result.

    Returns:
        None where too few gaps without prefills were seen.
    """
    gaps = _gaps_of(runs, table, slowdown)
    if gaps is None:
        return None
    _, seconds, decode_s, added_s, weight, near_s = gaps
    alone = near_s == 0.0
    if alone.sum() < FEWEST_GAPS:
        return None
    ratio = seconds / (decode_s + near_s)
    usual = ratio <= MOST_OFF * np.median(ratio[alone])
    kept, left = alone & usual, ~alone & usual
    decode = float(weight[kept] @ seconds[kept] / (weight[kept] @ decode_s[kept]))
    if (~alone).sum() < FEWEST_GAPS or not added_s[left].any():
        return Speed(decode, decode)
    prompt = float(weight[left] @ (seconds[left] - decode * decode_s[left]) / (weight[left] @ added_s[left]))
    return Speed(decode, max(prompt, 0.0))


def longer_by(
    runs: Sequence[Sequence[Record]], table: LatencyTable, slowdown: float, edges: Sequence[float]
) -> list[float | None]:
    """By what all iterations took longer than was foretold, with and without prompts, in each part of the runs.

    Sums over sums, each iteration once however many run in it, so that a prompt that is counted in its iteration's
    neighbour, as where the tokens of one come over tens of milliseconds, makes no difference; what stalls the machine
    counts.

    Args:
        runs: see ``speed_of``.
        table: see ``speed_of``.
        slowdown: see ``speed_of``.
        edges: of the parts, seconds, rising.

    Returns:
        A number a part; None as for ``speed_of``.
    """
    gaps = _gaps_of(runs, table, slowdown)
    factors: list[float | None] = []
    for begin, end in itertools.pairwise(edges):
        inside = np.zeros((6, 0)) if gaps is None else gaps[:, (begin <= gaps[0]) & (gaps[0] < end)]
        _, seconds, decode_s, added_s, weight, _ = inside
        enough = inside.shape[1] >= FEWEST_GAPS
        factors.append(float(weight @ seconds / (weight @ (decode_s + added_s))) if enough else None)
    return factors


def _gaps_of(runs: Sequence[Sequence[Record]], table: LatencyTable, slowdown: float) -> np.ndarray | None:
    """``_gaps`` of all runs and engines; None where there are none that tell."""
    times, parts = engine_times(table), list[np.ndarray]()
    for run in runs:
        first, spare = ([one for one in run if one.on_spare == on_spare] for on_spare in (False, True))
        for own, other in ((first, spare), (spare, first)):
            if (part := _gaps(own, other, times, slowdown)) is not None:
                parts.append(part)
    return np.concatenate(parts, axis=1) if parts else None


def _gaps(
    records: Sequence[Record], others: Sequence[Record], times: EngineTimes, slowdown: float
) -> np.ndarray | None:
    """float64[6, gaps]: the middle of each, its seconds, what its iteration takes in the table without prompts, and
    what those in it add there, both times ``slowdown`` where the other engine serves one of ``others``; its weight,
    with which the gaps of an iteration are one; and what prompts add that it may hold, for a first token that is seen
    late falls into the next gap."""
    streams = [record for record in records if len(record.token_s)]
    moments = [np.asarray(record.token_s) for record in streams]
    of_each = [np.stack([moment[:-1], moment[1:]], axis=1) for moment in moments]
    extra = times.profile.first_token_extra_iterations  # gaps after that of its prefill, a first token surfaces
    counts = [max(len(own) - extra, 0) for own in of_each]
    if sum(counts) < FEWEST_GAPS:
        return None
    # who decodes in an iteration shows a token at both ends of the gap ``extra`` later
    decoding = running_in(np.concatenate(of_each))
    ends = np.cumsum([len(own) for own in of_each])
    running = np.concatenate([decoding[end - count : end] for end, count in zip(ends, counts, strict=True)])
    gaps = np.concatenate([own[:count] for own, count in zip(of_each, counts, strict=True)])
    shown = np.concatenate([own[len(own) - count :] for own, count in zip(of_each, counts, strict=True)])
    context = np.concatenate(
        [record.prompt + np.arange(1.0, count + 1.0) for record, count in zip(streams, counts, strict=True)]
    )
    first_s = np.array([moment[0] for moment in moments])
    order = np.argsort(first_s)
    prompts = np.array([record.prompt for record in streams])
    kinds, kind = np.unique(prompts[order], return_inverse=True)
    own_ms = np.array([times.prompt_ms(float(prompt)) for prompt in kinds])[kind]
    until = np.concatenate([[0.0], np.cumsum(own_ms)])
    own, near = (
        until[end] - until[begin]
        for begin, end in (firsts_in(window, first_s[order]) for window in (shown, surfacing_in(gaps, shown)))
    )
    iterations, iteration = np.unique(np.stack([running, context]), axis=1, return_inverse=True)
    decode_ms = np.array([times.decode_ms(n, tokens) for n, tokens in iterations.T])[iteration.ravel()]
    middle = gaps.mean(axis=1)
    factor = np.where(_serves(others, middle), slowdown, 1.0) / 1000.0
    foretold_s = [factor * decode_ms, factor * own, 1.0 / running, factor * near]
    return np.stack([middle, gaps[:, 1] - gaps[:, 0], *foretold_s])


def _serves(records: Sequence[Record], at_s: np.ndarray) -> np.ndarray:
    """bool: whether an engine has one of these requests, from when it was let in to its last token."""
    begins = np.sort([one.arrival_s + (one.wait_ms or 0.0) / 1000.0 for one in records if len(one.token_s)])
    ends = np.sort([one.token_s[-1] for one in records if len(one.token_s)])
    return np.searchsorted(begins, at_s, "right") > np.searchsorted(ends, at_s, "left")


def slowed(table: LatencyTable, speed: Speed) -> LatencyTable:
    """The table of an engine whose decode iterations, and what prompts add to them, take so many times as long.

    Raises:
        ValueError: a table that is not one of ``measure``: with an engine profile, whose times are not in its columns,
            or without ``prefill_ms``.
    """
    if table.engine is not None:
        raise ValueError(f"table = {table.name}: has an engine profile; must be one that was measured, without")
    if "prefill_ms" not in table.metadata:
        raise ValueError(f"table = {table.name}: its metadata lacks prefill_ms, which `inferencegym measure` writes")
    values, metadata = table.values.copy(), dict(table.metadata)
    prompt_ms, running = np.asarray(json.loads(metadata["prefill_ms"])), np.asarray(table.axes["batch_size"])
    of_prompts = running[:, None, None] / table.output_length * prompt_ms  # batch, kv, prompt: a prefill a request
    tpot = METRICS.index("tpot_ms")
    values[..., tpot] = speed.decode * (values[..., tpot] - of_prompts) + speed.prompt * of_prompts
    metadata["prefill_ms"] = json.dumps((speed.prompt * prompt_ms).tolist())
    if "path_ms" in metadata:
        metadata["path_ms"] = json.dumps(speed.decode * float(metadata["path_ms"]))
    return dataclasses.replace(table, values=values, metadata=metadata)
