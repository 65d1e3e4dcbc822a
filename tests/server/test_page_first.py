"""The first screen: why control matters, seen without touching anything; and a line that explains each thing on it."""

from __future__ import annotations

import httpx
import pytest

from tests.server.browser import IDLE, READY, RESULT, SECOND, Browser, visit

pytestmark = pytest.mark.browser


def test_an_episode_plays_with_what_control_is_worth_above_it(page: Browser, site: str) -> None:
    page.open(site)
    page.wait(READY)
    page.wait(f"{SECOND} > 3")  # it plays by itself
    assert page.js("[...document.querySelectorAll('#task, #policy, #rival')].map((s) => s.value)") == [
        "3", "trained", "best_static"
    ]  # fmt: skip
    sentence = page.text("#claim p")
    assert "trained policy" in sentence and "never changes" in sentence and sentence.count("%") == 2
    assert page.js("[...document.querySelectorAll('#claim dt')].map((e) => e.firstChild.textContent.trim())") == [
        "In time", "Cost", "Score"
    ]  # fmt: skip
    shown = page.js("[...document.querySelectorAll('#claim dd')].map((e) => e.textContent)")
    for i, policy in enumerate(("trained", "best_static")):
        body = {"task_id": 3, "seeds": [9], "policy": policy, "trajectories": True}
        answer = httpx.post(f"{site}rollout", json=body, timeout=120).json()
        steps = answer["trajectories"][0]
        good = sum(step["metrics"]["ttft_p50_ms"] <= 200 and not step["oom"] for step in steps)
        assert float(shown[i].removesuffix(" %")) == pytest.approx(100 * good / len(steps), abs=0.5 + 1e-9)
        assert shown[2 + i] == f"{sum(step['metrics']['cost_per_1k'] for step in steps):.2f}"
        assert float(shown[4 + i]) == pytest.approx(answer["scores"][0], abs=2e-3)
    assert page.js("document.querySelector('#claim').getBoundingClientRect().bottom < innerHeight")
    page.press("f")
    page.wait(RESULT)
    assert page.text(".grade.a .score") == shown[4]


def test_a_shared_address_plays_what_it_names(page: Browser, site: str) -> None:
    page.open(f"{site}?task=1&seed=3&policy=best_static&rival=baseline")
    page.wait(READY)
    page.wait(f"{SECOND} > 2")
    assert "best setting" in page.text("#claim p") and "default setting" in page.text("#claim p")
    page.choose("#policy", "manual")
    page.wait(f"{IDLE} && {SECOND} === 0 && document.getElementById('claim').hidden")


def test_open_loop_tasks_count_requests(page: Browser, site: str) -> None:
    visit(page, site, "task=4&seed=1&policy=best_static&rival=baseline")
    assert page.text("#claim p").count("of the requests") == 1
    assert "GPU-seconds" in page.text("#claim dl")


def test_locked_knobs_are_folded_away(page: Browser, site: str) -> None:
    for task, count in ((1, 3), (2, 2), (3, 0)):
        visit(page, site, f"task={task}&seed=0&policy=manual&rival=")
        assert page.js("document.querySelectorAll('#locked .knob').length") == count
        assert page.js("document.getElementById('locked').hidden") is (count == 0)
        assert page.js("document.getElementById('locked').open") is False


@pytest.mark.parametrize("seed", ["abc", "-1", "4294967296", "1.5"])
def test_a_seed_that_is_none_is_refused_where_it_can_be_seen(page: Browser, site: str, seed: str) -> None:
    visit(page, site, f"task=1&seed={seed}&policy=manual&rival=")
    assert seed in page.text("#trouble") and "4294967295" in page.text("#trouble")
    assert page.js("document.getElementById('seed').value") == "0"
    page.click("#trouble button")
    assert page.js("document.getElementById('trouble').hidden")


def test_a_seed_typed_out_of_range_is_refused_beside_its_field(page: Browser, site: str) -> None:
    visit(page, site, "task=1&seed=5&policy=baseline&rival=")
    page.choose("#seed", "4294967296")
    assert "4294967295" in page.text("#seed-trouble") and "seed=5&" in page.js("location.search")
    assert page.js("document.getElementById('seed').getAttribute('aria-invalid')") == "true"
    page.choose("#seed", "6")
    page.wait(f"{IDLE} && location.search.includes('seed=6&')")
    assert page.text("#seed-trouble") == ""


def test_what_an_address_asks_for_in_vain_is_told(page: Browser, site: str) -> None:
    visit(page, site, "task=99&policy=nobody&rival=baseline&seed=1&gamma=-3")
    told = page.text("#trouble")
    for given in ("99", "nobody", "-3"):
        assert f"“{given}”" in told
    assert "as rival" not in told


def test_no_driver_is_a_twin_of_its_rival_unless_it_is_asked_for(page: Browser, site: str) -> None:
    for query in ("", "task=1", "task=2&seed=3", "task=7&seed=3"):
        visit(page, site, query)
        driver, rival = page.js("[...document.querySelectorAll('#policy, #rival')].map((s) => s.value)")
        assert driver not in ("manual", rival) and rival
