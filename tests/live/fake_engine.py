"""A small OpenAI-compatible streaming server whose service times are known in closed form.

Continuous batching as an engine does it: every iteration admits what waits while fewer than ``max_num_seqs`` run,
prefills what it admitted and yields one token a request, in ``a + b * running + c * prompt tokens admitted``
milliseconds. So in steady state with n running, prompts of P and outputs of O tokens, the mean inter-token latency is
the solution of ``t = a + b n + c P n / O``, which is what the tests compare with.

    python -m tests.live.fake_engine --a 4 --b 0.1 --c 0.01      # prints its port

Faults on demand: a request header ``x-fake-fault`` of ``stall``, ``reset`` or ``500``; flags for a server that stalls,
does not stream or wants an API key. ``GET /fake/state`` counts what was started, finished and cancelled.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
import mmap
import random
import socket
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route


@dataclass(frozen=True)
class Times:
    """Service times: ``a`` ms an iteration, ``b`` ms a running request, ``c`` ms a prompt token."""

    a: float = 4.0
    b: float = 0.1
    c: float = 0.01
    max_num_seqs: int = 64
    path: float = 0.0  # ms of a request outside iterations
    extra: int = 0  # iterations after its own until a token is seen
    drafts: int = 0  # each iteration verifies so many
    accept: float = 0.7  # probability that a draft is accepted, at every place

    def iteration_ms(self, running: float, prompt: float, output: float) -> float:
        """Mean inter-token latency (ms) with ``running`` requests in steady state: the oracle."""
        return self.a + self.b * running + self.c * prompt * running / output

    def seen_ms(self, rate: float, prompt: float, output: float) -> float:
        """Mean inter-token latency (ms) that a request meets under Poisson arrivals at ``rate`` a second.

        It finds as many others running as there are on average (arrivals see time averages) and is one more; prefills
        of others come at the arrivals' rate.
        """
        others = self.running_at(rate, prompt, output)
        return (self.a + self.b * (1.0 + others)) / (1.0 - rate / 1000.0 * self.c * prompt)

    def running_at(self, rate: float, prompt: float, output: float) -> float:
        """Mean running requests at ``rate`` requests/s, from n = rate x output x t(n)."""
        per_token = self.b + self.c * prompt / output
        load = rate * output / 1000.0
        return load * self.a / (1.0 - load * per_token)


class Host:
    """What two engines share: a file with a byte for each, which is 1 while its engine runs requests.

    Args:
        path: the file, made where it is not there; "" for an engine that shares nothing.
        place: 0 or 1.
        slowdown: of an iteration that begins while the other engine runs requests.
    """

    def __init__(self, path: str = "", place: int = 0, slowdown: float = 1.0):
        self.place, self.slowdown = place, slowdown
        self.busy: Any = bytearray(2)
        if path:
            with open(path, "ab") as file:
                file.truncate(2)
            with open(path, "r+b") as file:
                self.busy = mmap.mmap(file.fileno(), 2)
            self.busy[place] = 0

    def works(self, is_busy: bool) -> float:
        """Say whether this engine runs requests; by what its iterations take longer."""
        self.busy[self.place] = int(is_busy)
        return self.slowdown if self.busy[1 - self.place] else 1.0


@dataclass(eq=False)
class Sequence:
    """One request in the engine."""

    prompt: int
    remaining: int
    tokens: asyncio.Queue[int] = field(default_factory=asyncio.Queue)  # tokens of an event, 0 at the end
    made: int = 0
    shown: int = 0

    def __post_init__(self) -> None:
        self.wanted = self.remaining
        self.left = self.prompt  # tokens of it that are not computed yet


class FakeEngine:
    """The iteration loop."""

    def __init__(self, times: Times, host: Host | None = None, budget: int = 0, pool: int = 65536):
        self.times, self.host = times, host or Host()
        self.budget, self.pool = budget or 10**9, pool  # tokens of an iteration, and of the cache
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.wake = asyncio.Event()
        self.seen: deque[list[tuple[Sequence, int]]] = deque([[] for _ in range(times.extra)])
        self.rng = random.Random(7)
        self.drafted = [0] * (times.drafts + 1)  # verifications, and drafts accepted at each place
        self.counts = {"started": 0, "finished": 0, "cancelled": 0, "peak_running": 0, "iterations": 0}

    @property
    def used(self) -> int:
        """Tokens in the cache."""
        return sum(sequence.prompt + sequence.made for sequence in self.running)

    def submit(self, prompt: int, output: int) -> Sequence:
        """Queue a request."""
        sequence = Sequence(prompt, output)
        self.waiting.append(sequence)
        self.counts["started"] += 1
        self.wake.set()
        return sequence

    def drop(self, sequence: Sequence) -> None:
        """Forget a request whose client went away."""
        if sequence in self.running:
            self.running.remove(sequence)
            self.counts["cancelled"] += 1
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
            self.counts["cancelled"] += 1

    async def loop(self) -> None:
        """Iterate for ever; deadlines are absolute, so that sleeping late does not add up."""
        clock = asyncio.get_running_loop().time
        end = clock()
        while True:
            if not self.running and not self.waiting and not any(self.seen):
                self.wake.clear()
                self.host.works(False)
                await self.wake.wait()
                end = clock()
            room = self.budget - sum(not sequence.left for sequence in self.running)
            prefill, active = 0, []
            for sequence in self.running:
                chunk = max(min(sequence.left, room - prefill), 0)
                sequence.left, prefill = sequence.left - chunk, prefill + chunk
                active += [sequence] * (chunk > 0 or not sequence.left)
            while self.waiting and len(self.running) < self.times.max_num_seqs and prefill < room:
                if self.running and self.used + self.waiting[0].prompt > self.pool:
                    break
                admitted = self.waiting.popleft()
                chunk = min(admitted.left, room - prefill)
                admitted.left, prefill = admitted.left - chunk, prefill + chunk
                self.running.append(admitted)
                active.append(admitted)
            n = len(active)
            self.counts["peak_running"] = max(self.counts["peak_running"], n)
            self.counts["iterations"] += 1
            length_ms = (self.times.a + self.times.b * n + self.times.c * prefill) * self.host.works(True)
            end = max(end, clock() - 0.02) + length_ms / 1000.0
            await asyncio.sleep(max(end - clock(), 0.0))
            made = []
            for sequence in active:
                if sequence.left or sequence not in self.running:  # more of its prompt to come, or dropped meanwhile
                    continue
                count = min(self.verified(), sequence.remaining) if sequence.made else 1
                sequence.made += count
                sequence.remaining -= count
                made.append((sequence, count))
                if sequence.remaining <= 0:
                    self.running.remove(sequence)
                    self.counts["finished"] += 1
            self.seen.append(made)
            for sequence, count in self.seen.popleft():
                sequence.tokens.put_nowait(count)
                sequence.shown += count
                if sequence.shown == sequence.wanted:
                    sequence.tokens.put_nowait(0)

    def verified(self) -> int:
        """Tokens of one verification."""
        if not self.times.drafts:
            return 1
        self.drafted[0] += 1
        accepted = 0
        while accepted < self.times.drafts and self.rng.random() < self.times.accept:
            accepted += 1
            self.drafted[accepted] += 1
        return accepted + 1


def prompt_length(body: dict[str, Any]) -> int:
    """Tokens of a prompt: its ids, or its words."""
    if "messages" in body:
        return sum(len(str(message.get("content", "")).split()) for message in body["messages"])
    prompt = body.get("prompt", "")
    return len(prompt) if isinstance(prompt, list) else max(len(prompt.split()), 1)


def error(status: int, message: str) -> JSONResponse:
    """An error as OpenAI writes it."""
    return JSONResponse({"error": {"message": message, "type": "error", "code": status}}, status)


def create_app(engine: FakeEngine, options: argparse.Namespace) -> Starlette:
    """The HTTP face of the engine."""

    def refused(request: Request) -> Response | None:
        if options.api_key and request.headers.get("authorization") != f"Bearer {options.api_key}":
            return error(401, f"Unauthorized: {request.headers.get('authorization')}")  # echoes, as some servers do
        return None

    async def models(request: Request) -> Response:
        card = {"id": options.model, "object": "model", "max_model_len": options.max_model_len}
        return refused(request) or JSONResponse({"object": "list", "data": [card]})

    async def complete(request: Request) -> Response:
        if (answer := refused(request)) is not None:
            return answer
        body = await request.json()
        if body.get("model") != options.model:
            return error(404, f"The model `{body.get('model')}` does not exist.")
        if "ignore_eos" in body and options.strict:
            return error(400, "ignore_eos: Extra inputs are not permitted")
        fault = request.headers.get("x-fake-fault", options.fault)
        if fault == "500":
            return error(500, "the engine is out of order")
        prompt, output = prompt_length(body), int(body.get("max_tokens", 16))
        if prompt + output > options.max_model_len:
            return error(400, f"This model's maximum context length is {options.max_model_len} tokens.")
        await asyncio.sleep(engine.times.path / 1000.0)
        sequence = engine.submit(prompt, output)
        usage = {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}
        if not body.get("stream") or options.no_stream:
            try:
                while await sequence.tokens.get():
                    pass
            finally:
                engine.drop(sequence)
            return JSONResponse({"id": "x", "choices": [{"index": 0, "text": "w " * output}], "usage": usage})
        wants_usage = (body.get("stream_options") or {}).get("include_usage", False)
        return StreamingResponse(
            stream(sequence, usage if wants_usage else None, fault, body), media_type="text/event-stream"
        )

    async def stream(
        sequence: Sequence, usage: dict[str, int] | None, fault: str, body: dict[str, Any]
    ) -> AsyncIterator[str]:
        number = 0
        tag = body.get("user", "w")
        try:
            while count := await sequence.tokens.get():
                text = " ".join(f"{tag}-{number + i}" for i in range(count))
                yield f'data: {{"id":"x","choices":[{{"index":0,"text":" {text}"}}]}}\n\n'
                number += count
                if number == 3 and fault == "stall":
                    await asyncio.sleep(3600)
                if number == 3 and fault == "reset":
                    raise RuntimeError("fault asked for by the test")
            if usage is not None:
                yield f"data: {json.dumps({'id': 'x', 'choices': [], 'usage': usage})}\n\n"
            yield "data: [DONE]\n\n"
        finally:
            engine.drop(sequence)

    async def metrics(_: Request) -> Response:
        label = f'{{engine="0",model_name="{options.model}"}}'
        return PlainTextResponse(
            f"# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running{label} {len(engine.running)}\n"
            f"# TYPE vllm:num_requests_waiting gauge\nvllm:num_requests_waiting{label} {len(engine.waiting)}\n"
            f"# TYPE vllm:kv_cache_usage_perc gauge\nvllm:kv_cache_usage_perc{label} {engine.used / engine.pool}\n"
            f"# TYPE vllm:num_preemptions counter\nvllm:num_preemptions_total{label} 0\n"
            + cache_config * (options.pool == "metrics")
            + drafts(label) * bool(engine.times.drafts)
        )

    cache_config = (
        "# TYPE vllm:cache_config_info gauge\n"
        'vllm:cache_config_info{block_size="16",kv_cache_memory_bytes="4000000000",'
        f'num_gpu_blocks="{engine.pool // 16}"}} 1.0\n'
    )

    def drafts(label: str) -> str:
        name, counts = "vllm:spec_decode_num", engine.drafted
        lines = [f"{name}_drafts_total{label} {counts[0]}", f"{name}_accepted_tokens_total{label} {sum(counts[1:])}"]
        lines.append(f"{name}_draft_tokens_total{label} {counts[0] * engine.times.drafts}")
        lines += [
            f'{name}_accepted_tokens_per_pos_total{label[:-1]},position="{i}"}} {count}'
            for i, count in enumerate(counts[1:])
        ]
        return "\n".join(lines) + "\n"

    async def info(_: Request) -> Response:
        return (
            JSONResponse({"max_total_num_tokens": engine.pool, "chunked_prefill_size": 3000})
            if options.pool == "endpoint"
            else error(404, "not here")
        )

    async def state(_: Request) -> Response:
        return JSONResponse({**engine.counts, "running": len(engine.running), "waiting": len(engine.waiting)})

    async def version(_: Request) -> Response:
        return JSONResponse({"version": "fake-1"})

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        task = asyncio.create_task(engine.loop())
        yield
        task.cancel()

    return Starlette(
        routes=[
            Route("/v1/models", models),
            Route("/v1/completions", complete, methods=["POST"]),
            Route("/v1/chat/completions", complete, methods=["POST"]),
            Route("/metrics", metrics),
            Route("/version", version),
            Route("/get_server_info", info),
            Route("/health", version),
            Route("/fake/state", state),
        ],
        lifespan=lifespan,
    )


def listen(port: int) -> socket.socket:
    """A socket whose protocol is named: only then asyncio turns Nagle's algorithm off, which delays tokens by up to
    40 ms."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(2048)
    return listener


def main() -> None:
    """Serve until killed; the first line of stdout is the port."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--model", default="fake")
    parser.add_argument("--a", type=float, default=Times.a)
    parser.add_argument("--b", type=float, default=Times.b)
    parser.add_argument("--c", type=float, default=Times.c)
    parser.add_argument("--max-num-seqs", type=int, default=Times.max_num_seqs)
    parser.add_argument("--path", type=float, default=Times.path)
    parser.add_argument("--extra", type=int, default=Times.extra)
    parser.add_argument("--drafts", type=int, default=Times.drafts)
    parser.add_argument("--accept", type=float, default=Times.accept)
    parser.add_argument("--pool", default="metrics", help="who says its size: metrics, endpoint or none")
    parser.add_argument("--token-budget", type=int, default=0, help="tokens of an iteration; 0: as many as there are")
    parser.add_argument("--pool-tokens", type=int, default=65536)
    parser.add_argument("--host", default="", help="file that two engines of one host share")
    parser.add_argument("--place", type=int, default=0, help="0 or 1, on that host")
    parser.add_argument("--slowdown", type=float, default=1.0, help="of iterations while the other one works")
    parser.add_argument("--max-model-len", type=int, default=4096)
    parser.add_argument("--api-key", default="")
    parser.add_argument("--fault", default="")
    parser.add_argument("--no-stream", action="store_true")
    parser.add_argument("--strict", action="store_true", help="refuse fields that OpenAI does not have")
    options = parser.parse_args()
    listener = listen(options.port)
    print(listener.getsockname()[1], flush=True)
    times = Times(*(getattr(options, field.name) for field in dataclasses.fields(Times)))
    host = Host(options.host, options.place, options.slowdown)
    engine = FakeEngine(times, host, options.token_budget, options.pool_tokens)
    config = uvicorn.Config(create_app(engine, options), log_level="critical", access_log=False)
    asyncio.run(uvicorn.Server(config).serve([listener]))


if __name__ == "__main__":
    main()
