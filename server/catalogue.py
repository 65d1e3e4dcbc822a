"""What the server can tell about itself: tasks, spaces, the latency table, the baseline's scores."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import inferencegym_jax as ig
from inferencegym_jax.fleet.grading import fleet_formula
from inferencegym_jax.fleet.making import fleet_tasks, is_anywhere
from inferencegym_jax.models import EPISODE_LENGTH
from inferencegym_jax.policies import NAMES, has_trained
from inferencegym_jax.policies.names import DESCRIPTIONS
from inferencegym_jax.scoring.episode_log import is_scored_by_request
from inferencegym_jax.scoring.formula import CLASSES, Component, formula
from inferencegym_jax.tasks import CONFIG_KEYS, calibration
from server import leaderboard
from server.first_screen import first_screen
from server.fleet_rollouts import fleet_policies
from server.kinds import ENGINE, FLEET, kind_of
from server.programs import Programs
from server.schema_parts import Config, StateModel
from server.settings import Settings

BASELINE_SEED = 0


def tasks(programs: Programs) -> list[dict[str, Any]]:
    """id, name, difficulty, description and active_actions of every task, and what else the page shows.

    Args:
        programs: with a request log of one's own there are no fleets.
    """
    fleets = [] if programs.trace is not None else fleet_tasks().values()
    return [_engine_entry(spec) for spec in ig.task_specs().values()] + [_fleet_entry(spec) for spec in fleets]


def _entry(spec: ig.TaskSpec | ig.FleetSpec) -> dict[str, Any]:
    """What both kinds of tasks say of themselves."""
    kind = kind_of(spec.id)
    return {
        "id": spec.id,
        "name": spec.name,
        "title": spec.title,
        "difficulty": spec.difficulty,
        "description": spec.description,
        "kind": kind.name,
        "step_s": kind.step_s,
        "active_actions": list(spec.active_knobs),
    }


def _engine_entry(spec: ig.TaskSpec) -> dict[str, Any]:
    has = {name: name != "trained" or has_trained(spec.id) for name in NAMES}
    return _entry(spec) | {
        "episode_length": spec.episode_length,
        "slo_ttft_ms": [None if math.isinf(x) else x for x in spec.slo_ttft_ms],
        "slo_tpot_ms": tpot_objective(spec),
        "class_shares": list(spec.class_shares),
        "memory_limit_gb": spec.memory_limit_gb,
        "cost_budget": spec.cost_budget,
        "reward_weights": dict(spec.reward),
        "policies": {name: DESCRIPTIONS[name] for name, there in has.items() if there},
        "scored_by_request": is_scored_by_request(spec),
        "components": _components(formula(spec)),
    }


def _fleet_entry(spec: ig.FleetSpec) -> dict[str, Any]:
    drawn = is_anywhere(spec.id)  # its objectives are each episode's own
    return _entry(spec) | {
        "episode_length": spec.decisions,
        "slo_ttft_ms": [None if drawn else spec.slo_ttft_ms, None, None],
        "slo_tpot_ms": None if drawn else spec.slo_tpot_ms,
        "class_shares": [1.0, 0.0, 0.0],
        "memory_limit_gb": None,
        "cost_budget": None,
        "reward_weights": {},
        "policies": fleet_policies(spec),
        "scored_by_request": True,
        "components": _components(fleet_formula(spec.late_price)),
    }


def _components(parts: Mapping[str, Component]) -> dict[str, Any]:
    return {name: {"weight": part.weight, "meaning": part.meaning} for name, part in parts.items()}


def tpot_objective(spec: ig.TaskSpec) -> float | list[float | None] | None:
    """The objective on TPOT (ms): one, by class where they differ, None where there is none."""
    objectives = [None if math.isinf(x) else x for x in spec.tpot_objectives_ms]
    return objectives[0] if len(set(objectives)) == 1 else objectives


def trained_policies() -> dict[str, bool]:
    """Whether a trained policy ships, by the task's name."""
    return {spec.name: has_trained(spec.id) for spec in ig.task_specs().values()}


def policies() -> dict[str, bool]:
    """The names that POST /rollout takes, and whether this server has them for any task."""
    return dict.fromkeys(NAMES, True) | {"trained": any(trained_policies().values())}


def trace(programs: Programs) -> dict[str, Any] | None:
    """The request log that every task replays, where the server has one."""
    log = programs.trace
    if log is None:
        return None
    return {
        "name": log.name,
        "digest": log.digest,
        "requests": log.requests,
        "seconds": log.seconds,
        "requests_per_sec": log.rate,
        "mean_prompt_tokens": log.mean_prompt,
        "mean_output_tokens": log.mean_output,
        "notices": list(log.notices),
    }


def info(programs: Programs, settings: Settings) -> dict[str, Any]:
    """Spaces, reward weights, provenance of the table, limits: the answer of GET /info."""
    table, specs = programs.table, ig.task_specs().values()
    problems = [programs.program(spec.id).problem for spec in specs if programs.is_found(spec.id)]
    return {
        "name": "inferencegym-jax",
        "version": ig.__version__,
        **ENGINE.schemas(),
        "fleet": FLEET.schemas(),
        "classes": list(CLASSES),
        "state": StateModel.model_json_schema(),
        "episode_length": EPISODE_LENGTH,
        "reward_weights": {spec.name: dict(spec.reward) for spec in specs},
        "config_keys": list(CONFIG_KEYS),
        "config": Config.model_json_schema(),
        "policies": policies(),
        "policy_descriptions": dict(DESCRIPTIONS),
        "trained_policies": trained_policies(),
        "best_static": {problem.spec.name: problem.best_static.to_dict() for problem in problems},
        "table": {
            "name": table.name if settings.table else "traces_llama3_8b.parquet (shipped)",
            "digest": table.digest,
            "axes": {name: list(values) for name, values in table.axes.items()},
            "locked_knobs": list(table.locked_knobs),
            "metadata": dict(table.metadata),
        },
        "trace": trace(programs),
        "links": links(settings),
        "first_screen": first_screen(programs),
        "limits": {
            "rate_limit": settings.rate_limit,
            "max_body_bytes": settings.max_body_bytes,
            "session_idle_s": settings.session_idle_s,
            "session_capacity": None if settings.redis_url else settings.session_capacity,
            "ws_sessions": settings.ws_sessions,
            "rollout_episodes": settings.rollout_episodes,
            "rollout_trajectories": settings.rollout_trajectories,
        },
    }


def links(settings: Settings) -> dict[str, str | None]:
    """Where the page leads to: repository, documentation, leaderboard; relative addresses are the server's own."""
    return {
        "repository": settings.repository_url,
        "documentation": settings.documentation_url or "docs",
        "leaderboard": "leaderboard" if leaderboard.SOURCE.is_file() else None,
    }


def baseline(programs: Programs, known: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """Scores of the fixed agent on every engine's task, seed 0, with the ranges in which they are expected to lie.

    Steps the compiled step rather than a vmapped rollout: the same numbers in a tenth of a second, without the three
    seconds that compiling a rollout would add to every start.

    Args:
        programs: of their tasks those that still need a search are left out, and named.
        known: scores of earlier calls, by task; gets those of this one.
    """
    action = ig.ServeAction().to_dict()
    waiting = []
    for spec in ig.task_specs().values():
        if spec.id in known:
            continue
        if not programs.is_found(spec.id):
            waiting.append(spec.name)
            continue
        program = programs.program(spec.id)
        log, oom_share = programs.replay(program, BASELINE_SEED, [action] * spec.episode_length)
        grade = ig.grade(spec.id, log, program.problem.normalisers)
        shipped = calibration()["tasks"].get(spec.name, {}).get("baseline", {})
        known[spec.id] = {
            "task_id": spec.id,
            "name": spec.name,
            "score": grade["score"],
            "breakdown": grade["breakdown"],
            "gpu_seconds": grade.get("outcome", {}).get("gpu_seconds"),
            "total_reward": math.fsum(entry["reward"] for entry in log),
            "oom_share": oom_share,
            "expected_range": shipped.get("expected_range") if programs.trace is None else None,
        }
    scores = [known[task] for task in sorted(known)]
    return {"agent": "baseline", "action": action, "seed": BASELINE_SEED, "tasks": scores, "not_asked_for": waiting}
