"""The client: typed answers from a real server, and retries that step once."""

from __future__ import annotations

import asyncio
import json

import httpx
import pyarrow as pa
import pytest

import inferencegym_jax as ig
from inferencegym_jax.adapters.client import ApiError, AsyncClient, Client, Retry
from inferencegym_jax.fleet.making import fleet_tasks
from inferencegym_jax.models import plain
from tests.server.conftest import Running
from tests.server.twins import episodes, random_actions


def test_a_whole_episode_in_types(server: Running):
    actions = random_actions(11, 200)
    twin = episodes(3, [6], [actions])[0]
    with Client(server.url) as client:
        episode = client.reset("adversarial-multi-tenant", seed=6)
        assert (episode.task_id, episode.seed, episode.length) == (3, 6, 200)
        assert isinstance(episode.observation, ig.ServeObservation)
        for action, row in zip(actions, twin, strict=True):
            step = episode.step(ig.ServeAction(**action))
            assert isinstance(step.metrics, ig.MetricsSnapshot) and isinstance(step.workload, ig.WorkloadState)
            assert (plain(step.observation), step.reward) == (row["observation"], row["reward"])
            assert plain(step.metrics) == row["metrics"]
        assert episode.done
        assert episode.total_reward == pytest.approx(episode.state()["cumulative_reward"])
        grade = episode.grade()
        assert grade["verified"]
        assert grade["score"] == client.grade(task_id=3, seed=6, actions=actions)["score"]
        with pytest.raises(ApiError, match="over") as caught:
            episode.step({})
        assert caught.value.status == 409


@pytest.mark.ci
def test_the_async_client_steps_sessions_at_once(server: Running):
    actions = [random_actions(i, 10) for i in range(8)]

    async def run() -> list[list[float]]:
        async with AsyncClient(server.url) as client:

            async def play(i: int) -> list[float]:
                episode = await client.reset(2, seed=i)
                rewards = [(await episode.step(action)).reward for action in actions[i]]
                assert (await episode.state())["step_count"] == 10
                assert (await episode.grade())["verified"]
                return rewards

            assert (await client.health())["ok"] and len(await client.tasks()) == len(ig.task_specs()) + len(
                fleet_tasks()
            )
            return await asyncio.gather(*(play(i) for i in range(8)))

    twins = episodes(2, list(range(8)), actions)
    assert asyncio.run(run()) == [[row["reward"] for row in twin] for twin in twins]


@pytest.mark.ci
def test_rollouts_come_back_as_scores_or_as_a_table(server: Running):
    with Client(server.url) as client:
        scores = client.rollout(1, [1, 2], "baseline")["scores"]
        assert len(scores) == 2
        table = client.rollout(1, range(3), actions=[[ig.ServeAction(batch_size=64)] * 5], trajectories=True)
    assert isinstance(table, pa.Table) and table.num_rows == 15
    assert set(table["action.batch_size"].to_pylist()) == {64}


def test_a_bad_action_is_refused_before_it_is_sent(server: Running):
    with Client(server.url) as client:
        episode = client.reset(1, seed=0)
        with pytest.raises(ValueError, match="batch_size"):
            episode.step(ig.ServeAction(batch_size=0))
        with pytest.raises(ApiError, match="batch_size") as caught:
            episode.step({"batch_size": 0})
        assert caught.value.status == 422
        assert episode.state()["step_count"] == 0


class Unreliable(httpx.HTTPTransport):
    """A network that delivers every request and loses the first answer to each step."""

    def __init__(self):
        super().__init__()
        self.sent: list[str] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        answer = super().handle_request(request)
        if request.url.path == "/step":
            step_id = json.loads(request.content)["step_id"]
            first = step_id not in self.sent
            self.sent.append(step_id)
            if first:
                answer.read()
                raise httpx.ReadError("the connection broke", request=request)
        return answer


def test_a_lost_answer_is_asked_for_again_and_stepped_once(server: Running):
    network = Unreliable()
    with Client(server.url, transport=network, retry=Retry(first_s=0.01)) as client:
        episode = client.reset(1, seed=3)
        timesteps = [episode.step({}).timestep for _ in range(5)]
        assert timesteps == [1, 2, 3, 4, 5]
        assert episode.state()["step_count"] == 5
    assert len(network.sent) == 10 and len(set(network.sent)) == 5


def test_a_busy_server_is_asked_again_as_it_says_and_not_forever():
    answers = [
        httpx.Response(503),
        httpx.Response(429, headers={"retry-after": "0"}),
        httpx.Response(200, json={"tasks": []}),
    ]
    asked = []

    def handle(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return answers[len(asked) - 1] if len(asked) <= len(answers) else httpx.Response(503, json={"detail": "down"})

    with Client("http://test", transport=httpx.MockTransport(handle), retry=Retry(3, 0.0, 0.0)) as client:
        assert client.tasks() == [] and len(asked) == 3
        with pytest.raises(ApiError, match="down"):
            client.tasks()
        assert len(asked) == 6


def test_a_refusal_is_not_repeated():
    asked = []

    def handle(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(422, json={"detail": [{"field": "body.seed", "message": "too large"}]})

    with Client("http://test", transport=httpx.MockTransport(handle)) as client:
        with pytest.raises(ApiError, match="body.seed: too large"):
            client.reset(1, seed=2**40)
    assert len(asked) == 1
