"""Is every public name of the library typed? `python tests/tools/public_types.py`, part of `make lint`.

Asks pyright what a type checker in a user's project sees (`--verifytypes`) and prints each public name whose type is
missing or left to inference; exits 1 if there is one. The applications on top, `cli` and `live`, are not counted, and
types of other packages (jax, gymnasium) are theirs; so is the unknown base of a class that extends a package which is
not installed here (stable-baselines3 brings torch).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

PACKAGE = "inferencegym_jax"
APPLICATIONS = (f"{PACKAGE}.cli.", f"{PACKAGE}.live.")
BASE_UNKNOWN = {"Type of metaclass unknown", "Type of base class unknown"}


def untyped() -> tuple[int, list[str]]:
    """(public names counted, those without a known and stated type)."""
    folder = str(Path(sys.executable).parent)  # pyright asks the first python on the path where packages are
    found = subprocess.run(
        [sys.executable, "-m", "pyright", "--verifytypes", PACKAGE, "--ignoreexternal", "--outputjson"],
        cwd=Path(__file__).resolve().parents[2],
        env=os.environ | {"PATH": os.pathsep.join((folder, os.environ.get("PATH", "")))},
        capture_output=True,
        text=True,
    )
    try:
        symbols = json.loads(found.stdout[found.stdout.index("{") :])["typeCompleteness"]["symbols"]
    except (ValueError, KeyError) as error:
        raise SystemExit(f"pyright gave no report: {found.stdout[-500:]}{found.stderr[-500:]}") from error
    counted = [s for s in symbols if s["isExported"] and not s["name"].startswith(APPLICATIONS)]
    return len(counted), sorted(
        s["name"]
        for s in counted
        if s["isTypeAmbiguous"]
        or (not s["isTypeKnown"] and {d["message"] for d in s.get("diagnostics", ())} != BASE_UNKNOWN)
    )


if __name__ == "__main__":
    count, names = untyped()
    print(*names, f"{count - len(names)} of {count} public names are typed", sep="\n")
    sys.exit(1 if names or not count else 0)
