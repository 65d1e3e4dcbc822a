"""Language-model agents against an OpenAI-compatible server on a real socket."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

import inferencegym_jax as ig
from inferencegym_jax.agents import prompts
from inferencegym_jax.agents.llm import Endpoint, EndpointError, LLMAgent, play
from inferencegym_jax.models import KNOBS, OBSERVATION

ROOT = Path(__file__).resolve().parents[2]

SHORT = [spec.name for spec in ig.task_specs().values() if spec.episode_length == 200]


def load(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


openai = load(Path(__file__).with_name("openai_server.py"))
GOOD = {"kv_budget": 0.5, "batch_size": 128}


def agent_of(url: str, task: int = 1, **options: Any) -> LLMAgent:
    pauses: list[float] = []
    agent = LLMAgent(
        Endpoint(url, "test-model", "secret", input_price=2.0, output_price=10.0), task, pause=pauses.append, **options
    )
    agent.pauses = pauses  # type: ignore[attr-defined]
    return agent


def start(task: int = 1) -> Any:
    env, params = ig.make(task)
    return env.reset_seed(0, params)[0]


def test_a_tool_call_sets_the_knobs_and_is_counted():
    with openai.serve(lambda body, n: (200, openai.completion(arguments=GOOD))) as (url, bodies, headers):
        agent = agent_of(url)
        action = agent.decide(start(), ig.ServeAction())
    assert action == ig.ServeAction(kv_budget=0.5, batch_size=128)
    (body,) = bodies
    assert body["model"] == "test-model" and body["temperature"] == 0
    parameters = body["tools"][0]["function"]["parameters"]
    assert set(parameters["properties"]) == {"kv_budget", "batch_size"}  # task 1 leaves these two
    assert parameters["properties"]["batch_size"]["maximum"] == KNOBS["batch_size"].high
    assert all(name in body["messages"][1]["content"] for name in OBSERVATION)
    assert headers[0]["authorization"] == "Bearer secret"
    assert (agent.usage.input_tokens, agent.usage.output_tokens, agent.usage.calls) == (300, 20, 1)
    assert agent.usage.cost == pytest.approx(300 * 2e-6 + 20 * 10e-6)
    assert "secret" not in repr(agent._client.endpoint)


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(GOOD),
        f"The queue grows.\n```json\n{json.dumps(GOOD)}\n```",
        f"<think>maybe {{'batch_size': 1}} or {json.dumps(GOOD | {'batch_size': 1})}</think>{json.dumps(GOOD)}",
        'First {"batch_size": 4, "kv_budget": 1.0}, but better {"kv_budget": 0.5, "batch_size": 128.0}.',
    ],
)
def test_json_in_a_text_is_found(text: str):
    found = prompts.parse_action({"content": text}, ("kv_budget", "batch_size"))
    assert found == ig.ServeAction(kv_budget=0.5, batch_size=128)
    assert isinstance(found.batch_size, int)


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ({"content": "I would raise the batch."}, "no JSON object"),
        ({"content": ""}, "no JSON object"),
        ({"content": None}, "no JSON object"),
        ({"content": json.dumps(GOOD | {"batch_size": 4096})}, "from 1 to 512"),
        ({"content": json.dumps(GOOD | {"batch_size": 1.5})}, "whole number"),
        ({"content": json.dumps(GOOD | {"batch_size": "64"})}, "whole number"),
        ({"content": json.dumps(GOOD | {"batch_size": True})}, "whole number"),
        ({"content": '{"kv_budget": NaN, "batch_size": 4}'}, "kv_budget"),
        ({"content": json.dumps(GOOD | {"temperature": 1})}, "unknown knob 'temperature'"),
        ({"tool_calls": [{"function": {"name": "other", "arguments": "{}"}}]}, "call the tool set_knobs"),
        ({"tool_calls": [{"function": {"name": "set_knobs", "arguments": "{bad"}}]}, "no JSON object"),
        ({"tool_calls": [7]}, "call the tool set_knobs"),
    ],
)
def test_a_malformed_answer_says_what_is_wrong(message: dict[str, Any], said: str):
    with pytest.raises(prompts.MalformedAnswer, match=said):
        prompts.parse_action(message, ("kv_budget", "batch_size"))


@pytest.mark.parametrize("baseline", [None, {"kv_budget": 0.25, "spec_length": 2}])
def test_a_knob_left_out_takes_the_baselines_value(baseline: dict[str, Any] | None):
    found = prompts.parse_action({"content": '{"batch_size": 64}'}, ("kv_budget", "batch_size"), baseline)
    assert found == ig.ServeAction(**{**(baseline or {}), "batch_size": 64})


def test_a_malformed_answer_goes_back_with_the_reason_and_is_asked_again():
    answers = [
        openai.completion("no idea"),
        openai.completion('{"batch_size": 900, "kv_budget": 1}'),
        openai.completion(arguments=GOOD),
    ]
    with openai.serve(lambda body, n: (200, answers[n])) as (url, bodies, _):
        agent = agent_of(url)
        action = agent.decide(start(), ig.ServeAction())
    assert action.batch_size == 128
    assert agent.usage.malformed == 2 and agent.usage.held == 0 and agent.usage.calls == 3
    assert "no JSON object" in bodies[1]["messages"][-1]["content"]
    assert "from 1 to 512" in bodies[2]["messages"][-1]["content"]


def test_a_model_that_never_answers_well_leaves_the_knobs():
    now = ig.ServeAction(batch_size=77)
    with openai.serve(lambda body, n: (200, openai.completion("hm", tokens=None))) as (url, bodies, _):
        agent = agent_of(url, retries=1)
        assert agent.decide(start(), now) == now
    assert len(bodies) == 2 and agent.usage.held == 1 and agent.usage.uncounted == 2


def test_a_busy_or_broken_endpoint_is_asked_again():
    answers = [(429, {"error": "slow down"}), (0, ""), (503, "overloaded"), (200, openai.completion(arguments=GOOD))]
    with openai.serve(lambda body, n: answers[n]) as (url, bodies, _):
        agent = agent_of(url)
        assert agent.decide(start(), ig.ServeAction()).batch_size == 128
    assert len(bodies) == 4 and agent.usage.retries == 3
    assert agent.pauses == [0.5, 1.0, 2.0]  # type: ignore[attr-defined]


def test_an_endpoint_without_tools_is_asked_for_text():
    def answer(body: dict[str, Any], n: int) -> tuple[int, Any]:
        return (
            (400, {"error": "tools are not enabled"}) if "tools" in body else (200, openai.completion(json.dumps(GOOD)))
        )

    with openai.serve(answer) as (url, bodies, _):
        agent = agent_of(url)
        assert agent.decide(start(), ig.ServeAction()).batch_size == 128
        assert agent.decide(start(), ig.ServeAction()).batch_size == 128
    assert ["tools" in body for body in bodies] == [True, False, False]


@pytest.mark.parametrize(
    ("answer", "said", "calls"),
    [
        ((401, {"error": "bad key"}), "status 401.*bad key", 1),
        ((500, "broken"), "gave up after 4 tries.*status 500", 4),
        ((200, "<html>"), "not a chat completion", 1),
        ((200, {"choices": []}), "not a chat completion", 1),
        ((200, {"choices": [{"message": "text"}]}), "not a chat completion", 1),
    ],
)
def test_an_unusable_endpoint_is_an_error(answer: tuple[int, Any], said: str, calls: int):
    with openai.serve(lambda body, n: answer) as (url, bodies, _):
        with pytest.raises(EndpointError, match=said) as caught:
            agent_of(url).decide(start(), ig.ServeAction())
        assert len(bodies) == calls and "secret" not in str(caught.value)


def test_nobody_listening_is_an_error():
    with openai.serve(lambda body, n: (200, {})) as (url, _, _):
        pass
    with pytest.raises(EndpointError, match="gave up after 4 tries"):
        agent_of(url).decide(start(), ig.ServeAction())


def test_an_episode_is_scored_as_its_actions_are():
    def answer(body: dict[str, Any], n: int) -> tuple[int, Any]:
        return 200, openai.completion(arguments={"kv_budget": 0.5, "batch_size": 64 + 64 * (n % 2)})

    with openai.serve(answer) as (url, bodies, _):
        result = play(agent_of(url, decide_every=50), seed=3)
    assert len(bodies) == 4 and len(result["actions"]) == 200
    assert [a["batch_size"] for a in result["actions"][::50]] == [64, 128, 64, 128]
    truth = ig.verify(1, 3, None, result["actions"])
    assert result["score"] == truth["score"] and result["usage"]["calls"] == 4
    assert (result["held"], result["decisions"]) == (0, 4) and "held" not in result["feedback"]
    assert result["oom_share"] == sum(entry["metrics"]["tokens_per_sec"] == 0 for entry in truth["episode_log"]) / 200
    assert result["total_reward"] == pytest.approx(sum(entry["reward"] for entry in truth["episode_log"]), rel=1e-4)


def test_a_score_in_which_decisions_were_held_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    def answer(body: dict[str, Any], n: int) -> tuple[int, Any]:
        return 200, openai.completion(arguments={"batch_size": 64}) if n == 0 else openai.completion("hm")

    inference, out = load(ROOT / "inference.py"), tmp_path / "out.json"
    with openai.serve(answer) as (url, _, _):
        for name, value in (("OPENAI_BASE_URL", url), ("MODEL", "test-model")):
            monkeypatch.setenv(name, value)
        assert inference.main(["--tasks", "1", "--every", "50", "--out", str(out)]) == 0
    document = json.loads(out.read_text())
    assert (document["held"], document["decisions"]) == (3, 4)
    (episode,) = document["episodes"]
    assert episode["held"] == 3 and "3 of 4 decisions were held" in episode["feedback"]
    assert "3 of 4 decisions were held, and are not the model's" in capsys.readouterr().out
    # what was left out of the one answer is the baseline's, here as over every other path
    assert episode["score"] == ig.verify(1, 0, None, [{"batch_size": 64}] * 200)["score"]


@pytest.mark.ci
def test_inference_scores_all_tasks_twice_alike(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    defaults = {name: knob.default for name, knob in KNOBS.items()}

    def answer(body: dict[str, Any], n: int) -> tuple[int, Any]:
        wanted = body["tools"][0]["function"]["parameters"]["required"]
        return 200, openai.completion(arguments={name: defaults[name] for name in wanted})

    inference = load(ROOT / "inference.py")
    documents = []
    with openai.serve(answer) as (url, _, _):
        for name, value in (("OPENAI_BASE_URL", url), ("MODEL", "test-model"), ("OPENAI_API_KEY", "secret")):
            monkeypatch.setenv(name, value)
        for i in range(2):
            out = tmp_path / f"{i}.json"
            words = ["--every", "100", "--out", str(out), "--tasks", *SHORT]
            assert inference.main(words) == 0
            documents.append(json.loads(out.read_text()))
    assert documents[0] == documents[1]
    assert set(documents[0]["scores"]) == set(SHORT)
    for episode in documents[0]["episodes"]:
        # the defaults are the baseline, whose score the library knows without any model
        assert episode["score"] == ig.verify(episode["task"], 0, None, [defaults] * 200)["score"]
    assert "secret" not in json.dumps(documents) + capsys.readouterr().out


def test_inference_says_which_variable_is_missing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    inference = load(ROOT / "inference.py")
    for name in ("OPENAI_BASE_URL", "API_BASE_URL", "MODEL", "MODEL_NAME"):
        monkeypatch.delenv(name, raising=False)
    assert inference.main([]) == 2
    assert "OPENAI_BASE_URL" in capsys.readouterr().err
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")
    assert inference.main([]) == 2
    assert "MODEL is not set" in capsys.readouterr().err
