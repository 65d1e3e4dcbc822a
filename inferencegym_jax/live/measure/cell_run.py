"""One cell of the table: ``n`` requests always in flight, prompts of one length, timed over a slice of seconds.

Output lengths are spread over half to one and a half of their mean, the first ones from 1 up, and a worker pauses for
a random part of an iteration between requests: so requests neither end together (a burst of prefills that no steady
state has) nor always arrive just after an iteration has begun.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass, field

import httpx
import numpy as np

from inferencegym_jax.live.server.cancellation import cancel_all
from inferencegym_jax.live.server.probe import EngineError, EngineMetrics, read_metrics
from inferencegym_jax.live.server.streaming import Endpoint, Generation, Stream, stream_completion

SUB_WINDOWS = 4  # of a slice: their scatter is the interval
METRICS_EVERY_S = 0.5
FEWEST_REQUESTS = 4  # whose first token a slice waits for
FEWEST_GAPS = 20  # without a prefill, from which their mean says something
MOST_OFF = 2.0  # times the median: a longer gap is of a machine taken away, or of a request that was preempted
MOST_EXTRA = 3  # iterations after its own until a first token surfaces, at most
MOST_FAILURES = 3  # in a row, of one worker, until the cell is given up


@dataclass(frozen=True)
class Slice:
    """What a slice of seconds measured; JSON-ready.

    Attributes:
        seconds: its length.
        itl_ms: mean gap between a request's tokens, over all gaps of the slice.
        inside: mean number of requests between two of their tokens, over the same gaps.
        prefills: mean number of other requests' first tokens, and so of their prefills, in a gap.
        tpot_ms: mean time between tokens in each sub-window.
        ttft_ms: time to first token of every request whose first token came in it.
        tps: output tokens a second in each sub-window.
        memory_share: mean share of the KV cache in use, or None.
        waiting: mean requests that the server itself kept waiting, or None.
        failures: requests that did not end as they should.
        per_event: output tokens an event, as the server counted them: above 1 where it verifies drafts.
        decode_ms: mean of the gaps in which nobody prefilled; None where there were too few of them.
        added_ms: by how much a gap is longer for each first token that surfaces in it, or 1, ... ``MOST_EXTRA`` gaps
            later; empty where there were too few of either, and in older files.
    """

    seconds: float
    itl_ms: float
    inside: float
    prefills: float
    tpot_ms: list[float]
    ttft_ms: list[float]
    tps: list[float]
    memory_share: float | None = None
    waiting: float | None = None
    failures: int = 0
    per_event: float = 1.0
    decode_ms: float | None = None
    added_ms: list[float] = field(default_factory=list[float])


@dataclass
class _Tally:
    """Events since the slice began."""

    started: float = np.inf
    ended: float = np.inf
    gaps: list[tuple[Stream, int]] = field(default_factory=list)  # of a request, and the place of the token at its end
    firsts: list[float] = field(default_factory=list)  # when first tokens came, those before the slice too
    tokens: list[float] = field(default_factory=list)  # when
    ttft_ms: list[float] = field(default_factory=list)
    failures: int = 0
    events: int = 0  # after the first, of requests that ended in the slice
    output: int = 0  # tokens that came in them

    def end(self, stream: Stream, now: float) -> None:
        """A request ended well."""
        if self.started <= now <= self.ended and len(stream.token_s) > 1:
            self.events += len(stream.token_s) - 1
            self.output += max(stream.tokens - 1, len(stream.token_s) - 1)

    def token(self, stream: Stream, now: float) -> None:
        """A token came."""
        if now > self.ended:
            return
        first = len(stream.token_s) == 1
        if first:
            self.firsts.append(now)
        if now < self.started:
            return
        self.tokens.append(now)
        if first:
            self.ttft_ms.append(1000.0 * (now - stream.sent_s))
        else:
            self.gaps.append((stream, len(stream.token_s) - 1))

    def windows(self, extra: int) -> tuple[np.ndarray, np.ndarray]:
        """The gaps whose request got ``extra`` more tokens in the slice, and those that many tokens later;
        float64[gaps, 2] each, from and to."""
        later = [
            (stream.token_s, place)
            for stream, place in self.gaps
            if place + extra < len(stream.token_s) and stream.token_s[place + extra] <= self.ended
        ]
        gaps, shown = (
            np.array([moments[place - 1 + by : place + 1 + by] for moments, place in later]).reshape(-1, 2)
            for by in (0, extra)
        )
        return gaps, shown


async def run_cell(
    client: httpx.AsyncClient,
    endpoint: Endpoint,
    concurrency: int,
    prompt_tokens: int,
    output_tokens: int,
    *,
    seconds: float,
    spacing_s: float = 0.0,
    most_seconds: float = 60.0,
    seed: int = 0,
    meet: asyncio.Barrier | None = None,
) -> Slice:
    """Keep ``concurrency`` requests in flight and time a slice.

    Args:
        client: from ``open_client``.
        endpoint: from ``engine.probe``.
        concurrency: requests in flight.
        prompt_tokens: of every request.
        output_tokens: mean over the requests.
        seconds: shortest slice; it lasts at least as long as two requests, so that each worker starts about two in it.
        spacing_s: pause between the first requests of the workers, so that they do not all prefill at once.
        most_seconds: longest warm-up, and longest slice.
        seed: of lengths, pauses and prompts.
        meet: with cells on other engines: slices begin when all are warm, and requests stay in flight until all slices
            have ended.

    Raises:
        EngineError: requests fail one after another, or nothing was measured.
    """
    tally = _Tally()
    warm = asyncio.Event()
    done_first: set[int] = set()
    rng = np.random.default_rng([seed, concurrency, prompt_tokens])
    typical = [0.0]  # seconds of a request of mean length
    numbers = iter(range(seed * 1_000_003 + concurrency * 7919 + prompt_tokens, 1 << 62))

    async def worker(place: int) -> None:
        await asyncio.sleep(place * spacing_s)
        length = int(rng.integers(1, output_tokens + 1))
        failures = 0
        while True:
            request = Generation(prompt_tokens, max(length, 1), next(numbers))
            stream = await stream_completion(client, endpoint, request, tally.token)
            if stream.error is not None:
                tally.failures += 1
                failures += 1
                if failures >= MOST_FAILURES:
                    raise EngineError(f"{failures} requests in a row failed: {stream.error.message}")
                await asyncio.sleep(0.2)
                continue
            failures = 0
            tally.end(stream, time.perf_counter())
            done_first.add(place)
            if len(done_first) == concurrency:
                warm.set()
            pause_s = (stream.tpot_ms or 0.0) / 1000.0
            typical[0] = max(typical[0], ((stream.ttft_ms or 0.0) / 1000.0) + pause_s * output_tokens)
            length = int(rng.integers(output_tokens // 2, output_tokens + output_tokens // 2 + 1))
            await asyncio.sleep(float(rng.uniform(0.0, pause_s)))

    async def story() -> tuple[float, list[EngineMetrics]]:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(warm.wait(), most_seconds)
        if meet is not None:
            await meet.wait()
        tally.started = time.perf_counter()
        readings = await _watch(client, tally.started + min(max(seconds, 2.0 * typical[0]), most_seconds))
        enough = max(FEWEST_REQUESTS, concurrency // 2)
        while len(tally.ttft_ms) < enough and time.perf_counter() < tally.started + most_seconds:
            readings += await _watch(client, time.perf_counter() + METRICS_EVERY_S)
        tally.ended = time.perf_counter()
        if meet is not None:
            await meet.wait()
        return tally.ended - tally.started, readings

    workers = [asyncio.create_task(worker(place)) for place in range(concurrency)]
    main = asyncio.create_task(story())
    try:
        await asyncio.wait([main, *workers], return_when=asyncio.FIRST_COMPLETED)
        for task in workers:
            if task.done():
                task.result()
        length, readings = await main
    finally:
        await cancel_all((main, *workers))
    return _summary(tally, length, readings)


async def _watch(client: httpx.AsyncClient, end: float) -> list[EngineMetrics]:
    """Readings of the server's own figures until ``end``."""
    readings = []
    while (left := end - time.perf_counter()) > 0:
        await asyncio.sleep(min(METRICS_EVERY_S, left))
        if (reading := await read_metrics(client, timeout_s=2.0)) is not None:
            readings.append(reading)
    return readings


def shared(gaps: np.ndarray, firsts: np.ndarray) -> tuple[float, float]:
    """What a gap between two tokens of a request is shared with, on average over the gaps.

    Args:
        gaps: float[gaps, 2], from and to, seconds.
        firsts: float[requests], when first tokens came.

    Returns:
        Requests in the iteration, and prefills of others.
    """
    return float(running_in(gaps).mean()), float(prefills_in(gaps, firsts).mean())


def running_in(gaps: np.ndarray) -> np.ndarray:
    """How many requests ran in the iteration of each gap, int[gaps]: those whose gaps hold its middle, for tokens of
    one iteration come together, give or take some milliseconds."""
    starts, ends = np.sort(gaps[:, 0]), np.sort(gaps[:, 1])
    middle = gaps.mean(axis=1)
    return np.searchsorted(starts, middle, "right") - np.searchsorted(ends, middle, "left")


def surfacing_in(gaps: np.ndarray, shown: np.ndarray | None = None) -> np.ndarray:
    """Where first tokens of prefills that a gap may hold surface, float64[gaps, 2]: in it, or in the next one, which is
    taken to be as long; for the engine may schedule ahead, and a stream that begins needs longer than one that goes on.

    Args:
        gaps: float64[gaps, 2], from and to, seconds.
        shown: the gaps in which they should surface, where these are known to be later ones.
    """
    ends = 2.0 * gaps[:, 1] - gaps[:, 0]
    return np.stack([gaps[:, 0], ends if shown is None else np.maximum(ends, shown[:, 1])], axis=1)


def firsts_in(gaps: np.ndarray, firsts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which first tokens each gap was shared with: places in rising ``firsts``, from the first to beyond the last,
    int[gaps] each. A first token belongs to the gap that it falls into when both are seen a quarter of a typical gap
    late."""
    late = gaps + 0.25 * float(np.median(gaps[:, 1] - gaps[:, 0]))
    return np.searchsorted(firsts, late[:, 0], "right"), np.searchsorted(firsts, late[:, 1], "right")


def prefills_in(gaps: np.ndarray, firsts: np.ndarray) -> np.ndarray:
    """How many prefills of others each gap was shared with, int[gaps]; arguments as of ``shared``."""
    begin, end = firsts_in(gaps, np.sort(firsts))
    return end - begin


def undisturbed(gaps: np.ndarray, firsts: np.ndarray) -> float | None:
    """Mean length, s, of the gaps in which nobody prefilled (``surfacing_in``); None where they are fewer than
    ``FEWEST_GAPS``.

    Those of more than ``MOST_OFF`` times their median are left out: something else took the machine. Arguments as of
    ``shared``.
    """
    if len(gaps) < FEWEST_GAPS:
        return None
    seconds = (gaps[:, 1] - gaps[:, 0])[prefills_in(surfacing_in(gaps), firsts) == 0]
    if len(seconds) < FEWEST_GAPS:
        return None
    return float(seconds[seconds <= MOST_OFF * np.median(seconds)].mean())


def added_by_prefills(gaps: np.ndarray, shown: np.ndarray, firsts: np.ndarray) -> float | None:
    """By how much a gap is longer, s, for each first token in ``shown``, its gap or a later one: the slope of the line
    through the gaps. None where either is always the same, or gaps are fewer than ``FEWEST_GAPS``.

    Args:
        gaps: float64[gaps, 2], from and to, seconds.
        shown: the same.
        firsts: float64[requests], when first tokens came.
    """
    if len(gaps) < FEWEST_GAPS:
        return None
    seconds, prefills = gaps[:, 1] - gaps[:, 0], prefills_in(shown, firsts)
    spread = float(np.var(prefills))
    return None if spread == 0.0 else float(np.mean((seconds - seconds.mean()) * prefills)) / spread


def _summary(tally: _Tally, length: float, readings: list[EngineMetrics]) -> Slice:
    if not tally.gaps or not tally.ttft_ms:
        raise EngineError("nothing was measured in this slice: no request got its first token and a second one in time")
    edges = tally.started + np.linspace(0.0, length, SUB_WINDOWS + 1)
    windows = [tally.windows(extra) for extra in range(MOST_EXTRA + 1)]
    gaps, _ = windows[0]
    seconds = gaps[:, 1] - gaps[:, 0]
    count, _ = np.histogram(gaps[:, 1], edges)
    total, _ = np.histogram(gaps[:, 1], edges, weights=seconds)
    tokens, _ = np.histogram(np.asarray(tally.tokens), edges)
    firsts = np.asarray(tally.firsts)
    inside, prefills = shared(gaps, firsts)
    decode_s = undisturbed(gaps, firsts)
    added_s = [added_by_prefills(*window, firsts) for window in windows]
    known = [round(1000.0 * one, 4) for one in added_s if one is not None]
    per_event = tally.output / tally.events if tally.events else 1.0
    usage = [reading.kv_usage for reading in readings if reading.kv_usage is not None]
    waiting = [reading.waiting for reading in readings if reading.waiting is not None]
    return Slice(
        seconds=length,
        itl_ms=round(1000.0 * float(seconds.mean()), 4),
        inside=round(inside, 4),
        prefills=round(prefills, 5),
        tpot_ms=[round(1000.0 * s / n, 4) for s, n in zip(total, count, strict=True) if n],
        ttft_ms=[round(x, 3) for x in tally.ttft_ms],
        tps=[round(float(n) * per_event * SUB_WINDOWS / length, 3) for n in tokens],
        memory_share=float(np.mean(usage)) if usage else None,
        waiting=float(np.mean(waiting)) if waiting else None,
        failures=tally.failures,
        per_event=round(per_event, 5),
        decode_ms=None if decode_s is None else round(1000.0 * decode_s, 4),
        added_ms=known if len(known) == len(added_s) else [],
    )
