"""What the proxy costs and keeps: added TTFT, a thousand streams, and an upstream that is killed in mid-stream."""

from __future__ import annotations

import asyncio
import contextlib
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.live.vllm import ROOT, Engine, healthy
from inferencegym_jax.live.server.streaming import Endpoint, Generation, Stream, open_client, stream_completion


@contextlib.contextmanager
def proxy(upstream: str, policy: str) -> Iterator[str]:
    """``inferencegym control`` as its own process; gives its URL."""
    command = [sys.executable, "-m", "inferencegym_jax.cli", "control", "--upstream", upstream]
    command += ["--policy", policy, "--port", "0"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    line = process.stderr.readline()
    found = re.match(r"(http://\S+) ->", line)
    if not found:
        process.kill()
        raise RuntimeError(f"the proxy did not start: {line}{process.stderr.read()}")
    try:
        while not healthy(found[1]):
            time.sleep(0.1)
        yield found[1]
    finally:
        process.kill()
        process.wait()


async def added_ttft(direct: Endpoint, through: Endpoint, pairs: int) -> dict[str, float]:
    """Median TTFT of lone requests, straight and through the proxy, by turns, which comes first by turns too."""
    times: dict[str, list[float]] = {"direct": [], "proxy": []}
    async with open_client(direct) as first, open_client(through) as second:
        ways = [("direct", first, direct), ("proxy", second, through)]
        for i in range(-3, pairs):
            for name, client, endpoint in ways if i % 2 else ways[::-1]:
                stream = await stream_completion(client, endpoint, Generation(16, 2, i + 10))
                if stream.error is not None or stream.ttft_ms is None:
                    raise RuntimeError(f"{name}: {stream.error}")
                if i >= 0:
                    times[name].append(stream.ttft_ms)
                await asyncio.sleep(0.02)
    difference = np.array(times["proxy"]) - np.array(times["direct"])
    rng = np.random.default_rng(0)
    draws = np.median(difference[rng.integers(0, pairs, (2000, pairs))], axis=1)
    low, high = np.percentile(draws, (2.5, 97.5))
    return {
        "direct_p50_ms": float(np.median(times["direct"])),
        "proxy_p50_ms": float(np.median(times["proxy"])),
        "added_p50_ms": float(np.median(times["proxy"]) - np.median(times["direct"])),
        "paired_median_ms": float(np.median(difference)),
        "paired_low_ms": float(low),
        "paired_high_ms": float(high),
        "pairs": pairs,
    }


async def many_streams(endpoint: Endpoint, count: int, at_once: int) -> dict[str, Any]:
    """``count`` streams, ``at_once`` at a time; how many came back whole, with exactly the tokens asked for."""
    room = asyncio.Semaphore(at_once)

    async def one(client: Any, number: int) -> Stream:
        async with room:
            return await stream_completion(client, endpoint, Generation(16, 2 + number % 4, number))

    begun = time.monotonic()
    async with open_client(endpoint) as client:
        streams = await asyncio.gather(*(one(client, number) for number in range(count)))
    whole = [s for s in streams if s.error is None and s.output_tokens == s.request.output_tokens]
    exact = [s for s in whole if len(s.token_s) == s.request.output_tokens]
    return {
        "streams": count,
        "at_once": at_once,
        "whole": len(whole),
        "one_event_a_token": len(exact),
        "failed": [f"{s.error.kind}: {s.error.message}" for s in streams if s.error is not None][:3],
        "seconds": time.monotonic() - begun,
    }


async def killed_upstream(endpoint: Endpoint, engine: Engine) -> dict[str, Any]:
    """Eight long streams through the proxy; the engine is killed in the middle. All must end with an error, soon."""
    async with open_client(endpoint) as client:
        tasks = [asyncio.create_task(stream_completion(client, endpoint, Generation(16, 400, i))) for i in range(8)]
        await asyncio.sleep(4.0)
        begun = time.monotonic()
        engine.kill()
        done, hanging = await asyncio.wait(tasks, timeout=20.0)
        for task in hanging:
            task.cancel()
        after = await stream_completion(client, endpoint, Generation(16, 2))
    ended = [task.result() for task in done]
    return {
        "streams": 8,
        "had_tokens": sum(bool(s.token_s) for s in ended),
        "errors": sum(s.error is not None for s in ended),
        "hanging": len(hanging),
        "seconds": time.monotonic() - begun,
        "next_request": after.error.message if after.error else "answered",
    }
