"""The command line ``inferencegym``; needs the extra ``cli`` (typer, rich).

One module a group of commands; ``output`` holds what all share: tables, JSON, errors and exit codes. Commands parse,
call the library and print; they compute nothing themselves.
"""

from __future__ import annotations

import importlib.util
import os
import sys

NEEDED = ("typer", "rich")


def main() -> int:
    """Run the command line; the entry point of ``inferencegym``.

    Returns:
        0: done; 1: done, and the answer is no (a table refused, a log not verified, an SLO that nothing meets); 2: the
        command could not be run as given.
    """
    absent = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if absent:
        print(
            f"inferencegym: the command line needs {' and '.join(absent)}; install them with\n"
            "    pip install 'inferencegym-jax[cli]'",
            file=sys.stderr,
        )
        return 2
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # the simulator is small: a GPU would only add start-up time
    from inferencegym_jax.cli.app import run

    return run(sys.argv[1:])
