"""TorchRL's PPO over the vector environment: `python examples/torchrl_ppo.py --updates 50` (torchrl, tensordict)."""

import argparse

import gymnasium
import torch
from tensordict.nn import TensorDictModule
from tensordict.nn.distributions import NormalParamExtractor
from torch import nn
from torchrl.collectors import Collector
from torchrl.envs.libs.gym import GymWrapper
from torchrl.modules import ProbabilisticActor, TanhNormal, ValueOperator
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

import inferencegym_jax.adapters.gymnasium_env  # noqa: F401  (registers the ids)


def layers(width, *tail):
    """Two hidden layers."""
    return nn.Sequential(nn.Linear(14, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, width), *tail)


def train(task, envs, steps, updates, rate=1e-3, epochs=2, minibatch=512):
    """Mean reward a second of every update."""
    torch.manual_seed(0)
    env = GymWrapper(gymnasium.make_vec(task, num_envs=envs, autoreset_mode="Disabled"))  # TorchRL resets
    actor = ProbabilisticActor(
        TensorDictModule(layers(10, NormalParamExtractor()), in_keys=["observation"], out_keys=["loc", "scale"]),
        in_keys=["loc", "scale"],
        distribution_class=TanhNormal,
        distribution_kwargs={"low": -1.0, "high": 1.0},
        return_log_prob=True,
    )
    critic = ValueOperator(layers(1), in_keys=["observation"])
    advantage = GAE(gamma=0.99, lmbda=0.95, value_network=critic)
    objective = ClipPPOLoss(actor, critic, entropy_coeff=1e-3)
    optimiser = torch.optim.Adam(objective.parameters(), rate)
    collector = Collector(env, actor, frames_per_batch=envs * steps, total_frames=envs * steps * updates)
    history = []
    for batch in collector:
        with torch.no_grad():
            advantage(batch)
        flat = batch.reshape(-1)
        for _ in range(epochs):
            for index in torch.randperm(len(flat)).split(minibatch):
                losses = objective(flat[index])
                loss = losses["loss_objective"] + losses["loss_critic"] + losses["loss_entropy"]
                optimiser.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(objective.parameters(), 0.5)
                optimiser.step()
        collector.update_policy_weights_()
        history.append(float(batch["next", "reward"].mean()))
    collector.shutdown()
    return history


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", default="inferencegym_jax/StaticUniform-v0")
    parser.add_argument("--updates", type=int, default=50)
    asked = parser.parse_args()
    history = train(asked.task, 32, 64, asked.updates)
    print(f"reward a second: first {history[0]:.3f}, last {history[-1]:.3f}")
