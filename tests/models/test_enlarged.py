"""Knobs and a field that only ``models/`` and the physics know of are everywhere.

In a copy of the sources with three more knobs and one more observation field, spaces, packing, draws, heads, schemas,
help, prompts and shipped policies follow.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import inferencegym_jax as ig
from inferencegym_jax.models import KNOBS, OBSERVATION

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]

NEW_KNOBS = """    "token_budget": Knob(
        "int", 2048, "most tokens of one iteration", 256, 8192, unit="tokens", title="Token budget", scale="log"
    ),
    "prefix_cache": Knob("bool", False, "shared prefixes are kept", title="Prefix cache", labels=("off", "on")),
    "page_size": Knob("choice", 16, "tokens of a KV page", choices=(8, 16, 32), unit="tokens", title="KV page"),
}
"""
NEW_FIELD = """    "running_requests": ObservationField(
        low=0, high=512, unit="requests", scale="log", description="requests in the decode batch"
    ),
}
"""
EDITS: dict[str, list[tuple[str, str]]] = {
    "inferencegym_jax/models/action.py": [
        ("}\n\n\n@jax.tree_util.register_dataclass", NEW_KNOBS + "\n\n@jax.tree_util.register_dataclass"),
        (
            '    quant_tier: Scalar = KNOBS["quant_tier"].default\n',
            '    quant_tier: Scalar = KNOBS["quant_tier"].default\n'
            '    token_budget: Scalar = KNOBS["token_budget"].default\n'
            '    prefix_cache: Scalar = KNOBS["prefix_cache"].default\n'
            '    page_size: Scalar = KNOBS["page_size"].default\n',
        ),
    ],
    "inferencegym_jax/models/observation.py": [
        ("}\n\n\nFLAT_OBSERVATION_SIZE", NEW_FIELD + "\n\nFLAT_OBSERVATION_SIZE"),
        ("    cost_so_far: Scalar\n", "    cost_so_far: Scalar\n    running_requests: Scalar\n"),
    ],
    "inferencegym_jax/physics/observation.py": [
        (
            '        "cost_so_far": cost_so_far,\n',
            '        "cost_so_far": cost_so_far,\n        "running_requests": workload.running,\n',
        ),
    ],
}

PROGRAM = """
import json
import jax, jax.numpy as jnp, numpy as np
import inferencegym_jax as ig
from inferencegym_jax.adapters.wrappers import DiscreteAction, FlatAction, FlatObservation
from inferencegym_jax.agents.prompts import action_schema, observation_text
from inferencegym_jax.encoding import action_from_box, box_from_action
from inferencegym_jax.episodes.single_step import SingleStep, read_actions
from inferencegym_jax.episodes.static_search import static_actions
from inferencegym_jax.models import KNOBS
from inferencegym_jax.policies import network
from server.schema_parts import ActionModel, ObservationBody
from training.distribution import log_prob_and_entropy
from training.networks import starting_bias

env, params = ig.make(4)
free = params.replace(active=np.ones(len(KNOBS), bool))
action = ig.ServeAction(token_budget=512, prefix_cache=True, page_size=32)
step = SingleStep(env, free)
outcome = step.step(step.reset(0).state, step.pack_action(action))
steps = ig.rollout(env, free, ig.policies.random, np.arange(256), length=2)
trained = ig.rollout(env, free, ig.policies.trained(4), np.arange(8), length=2).action
outputs = jnp.zeros((7, network.HEAD_SIZE))
raw = network.sample(outputs, jnp.zeros(3), jax.random.split(jax.random.key(0), 7))
log_prob, entropy = log_prob_and_entropy(outputs, jnp.zeros(3), raw, jnp.ones(len(KNOBS), bool))
bad = []
for knobs in ({"token_budget": 1}, {"page_size": 9}, {"prefix_cache": 1}):
    try:
        step.pack_action(ig.ServeAction(**knobs))
    except (TypeError, ValueError) as error:
        bad.append(str(error))
print(json.dumps({
    "space": list(vars(env.action_space(params).sample(jax.random.key(1)))),
    "locked": list(env.action_space(params).locked),
    "box": [FlatAction(env).action_space().shape[0], FlatObservation(env).observation_space().shape[0]],
    "there_and_back": action_from_box(box_from_action(action.as_arrays())).to_dict() == action.to_dict(),
    "discrete": DiscreteAction(env, free).num_actions,
    "packed": read_actions(step.pack_action(action)),
    "observation": outcome.observation,
    "random": {name: np.asarray(getattr(steps.action, name))[0].tolist() for name in KNOBS},
    "trained": {name: np.asarray(getattr(trained, name)).tolist() for name in KNOBS},
    "network": [network.HEAD_SIZE, list(raw.shape), bool(np.isfinite(log_prob + entropy).all())],
    "start": len(starting_bias(ig.ServeAction())),
    "static": sorted({one["page_size"] for one in static_actions(env, free, {"batch_size": [8], "kv_budget": [1.0]})}),
    "schema": ActionModel.model_json_schema()["properties"],
    "observed": ObservationBody.model_json_schema()["properties"],
    "prompt": action_schema(),
    "told": observation_text(outcome.observation, action, None, list(KNOBS)),
    "bad": bad,
}))
"""


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources with the edits."""
    folder = tmp_path_factory.mktemp("enlarged")
    for name in ("inferencegym_jax", "server", "training"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "data").symlink_to(ROOT / "data")
    for path, edits in EDITS.items():
        text = (folder / path).read_text()
        for old, new in edits:
            assert text.count(old) == 1, (path, old)
            text = text.replace(old, new)
        (folder / path).write_text(text)
    return folder


def run(folder: Path, *words: str) -> str:
    env = os.environ | {"PYTHONPATH": str(folder), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, *words], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def enlarged(sources: Path) -> dict[str, Any]:
    """What the copy says of itself."""
    return json.loads(run(sources, "-c", PROGRAM).splitlines()[-1])


KNOBS_THERE = [*KNOBS, "token_budget", "prefix_cache", "page_size"]


def test_spaces_and_encodings_have_them(enlarged: dict[str, Any]) -> None:
    assert enlarged["space"] == KNOBS_THERE
    assert set(enlarged["locked"]) >= {"token_budget", "prefix_cache", "page_size"}  # no task leaves them free yet
    assert enlarged["box"] == [8, sum(field.size for field in OBSERVATION.values()) + 1]
    assert enlarged["there_and_back"]
    assert enlarged["discrete"] == np.prod([len(knob.options) for knob in KNOBS.values()]) * 2 * 2 * 3


def test_a_step_from_python_packs_and_checks_them(enlarged: dict[str, Any]) -> None:
    action = {**ig.ServeAction().to_dict(), "token_budget": 512, "prefix_cache": True, "page_size": 32}
    assert enlarged["packed"] == [action]
    assert list(enlarged["observation"]) == [*OBSERVATION, "running_requests"]
    budget, page, cache = enlarged["bad"]
    assert "token_budget = 1: must be a whole number from 256 to 8192" in budget
    assert "page_size = 9: must be one of 8, 16, 32" in page and "prefix_cache = 1: must be true or false" in cache


def test_random_draws_them_and_leaves_the_others_as_they_were(enlarged: dict[str, Any]) -> None:
    env, params = ig.make(4)
    here = ig.rollout(env, params, ig.policies.random, np.arange(256), length=2).action
    for name in KNOBS:
        assert enlarged["random"][name] == np.asarray(getattr(here, name))[0].tolist(), name
    drawn = {name: np.asarray(values) for name, values in enlarged["random"].items()}
    assert drawn["token_budget"].min() < 600 and drawn["token_budget"].max() > 7800
    assert set(drawn["page_size"]) == {8, 16, 32} and 90 < drawn["prefix_cache"].sum() < 166
    pairs = np.corrcoef([drawn[name] for name in ("token_budget", "prefix_cache", "page_size", "batch_size")])
    assert np.abs(pairs - np.eye(4)).max() < 5 / 16


def test_networks_have_heads_for_them_and_shipped_policies_still_play(enlarged: dict[str, Any]) -> None:
    heads = sum(max(len(knob.choices), 1) for knob in KNOBS.values()) + 1 + 1 + 3
    assert enlarged["network"] == [heads, [7, 8], True] and enlarged["start"] == heads
    assert np.unique(enlarged["trained"]["token_budget"]).tolist() == [2048]
    assert np.unique(enlarged["trained"]["page_size"]).tolist() == [16]
    assert not np.any(enlarged["trained"]["prefix_cache"])
    env, params = ig.make(4)
    here = ig.rollout(env, params, ig.policies.trained(4), np.arange(8), length=2).action
    assert enlarged["trained"]["batch_size"] == np.asarray(here.batch_size).tolist()
    assert enlarged["static"] == [8, 16, 32]


def test_schemas_prompts_and_help_tell_them(enlarged: dict[str, Any], sources: Path) -> None:
    schema = enlarged["schema"]["token_budget"]
    assert (schema["minimum"], schema["maximum"], schema["default"]) == (256, 8192, 2048)
    assert (schema["title"], schema["unit"], schema["scale"]) == ("Token budget", "tokens", "log")
    assert enlarged["schema"]["page_size"]["enum"] == [8, 16, 32]
    assert enlarged["observed"]["running_requests"]["maximum"] == 512
    assert enlarged["prompt"]["required"] == KNOBS_THERE
    assert "running_requests: " in enlarged["told"] and '"page_size": 32' in enlarged["told"]
    listed = run(sources, "-m", "inferencegym_jax.cli", "tasks")
    assert "token_budget" in listed and "one of 8, 16, 32" in listed
