"""What a server is: its model, version, limits, whether it streams, and what its ``/metrics`` page says.

``probe`` is what every command runs first, so that a wrong URL, model, key or server is one sentence and not a failed
run.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Any

import httpx

from inferencegym_jax.live.server.streaming import Endpoint, Generation, http_error, stream_completion

PROBE_TIMEOUT_S = 10.0
MOST_TOKENS = 1e12  # a pool or a budget of more is none


class EngineError(RuntimeError):
    """A server that cannot be used; the message says why and what to do."""


@dataclass(frozen=True)
class Engine:
    """What a server says of itself; None where it does not say."""

    endpoint: Endpoint
    version: str | None
    max_model_len: int | None
    kv_cache_gb: float | None  # size of the KV cache pool
    has_metrics: bool
    kv_cache_tokens: float | None = None  # the same in tokens
    kv_usage: float | None = None  # share of the pool in use
    token_budget: int | None = None  # tokens of one iteration
    kv_block_tokens: float | None = None  # tokens of a block of the pool: a request holds whole blocks


@dataclass(frozen=True)
class EngineMetrics:
    """One reading of ``/metrics``; None where the server does not have the figure."""

    running: float | None = None
    waiting: float | None = None
    kv_usage: float | None = None  # share of the KV cache in use
    kv_cache_gb: float | None = None
    kv_cache_tokens: float | None = None
    preemptions: float | None = None  # counter
    draft_tokens: float | None = None  # counter
    accepted_tokens: float | None = None  # counter
    drafts: float | None = None  # counter, of verifications
    accepted_at: tuple[float, ...] = ()  # counters: drafts that were accepted at the first place, the second, ...
    kv_block_tokens: float | None = None


async def probe(client: httpx.AsyncClient, endpoint: Endpoint) -> Engine:
    """Ask a server for what is needed to run on it.

    Returns:
        The engine; its endpoint has ``ignore_eos`` and ``include_usage`` set to what the server accepts.

    Raises:
        EngineError: nothing answers, the key is refused, the model is not there, or the server does not stream.
    """
    try:
        response = await client.get("/v1/models", timeout=PROBE_TIMEOUT_S)
    except httpx.HTTPError as error:
        raise EngineError(
            f"base_url = {endpoint.shown}: does not answer ({error or type(error).__name__}); is the server up, "
            "and the port right?"
        ) from None
    if response.status_code in (401, 403):
        raise EngineError(
            f"base_url = {endpoint.shown}: refused the API key ({response.status_code}); set it in the environment "
            "variable that --api-key-env names"
        )
    if response.status_code != 200:
        raise EngineError(f"{http_error(endpoint, response.status_code, response.text).message}; expected /v1/models")
    try:
        cards = {str(card["id"]): card for card in response.json()["data"]}
    except (ValueError, KeyError, TypeError):
        raise EngineError(f"base_url = {endpoint.shown}: /v1/models is not an OpenAI model list") from None
    if endpoint.model not in cards:
        raise EngineError(
            f"model = {endpoint.model!r}: not on this server; it has {', '.join(sorted(cards)) or 'none'}"
        )
    endpoint = await _accepted(client, endpoint)
    metrics = await read_metrics(client)
    limits = await stated_limits(client)
    pool = metrics.kv_cache_tokens if metrics else None
    limit = cards[endpoint.model].get("max_model_len")
    return Engine(
        endpoint=endpoint,
        version=await _version(client),
        max_model_len=int(limit) if isinstance(limit, int | float) else None,
        kv_cache_gb=metrics.kv_cache_gb if metrics else None,
        has_metrics=metrics is not None,
        kv_cache_tokens=limits.pool_tokens if pool is None else pool,
        token_budget=limits.token_budget,
        kv_usage=metrics.kv_usage if metrics else None,
        kv_block_tokens=metrics.kv_block_tokens if metrics else None,
    )


async def _accepted(client: httpx.AsyncClient, endpoint: Endpoint) -> Endpoint:
    """The endpoint with the extensions that the server takes: stream a few tokens, dropping a field at each refusal."""
    trial = dataclasses.replace(endpoint, first_token_timeout_s=60.0)
    failure = ""
    for change in ({}, {"ignore_eos": False}, {"ignore_eos": False, "include_usage": False}):
        trial = dataclasses.replace(trial, **change)
        stream = await stream_completion(client, trial, Generation(8, 4))
        if stream.error is None:
            return dataclasses.replace(endpoint, ignore_eos=trial.ignore_eos, include_usage=trial.include_usage)
        failure = stream.error.message
        if stream.error.kind == "http" and stream.error.status in (400, 422):
            continue
        break
    raise EngineError(f"base_url = {endpoint.shown}: a streamed completion failed: {failure}")


async def _version(client: httpx.AsyncClient) -> str | None:
    try:
        response = await client.get("/version", timeout=PROBE_TIMEOUT_S)
        return str(response.json()["version"])[:80] if response.status_code == 200 else None
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return None


@dataclass(frozen=True)
class Limits:
    """What an engine's own endpoint states of its limits; None where it does not."""

    pool_tokens: float | None = None  # of the KV cache
    token_budget: int | None = None  # tokens of one iteration


async def stated_limits(client: httpx.AsyncClient) -> Limits:
    """The limits that an engine states at an endpoint of its own.

    SGLang: ``max_total_num_tokens`` and ``chunked_prefill_size`` of ``/server_info``, or ``/get_server_info`` before;
    TGI: ``max_batch_total_tokens`` of ``/info``; llama.cpp: ``n_ctx`` of each of the ``total_slots`` of ``/props``.
    """
    for path, of in (
        ("/server_info", _sglang_limits),
        ("/get_server_info", _sglang_limits),
        ("/info", _tgi_limits),
        ("/props", _llama_cpp_limits),
    ):
        try:
            response = await client.get(path, timeout=PROBE_TIMEOUT_S)
            limits = of(response.json()) if response.status_code == 200 else Limits()
        except (httpx.HTTPError, ValueError, KeyError, TypeError, AttributeError):
            continue
        if limits.pool_tokens is not None:
            return limits
    return Limits()


def _tokens(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and 0 < value < MOST_TOKENS else None


def _sglang_limits(stated: Any) -> Limits:
    budget = _tokens(stated.get("chunked_prefill_size"))  # -1: prompts are not cut
    return Limits(_tokens(stated["max_total_num_tokens"]), None if budget is None else int(budget))


def _tgi_limits(stated: Any) -> Limits:
    return Limits(_tokens(stated["max_batch_total_tokens"]))


def _llama_cpp_limits(stated: Any) -> Limits:
    return Limits(_tokens(stated["default_generation_settings"]["n_ctx"] * stated["total_slots"]))


async def read_metrics(client: httpx.AsyncClient, timeout_s: float = PROBE_TIMEOUT_S) -> EngineMetrics | None:
    """One reading of the server's Prometheus page, or None where it has none (of vLLM's names) or is late."""
    try:
        response = await client.get("/metrics", timeout=timeout_s)
    except httpx.HTTPError:
        return None
    if response.status_code != 200:
        return None
    metrics = parse_metrics(response.text)
    return None if metrics == EngineMetrics() else metrics


def parse_metrics(text: str) -> EngineMetrics:
    """vLLM's figures from Prometheus text; several engines behind one page are added up, their KV usage averaged."""

    def values(name: str) -> list[float]:
        return [float(x) for x in re.findall(rf"^vllm:{name}(?:\{{[^\n]*\}})? (\S+)$", text, re.MULTILINE)]

    def total(name: str) -> float | None:
        numbers = values(name)
        return sum(numbers) if numbers else None

    usage = values("kv_cache_usage_perc") or values("gpu_cache_usage_perc")

    def places(name: str) -> tuple[float, ...]:
        counts: dict[int, float] = {}
        for page, value in re.findall(rf"^vllm:{name}\{{([^\n]*)\}} (\S+)$", text, re.MULTILINE):
            if place := re.search(r'\bposition="(\d+)"', page):
                counts[int(place[1])] = counts.get(int(place[1]), 0.0) + float(value)
        return tuple(counts[i] for i in sorted(counts)) if sorted(counts) == list(range(len(counts))) else ()

    def labels(name: str) -> list[float]:
        pages = re.findall(r"^vllm:cache_config_info\{([^\n]*)\}", text, re.MULTILINE)
        return [float(x) for page in pages for x in re.findall(rf'\b{name}="(\d+)"', page)]

    size, blocks, block = (labels(name) for name in ("kv_cache_memory_bytes", "num_gpu_blocks", "block_size"))
    return EngineMetrics(
        running=total("num_requests_running"),
        waiting=total("num_requests_waiting"),
        kv_usage=sum(usage) / len(usage) if usage else None,
        kv_cache_gb=sum(size) / 1e9 if size else None,
        kv_cache_tokens=sum(blocks) * block[0] if blocks and block else None,
        preemptions=total("num_preemptions_total"),
        draft_tokens=total("spec_decode_num_draft_tokens_total"),
        accepted_tokens=total("spec_decode_num_accepted_tokens_total"),
        drafts=total("spec_decode_num_drafts_total"),
        accepted_at=places("spec_decode_num_accepted_tokens_per_pos_total"),
        kv_block_tokens=block[0] if block and block[0] > 0 else None,
    )
