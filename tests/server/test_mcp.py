"""MCP on /mcp: an MCP client over a real socket plays the same episode as everybody else."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

import inferencegym_jax as ig

fastmcp = pytest.importorskip("fastmcp")


def play(url: str, body: Any) -> Any:
    """Run ``await body(client)`` with a connected MCP client."""

    async def run() -> Any:
        async with fastmcp.Client(f"{url}/mcp", timeout=60) as client:
            return await body(client)

    return asyncio.run(run())


def test_the_tools_state_their_arguments(server: Any):
    tools = {tool.name: tool for tool in play(server.url, lambda client: client.list_tools())}
    assert set(tools) == {"reset", "step", "state", "grade"}
    assert set(tools["step"].inputSchema["required"]) == {"session_id", "action"}
    assert "batch_size" in str(tools["step"].inputSchema)
    assert all(tool.description for tool in tools.values())


@pytest.mark.ci
def test_an_mcp_episode_is_the_episode(server: Any, http: httpx.Client):
    async def body(client: Any) -> tuple[Any, ...]:
        started = (await client.call_tool("reset", {"task_id": 2, "seed": 7})).data
        session = started["session_id"]
        steps = [
            (await client.call_tool("step", {"session_id": session, "action": {"batch_size": b}})).data
            for b in (32, 64, 128)
        ]
        stands = (await client.call_tool("state", {"session_id": session})).data
        graded = (await client.call_tool("grade", {"session_id": session})).data
        return started, steps, stands, graded

    started, steps, stands, graded = play(server.url, body)
    truth = ig.verify(2, 7, None, [{"batch_size": b} for b in (32, 64, 128)])
    assert "nothing seen yet" in started["note"]
    assert started["info"]["seed"] == 7 and started["observation"]["queue_depth"] == 0
    for step, entry in zip(steps, truth["episode_log"], strict=True):
        assert step["reward"] == pytest.approx(entry["reward"], rel=1e-5)
        assert step["info"]["metrics"]["tokens_per_sec"] == pytest.approx(entry["metrics"]["tokens_per_sec"], rel=1e-5)
    assert stands["step_count"] == 3 and stands["done"] is False
    assert graded["score"] == pytest.approx(truth["score"], rel=1e-5) and graded["verified"] is True
    assert http.get("/state", params={"session_id": started["session_id"]}).json()["step_count"] == 3


@pytest.mark.parametrize(
    ("tool", "arguments", "said"),
    [
        ("state", {"session_id": "nobody"}, "nobody"),
        ("step", {"session_id": "nobody", "action": {}}, "nobody"),
        ("step", {"session_id": "nobody", "action": {"batch_size": 4096}}, "512"),
        ("step", {"session_id": "nobody", "action": {"batch": 1}}, "batch"),
        ("reset", {"task_id": 99}, "task"),
        ("reset", {"seed": -1}, "seed"),
    ],
)
def test_a_bad_call_is_an_error_that_says_why(server: Any, tool: str, arguments: dict[str, Any], said: str):
    async def body(client: Any) -> Any:
        return await client.call_tool(tool, arguments, raise_on_error=False)

    result = play(server.url, body)
    assert result.is_error and said in str(result.content)
    assert "pydantic" not in str(result.content) and len(str(result.content)) < 600


@pytest.mark.parametrize("identity", ["null", "true", "1.5", "[1]", '{"a": 1}'])
def test_an_id_of_a_wrong_type_is_answered(http: httpx.Client, identity: str):
    body = f'{{"jsonrpc": "2.0", "id": {identity}, "method": "tools/list"}}'
    answer = http.post("/mcp", content=body, headers={"content-type": "application/json"}).json()
    assert answer["error"]["code"] == -32600 and "id" in answer["error"]["message"] and answer["id"] is None


@pytest.mark.parametrize("content", [b"{}", b"[]", b"", b"no json", b'{"jsonrpc": "1.0"}'])
def test_what_is_no_request_is_answered_as_json_rpc_says(http: httpx.Client, content: bytes):
    answer = http.post("/mcp", content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 200
    assert answer.json()["jsonrpc"] == "2.0" and answer.json()["error"]["code"] == -32600


def test_a_plain_post_needs_no_special_headers(http: httpx.Client):
    request = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}
    answer = http.post("/mcp", json=request)
    assert answer.status_code == 200
    assert {tool["name"] for tool in answer.json()["result"]["tools"]} == {"reset", "step", "state", "grade"}
