"""No number of one GPU or model stands in code: memory, bandwidth, bytes of a token and weights are the table's."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("inferencegym_jax", "server", "training")
# GB of the tasks and of an A100, GB of weights and runtime of Llama-3-8B in each format, bytes of a token, GB/s
NUMBERS = {40.0, 38.0, 35.8, 80.0, 85.9, 18.6, 16.06, 11.6, 9.08, 5.7, 0.038, 131072.0, 131072e-9, 2039.0}
GPUS = re.compile(r"\b(A100|H100|H200|B200|L40S?|A10G?|V100|MI300X?)\b")
# what the observation may show: ranges of the contract, of no GPU
RANGES = {"inferencegym_jax/models/observation.py"}


def modules():
    files = [file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))]
    return [file for file in files if ROOT / "inferencegym_jax" / "table" not in file.parents]


def findings(source):
    """Lines of a module with a number of a GPU, or the name of one in a string that is no docstring."""
    tree = ast.parse(source)
    documents = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Constant) or id(node) in documents:
            continue
        value = node.value
        if (isinstance(value, float) or (isinstance(value, int) and value > 1000)) and value in NUMBERS:
            yield node.lineno, value
        if isinstance(value, str) and GPUS.search(value):
            yield node.lineno, value


@pytest.mark.parametrize("file", modules(), ids=lambda file: str(file.relative_to(ROOT)))
def test_a_module_knows_no_gpu(file):
    found = list(findings(file.read_text()))
    assert str(file.relative_to(ROOT)) in RANGES or not found, f"{file.relative_to(ROOT)}: {found}"


@pytest.mark.parametrize("line", ["GPU_GB = 40.0", "x = (8192 + 128) * 131072e-9", "f(131072)", "print('an A100')"])
def test_the_check_sees_one(line):
    assert list(findings(line))


def test_pages_and_configs_name_no_gpu():
    files = [*(ROOT / "server" / "static").glob("*"), *(ROOT / "training" / "configs").glob("*")]
    named = [file.name for file in files if file.suffix in (".js", ".html", ".yaml") and GPUS.search(file.read_text())]
    assert not named
