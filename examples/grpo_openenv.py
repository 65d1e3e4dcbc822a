"""GRPO of a tiny language model over OpenEnv: `make serve`, then `python examples/grpo_openenv.py --updates 20`.

The loop is the real one: a prompt of the observation in words, a group of sampled answers to it, each answer's text
parsed and played over the WebSocket with OpenEnv's client, rewards compared within the group (Shao et al.,
"DeepSeekMath", 2024, without a reference model). The model is a stand-in with a vocabulary of 11 tokens; put your own
and its tokenizer in the place of `TinyModel`.
"""

import argparse

import torch
from torch import nn

from inferencegym_jax.adapters.openenv_client import ServingClient
from inferencegym_jax.agents.prompts import observation_text, parse_action
from inferencegym_jax.models import ServeAction

BATCHES, BUDGETS = (4, 16, 32, 64, 128, 256, 512), (0.25, 0.5, 0.75, 1.0)


class TinyModel(nn.Module):
    """Two tokens an answer; reads the numbers in the prompt."""

    def __init__(self):
        super().__init__()
        self.heads = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, len(BATCHES) + len(BUDGETS)))

    def forward(self, prompt):
        """The distributions of the two tokens."""
        words = [line.split(": ")[1].split()[0] for line in prompt.splitlines()[:4]]
        logits = self.heads(torch.log1p(torch.tensor([float(word) for word in words])) / 8)
        return [torch.distributions.Categorical(logits=x) for x in logits.split([len(BATCHES), len(BUDGETS)])]


def train(url, updates, group=8, seconds=5, epochs=2, rate=2e-2):
    """Mean reward a second of every update's group."""
    torch.manual_seed(0)
    model, history = TinyModel(), []
    optimiser = torch.optim.Adam(model.parameters(), rate)
    with ServingClient(base_url=url).sync() as env:
        for seed in range(updates):
            rows, rewards = [], []
            for _ in range(group):  # the same episode for every answer of a group
                prompt = observation_text(env.reset(seed=seed, task_id=1).observation, ServeAction(), None, [])
                tokens = [one.sample() for one in model(prompt)]
                answer = f'{{"batch_size": {BATCHES[tokens[0]]}, "kv_budget": {BUDGETS[tokens[1]]}}}'
                action = parse_action({"content": answer}, ["batch_size", "kv_budget"])
                rewards.append(sum(env.step(action).reward for _ in range(seconds)) / seconds)
                old = sum(one.log_prob(token) for one, token in zip(model(prompt), tokens, strict=True))
                rows.append((prompt, tokens, old.detach()))
            found = torch.tensor(rewards)
            for _ in range(epochs):
                loss = torch.tensor(0.0)
                for (prompt, tokens, old), gain in zip(
                    rows, (found - found.mean()) / (found.std() + 1e-4), strict=True
                ):
                    new = sum(one.log_prob(token) for one, token in zip(model(prompt), tokens, strict=True))
                    ratio = (new - old).exp()
                    loss = loss - torch.minimum(ratio * gain, ratio.clamp(0.8, 1.2) * gain) / group
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
            history.append(float(found.mean()))
    return history


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", default="http://localhost:7860")
    parser.add_argument("--updates", type=int, default=20)
    asked = parser.parse_args()
    history = train(asked.url, asked.updates)
    print(f"reward a second: first {history[0]:.3f}, last {history[-1]:.3f}")
