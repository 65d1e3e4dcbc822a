"""Imports as in an environment that holds some requirements and nothing else, without making one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]

BLOCKER = """
import importlib.metadata as metadata, sys
allowed, ours = (set(words.split(",")) for words in sys.argv[1:3])
owners = {name: found for name, found in metadata.packages_distributions().items() if name not in ours}

class OnlyTheExtras:
    def find_spec(self, name, path=None, target=None):
        found = owners.get(name.partition(".")[0])
        if found and not {one.lower().replace("_", "-").replace(".", "-") for one in found} & allowed:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, OnlyTheExtras())
"""


def closure(requirements: Iterable[Requirement]) -> set[str]:
    """Names of all packages that these requirements reach, by the metadata of this environment."""
    reached: set[tuple[str, str]] = set()
    todo = [(canonicalize_name(r.name), extra) for r in requirements for extra in ("", *r.extras)]
    while todo:
        name, extra = todo.pop()
        if (name, extra) in reached:
            continue
        reached.add((name, extra))
        try:
            lines = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        for requirement in map(Requirement, lines):
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                todo += [(canonicalize_name(requirement.name), e) for e in ("", *requirement.extras)]
    return {name for name, _ in reached}


def run(code: str, requirements: Iterable[Requirement], alone: Iterable[str] = ()) -> subprocess.CompletedProcess[str]:
    """Run a program where nothing can be imported but what these requirements bring.

    Args:
        code: the program, run in the checkout.
        requirements: with all that they need.
        alone: packages that are there without what they need.
    """
    there = closure(requirements) | set(alone) | {"inferencegym-jax", "pip", "setuptools"}
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    ours = {path.name for path in ROOT.iterdir() if path.is_dir()}  # some wheels bring `benchmarks` too
    words = [sys.executable, "-c", BLOCKER + code, ",".join(sorted(there)), ",".join(sorted(ours))]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, env=environment)
