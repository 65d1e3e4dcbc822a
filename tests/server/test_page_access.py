"""Whoever visits can use the page: axe-core finds nothing, what is disabled can be read too, fingers hit."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.server.browser import RESULT, SECOND, Browser, visit
from tests.server.conftest import ROOT

pytestmark = pytest.mark.browser
AXE = "4.10.3"
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
SIZES = {390: 844, 768: 1024, 1440: 900}
MEASURES = Path(__file__).with_name("access.js")


@pytest.fixture(scope="session")
def axe() -> str:
    """axe-core's script from npm, kept in .cache/."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("no npm on the path (Debian: npm), which brings axe-core")
    folder = ROOT / ".cache" / f"axe-core-{AXE}"
    script = folder / "node_modules" / "axe-core" / "axe.min.js"
    if not script.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        quiet = ("--no-save", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", str(folder))
        got = subprocess.run([npm, "install", *quiet, f"axe-core@{AXE}"], capture_output=True, text=True, timeout=180)
        assert got.returncode == 0, got.stderr[-2000:]
    return script.read_text(encoding="utf-8")


def violations(page: Browser, axe: str) -> list[str]:
    """What axe-core finds on the page, by its rules of WCAG 2.2 AA and good practice."""
    page.js(axe + "; null")
    options = json.dumps({"runOnly": RULES, "resultTypes": ["violations"]})
    found = page.js(f"axe.run(document, {options}).then((r) => r.violations)")
    return [f"{one['id']}: {node['html'][:160]} {node['any'][:1]}" for one in found for node in one["nodes"]]


def look(page: Browser, site: str, width: int, theme: str, query: str) -> None:
    """An episode played to its grade at this width in this theme, everything that folds open."""
    page.media(prefers_color_scheme=theme, prefers_reduced_motion="reduce")
    page.resize(width, SIZES[width], mobile=width < 500)
    visit(page, site, query)
    page.press("f")
    page.wait(RESULT)
    page.js("document.querySelectorAll('details').forEach((one) => (one.open = true))")
    page.wait("document.querySelector('#table table') !== null")
    page.js(MEASURES.read_text(encoding="utf-8") + "; null")


@pytest.mark.parametrize("width", [390, pytest.param(768, marks=pytest.mark.slow), 1440])
def test_axe_finds_nothing_and_every_word_can_be_read(page: Browser, site: str, axe: str, width: int) -> None:
    look(page, site, width, "light", "task=2&seed=0&policy=best_static&rival=baseline")
    page.js("document.body.classList.add('drawer')")  # the knobs, which a policy moves: disabled
    assert page.js("small()") == []
    for theme in ("light", "dark"):
        page.media(prefers_color_scheme=theme, prefers_reduced_motion="reduce")
        measured = page.js("contrasts()")
        assert [(round(ratio, 2), what) for ratio, what, _ in measured if ratio < 4.5] == []
        assert sum(disabled for *_, disabled in measured) >= 10
        assert violations(page, axe) == []


def test_what_is_wrong_is_found(page: Browser, axe: str) -> None:
    page.js(MEASURES.read_text(encoding="utf-8") + "; null")
    page.js(
        "document.querySelector('main').insertAdjacentHTML('beforeend', `<img src='data:,'>"
        "<button style='opacity: 0.4; padding: 0; min-height: 0; height: 9px' disabled>faint</button>`)"
    )
    assert any(found.startswith("image-alt") for found in violations(page, axe))
    assert any("faint" in what and ratio < 4.5 and disabled for ratio, what, disabled in page.js("contrasts()"))
    assert any("faint" in found for found in page.js("small()"))


@pytest.mark.parametrize(("width", "theme"), [(390, "dark"), pytest.param(1440, "light", marks=pytest.mark.slow)])
def test_axe_finds_nothing_where_you_drive(page: Browser, site: str, axe: str, width: int, theme: str) -> None:
    look(page, site, width, theme, "task=1&seed=0&policy=manual&rival=best_static")
    assert page.js("document.querySelector('#card canvas').checkVisibility()")
    assert page.js("small()") == []
    assert violations(page, axe) == []
    page.open(f"{site}leaderboard")
    assert violations(page, axe) == []


def test_on_a_small_screen_charts_come_first_and_the_knobs_are_a_drawer(page: Browser, site: str) -> None:
    page.resize(390, 844, mobile=True)
    visit(page, site, "task=3&seed=0&policy=best_static&rival=baseline")
    drawer = "document.getElementById('knobs-drawer')"
    assert not page.js(f"{drawer}.checkVisibility()")
    below = page.js("document.getElementById('charts').getBoundingClientRect().top + scrollY")
    assert below < 2 * 844
    page.click("#drawer")
    assert (
        page.js(f"{drawer}.checkVisibility()") and page.js("document.getElementById('drawer').ariaExpanded") == "true"
    )
    box = page.js(
        f"(() => {{ const b = {drawer}.getBoundingClientRect(); return [b.left, b.right, b.top, b.bottom]; }})()"
    )
    bar = page.js("document.querySelector('.transport').getBoundingClientRect().top")
    assert box[0] >= 0 and box[1] <= 390 and box[2] >= 844 / 3 and box[3] == pytest.approx(bar, abs=1.5)
    page.click("#drawer")
    assert not page.js(f"{drawer}.checkVisibility()")
    page.choose("#policy", "manual")
    page.wait(f"{SECOND} === 0 && {drawer}.checkVisibility()")  # who drives has them at hand
    page.resize(1280, 900)
    assert page.js(f"{drawer}.checkVisibility() && !document.getElementById('drawer').checkVisibility()")
