"""The general policy that ships: what its file says, and the same actions whoever asks it, its memory carried along."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

import inferencegym_jax as ig
from inferencegym_jax.live.proxy.policy_source import PolicySource
from inferencegym_jax.models import KNOBS, ServeObservation
from inferencegym_jax.policies import PolicyRunner
from inferencegym_jax.policies.load_following import LoadPlan
from inferencegym_jax.policies.policy_file import GENERAL, corrects, load_network, reads_relative
from inferencegym_jax.table.latency_table import data_path

LENGTH = 45


def test_its_file_says_how_it_was_made() -> None:
    network, about = load_network(data_path(GENERAL))
    assert about["task"] == "one-for-all" and corrects(about) and reads_relative(about)
    assert about["table_digest"] == ig.make(8)[0].table.digest, "the table has changed: train it again"
    assert set(about["plan"]) <= {one.name for one in dataclasses.fields(LoadPlan)}
    assert about["config"]["memory"] == ("none" if network.gru is None else "gru")
    assert about.get("budget", 0) >= 0 and about["last_evaluation"]["env_steps"] > 0 and about["made_by"]


@pytest.mark.slow
def test_step_by_step_in_the_proxy_and_in_a_rollout_it_does_the_same() -> None:
    problem = ig.problem(7)
    seeds = np.arange(2)
    rolled = ig.rollout(problem.env, problem.params, ig.policies.general_for(problem), seeds, length=LENGTH).action
    single = ig.SingleStep(problem.env, problem.params)
    asked = {
        "by name": PolicyRunner(ig.policies.policy_of("general", problem)),
        "the proxy's": PolicySource(problem, leases=True).load("general"),
    }
    for runner in asked.values():
        for episode in (1, 0):  # the second finds nothing left of the first
            outcome = single.reset(episode)
            runner.reset(episode)
            for t in range(LENGTH):
                action = runner.ask(ServeObservation(**outcome.observation))
                wanted = jax.tree.map(lambda x, t=t, e=episode: np.asarray(x)[t, e], rolled)
                for name, knob in KNOBS.items():
                    tolerance = 1e-5 if knob.kind == "float" else 0
                    assert getattr(action, name) == pytest.approx(getattr(wanted, name), rel=tolerance), (t, name)
                outcome = single.step(outcome.state, single.pack_action(action))
