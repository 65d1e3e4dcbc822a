"""Pictures of the scenario pages: one episode under the best static action, the tuned controller, and what was trained.

Of the held-out episodes it is the one whose load differs most between its first and its second half; on a task that is
drawn, of those in which a second GPU may be leased.

    python docs/scenario_pictures.py       # docs/images/drafts_by_load.svg, second_gpu.svg, one_for_all.svg
    python docs/scenario_pictures.py 8     # one of them

Settings of the controller are those that `python -m training headroom --task N --out docs/headroom/taskN` found;
trained is the policy that ships for the task.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import numpy as np  # noqa: E402

import inferencegym_jax as ig  # noqa: E402
from inferencegym_jax.adapters.relative_views import env_and_policy  # noqa: E402
from inferencegym_jax.figure_style import COLOURS, STYLE  # noqa: E402
from inferencegym_jax.tasks.draws import drawn  # noqa: E402
from training import lanes, rivals  # noqa: E402
from training.headroom import EPISODES, played, published, tuned_plan  # noqa: E402
from training.scenario_plot import episode_figure, steepest  # noqa: E402

OUT = ROOT / "docs" / "images"
NAMES = {6: "drafts_by_load", 7: "second_gpu", 8: "one_for_all"}
TRAINED = {6: "trained", 7: "trained", 8: "general"}


def draw(task: int) -> None:
    """One task's picture."""
    problem = ig.problem(task)
    steps, draws = problem.spec.episode_length, problem.env.draws
    held_out, objectives = rivals.test_seeds(EPISODES), None
    if draws is not None:
        choices = jax.jit(jax.vmap(draws.choice))(held_out)
        held_out = held_out[np.asarray(choices.may_lease)]
    loads = rivals.true_load(problem, held_out, ahead=1)
    chosen = steepest(loads)
    seeds, load = held_out[chosen : chosen + 1], loads[chosen]
    if draws is not None:
        own = drawn(draws, problem.params, jax.numpy.asarray(seeds[0]))
        objectives = [np.asarray(x).tolist() for x in (own.slo_ms, own.engine.slo_tpot_ms)]
    env, policy = env_and_policy(TRAINED[task], problem)
    held = lanes.of_sequences(lanes.held(problem.best_static, 1, steps))
    followed = lanes.of_plans([tuned_plan(published(task))], steps)
    played_by = {
        "best static": (lanes.episodes_of(problem, held, seeds), COLOURS["best_static"]),
        "best reactive": (lanes.episodes_of(problem, followed, seeds), COLOURS["reactive"]),
        "trained": (ig.rollout(env, problem.params, policy, seeds), COLOURS["trained"]),
    }
    lines = {}
    for name, (trajectory, colour) in played_by.items():
        score = float(played(problem, trajectory).columns["score"][0])
        lines[f"{name}, score {score:.3f}"] = (trajectory, colour)
    title = f"Task {task}, {problem.spec.title}, held-out episode {int(seeds[0])}"
    drawing = episode_figure(Figure(figsize=(7.4, 6.2)), problem, load, lines, title, objectives)
    drawing.savefig(OUT / f"{NAMES[task]}.svg", metadata={"Date": None})


def main() -> None:
    """Draw all of them, or those of the tasks that are named."""
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": "inferencegym", "svg.fonttype": "none"}):
        for task in map(int, sys.argv[1:] or NAMES):
            draw(task)


if __name__ == "__main__":
    main()
