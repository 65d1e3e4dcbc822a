"""The proxy over real sockets: bytes untouched, nobody lost, nobody answered twice, every failure seen by its
client."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from inferencegym_jax.live.proxy.pace import Pace
from tests.live.conftest import Fixed, body, controlling, proxy, serving, status


def test_a_stream_passes_through_byte_for_byte(engine: Any) -> None:
    with proxy(engine.url) as url:
        request = body(20, stream_options={"include_usage": True})
        direct = httpx.post(f"{engine.url}/v1/completions", json=request, trust_env=False)
        passed = httpx.post(f"{url}/v1/completions", json=request, trust_env=False)
    assert passed.content == direct.content and direct.content.endswith(b"data: [DONE]\n\n")
    kept = {name: value for name, value in direct.headers.items() if name not in ("date", "server")}
    assert {name: value for name, value in passed.headers.items() if name in kept} == kept


@pytest.mark.parametrize(
    ("method", "path", "content"),
    [
        ("GET", "/v1/models", None),
        ("GET", "/version?x=1&y=%20z", None),
        ("GET", "/nowhere%2Fat/all", None),
        ("POST", "/v1/completions", b"{not json"),
        ("POST", "/v1/completions", json.dumps(body(stream=False)).encode()),
        ("POST", "/v1/completions", json.dumps({**body(), "model": "llama"}).encode()),
        ("POST", "/v1/completions", json.dumps(body(9000)).encode()),
    ],
)
def test_everything_else_is_the_upstreams_own_answer(
    engine: Any, method: str, path: str, content: bytes | None
) -> None:
    with proxy(engine.url) as url:
        answers = [httpx.request(method, root + path, content=content, trust_env=False) for root in (engine.url, url)]
    direct, passed = answers
    assert (passed.status_code, passed.content) == (direct.status_code, direct.content)


@pytest.mark.slow
def test_a_thousand_streams_64_at_a_time_come_back_whole_and_each_once(launch: Callable[..., Any]) -> None:
    fast = launch("--a", 1, "--b", 0.02, "--c", 0)

    async def one(client: httpx.AsyncClient, url: str, number: int, room: asyncio.Semaphore) -> None:
        output = 3 + number % 6
        async with room:
            answer = await client.post(f"{url}/v1/completions", json=body(output, tag=f"r{number}"))
        events = [line for line in answer.text.splitlines() if line]
        texts = [json.loads(event[6:])["choices"][0]["text"] for event in events[:-1]]
        assert events[-1] == "data: [DONE]"
        assert texts == [f" r{number}-{i}" for i in range(output)]

    async def run(url: str) -> None:
        room = asyncio.Semaphore(64)
        async with httpx.AsyncClient(limits=httpx.Limits(max_connections=64), timeout=60, trust_env=False) as client:
            await asyncio.gather(*(one(client, url, number, room) for number in range(1000)))

    with proxy(fast.url, Fixed(24)) as url:
        status(url, controlling)
        asyncio.run(run(url))
        found = status(url)
    state = fast.settled(finished=1000)
    assert (state["started"], state["finished"], state["cancelled"]) == (1000, 1000, 0)
    assert state["peak_running"] <= 24
    assert found["requests"]["finished"] == found["requests"]["entered"] == 1000
    assert found["running"] == 0 and sum(found["waiting"].values()) == 0


def test_a_full_queue_answers_429_with_retry_after_and_loses_none(launch: Callable[..., Any]) -> None:
    slow = launch("--a", 20)

    async def run(url: str) -> list[httpx.Response]:
        async with httpx.AsyncClient(timeout=60, trust_env=False) as client:
            return await asyncio.gather(*(client.post(f"{url}/v1/completions", json=body(5)) for _ in range(10)))

    with proxy(slow.url, Fixed(1), queue=3) as url:
        status(url, controlling)
        answers = asyncio.run(run(url))
        found = status(url)
        page = httpx.get(f"{url}/metrics", trust_env=False).text
    refused = [answer for answer in answers if answer.status_code == 429]
    served = [answer for answer in answers if answer.status_code == 200]
    assert len(served) == 4 and len(refused) == 6
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
    assert all(answer.json()["error"]["code"] == 429 for answer in refused)
    assert all(answer.text.endswith("[DONE]\n\n") for answer in served)
    assert found["requests"]["rejected"] == 6
    assert 'requests_total{outcome="rejected",priority="interactive"} 6.0' in page
    assert 'requests_total{outcome="completed",priority="interactive"} 4.0' in page


def test_a_full_queue_turns_away_the_laxest_not_the_urgent(launch: Callable[..., Any]) -> None:
    slow = launch("--a", 20)

    async def run(url: str) -> tuple[list[httpx.Response], httpx.Response]:
        lax = {"x-priority": "best_effort"}
        async with httpx.AsyncClient(timeout=60, trust_env=False) as client:

            async def post(**more: Any) -> httpx.Response:
                return await client.post(f"{url}/v1/completions", json=body(20), **more)

            tasks = [asyncio.create_task(post(headers=lax)) for _ in range(5)]  # one inside, four wait
            await asyncio.to_thread(status, url, lambda x: x["waiting"]["best_effort"] == 4)
            urgent = await post()
            return await asyncio.gather(*tasks), urgent

    with proxy(slow.url, Fixed(1), queue=4) as url:
        status(url, controlling)
        lax, urgent = asyncio.run(run(url))
    assert urgent.text.endswith("[DONE]\n\n")
    assert sorted(answer.status_code for answer in lax) == [200] * 4 + [429]


def test_retry_after_is_the_queue_at_the_rate_of_late() -> None:
    pace = Pace()
    pace.begin(0.0)
    for second in range(100):  # one a second, and then an hour of nothing
        pace.begin(second + 0.5)
        pace.end(second + 1.0)
    assert pace.rate(100.0) == pytest.approx(1.0, rel=0.1)
    pace.end(100.0)
    for _ in range(20):
        pace.begin(3700.0)
    for i in range(20):
        pace.end(3700.0 + 0.1 * (i + 1))
    assert pace.rate(3702.0) == pytest.approx(10.0, rel=0.1)  # not that of the hour
    pace = Pace()
    pace.begin(0.0)
    assert pace.rate(0.1) == 1.0 and pace.rate(50.0) == pytest.approx(1 / 30)  # nothing has ended yet


def test_kv_budget_holds_requests_back_on_the_engines_own_gauge(launch: Callable[..., Any]) -> None:
    slow = launch("--a", 30, "--c", 0)  # a pool of 65,536 tokens

    async def run(url: str) -> list[httpx.Response]:
        async with httpx.AsyncClient(timeout=60, trust_env=False) as client:
            return await asyncio.gather(
                *(client.post(f"{url}/v1/completions", json=body(8, prompt=4000)) for _ in range(12))
            )

    # four prompts are 0.244 of it; one that ended between gauge and client may be taken off twice
    for applies, peaks in ((True, (4, 5)), (False, (12,))):
        with proxy(slow.url, Fixed(64, kv_budget=0.25), applies_kv_budget=applies) as url:
            found = status(url, lambda x: controlling(x) and x["kv_cache_use"] is not None)
            assert found["kv_budget"] == (0.25 if applies else 1.0)
            assert found["kv_budget_applies"].startswith("yes" if applies else "no: a policy of a closed-loop task")
            answers = asyncio.run(run(url))
        assert all(answer.text.endswith("[DONE]\n\n") for answer in answers)
        assert slow.state()["peak_running"] in peaks


def test_urgent_requests_overtake_by_header_and_by_body(launch: Callable[..., Any]) -> None:
    slow = launch("--a", 10)

    async def run(url: str) -> list[str]:
        order: list[str] = []

        async def one(client: httpx.AsyncClient, name: str, **more: Any) -> None:
            await client.post(f"{url}/v1/completions", **more)
            order.append(name)

        async with httpx.AsyncClient(timeout=60, trust_env=False) as client:
            first = asyncio.create_task(one(client, "first", json=body(20)))
            await asyncio.sleep(0.1)
            tasks = []
            for name, more in [
                ("best effort", {"json": body(2), "headers": {"x-priority": "best_effort"}}),
                ("batch", {"json": body(2, priority=1)}),
                ("interactive", {"json": body(2)}),
            ]:
                tasks.append(asyncio.create_task(one(client, name, **more)))
                await asyncio.sleep(0.02)
            await asyncio.gather(first, *tasks)
        return order

    with proxy(slow.url, Fixed(1)) as url:
        status(url, controlling)
        assert asyncio.run(run(url)) == ["first", "interactive", "batch", "best effort"]


@pytest.mark.parametrize("more", [{"headers": {"x-priority": "vip"}}, {"json": body(priority="high")}])
def test_a_priority_that_is_none_is_refused_with_what_is_allowed(engine: Any, more: dict[str, Any]) -> None:
    with proxy(engine.url) as url:
        answer = httpx.post(f"{url}/v1/completions", **{"json": body(), **more}, trust_env=False)
    assert answer.status_code == 400 and "must be" in answer.json()["error"]["message"]


def test_a_client_that_leaves_cancels_upstream_and_leaves_the_queue(launch: Callable[..., Any]) -> None:
    slow = launch("--a", 20)

    async def run(url: str) -> None:
        async with httpx.AsyncClient(timeout=60, trust_env=False) as client:

            async def settle(running: int, waiting: int) -> None:
                await asyncio.to_thread(
                    status, url, lambda x: (x["running"], x["waiting"]["interactive"]) == (running, waiting)
                )

            tasks = []
            for waiting in (0, 1):
                tasks.append(asyncio.create_task(client.post(f"{url}/v1/completions", json=body(1000))))
                await settle(1, waiting)
            await asyncio.to_thread(slow.settled, running=1)
            for task, running in zip(reversed(tasks), (1, 0), strict=True):  # the waiting one first
                task.cancel()
                await settle(running, 0)
            await asyncio.gather(*tasks, return_exceptions=True)

    with proxy(slow.url, Fixed(1)) as url:
        status(url, controlling)
        asyncio.run(run(url))
        found = status(url, lambda x: x["running"] == 0 and x["waiting"]["interactive"] == 0)
        state = slow.settled(running=0)
        page = httpx.get(f"{url}/metrics", trust_env=False).text
    assert found["running"] == 0 and found["requests"]["given_up"] == 1
    assert (state["started"], state["cancelled"], state["running"]) == (1, 1, 0)
    assert 'requests_total{outcome="client_gone",priority="interactive"} 2.0' in page


def test_killing_the_upstream_in_mid_stream_gives_errors_and_no_hangs(launch: Callable[..., Any]) -> None:
    dying = launch("--a", 20)

    async def call(client: httpx.AsyncClient, url: str, begun: asyncio.Event) -> httpx.Response:
        async with client.stream("POST", f"{url}/v1/completions", json=body(1000)) as answer:
            async for _ in answer.aiter_raw():
                begun.set()
        return answer

    async def run(url: str) -> list[Any]:
        begun = asyncio.Event()
        async with httpx.AsyncClient(timeout=20, trust_env=False) as client:
            calls = [call(client, url, begun) for _ in range(8)]
            gathered = asyncio.gather(*calls, return_exceptions=True)
            await asyncio.to_thread(dying.settled, running=8)
            await asyncio.wait_for(begun.wait(), 20)  # a token has come
            dying.process.kill()
            return await asyncio.wait_for(gathered, 10)

    with proxy(dying.url) as url:
        answers = asyncio.run(run(url))
        after = httpx.post(f"{url}/v1/completions", json=body(), trust_env=False)
        found = status(url)
    cut = [answer for answer in answers if isinstance(answer, httpx.RemoteProtocolError)]
    unbegun = [answer for answer in answers if isinstance(answer, httpx.Response) and answer.status_code == 502]
    assert cut and len(cut) + len(unbegun) == 8, answers
    assert after.status_code == 502 and "does not answer" in after.json()["error"]["message"]
    assert found["running"] == 0


@pytest.mark.parametrize(
    ("fault", "outcome"), [("reset", "truncated"), ("stall", "truncated"), ("500", "upstream_error")]
)
def test_an_upstream_fault_reaches_the_client_and_counts_as_a_violation(engine: Any, fault: str, outcome: str) -> None:
    policy = Fixed()
    with proxy(engine.url, policy, stall_timeout_s=0.3) as url:
        if fault == "500":
            answer = httpx.post(f"{url}/v1/completions", json=body(), headers={"x-fake-fault": fault}, trust_env=False)
            assert answer.status_code == 500 and "out of order" in answer.text
        else:
            with pytest.raises(httpx.RemoteProtocolError):
                httpx.post(f"{url}/v1/completions", json=body(), headers={"x-fake-fault": fault}, trust_env=False)
        steps = status(url)["steps"]
        status(url, lambda found: found["steps"] > steps + 1)
        page = httpx.get(f"{url}/metrics", trust_env=False).text
    assert f'requests_total{{outcome="{outcome}",priority="interactive"}} 1.0' in page
    assert sum(float(seen.slo_violation_rate) for seen in policy.seen) == 1.0


@pytest.mark.parametrize("header", ["caf\u00e9".encode(), b"caf\xe9"])
def test_headers_pass_through_and_those_of_the_connection_do_not(header: bytes) -> None:
    seen: list[tuple[bytes, bytes]] = []

    async def upstream(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["path"] == "/echo":
            seen.extend(scope["headers"])
            lines = [
                (b"x-back", b"a, b"),
                (b"set-cookie", b"a=1"),
                (b"set-cookie", b"b=2"),
                (b"content-encoding", b"gzip"),
            ]
            await send({"type": "http.response.start", "status": 299, "headers": lines})
            await send({"type": "http.response.body", "body": b"not gzip at all"})

    with serving(upstream) as root, proxy(root) as url, httpx.Client(trust_env=False) as client:
        sent = [
            (b"x-mine", header),
            (b"x-mine", b"2"),
            (b"cookie", b"c=3"),
            (b"connection", b"close"),
            (b"te", b"gzip"),
        ]
        with client.stream("GET", f"{url}/echo?q=%20", headers=sent) as answer:
            content = b"".join(answer.iter_raw())
        assert (answer.status_code, content) == (299, b"not gzip at all")
        assert answer.headers.get_list("set-cookie") == ["a=1", "b=2"] and answer.headers["x-back"] == "a, b"
    got = dict(seen)
    mine = [value for name, value in seen if name == b"x-mine"]
    assert mine[1] == b"2" and mine[0].decode(errors="replace").startswith("caf") and got[b"cookie"] == b"c=3"
    assert b"te" not in got and got[b"user-agent"].startswith(b"python-httpx")  # the client's, not the proxy's
    assert got[b"accept-encoding"] == client.headers["accept-encoding"].encode()


def test_an_upstream_that_is_not_there_is_a_502_and_a_large_body_a_413(engine: Any) -> None:
    with proxy("http://127.0.0.1:9") as url:
        assert httpx.get(f"{url}/v1/models", trust_env=False).status_code == 502
    with proxy(engine.url, max_body_bytes=1000) as url:
        assert httpx.post(f"{url}/v1/completions", content=b"x" * 5000, trust_env=False).status_code == 413
