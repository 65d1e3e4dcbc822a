"""Every word on the page has its line: on hover, focus and tap, in the words of the library; links and previews."""

from __future__ import annotations

import re
from collections.abc import Iterator

import httpx
import pytest

import inferencegym_jax as ig
from inferencegym_jax.models import KNOBS, METRICS, OUTCOME, WORKLOAD
from inferencegym_jax.policies.names import DESCRIPTIONS, NAMES
from inferencegym_jax.scoring.formula import formula
from tests.server.browser import IDLE, RESULT, Browser, visit
from tests.server.conftest import ELSEWHERE, REPOSITORY

pytestmark = pytest.mark.browser
TIP = "document.getElementById('tip')"


def explained(page: Browser) -> dict[str, str]:
    """What can be seen and has a line: word -> line."""
    return dict(
        page.js(
            "[...document.querySelectorAll('[data-about]')].filter((e) => e.checkVisibility())"
            ".map((e) => [e.textContent, e.dataset.about])"
        )
    )


def reached(page: Browser, selector: str) -> Iterator[str]:
    """The line that hovering, focus and a tap show of an element, wholly within the window."""

    def seen() -> str:
        page.wait(f"!{TIP}.hidden")
        inside = page.js(
            f"(() => {{ const b = {TIP}.getBoundingClientRect();"
            " return b.left >= 0 && b.top >= 0 && b.right <= innerWidth && b.bottom <= innerHeight; })()"
        )
        assert inside, f"{selector}: its line is cut off"
        return page.text("#tip")

    page.point(*page.middle(selector))
    yield seen()
    page.press("Escape")
    page.wait(f"{TIP}.hidden")
    page.js(f"document.querySelector('{selector}').focus()")
    yield seen()
    page.js("document.activeElement.blur()")
    page.point(1, 1)
    page.wait(f"{TIP}.hidden")
    page.tap(selector)
    yield seen()
    page.js("document.activeElement.blur()")
    page.point(1, 1)


@pytest.mark.parametrize("width", [390, 1280])
def test_hover_focus_and_tap_show_the_line(page: Browser, site: str, width: int) -> None:
    page.resize(width, 900, mobile=width < 500)
    visit(page, site, "task=3&seed=0&policy=best_static&rival=baseline")
    page.js("document.getElementById('setup').open = true")
    for selector, line in (
        ("[data-panel=tpot_ms] .name", METRICS["tpot_ms"].description),
        ("[data-knob=batch_size] .term", KNOBS["batch_size"].description),
        ("#task-facts li:last-child .term", "baseline's value"),
    ):
        page.js(f"document.body.classList.toggle('drawer', {str('knob' in selector).lower()})")
        for shown in reached(page, selector):
            assert line in shown


def test_the_lines_are_those_of_the_library(page: Browser, site: str) -> None:
    for task in (3, 4):
        visit(page, site, f"task={task}&seed=0&policy=best_static&rival=baseline")
        page.press("f")
        page.wait(RESULT)
        lines = explained(page)
        tables = {**METRICS, **WORKLOAD} if task == 3 else OUTCOME
        charted = [quantity for quantity in tables.values() if quantity.chart]
        assert charted and all(quantity.description in lines[quantity.title] for quantity in charted)
        for name in ig.get_task(task).active_knobs:
            assert lines[KNOBS[name].title] == KNOBS[name].description
        for name, component in formula(ig.get_task(task)).items():
            assert component.meaning in lines[name.replace("_", " ")]
        assert {"In time", "Cost", "Score", "On time so far", "Cumulative reward"} <= lines.keys()
        nameless = page.js(
            "[...document.querySelectorAll('.panel .name')]"
            ".filter((e) => e.checkVisibility() && !e.dataset.about).length"
        )
        assert nameless == 0


def test_every_driver_says_what_it_is(page: Browser, site: str) -> None:
    visit(page, site, "task=1&seed=0&policy=baseline&rival=")
    shown = page.js("[...document.querySelectorAll('#policy option')].filter((o) => !o.hidden).map((o) => o.value)")
    assert shown == [*NAMES, "manual"]  # those of fleets are no choice for an engine
    for name in NAMES:
        page.choose("#policy", name)
        page.wait(f"{IDLE} && location.search.includes('policy={name}')")
        assert page.text("#policy-about") == DESCRIPTIONS[name]


def test_cost_has_its_unit_wherever_it_stands(page: Browser, site: str) -> None:
    visit(page, site, "task=3&seed=0&policy=best_static&rival=baseline")
    unit = METRICS["cost_per_1k"].unit
    assert "GPU s" in unit
    assert unit in page.text("#claim dl") and unit in page.text("#task-facts")
    axis = "document.querySelector('[data-panel=cost_per_1k] text.axis:last-child').textContent"
    assert page.js(axis) == unit
    visit(page, site, "task=4&seed=0&policy=best_static&rival=baseline")
    assert page.js("document.querySelector('[data-panel=cost_per_1k]').hidden")
    assert "GPU-seconds" in page.text("[data-panel=gpu_seconds]") or "GPU-seconds" in page.js(
        "document.querySelector('[data-panel=gpu_seconds] svg').textContent"
    )


def test_the_grade_says_what_was_weak_and_why(page: Browser, site: str) -> None:
    visit(page, site, "task=2&seed=0&policy=baseline&rival=")
    page.press("f")
    page.wait(RESULT)
    told = page.text("#result .feedback")
    assert "Most is lost on latency" in told and re.search(r"the median first token took [\d,]+ ms on average", told)


def test_classes_and_the_share_on_time_have_their_chart(page: Browser, site: str) -> None:
    visit(page, site, "task=3&seed=0&policy=best_static&rival=baseline")
    page.press("f")
    page.wait(RESULT)
    assert page.js("document.querySelectorAll('[data-panel=priority_distribution] .lines path').length") == 3
    shares = page.text("[data-panel=priority_distribution] .now")
    assert sum(map(int, re.findall(r"\d+", shares))) == pytest.approx(100, abs=1.5)
    assert all(name in shares for name in ("interactive", "batch", "best effort"))
    body = {"task_id": 3, "seeds": [0], "policy": "best_static", "trajectories": True}
    steps = httpx.post(f"{site}rollout", json=body, timeout=120).json()["trajectories"][0]
    good = sum(step["metrics"]["ttft_p50_ms"] <= 200 and not step["oom"] for step in steps)
    assert float(page.text("[data-panel=on_time] .now .a")) == pytest.approx(100 * good / len(steps), abs=0.05 + 1e-9)
    visit(page, site, "task=1&seed=0&policy=best_static&rival=baseline")
    assert page.js("document.querySelector('[data-panel=priority_distribution]').hidden")  # all are of one class


def test_links_lead_to_repository_documentation_and_leaderboard(page: Browser, site: str) -> None:
    visit(page, site, "task=2&seed=0&policy=manual&rival=baseline")
    links = page.js(
        "Object.fromEntries([...document.querySelectorAll('#links a')].filter((a) => a.checkVisibility())"
        ".map((a) => [a.textContent, a.href]))"
    )
    assert links["Documentation"] == f"{site}docs" and links["Leaderboard"] == f"{site}leaderboard"
    if not ELSEWHERE:
        assert links["Repository"] == REPOSITORY
    board = httpx.get(links["Leaderboard"]).text
    assert "<th" in board and "best static" in board and "|" not in re.sub(r"<[^>]+>", "", board)
    assert httpx.get(links["Documentation"]).status_code == 200


def test_previews_of_a_link_have_a_picture(site: str) -> None:
    text = httpx.get(site).text
    found = dict(re.findall(r'<meta (?:property|name)="((?:og|twitter):[^"]+)" content="([^"]*)">', text))
    assert found["twitter:card"] == "summary_large_image" and found["og:url"] == site
    assert found["og:image"] == found["twitter:image"] == f"{site}static/preview.png"
    picture = httpx.get(found["og:image"])
    assert picture.headers["content-type"] == "image/png"
    width, height = (int.from_bytes(picture.content[i : i + 4], "big") for i in (16, 20))
    assert (str(width), str(height)) == (found["og:image:width"], found["og:image:height"])


def test_a_host_header_stays_within_its_attribute(site: str) -> None:
    text = httpx.get(site, headers={"host": '"><b>here</b>'}).text
    assert "<b>here" not in text and "og:image" in text
