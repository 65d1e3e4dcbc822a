"""Beat it: by hand against the trained policy on today's seed, and the picture of the result."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest

from tests.server.browser import IDLE, RESULT, SECOND, Browser, visit

pytestmark = pytest.mark.browser
WATCH_WORDS = """(() => {
  window.written = [];
  const real = CanvasRenderingContext2D.prototype.fillText;
  CanvasRenderingContext2D.prototype.fillText = function (text, ...rest) {
    window.written.push(text);
    return real.call(this, text, ...rest);
  };
})()"""


def today() -> int:
    return int(datetime.datetime.now(datetime.UTC).strftime("%Y%m%d"))


@pytest.mark.slow
def test_beat_it_is_you_against_the_trained_policy_on_todays_seed(page: Browser, site: str, tmp_path: Path) -> None:
    visit(page, site, "task=6&seed=1&policy=baseline&rival=&gamma=0.5")  # 600 seconds are too many to drive by hand
    days = {today()}
    page.click("#beat")
    page.wait(f"{IDLE} && {SECOND} === 0 && location.search.includes('policy=manual&rival=trained')")
    days.add(today())
    task, seed = page.js("['task', 'seed'].map((name) => new URLSearchParams(location.search).get(name))")
    assert int(seed) in days and "gamma" not in page.js("location.search")
    assert task == "3"
    page.js(WATCH_WORDS)
    page.js("document.activeElement.blur()")
    page.press("f")
    page.wait(RESULT)
    page.wait("!document.getElementById('card').hidden")
    address = page.js("location.href")
    mine, trained = page.text(".grade.a .score"), page.text(".grade.b .score")
    written, label = page.js("window.written"), page.js("document.querySelector('#card canvas').ariaLabel")
    for fact in (mine, trained, "Trained", address):
        assert fact in written and fact in label
    assert any(f"seed {seed}" in text for text in written)
    won = float(mine) > float(trained)
    assert written[1] == ("I beat the policy “trained”" if won else "The policy “trained” beat me")

    page.click("#card button")
    saved = tmp_path / f"inferencegym-card-task3-seed{seed}.png"
    page.until(lambda: saved.exists() and saved.stat().st_size > 10_000, "no picture was saved")
    head = saved.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    assert [int.from_bytes(head[i : i + 4], "big") for i in (16, 20)] == [1200, 630]

    page.open(address.replace("policy=manual", "policy=baseline"))  # what was shared is the same episode
    page.wait(f"{SECOND} > 0")
    assert page.js("document.getElementById('seed').value") == seed


def test_the_card_stays_away_where_a_policy_drove(page: Browser, site: str) -> None:
    visit(page, site, "task=1&seed=0&policy=best_static&rival=baseline")
    page.press("f")
    page.wait(RESULT)
    assert page.js("document.getElementById('card').hidden")
