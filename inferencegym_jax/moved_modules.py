"""Modules that moved into rooms in version 0.2, importable by their old names for one version, with a warning.

``import inferencegym_jax.wrappers`` gives the module that is now ``inferencegym_jax.adapters.wrappers``. To be
removed in version 0.3.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
import warnings
from collections.abc import Sequence
from types import ModuleType

PACKAGE = "inferencegym_jax"

NEW_NAMES: dict[str, str] = {
    "bench_results": "table.vllm_bench",
    "choice": "recommend.choice",
    "client": "adapters.client",
    "configuration_search": "recommend.search",
    "engine": "physics.open_loop",
    "engine_flags": "recommend.engine_flags",
    "engine_models": "models.engine",
    "episode_statistics": "scoring.aggregates",
    "grader": "scoring.grader",
    "gymnasium_env": "adapters.gymnasium_env",
    "http_env": "adapters.http_env",
    "interpolation": "numerics.interpolation",
    "live.compare": "live.trial.request",
    "live.control": "live.proxy.app",
    "live.gate": "live.loop.gate",
    "live.live_env": "live.trial.live_env",
    "live.measured_table": "live.measure.table",
    "live.outcome": "live.trial.outcome",
    "live.policy": "policies.policy_runner",
    "live.replay": "live.trial.prediction",
    "live.simulated": "live.trial.simulated",
    "live.streaming": "live.server.streaming",
    "live.traffic": "live.trial.traffic",
    "log_replay": "recommend.replay",
    "log_requests": "recommend.log_requests",
    "measured_runs": "fidelity.measured_runs",
    "objects": "adapters.stateful",
    "packed": "episodes.single_step",
    "parallel": "episodes.parallel",
    "random": "numerics.draws",
    "reward": "scoring.reward",
    "serving_quality": "recommend.quality",
    "simulator": "physics.closed_loop",
    "solver": "episodes.static_search",
    "staging": "numerics.compile_units",
    "trace_files": "traffic.log_files",
    "traces": "traffic.request_log",
    "trained": "policies.policy_file",
    "validation": "fidelity.validation",
    "wire": "adapters.client_messages",
    "workload": "traffic.calendar",
    "wrappers": "adapters.wrappers",
}
"""Old module name -> new one, both below the package. ``table``, ``traffic``, ``policies`` and ``recommend`` are rooms
now; ``rollout`` would hide the function of that name, and ``fluid`` and ``open_loop`` gave way to other physics."""


class _Alias(importlib.abc.Loader):
    def __init__(self, new: str):
        self.new = new

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        module = importlib.import_module(self.new)
        self.own_spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self.own_spec  # the import system has just written the alias's there


class _OldNames(importlib.abc.MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        new = NEW_NAMES.get(fullname.removeprefix(f"{PACKAGE}.")) if fullname.startswith(f"{PACKAGE}.") else None
        if new is None:
            return None
        warnings.warn(
            f"{fullname} is now {PACKAGE}.{new}; the old name goes in version 0.3", DeprecationWarning, stacklevel=2
        )
        return importlib.machinery.ModuleSpec(fullname, _Alias(f"{PACKAGE}.{new}"))


def install() -> None:
    """Make the old names importable; asked last, after every real module, and once."""
    if not any(isinstance(finder, _OldNames) for finder in sys.meta_path):
        sys.meta_path.append(_OldNames())
