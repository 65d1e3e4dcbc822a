"""The law of the house: data flows one way through the rooms, and a folder imports only those before it."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = "inferencegym_jax"

ROOMS = (
    "models",
    "numerics",
    "figure_style",
    "spaces",
    "encoding",
    "table",
    "hardware",
    "traffic",
    "physics",
    "tasks",
    "scoring",
    "environment",
    "episodes",
    "fleet",
    "fidelity",
    "registry",
    "policies",
    "adapters",
    "verification",
    "recommend",
    "agents",
    "live",
    "cli",
)
"""The order of the rooms: one may import those before it, never those after it."""

DOORS = {"__init__", "_version", "moved_modules"}  # the package's front door, and what it needs
OUTSIDE = {  # what stands above the library, and which of them each may import
    "server": {"server"},
    "training": {"training"},
    "benchmarks": {"benchmarks", "server", "training", "tests", "data"},
    LIBRARY: set(),
}


def imports(path: Path) -> set[str]:
    """Dotted names that a file imports, also inside functions and under TYPE_CHECKING."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def room_of(path: Path) -> str:
    return path.relative_to(ROOT / LIBRARY).parts[0].removesuffix(".py")


def file_of(name: str) -> str:
    """The file that a dotted name of the library stands in."""
    parts = name.split(".")
    while parts:
        for candidate in (Path(*parts).with_suffix(".py"), Path(*parts) / "__init__.py"):
            if (ROOT / candidate).is_file():
                return str(candidate)
        parts.pop()
    return name


def test_every_room_is_in_the_order():
    there = {room_of(path) for path in (ROOT / LIBRARY).rglob("*.py")} - DOORS
    assert there == set(ROOMS)


def test_a_room_imports_only_those_before_it():
    wrong = []
    for path in sorted((ROOT / LIBRARY).rglob("*.py")):
        room = room_of(path)
        if room in DOORS:
            continue
        for name in sorted(imports(path)):
            parts = name.split(".")
            if parts[0] != LIBRARY or len(parts) < 2 or parts[1] == room:
                continue
            target = parts[1]
            if target in DOORS or target not in ROOMS:  # the package itself: everything
                if target == "_version" or parts[1] == "__version__":
                    continue
                wrong.append(f"{path.relative_to(ROOT)} imports {name}: name the room")
            elif ROOMS.index(target) > ROOMS.index(room):
                wrong.append(f"{path.relative_to(ROOT)} ({room}) imports {file_of(name)} ({target})")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("folder", sorted(OUTSIDE))
def test_what_stands_above_is_not_imported_from_below(folder: str):
    above = {"server", "training", "benchmarks", "tests", "data", "docs"} - OUTSIDE[folder]
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sorted((ROOT / folder).rglob("*.py"))
        for name in sorted(imports(path))
        if name.split(".")[0] in above
    ]
    assert not wrong, "\n".join(wrong)


def test_no_module_of_the_library_is_long():
    long = {
        str(p.relative_to(ROOT)): n for p in (ROOT / LIBRARY).rglob("*.py") if (n := p.read_text().count("\n")) > 350
    }
    assert not long
