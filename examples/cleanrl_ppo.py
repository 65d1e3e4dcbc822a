"""PPO in one file, in CleanRL's way: `python examples/cleanrl_ppo.py --updates 100` (extra `sb3` brings torch)."""

import argparse

import gymnasium
import numpy as np
import torch
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from torch import nn
from torch.distributions import Normal

import inferencegym_jax.adapters.gymnasium_env  # noqa: F401  (registers the ids)

GAMMA, LAMBDA, CLIP, EPOCHS, MINIBATCHES = 0.99, 0.95, 0.2, 4, 4


def layers(width, gain):
    """Two hidden layers, orthogonal weights."""
    net = nn.Sequential(nn.Linear(14, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, width))
    for layer in net[::2]:
        nn.init.orthogonal_(layer.weight, gain if layer.out_features == width else np.sqrt(2))
        nn.init.zeros_(layer.bias)
    return net


def train(task, envs, steps, updates, rate=1e-3):
    """Mean reward a second of every update."""
    torch.manual_seed(0)
    vector = RecordEpisodeStatistics(gymnasium.make_vec(task, num_envs=envs))
    actor, critic, log_std = layers(5, 0.01), layers(1, 1.0), nn.Parameter(torch.full((5,), -0.5))
    parameters = [*actor.parameters(), *critic.parameters(), log_std]
    optimiser = torch.optim.Adam(parameters, rate, eps=1e-5)
    obs, _ = vector.reset(seed=0)
    history = []
    for _ in range(updates):
        rows = []
        for _ in range(steps):
            seen = torch.as_tensor(obs)
            with torch.no_grad():
                dist, value = Normal(actor(seen), log_std.exp()), critic(seen)[:, 0]
                action = dist.sample()
            obs, reward, terminated, truncated, infos = vector.step(action.clamp(-1, 1).numpy())
            last = obs.copy()  # what followed the action: at an episode's end its last observation
            for i in np.flatnonzero(infos.get("_final_obs", [])):
                last[i] = infos["final_obs"][i]
            with torch.no_grad():
                after = critic(torch.as_tensor(last))[:, 0] * torch.as_tensor(1.0 - terminated).float()
            done, gain = torch.as_tensor(terminated | truncated).float(), torch.as_tensor(reward).float()
            rows.append((seen, action, dist.log_prob(action).sum(1), value, gain, after, done))
        seen, action, before, value, gain, after, done = (torch.stack(column) for column in zip(*rows, strict=True))
        advantage, carry = torch.zeros_like(gain), torch.zeros(envs)
        for t in reversed(range(steps)):
            carry = gain[t] + GAMMA * after[t] - value[t] + GAMMA * LAMBDA * (1 - done[t]) * carry
            advantage[t] = carry
        flat = [x.flatten(0, 1) for x in (seen, action, before, advantage, advantage + value)]
        for _ in range(EPOCHS):
            for index in torch.randperm(envs * steps).chunk(MINIBATCHES):
                o, a, old, adv, target = (x[index] for x in flat)
                ratio = (Normal(actor(o), log_std.exp()).log_prob(a).sum(1) - old).exp()
                adv = (adv - adv.mean()) / (adv.std() + 1e-8)
                surrogate = torch.minimum(ratio * adv, ratio.clamp(1 - CLIP, 1 + CLIP) * adv).mean()
                loss = 0.5 * (critic(o)[:, 0] - target).square().mean() - surrogate
                optimiser.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(parameters, 0.5)
                optimiser.step()
        history.append(float(gain.mean()))
    return history


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", default="inferencegym_jax/StaticUniform-v0")
    parser.add_argument("--updates", type=int, default=100)
    history = train(parser.parse_args().task, 32, 64, parser.parse_args().updates)
    print(f"reward a second: first {np.mean(history[:5]):.3f}, last {np.mean(history[-5:]):.3f}")
