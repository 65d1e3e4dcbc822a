"""A language model as a controller, through any OpenAI-compatible endpoint. Needs the extra ``client`` (httpx).

    from inferencegym_jax.agents.llm import Endpoint, LLMAgent, play
    agent = LLMAgent(Endpoint.from_environment(), task=2)
    result = play(agent, seed=0)          # {"score", "breakdown", "usage", "actions", ...}

``observation -> prompts.observation_text -> chat completion -> prompts.parse_action -> ServeAction``. An answer that is
no action is sent back with what is wrong with it; when the model does not get it right, the knobs stay as they are, and
that is counted.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

from inferencegym_jax.agents.endpoint import ChatClient, Endpoint, EndpointError, Usage
from inferencegym_jax.agents.prompts import MalformedAnswer, action_tool, observation_text, parse_action, system_prompt
from inferencegym_jax.models import ServeAction, check_whole
from inferencegym_jax.registry import make
from inferencegym_jax.tasks import TaskSpec, get_task
from inferencegym_jax.verification import verify

__all__ = ["Endpoint", "EndpointError", "LLMAgent", "Usage", "play"]


class LLMAgent:
    """Asks a model for the knobs.

    Args:
        endpoint: where the model is.
        task: id or name.
        decide_every: seconds between two questions; the knobs stay in between.
        retries: times that a malformed answer is sent back before the knobs are held.
        tools: offer the tool; off, the model answers with JSON text. An endpoint that refuses tools is asked without.
        seed: passed on for reproducible sampling, where the endpoint knows it; temperature is 0.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        task: int | str | TaskSpec = 1,
        *,
        decide_every: int = 10,
        retries: int = 2,
        tools: bool = True,
        seed: int = 0,
        pause: Callable[[float], None] = time.sleep,
    ):
        self.spec: TaskSpec = get_task(task)
        longest = self.spec.episode_length
        self.usage: Usage = Usage()
        self.decide_every: int = check_whole("decide_every", decide_every, 1, longest)
        self.retries: int = check_whole("retries", retries, 0)
        self.tools: bool = tools
        self.seed: int = seed
        self._client = ChatClient(endpoint, self.usage, pause)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def decide(
        self,
        observation: Any,
        action: ServeAction,
        reward: float | None = None,
        baseline: Mapping[str, Any] | None = None,
    ) -> ServeAction:
        """The model's action after this observation, or ``action`` where it gives none.

        Args:
            observation: a ``ServeObservation`` of one environment, or its dict.
            action: what is set now.
            reward: of the last second.
            baseline: see ``parse_action``.

        Raises:
            EndpointError: the endpoint cannot be used.
        """
        knobs = self.spec.active_knobs
        messages: list[dict[str, Any]] = [
            {"role": "system", "content": system_prompt(self.spec)},
            {"role": "user", "content": observation_text(observation, action, reward, knobs)},
        ]
        for _ in range(self.retries + 1):
            message = self._ask(messages)
            try:
                return parse_action(message, knobs, baseline)
            except MalformedAnswer as error:
                self.usage.malformed += 1
                text = message.get("content") or str(message.get("tool_calls") or "")
                messages += [
                    {"role": "assistant", "content": text if isinstance(text, str) and text else "(empty)"},
                    {"role": "user", "content": f"That is not a valid action: {error}. Answer again."},
                ]
        self.usage.held += 1
        return action

    def _ask(self, messages: list[dict[str, Any]]) -> dict[str, Any]:
        body = {"model": self._client.endpoint.model, "messages": messages, "temperature": 0, "seed": self.seed}
        if not self.tools:
            return self._client.complete(body)
        offered = {"tools": [action_tool(self.spec.active_knobs)], "tool_choice": "auto"}
        try:
            return self._client.complete(body | offered)
        except EndpointError as error:
            if error.status not in (400, 422):
                raise
            self.tools = False  # vLLM without --enable-auto-tool-choice, and servers that know no tools
            return self._client.complete(body)


def play(
    agent: LLMAgent,
    seed: int = 0,
    *,
    table: Any = None,
    config: Mapping[str, Any] | None = None,
    steps: int | None = None,
    progress: Callable[[int], None] = lambda step: None,
) -> dict[str, Any]:
    """One episode under the agent, scored by re-simulating its actions.

    Args:
        agent: which also says the task.
        seed: of the episode.
        table: as in ``make``.
        config: as in ``make``.
        steps: fewer than the episode's to try things out; default: all of them.
        progress: called after every step.

    Returns:
        {"task", "seed", "config", "score", "breakdown", "feedback", "total_reward", "oom_share", "decisions", "held",
        "actions", "usage"}; with task, seed, config and actions anybody can compute the score again (``verify``).
        ``held`` of the ``decisions`` were not the model's, as it gave no valid action; the feedback says so too.

    Raises:
        EndpointError: the endpoint cannot be used.
    """
    env, params = make(agent.spec, table=table, config=config)
    steps = agent.spec.episode_length if steps is None else steps
    observation, state = env.reset_seed(seed, params)
    baseline, held_before = env.table.knob_defaults, agent.usage.held
    action, reward, total, actions, crashed, decisions = ServeAction(**baseline), None, 0.0, [], 0, 0
    for step in range(steps):
        if step % agent.decide_every == 0:
            action = agent.decide(observation, action, reward, baseline)
            decisions += 1
        observation, state, gain, _, info = env.step_env(None, state, action, params)
        crashed += bool(info["oom"])
        reward = float(gain)
        total += reward
        actions.append(action.to_dict())
        progress(step + 1)
    result = verify(agent.spec, seed, config, actions, table=table)
    kept = agent.usage.held - held_before
    if kept:
        text = f" {kept} of {decisions} decisions were held: the model gave no valid action, and the knobs stayed."
        result = result | {"feedback": result["feedback"] + text}
    return {
        "task": agent.spec.name,
        "seed": seed,
        "config": None if config is None else dict(config),
        **{key: result[key] for key in ("score", "breakdown", "feedback")},
        "total_reward": total,
        "oom_share": crashed / steps,
        "decisions": decisions,
        "held": kept,
        "actions": actions,
        "usage": dataclasses.asdict(agent.usage),
    }
