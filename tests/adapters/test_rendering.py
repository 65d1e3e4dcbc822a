"""What environments show: a line, the timeline as a picture, the picture in a window; no pyplot, no text over text."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import gymnasium
import numpy as np
import pytest

from inferencegym_jax.adapters.gymnasium_env import InferenceGymVectorEnv
from inferencegym_jax.models import KNOBS
from tests.tools.figure_texts import collisions, texts

pytest.importorskip("matplotlib", reason="needs the extra render")

from inferencegym_jax.adapters import timeline  # noqa: E402

TENANTS = "inferencegym_jax/AdversarialMultiTenant-v0"


@pytest.fixture(scope="module")
def played() -> Any:
    env: Any = gymnasium.make(TENANTS, render_mode="rgb_array")
    env.reset(seed=1)
    for row in np.random.default_rng(0).uniform(-1, 1, (60, len(KNOBS))).astype(np.float32):
        env.step(row)
    return env


def test_the_picture_is_drawn_and_goes_on(played: Any) -> None:
    picture = played.render()
    assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3
    assert picture.std() > 10  # not blank
    played.step(np.zeros(len(KNOBS), np.float32))
    assert (played.render() != picture).any()


def test_no_two_texts_lie_over_each_other(played: Any) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 6.4), layout="constrained")
    axes = figure.subplots(len(timeline.PANELS), 1, sharex=True, squeeze=False)
    timeline.draw(axes, [played.unwrapped._renderer.timeline()], ["#2457d6"])
    assert len(texts(figure)) > 20
    assert collisions(figure) == []


def test_pyplot_is_not_touched() -> None:
    code = (
        "import sys, gymnasium, numpy as np, inferencegym_jax.adapters.gymnasium_env\n"
        "from inferencegym_jax.adapters import rendering\n"
        f"env = gymnasium.make({TENANTS!r}, render_mode='rgb_array').unwrapped\n"
        "assert env._renderer.render().shape[2] == 3 and 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_line_and_the_pictures_of_a_vector_environment() -> None:
    envs = InferenceGymVectorEnv(2, 3, render_mode="ansi", max_episode_steps=2)
    envs.reset(seed=0)
    envs.step(np.zeros((2, len(KNOBS)), np.float32))
    lines = envs.render()
    assert lines is not None and [line.startswith("t   1") for line in lines] == [True, True] and lines[0] != lines[1]
    envs.step(np.zeros((2, len(KNOBS)), np.float32))
    assert envs.render() == ("no step yet", "no step yet")  # the next episodes
    assert InferenceGymVectorEnv(2, 3).render() is None


def test_the_window_is_drawn_in(monkeypatch: pytest.MonkeyPatch) -> None:
    pygame = pytest.importorskip("pygame", reason="needs the extra render")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    env = gymnasium.make(TENANTS, render_mode="human")
    env.reset(seed=1)
    env.step(np.zeros(len(KNOBS), np.float32))
    shown = pygame.surfarray.array3d(pygame.display.get_surface())
    assert shown.std() > 10 and env.render() is None
    env.close()
    assert not pygame.display.get_init()
