"""Every command in the pages is one that a fresh clone has: its program, its subcommand and its options exist."""

import ast
import importlib
import importlib.util
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer.main

from inferencegym_jax.cli.app import app, run
from tests.tools.page_commands import OTHERS, ROOT, Command, blocks, commands, commands_of, pages

EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
MAKEFILE = (ROOT / "Makefile").read_text()
COMMANDS = sorted({str(c): c for page in pages() for c in commands(page)}.items())
FREE = "..."  # stands for what a reader fills in

# Commands that are run as they stand, because they are quick and write nothing: (page, command). Python's are run by
# tests/release/test_wheel.py (README), tests/docs and the tests of their rooms.
QUICK = [
    ("docs/quickstart/student.md", "inferencegym tasks"),
    ("docs/quickstart/student.md", "inferencegym rollout --task 1 --policy batch_size=32"),
    ("docs/quickstart/student.md", "inferencegym rollout --task 2 --policy batch_size=96,kv_budget=0.1"),
    ("docs/cli.md", "inferencegym compare --task 1 --policies baseline batch_size=256,kv_budget=0.5 --episodes 32"),
]
SLOW = [
    ("docs/quickstart/judge.md", "inferencegym compare --task 1 --policies baseline best_static reactive"),
    ("README.md", "inferencegym recommend --trace data/example_requests.csv --slo-ttft-ms 500 --memory-gb 40"),
    ("docs/quickstart/judge.md", "inferencegym compare --task 3 --policies baseline best_static reactive trained"),
]


def test_the_pages_hold_commands():
    programs = {command.program for _, command in COMMANDS}
    assert programs >= {"inferencegym", "python", "make", "pip"} and len(COMMANDS) > 100


def options(words: tuple[str, ...]) -> list[str]:
    """The options among words, without their values."""
    return [word.split("=")[0] for word in words if re.match(r"--?[a-zA-Z]", word)]


def check_click(group: Any, command: Command, words: tuple[str, ...]) -> None:
    """Walk down to the subcommand; it must have the options."""
    rest = list(words)
    while hasattr(group, "commands"):  # a group; typer has classes of its own
        own = {name: parameter for parameter in group.params for name in parameter.opts}
        while rest and rest[0] in own:  # options of the group itself
            takes = not own[rest.pop(0)].is_flag
            del rest[: int(takes)]
        if not rest or rest[0] == FREE:
            return
        assert rest[0] in group.commands, f"{command}: no subcommand {rest[0]}; there are {', '.join(group.commands)}"
        group = group.commands[rest.pop(0)]
    known = {name for parameter in group.params for name in (*parameter.opts, *parameter.secondary_opts)}
    unknown = [option for option in options(tuple(rest)) if option not in known | {"--help"}]
    assert not unknown, f"{command}: no option {', '.join(unknown)}; there are {', '.join(sorted(known))}"


def check_script(file: Path, command: Command, words: tuple[str, ...]) -> None:
    """The options must be among the strings or, for typer, among the parameters of the script."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    strings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    arguments = {f"--{node.arg.replace('_', '-')}" for node in ast.walk(tree) if isinstance(node, ast.arg)}
    known = strings | (arguments if "typer" in file.read_text(encoding="utf-8") else set()) | {"--help"}
    unknown = [option for option in options(words) if option not in known]
    assert not unknown, f"{command}: {file.relative_to(ROOT)} knows no {', '.join(unknown)}"


def check_python(command: Command, words: tuple[str, ...]) -> None:
    """``python -m module`` or ``python file.py``, with its options."""
    if words[0] != "-m":
        assert (ROOT / words[0]).is_file(), f"{command}: no file {words[0]}"
        return check_script(ROOT / words[0], command, words[1:])
    module, rest = words[1], words[2:]
    if module in ("mkdocs", "pytest", "pip"):
        return None
    if module == "inferencegym_jax.cli":
        return check_click(typer.main.get_command(app), command, rest)
    if module == "training":
        training = importlib.import_module("training.cli")
        return check_click(typer.main.get_command(training.app), command, rest)
    spec = importlib.util.find_spec(module)
    assert spec is not None, f"{command}: no module {module}"
    folder = ROOT / module.replace(".", "/")
    return check_script(folder / "__main__.py" if folder.is_dir() else folder.with_suffix(".py"), command, rest)


def check_make(command: Command, words: tuple[str, ...]) -> None:
    """Targets exist, and ARGS are what the target's program takes."""
    targets = [word for word in words if "=" not in word]
    for target in targets:
        extra = target.removeprefix("install-")
        exists = re.search(rf"^{re.escape(target)}:", MAKEFILE, re.M) or f"EXTRAS_{extra} :=" in MAKEFILE
        assert exists, f"{command}: no target {target}"
    given = [word.removeprefix("ARGS=") for word in words if word.startswith("ARGS=")]
    for arguments in given:
        recipe = re.search(rf"^{targets[0]}:.*\n(?:\t.*\n)*?\t.*\$\(PY\) (.*?) ?\$\(ARGS\)", MAKEFILE, re.M)
        assert recipe, f"{command}: {targets[0]} takes no ARGS"
        check_python(command, (*recipe.group(1).split(), *arguments.split()))


def check_pip(command: Command, words: tuple[str, ...]) -> None:
    """Extras exist."""
    for extras in re.findall(r"\[([\w,]+)\]", " ".join(words)):
        assert set(extras.split(",")) <= set(EXTRAS), f"{command}: no extra among {', '.join(EXTRAS)} is called so"


def check(command: Command) -> None:
    """Raise where a command names something that is not there; programs of others are taken as they are."""
    words = command.words
    if command.program in OTHERS or command.program == "openenv":
        return
    if command.program == "inferencegym":
        check_click(typer.main.get_command(app), command, words)
    elif command.program == "python":
        check_python(command, words)
    elif command.program == "make":
        check_make(command, words)
    elif command.program == "pip":
        check_pip(command, words)
    else:
        files = [word for word in words if not word.startswith("-") and "/" in word]
        assert all((ROOT / file.split("::")[0]).exists() for file in files), f"{command}: a file is not there"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("inferencegym rolout --task 1", "no subcommand rolout"),
        ("inferencegym table check mine.csv --josn", "no option --josn"),
        ("python -m training train --tsak 1", "no option --tsak"),
        ("python -m benchmarks.nothing", "no module"),
        ("python data/nothing.py", "no file"),
        ("python data/build_table.py --chek", "knows no --chek"),
        ("make tst", "no target tst"),
        ('make table ARGS="--sytem h100_sxm"', "knows no --sytem"),
        ("pip install '.[clii]'", "no extra"),
    ],
)
def test_a_wrong_command_is_caught(line: str, said: str):
    (command,) = commands_of("a page", line)
    with pytest.raises(AssertionError, match=said):
        check(command)


@pytest.mark.parametrize("command", [command for _, command in COMMANDS], ids=[name for name, _ in COMMANDS])
def test_a_command_is_known(command: Command):
    check(command)


@pytest.mark.ci
@pytest.mark.parametrize(
    ("page", "line"),
    [*QUICK, *(pytest.param(*entry, marks=pytest.mark.slow) for entry in SLOW)],
    ids=lambda value: value if " " in value else None,
)
def test_a_quick_command_runs(page: str, line: str, monkeypatch: pytest.MonkeyPatch):
    name = f"{page}: {line}"
    command = dict(COMMANDS).get(name)
    assert command is not None, f"{name}: the page no longer says so; take it out of this test's list"
    monkeypatch.chdir(ROOT)
    assert run(command.words) == 0


def python_blocks() -> list[tuple[str, str]]:
    """(page, code) of every block of Python."""
    found = []
    for page in pages():
        lines: list[str] = []
        for language, line in [*blocks(page), (None, "")]:
            if language in ("python", "py"):
                lines.append(line)
            elif lines:
                found.append((page, "\n".join(lines)))
                lines = []
    return found


@pytest.mark.parametrize(("page", "code"), python_blocks(), ids=lambda value: value if "\n" not in value else "code")
def test_a_block_of_python_compiles_and_its_imports_are_there(page: str, code: str):
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if f"{alias.name}.py" in (ROOT / page).read_text(encoding="utf-8"):  # the reader has just written it
                    continue
                assert importlib.util.find_spec(alias.name), f"{page}: no module {alias.name}"
        elif isinstance(node, ast.ImportFrom) and node.module:
            module = importlib.import_module(node.module)
            missing = [alias.name for alias in node.names if not hasattr(module, alias.name)]
            assert not missing, f"{page}: {node.module} has no {', '.join(missing)}"
