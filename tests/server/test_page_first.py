"""The first screen: why control matters, seen without touching anything; and a line that explains each thing on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from server.first_screen import first_screen, stored
from tests.server.browser import IDLE, READY, RESULT, SECOND, Browser, visit
from tests.server.conftest import start_server

pytestmark = pytest.mark.browser


def test_an_episode_plays_with_what_control_is_worth_above_it(page: Browser, site: str) -> None:
    first = httpx.get(f"{site}info", timeout=60).json()["first_screen"]
    page.requests.clear()
    page.open(site)
    page.wait(READY)
    page.wait(f"{SECOND} > 3")  # it plays by itself
    assert not [url for url in page.requests if url.endswith(("/rollout", "/grader"))]  # nothing is simulated for it
    assert page.js("[...document.querySelectorAll('#task, #policy, #rival')].map((s) => s.value)") == [
        "7", "trained", "best_static"
    ]  # fmt: skip
    sentence = page.text("#claim p").replace("\u00a0", " ")
    assert "trained policy" in sentence and "never changes" in sentence and "fewer GPU-seconds" in sentence
    assert page.js("[...document.querySelectorAll('#claim dt')].map((e) => e.firstChild.textContent.trim())") == [
        "In time", "Cost", "Score"
    ]  # fmt: skip
    shown = page.js("[...document.querySelectorAll('#claim dd')].map((e) => e.textContent)")
    shown = [text.replace("\u00a0", " ") for text in shown]
    lanes = httpx.get(f"{site}{first['episode']}", timeout=60).json()["lanes"]
    for i, lane in enumerate(lanes):
        counts = lane["grade"]["outcome"]
        good = counts["on_time"] / sum(counts[name] for name in ("on_time", "late", "rejected", "failed"))
        assert float(shown[i].removesuffix(" %")) == pytest.approx(100 * good, abs=0.5 + 1e-3)
        assert float(shown[2 + i].replace(",", "")) == pytest.approx(counts["gpu_seconds"], abs=0.5)
        assert shown[4 + i] == f"{lane['grade']['score']:.3f}"
    fewer = 100 * (1 - lanes[0]["grade"]["outcome"]["gpu_seconds"] / lanes[1]["grade"]["outcome"]["gpu_seconds"])
    assert f"{fewer:.0f} % fewer" in sentence and all(share in sentence for share in shown[:2])
    assert page.js("document.querySelector('#claim').getBoundingClientRect().bottom < innerHeight")
    page.press("f")
    page.wait(RESULT)
    assert page.text(".grade.a .score") == shown[4]


@pytest.fixture
def as_shipped(tmp_path: Path) -> Iterator[str]:
    """The address of a server with the compiler's own settings, as the episode was stored with: those of the suite
    round the last digits otherwise."""
    with start_server(tmp_path, patience_s=400.0, XLA_FLAGS="") as running:
        yield f"{running.url}/"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_stored_episode_is_the_one_that_this_server_simulates(as_shipped: str) -> None:
    site = as_shipped
    first = httpx.get(f"{site}info", timeout=60).json()["first_screen"]
    stored = httpx.get(f"{site}{first['episode']}", timeout=60).json()
    assert (stored["task_id"], stored["seed"]) == (first["task_id"], first["seed"])
    for lane in stored["lanes"]:
        log = entries(lane["columns"], stored["steps"])
        body = {"task_id": stored["task_id"], "seed": stored["seed"], "episode_log": log}
        answer = httpx.post(f"{site}grader", json=body, timeout=120).json()
        assert answer["verified"] is True, answer["first_difference"]  # every number, to 1e-5
        assert answer["score"] == pytest.approx(lane["grade"]["score"], abs=1e-6)
        body = {"task_id": stored["task_id"], "seeds": [stored["seed"]], "policy": lane["policy"]}
        score = httpx.post(f"{site}rollout", json=body, timeout=300).json()["scores"][0]
        assert score == pytest.approx(lane["grade"]["score"], abs=2e-3)  # the policy's own episode, not any actions'


def test_the_log_of_the_stored_episode_is_verified_at_its_start(http: httpx.Client) -> None:
    stored = http.get(http.get("/info").json()["first_screen"]["episode"]).json()
    log = entries(stored["lanes"][1]["columns"], 200)  # the suite's compiler rounds the other one's otherwise
    body = {"task_id": stored["task_id"], "seed": stored["seed"], "episode_log": log}
    assert http.post("/grader", json=body).json()["verified"] is True
    log[150]["metrics"]["tpot_ms"] *= 1.01
    assert http.post("/grader", json=body).json()["first_difference"]["field"] == "metrics.tpot_ms"


def entries(columns: dict, steps: int) -> list[dict]:
    """The first steps of a stored lane as an episode log."""
    log: list[dict] = [{"action": {}, "metrics": {}, "outcome": {}} for _ in range(steps)]
    for name, values in columns.items():
        part, _, field = name.partition(".")
        for i, entry in enumerate(log):
            value = values[i] if isinstance(values, list) else values["always"]
            if part == "reward":
                entry["reward"] = value
            elif part in entry:
                entry[part][field] = value
    return log


@pytest.mark.parametrize("changed", ["a table", "a log"])
def test_a_server_of_other_numbers_has_no_stored_episode(changed: str) -> None:
    found = stored()
    assert found is not None
    digest = found["table_digest"]
    programs: Any = SimpleNamespace(table=SimpleNamespace(digest=digest), trace=None)
    assert first_screen(programs) is not None
    other = {"table": SimpleNamespace(digest="other")} if changed == "a table" else {"trace": object()}
    mine: Any = SimpleNamespace(**(vars(programs) | other))
    assert first_screen(mine) is None


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


@pytest.mark.slow
def test_what_an_address_asks_for_in_vain_is_told(page: Browser, site: str) -> None:
    visit(page, site, "task=99&policy=nobody&rival=baseline&seed=1&gamma=-3")
    told = page.text("#trouble")
    for given in ("99", "nobody", "-3"):
        assert f"“{given}”" in told
    assert "as rival" not in told


@pytest.mark.slow
def test_no_driver_is_a_twin_of_its_rival_unless_it_is_asked_for(page: Browser, site: str) -> None:
    for query in ("", "task=1", "task=2&seed=3", "task=7&seed=3"):
        visit(page, site, query)
        driver, rival = page.js("[...document.querySelectorAll('#policy, #rival')].map((s) => s.value)")
        assert driver not in ("manual", rival) and rival
