"""The repository explains itself: nothing in it points to a file, a section or a tool that a clone lacks."""

import re
import subprocess
from collections.abc import Collection
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HISTORY = {"CHANGELOG.md"}  # speaks of files as they were called then
THIS = {"tests/test_references.py"}
TOPS = "inferencegym_jax|server|training|benchmarks|data|docs|tests|notebooks"
PLACE = re.compile(rf"(?<![\w/.-])((?:{TOPS})/[\w/.-]*\w\.(?:py|md|json|csv|parquet|yaml|svg|png|sh|npz|html|js))\b")
MODULE = re.compile(r"\binferencegym_jax(?:\.[a-z_0-9]+)+\b")
SECTION = re.compile(r"ENVIRONMENT(?:\.md)?,? (?:sections? )?(\d+)")


def tracked() -> dict[str, str]:
    """Path and text of every text file that git would commit; of every file where git is absent."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    texts = {}
    for name in listed.stdout.splitlines():
        try:
            texts[name] = (ROOT / name).read_text(encoding="utf-8")
        except (UnicodeDecodeError, FileNotFoundError, IsADirectoryError):
            continue
    return texts


TEXTS = tracked()
PAGES = sorted(name for name in TEXTS if name.endswith(".md"))


def lines(pattern: str | re.Pattern[str], skip: Collection[str] = ()) -> list[str]:
    """Every line of a tracked file that the pattern is found in, as ``file:number: line``."""
    compiled = re.compile(pattern)
    return [
        f"{name}:{number}: {line.strip()[:120]}"
        for name, text in TEXTS.items()
        if name not in skip
        for number, line in enumerate(text.splitlines(), 1)
        if compiled.search(line)
    ]


def test_no_line_names_a_page_or_a_data_folder_of_another_place():
    pages = "|".join(("SPEC", "HOUSE", "FLUID", "WORTH"))
    assert not lines(rf"\b(?:{pages})(?:\.md|,? sections?)? \d|\b(?:{pages})\.md\b", THIS)
    assert not lines(r"(?<!\w)silicon/", THIS)
    assert not lines(r"\bSPEC (?:of|says|section)\b", THIS | HISTORY)


def test_no_relative_path_leaves_the_repository():
    wrong = []
    for name, text in TEXTS.items():
        for path in re.findall(r"(?<![\w.])((?:\.\./)+[\w./-]*)", text):
            if not (ROOT / name).parent.joinpath(path).resolve().is_relative_to(ROOT):
                wrong.append(f"{name}: {path}")
        for ups in re.findall(r"__file__\)\.resolve\(\)\.parents\[(\d+)\]", text):
            if int(ups) >= len(Path(name).parts):
                wrong.append(f"{name}: parents[{ups}]")
    assert not wrong
    assert not lines(r"\bROOT\.parent\b", THIS)


def test_every_file_that_is_named_is_there():
    missing = {
        f"{name}: {path}"
        for name, text in TEXTS.items()
        if name not in HISTORY
        for path in PLACE.findall(text)
        if not (ROOT / path).exists() and not (Path(name).parts[0] == "tests" and path.startswith("data/"))
    }
    assert not missing


def test_every_script_that_a_page_names_is_there():
    files = {f"/{name}" for name in TEXTS}
    wrong = [
        f"{name}: {script}"
        for name in PAGES
        if name not in HISTORY
        for script in re.findall(r"`([\w/.-]+\.py)`", TEXTS[name])
        if not any(file.endswith(f"/{script}") for file in files)
    ]
    assert not wrong


def test_every_module_that_a_page_names_is_there():
    missing = []
    for name in PAGES:
        if name in HISTORY:
            continue
        for dotted in MODULE.findall(TEXTS[name]):
            parts = dotted.split(".")
            bases = [ROOT.joinpath(*parts[:n]) for n in range(len(parts), 1, -1)]
            found = next((b for b in bases if b.is_dir() or b.with_suffix(".py").is_file()), None)
            rest = parts[len(found.relative_to(ROOT).parts) :] if found else parts[1:]
            if found is None or len(rest) > 1 or (rest and not _defines(found, rest[0])):
                missing.append(f"{name}: {dotted}")
    assert not missing


def _defines(module: Path, name: str) -> bool:
    file = module / "__init__.py" if module.is_dir() else module.with_suffix(".py")
    return re.search(rf"^\s*(?:def|class|import|from .* import .*)?\s*{name}\b", file.read_text(), re.M) is not None


def test_every_function_that_a_page_names_is_in_its_file():
    wrong = []
    for name in PAGES:
        for path, function in re.findall(r"`([\w/]+\.py):(\w+)`", TEXTS[name]):
            files = [text for file, text in TEXTS.items() if f"/{file}".endswith(f"/{path}")]
            if not any(re.search(rf"^\s*(?:def|class) {function}\b", text, re.M) for text in files):
                wrong.append(f"{name}: {path}:{function}")
    assert not wrong


def test_every_link_of_a_page_leads_to_a_file():
    wrong = []
    for name in PAGES:
        for target in re.findall(r"\]\(([^)\s]+)\)", TEXTS[name]):
            if re.match(r"[a-z]+:|#", target):
                continue
            path = (ROOT / name).parent / target.split("#")[0]
            if not path.exists() and not (ROOT / "docs" / target.split("#")[0]).exists():
                wrong.append(f"{name}: {target}")
    assert not wrong


def test_every_heading_that_is_named_is_on_its_page():
    wrong = [
        f"{name}: {page}, {title}"
        for name, text in TEXTS.items()
        if name not in HISTORY
        for page, title in re.findall(r"(?<!\w)((?:docs/)?[\w/]+\.md), \"([^\"]+)\"", " ".join(text.split()))
        if page in TEXTS and not re.search(rf"^#+ .*{re.escape(title)}", TEXTS[page], re.M)
    ]
    assert not wrong


def test_every_section_that_is_named_is_in_the_specification():
    sections = set(re.findall(r"^## (\d+)\.", TEXTS["ENVIRONMENT.md"], re.M))
    wrong = [
        f"{name}: section {number}"
        for name, text in TEXTS.items()
        if name not in HISTORY
        for number in SECTION.findall(text)
        if number not in sections
    ]
    assert not wrong
