"""One streamed completion: its times are the engine's, and whatever goes wrong is a value that says what."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest

from inferencegym_jax.live.server.probe import Engine, EngineError, EngineMetrics, parse_metrics, probe
from inferencegym_jax.live.server.streaming import (
    Endpoint,
    Generation,
    Stream,
    open_client,
    prompt_ids,
    stream_completion,
)

KEY = "sk-very-secret-1234"


def ask(endpoint: Endpoint, request: Generation | None = None) -> Stream:
    async def run() -> Stream:
        async with open_client(endpoint) as client:
            return await stream_completion(client, endpoint, request or Generation(16, 8))

    return asyncio.run(run())


def probing(endpoint: Endpoint) -> Engine:
    async def run() -> Engine:
        async with open_client(endpoint) as client:
            return await probe(client, endpoint)

    return asyncio.run(run())


def test_a_lone_request_takes_the_engines_own_times(launch: Callable[..., Any]) -> None:
    slow = launch("--a", 20, "--b", 0, "--c", 0.5)
    stream = ask(Endpoint(slow.url, "fake"), Generation(100, 12))
    assert stream.error is None
    assert (stream.tokens, stream.prompt_tokens, len(stream.token_s)) == (12, 100, 12)
    assert stream.tpot_ms == pytest.approx(20.0, rel=0.25)
    assert stream.ttft_ms is not None and stream.ttft_ms >= 70.0  # 20 + 0.5 * 100, and the way there and back


def test_prompts_are_of_the_length_asked_and_share_no_prefix() -> None:
    prompts = [prompt_ids(number, 40) for number in range(300)]
    assert {len(prompt) for prompt in prompts} == {40}
    assert len({tuple(prompt[:3]) for prompt in prompts}) == 300
    assert all(100 <= token < 6100 for prompt in prompts for token in prompt)


@pytest.mark.parametrize(
    ("flags", "changes", "kind", "said"),
    [
        (["--fault", "stall"], {"stall_timeout_s": 0.2}, "stall", "no token for 0.2 s"),
        (["--fault", "reset"], {}, "truncated", "broke"),
        (["--fault", "500"], {}, "http", "the engine is out of order"),
        (["--no-stream"], {}, "protocol", "does not stream"),
        (["--a", "400"], {"first_token_timeout_s": 0.2}, "timeout", "no first token within 0.2 s"),
    ],
)
def test_a_failure_is_a_value_that_says_what_happened(
    launch: Callable[..., Any], flags: list[str], changes: dict[str, Any], kind: str, said: str
) -> None:
    stream = ask(Endpoint(launch(*flags).url, "fake", **changes))
    assert stream.error is not None
    assert stream.error.kind == kind and said in stream.error.message


def test_an_engine_that_dies_in_mid_stream_truncates_and_does_not_hang(launch: Callable[..., Any]) -> None:
    dying = launch("--a", 30)

    async def run() -> Stream:
        endpoint = Endpoint(dying.url, "fake")
        async with open_client(endpoint) as client:
            begun = asyncio.Event()
            answer = stream_completion(client, endpoint, Generation(8, 1000), lambda *_: begun.set())
            task = asyncio.create_task(answer)
            await asyncio.wait_for(begun.wait(), 20)
            dying.process.kill()
            return await asyncio.wait_for(task, 5)

    stream = asyncio.run(run())
    assert stream.error is not None and stream.error.kind == "truncated" and stream.token_s


def test_nothing_there_is_said_in_one_sentence() -> None:
    stream = ask(Endpoint("http://127.0.0.1:9", "fake"))
    assert stream.error is not None and stream.error.kind == "connect"
    with pytest.raises(EngineError, match="http://127.0.0.1:9: does not answer"):
        probing(Endpoint("http://user:pass@127.0.0.1:9/v1", "fake"))


def test_probe_finds_limits_version_and_memory(engine: Any) -> None:
    found = probing(Endpoint(engine.url + "/v1/", "fake"))
    assert (found.version, found.max_model_len, found.kv_cache_gb) == ("fake-1", 4096, 4.0)
    assert found.has_metrics and found.endpoint.ignore_eos


def test_probe_drops_fields_that_a_strict_server_refuses(launch: Callable[..., Any]) -> None:
    found = probing(Endpoint(launch("--strict").url, "fake"))
    assert not found.endpoint.ignore_eos


@pytest.mark.parametrize(
    ("flags", "changes", "said"),
    [
        ([], {"model": "llama"}, "model = 'llama': not on this server; it has fake"),
        (["--no-stream"], {}, "does not stream"),
        (["--api-key", KEY], {"api_key": "sk-wrong-9876"}, "refused the API key"),
        (["--fault", "500"], {}, "out of order"),
    ],
)
def test_probe_refuses_a_server_that_cannot_be_measured(
    launch: Callable[..., Any], flags: list[str], changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(EngineError, match=said):
        probing(Endpoint(**{"base_url": launch(*flags).url, "model": "fake", **changes}))


def test_the_key_is_sent_and_never_shown(launch: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    guarded = launch("--api-key", KEY)
    endpoint = Endpoint(guarded.url, "fake", api_key=KEY)
    assert ask(endpoint).error is None
    wrong = Endpoint(guarded.url, "fake", api_key="sk-wrong-9876")
    refused = ask(wrong)
    assert refused.error is not None and refused.error.status == 401 and "***" in refused.error.message
    shown = repr(endpoint) + repr(wrong) + repr(refused) + caplog.text
    assert KEY not in shown and "sk-wrong-9876" not in shown


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host", "http://", ""])
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="must be http://HOST:PORT"):
        Endpoint(url, "m")


def test_metrics_of_several_engines_add_up_and_strange_pages_give_nothing() -> None:
    text = 'vllm:num_requests_running{engine="0"} 3.0\nvllm:num_requests_running{engine="1"} 4.0\n'
    text += 'vllm:kv_cache_usage_perc{engine="0"} 0.2\nvllm:kv_cache_usage_perc{engine="1"} 0.4\n'
    found = parse_metrics(text)
    assert found.running == 7.0 and found.kv_usage == pytest.approx(0.3)
    assert parse_metrics("<html>not a metrics page</html>") == EngineMetrics()
