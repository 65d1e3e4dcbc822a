"""Fleets on the page: GPUs by state, what was paid and on time, a fleet's knobs; its numbers are the rollout's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from inferencegym_jax.fleet.action import FLEET_KNOBS
from inferencegym_jax.fleet.making import fleet_tasks
from inferencegym_jax.fleet.state import FLEET_METRICS
from tests.server.browser import IDLE, RESULT, SECOND, Browser, visit
from tests.server.test_page_access import axe, look, violations

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(900)]  # its programs compile for a minute
SPEC = fleet_tasks()["fleet-elastic"]
QUERY = f"task={SPEC.id}&seed=7&policy=reactive&rival=baseline"
STATES = ("serving", "starting", "draining")
__all__ = ["axe"]


@pytest.fixture(scope="module")
def steps(site: str) -> Iterator[list[dict[str, Any]]]:
    """The reactive rule's episode, of which the page shows every number; what it needs is compiled from here on."""
    body = {"task_id": SPEC.id, "seeds": [7], "policy": "reactive", "trajectories": True}
    with httpx.Client(base_url=site, timeout=600) as http:
        assert http.post("reset", json={"task_id": SPEC.id, "seed": 7}).status_code == 200
        yield http.post("rollout", json=body).json()["trajectories"][0]


def text_of(page: Browser, panel: str, part: str = ".now") -> str:
    return page.text(f"[data-panel={panel}] {part}")


def test_the_charts_of_a_fleet_show_its_gpus_by_state(page: Browser, site: str, steps: list[dict[str, Any]]) -> None:
    visit(page, site, QUERY)
    told = page.text("#claim p")
    assert "GPU-seconds" in page.text("#claim dl") and "rule that reacts" in told and "all GPUs, always" in told
    page.press("f")
    page.wait(RESULT)
    last = steps[-1]["metrics"]
    assert [int(word) for word in text_of(page, "band").split() if word.isdigit()] == [last[name] for name in STATES]
    assert all(FLEET_METRICS[name].title in text_of(page, "band") for name in STATES)
    areas = page.js("[...document.querySelectorAll('[data-panel=band] .areas path')].map((p) => p.getAttribute('d'))")
    assert len(set(areas)) == 3 and all(area.endswith("Z") and "NaN" not in area for area in areas)
    heights = page.js(
        "[...document.querySelectorAll('[data-panel=band] .areas path')].map((p) => p.getBBox().height > 1)"
    )
    assert heights == [any(step["metrics"][name] > 0 for step in steps) for name in STATES]
    label = page.js("document.querySelector('[data-panel=band] svg').getAttribute('aria-label')")
    assert f"at step {SPEC.decisions}" in label and "GPUs" in label
    paid = sum(step["outcome"]["gpu_seconds"] for step in steps)
    assert float(text_of(page, "gpu_seconds", ".now .a").replace(",", "")) == pytest.approx(paid, abs=0.51)
    judged = [sum(sum(step["outcome"][fate]) for fate in FATES) for step in steps]
    good = sum(sum(step["outcome"]["on_time"]) for step in steps)
    assert float(text_of(page, "on_time", ".now .a")) == pytest.approx(100 * good / sum(judged), abs=0.051)
    axes = page.js("[...document.querySelectorAll('[data-panel=load] text.axis')].map((t) => t.textContent)")
    assert "time (min)" in axes


FATES = ("on_time", "late", "rejected", "failed")


def test_what_a_fleet_lacks_is_not_shown(page: Browser, site: str, steps: list[dict[str, Any]]) -> None:
    visit(page, site, QUERY)
    assert page.js("document.getElementById('overrides').hidden")
    assert "burst" not in page.text("#legend") and "out of memory" not in page.text("#legend")
    shown = page.js("[...document.querySelectorAll('#knobs .knob')].map((knob) => knob.dataset.knob)")
    assert shown == [name for name in FLEET_KNOBS if name in SPEC.active_knobs]
    panels = page.js("[...document.querySelectorAll('.panel:not([hidden])')].map((one) => one.dataset.panel)")
    assert "gpus" in panels and "prefill_gpus" not in panels  # a locked knob never moves
    page.press("f")
    page.wait(RESULT)
    assert "memory" not in page.text("#result") and page.js("document.querySelectorAll('.grade').length") == 2
    page.click("#table summary")
    page.wait("document.querySelector('#table table') !== null")
    assert page.text("#table thead th") == "Step of 5 s"
    assert "NaN" not in page.text("#table") and "undefined" not in page.text("#table")


def test_a_fleet_is_driven_by_hand_and_an_engine_after_it(
    page: Browser, site: str, steps: list[dict[str, Any]]
) -> None:
    visit(page, site, f"task={SPEC.id}&seed=7&policy=manual&rival=baseline")
    page.choose("[data-knob=gpus] input[type=range]", "3")
    page.js("document.activeElement.blur()")
    page.press("s")
    page.wait(f"{SECOND} === 1")
    assert text_of(page, "asked", ".now .a") == "3" and text_of(page, "asked", ".now .b") == "8"
    now = [int(word) for word in text_of(page, "band").split() if word.isdigit()]
    assert now[0] == 3 and len(now) == 3
    page.choose("#task", "1")
    page.wait(f"location.search.includes('task=1&') && {IDLE} && {SECOND} === 0")
    panels = page.js("[...document.querySelectorAll('.panel:not([hidden])')].map((one) => one.dataset.panel)")
    assert "band" not in panels and "gpu_memory_gb" in panels


@pytest.mark.parametrize(("width", "theme"), [(390, "light"), (768, "dark"), (1440, "light")])
def test_everybody_can_read_a_fleet(
    page: Browser, site: str, axe: str, steps: list[dict[str, Any]], width: int, theme: str
) -> None:
    look(page, site, width, theme, QUERY)
    assert page.js("document.documentElement.scrollWidth") <= width
    assert page.js("small()") == []
    assert [(round(ratio, 2), what) for ratio, what, _ in page.js("contrasts()") if ratio < 4.5] == []
    assert violations(page, axe) == []
