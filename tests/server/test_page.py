"""The page at /, in a headless Chromium against the real server: whole episodes, and what a user sees on the way."""

from __future__ import annotations

import ast
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

import inferencegym_jax as ig
from inferencegym_jax.models import KNOBS, plain
from inferencegym_jax.tasks import calibration
from tests.server.browser import CHROMIUM, Browser

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not CHROMIUM, reason="no chromium on the path (Debian: chromium)"),
]
ROOT = Path(__file__).parents[2]
READY = "document.documentElement.dataset.ready"
RESULT = "!document.getElementById('result').hidden"
SECOND = "Number(document.getElementById('time').value.split(' ')[0])"


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = os.environ | {"PORT": str(port), "HOST": "127.0.0.1", "JAX_PLATFORMS": "cpu", "LOG_LEVEL": "warning"}
    process = subprocess.Popen([sys.executable, "-m", "server"], cwd=ROOT, env=settings)
    address = f"http://127.0.0.1:{port}/"
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                if httpx.get(f"{address}health", timeout=5).json()["status"] == "healthy":
                    break
            except httpx.TransportError:
                pass
            assert process.poll() is None, f"the server ended with status {process.returncode}"
            assert time.monotonic() < deadline, "the server is not healthy after two minutes"
            time.sleep(0.1)
        yield address
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as opened:
        yield opened


@pytest.fixture
def page(browser: Browser, site: str, tmp_path: Path) -> Iterator[Browser]:
    """A fresh page at its defaults. Whatever a test does, it must log no error and ask no other host for anything."""
    browser.problems.clear()
    browser.requests.clear()
    browser.resize(1280, 900)
    browser.media(prefers_color_scheme="light")
    browser.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    browser.open(site)
    browser.js("localStorage.clear()")
    browser.wait(READY)
    yield browser
    assert browser.problems == []
    assert [url for url in browser.requests if not url.startswith((site, "data:", f"blob:{site}"))] == []


def visit(page: Browser, site: str, query: str) -> None:
    page.open(f"{site}?{query}")
    page.wait(READY)


def replay(task: int, seed: int, actions: list[dict]) -> list[dict]:
    """The episode log of the same actions in process."""
    env, params = ig.make(task)
    _, state = env.reset_seed(seed, params)
    log = []
    for action in actions:
        _, state, reward, _, _, info = env.step(None, state, ig.ServeAction(**action), params)
        log.append({"action": action, "reward": float(reward), "metrics": plain(info["metrics"])})
    return log


def fail_next(page: Browser, path: str, status: int, body: dict, headers: dict | None = None) -> None:
    """Make the page's next request of a path fail as the server would."""
    page.js(
        f"""(() => {{ const real = window.fetch; window.fetch = (url, options) => {{
            if (!new URL(url).pathname.endsWith({json.dumps(path)})) return real(url, options);
            window.fetch = real;
            if (!{status}) return Promise.reject(new TypeError("Failed to fetch"));
            return Promise.resolve(new Response({json.dumps(json.dumps(body))}, {{status: {status},
                headers: {json.dumps(headers or {})}}}));
        }} }})()"""
    )


def test_a_whole_episode_by_hand_is_the_one_that_the_library_plays(page: Browser, site: str, tmp_path: Path) -> None:
    visit(page, site, "task=2&seed=7&policy=manual&rival=reactive")
    for second in range(1, 4):
        page.press("s")
        page.wait(f"{SECOND} === {second}")
    page.choose("[data-knob=batch_size] input[type=range]", "96")
    page.choose("[data-knob=kv_budget] input[type=number]", "0.4")
    page.click("[data-knob=spec_length] input[value='2']")
    page.js("document.activeElement.blur()")
    page.press(" ")  # play ...
    page.wait(f"{SECOND} > 6")
    page.press(" ")  # ... and pause
    page.wait("document.getElementById('play').innerText === 'Play'")
    held = page.js(SECOND)
    time.sleep(0.3)
    assert page.js(SECOND) == held
    page.press("f")
    page.wait(RESULT)
    assert page.text("#time") == "200 / 200 s"

    page.click("#download")
    saved = tmp_path / "inferencegym-task2-seed7.json"
    page.until(saved.exists, "no file was downloaded")
    episode = json.loads(saved.read_text())
    mine, rival = episode["episodes"]
    assert (episode["task_id"], episode["seed"], episode["steps"]) == (2, 7, 200)
    assert (mine["policy"], rival["policy"]) == ("manual", "reactive")

    actions = [entry["action"] for entry in mine["episode_log"]]
    assert [a["batch_size"] for a in actions] == [32] * 3 + [96] * 197
    assert actions[-1] == {
        "kv_budget": 0.4, "spec_length": 2, "batch_size": 96, "prefill_disagg": False, "quant_tier": 0
    }  # fmt: skip
    expected = replay(2, 7, actions)
    # Here: the page shows the episode that it says. That server and library agree to the bit is tested there.
    for got, want in zip(mine["episode_log"], expected, strict=True):
        assert got["action"] == want["action"]
        assert got["metrics"] == pytest.approx(want["metrics"], rel=1e-4)
        assert got["reward"] == pytest.approx(want["reward"], abs=1e-4)
    grade = ig.grade(2, expected)
    assert mine["grade"]["score"] == pytest.approx(grade["score"], abs=1e-5)
    assert mine["grade"]["breakdown"] == pytest.approx(grade["breakdown"], abs=1e-5)
    assert mine["grade"]["verified"] is True and rival["grade"]["verified"] is True
    assert page.text(".grade.a .score") == f"{grade['score']:.3f}"
    assert mine["grade"]["feedback"] in page.text("#result")
    for name, value in grade["breakdown"].items():
        assert name in page.text(".grade.a .parts") and f"{value:.3f}" in page.text(".grade.a .parts")

    taken = [entry["action"] for entry in rival["episode_log"]]
    assert len({action["batch_size"] for action in taken}) > 1  # it reacts
    rewards = [entry["reward"] for entry in rival["episode_log"]]
    assert rewards == pytest.approx([entry["reward"] for entry in replay(2, 7, taken)], abs=1e-4)
    total = sum(entry["reward"] for entry in mine["episode_log"])
    assert page.text("[data-panel=reward] .now .a") == f"{total:.1f}"


def run_code(page: Browser, language: str) -> str:
    """Run what the page shows in this language as it stands and return the last line of its output."""
    page.click(f"#tab-{language}")
    code = page.js("document.getElementById('code').textContent")
    command = [sys.executable, "-c", code] if language == "python" else ["bash", "-c", code]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr
    return ran.stdout.strip().splitlines()[-1]


@pytest.mark.parametrize("language", ["python", "curl"])
def test_the_code_on_the_page_plays_the_same_episode(page: Browser, site: str, language: str) -> None:
    visit(page, site, "task=3&seed=11&policy=manual&rival=")
    page.choose("[data-knob=batch_size] input[type=range]", "100")
    page.click("[data-knob=quant_tier] input[value='1']")
    page.js("document.activeElement.blur()")
    page.press("s")
    page.wait(f"{SECOND} === 1")
    page.click("[data-knob=prefill_disagg] input")
    page.js("document.activeElement.blur()")
    page.press("f")
    page.wait(RESULT)
    last = run_code(page, language)
    answer = json.loads(last) if language == "curl" else ast.literal_eval(last)
    assert f"{answer['score']:.3f}" == page.text(".grade.a .score")


@pytest.mark.parametrize(("policy", "language"), [("reactive", "curl"), ("best_static", "python")])
def test_the_code_on_the_page_runs_the_same_policy(page: Browser, site: str, policy: str, language: str) -> None:
    visit(page, site, f"task=2&seed=4&policy={policy}&rival=")
    page.press("f")
    page.wait(RESULT)
    last = run_code(page, language)
    score = json.loads(last)["scores"][0] if language == "curl" else ast.literal_eval(last)["score"]
    assert f"{score:.3f}" == page.text(".grade.a .score")


@pytest.mark.parametrize("policy", ["baseline", "best_static"])
def test_a_built_in_policy_plays_to_its_grade(page: Browser, site: str, policy: str) -> None:
    visit(page, site, f"task=1&seed=3&policy={policy}&rival=")
    assert page.js("[...document.querySelectorAll('.knob')].every((knob) => knob.disabled)")
    page.press("ArrowRight")
    page.wait(f"{SECOND} === 1")
    page.press("f")
    page.wait(RESULT)
    best = calibration()["tasks"]["static-uniform"]["best_static"]["action"]
    action = best if policy == "best_static" else ig.ServeAction().to_dict()
    grade = ig.grade(1, replay(1, 3, [action] * 200))
    assert page.text(".grade.a .score") == f"{grade['score']:.3f}"
    assert page.js("document.querySelector('[data-knob=batch_size] input').valueAsNumber") == action["batch_size"]


def test_two_policies_are_drawn_over_each_other_with_a_legend(page: Browser, site: str) -> None:
    visit(page, site, "task=2&seed=0&policy=best_static&rival=baseline")
    page.press("f")
    page.wait(RESULT)
    legend = page.text("#legend")
    assert "Best static" in legend and "Baseline" in legend
    for panel in ("queue", "ttft", "tpot", "throughput", "memory", "reward"):
        paths = page.js(
            f"[...document.querySelectorAll('[data-panel={panel}] .lines path')].map((p) => p.getAttribute('d'))"
        )
        assert len(paths) == 2 and paths[0] != paths[1]
        assert all(path.count("L") == 199 and "NaN" not in path for path in paths)
    assert page.js("document.querySelectorAll('#result .grade').length") == 2


def test_locked_knobs_say_why_and_cannot_be_moved(page: Browser, site: str) -> None:
    for task, active in ((1, {"kv_budget", "batch_size"}), (3, set(KNOBS))):
        visit(page, site, f"task={task}&seed=0&policy=manual&rival=")
        for name in KNOBS:
            knob = f"document.querySelector('[data-knob={name}]')"
            assert page.js(f"{knob}.disabled") is (name not in active)
            assert ("Locked" in page.js(f"{knob}.innerText")) is (name not in active)


def test_knobs_take_their_ranges_from_the_server(page: Browser) -> None:
    for name, knob in KNOBS.items():
        inputs = page.js(
            f"[...document.querySelectorAll('[data-knob={name}] input')].map((i) => [i.type, i.min, i.max, i.value])"
        )
        if knob.kind in ("float", "int"):
            assert {(kind, float(low), float(high)) for kind, low, high, _ in inputs} == {
                ("range", knob.low, knob.high), ("number", knob.low, knob.high)
            }  # fmt: skip
        elif knob.kind == "choice":
            assert [int(value) for *_, value in inputs] == list(knob.choices)
        else:
            assert [kind for kind, *_ in inputs] == ["checkbox"]


def test_every_axis_has_a_label_and_a_unit(page: Browser) -> None:
    panels = page.js(
        "[...document.querySelectorAll('.panel')].map((p) => ({id: p.dataset.panel,"
        " axes: [...p.querySelectorAll('text.axis')].map((t) => t.textContent),"
        " label: p.querySelector('svg').getAttribute('aria-label')}))"
    )
    assert {panel["id"] for panel in panels} >= {"queue", "arrivals", "ttft", "tpot", "throughput", "memory", "reward"}
    for panel in panels:
        assert "time (s)" in panel["axes"] and len(panel["axes"]) == 2 and all(panel["axes"])
        assert panel["label"]
    limits = page.js("[...document.querySelectorAll('.limits text')].map((t) => t.textContent)")
    assert limits == ["SLO 300 ms", "limit 36 GB"]


@pytest.mark.parametrize(("width", "height"), [(390, 844), (768, 1024), (1280, 900)])
def test_nothing_is_cut_off_at_this_width(page: Browser, width: int, height: int) -> None:
    page.resize(width, height, mobile=width < 500)
    page.press("s")
    page.wait(f"{SECOND} === 1")
    assert page.js("document.documentElement.scrollWidth") <= width
    outside = page.js(
        "[...document.querySelectorAll('button, select, input, figure, .knob')].filter((e) => e.checkVisibility())"
        f".filter((e) => {{ const b = e.getBoundingClientRect(); return b.left < -0.5 || b.right > {width} + 0.5; }})"
        ".map((e) => e.outerHTML.slice(0, 80))"
    )
    assert outside == []


def test_dark_mode_follows_the_system_and_the_button(page: Browser, site: str) -> None:
    def brightness() -> float:
        colour = page.js("getComputedStyle(document.body).backgroundColor")
        return sum(map(float, colour[colour.index("(") + 1 : -1].split(",")[:3])) / (3 * 255)

    assert brightness() > 0.8
    page.media(prefers_color_scheme="dark")
    assert brightness() < 0.2
    page.click("#theme")
    assert brightness() > 0.8
    visit(page, site, "")
    assert brightness() > 0.8  # kept over a reload
    page.js("localStorage.clear()")


def test_every_control_has_a_name_and_is_reached_with_the_tab_key(page: Browser) -> None:
    tree = page.call("Accessibility.getFullAXTree")["nodes"]
    controls = {"button", "combobox", "slider", "spinbutton", "switch", "radio", "tab", "link", "progressbar", "image"}
    nameless = [
        node["role"]["value"]
        for node in tree
        if node.get("role", {}).get("value") in controls and not node.get("name", {}).get("value", "").strip()
    ]
    assert nameless == []
    reached = set()
    for _ in range(40):
        page.press("Tab")
        reached.add(page.js("document.activeElement.id || document.activeElement.closest('[data-knob]')?.dataset.knob"))
        visible = page.js(
            "(() => { const e = document.activeElement; return e === document.body || e.matches('[type=radio]')"
            " || getComputedStyle(e).outlineStyle !== 'none'; })()"
        )
        assert visible, page.js("document.activeElement.outerHTML")
    wanted = {
        "task",
        "policy",
        "rival",
        "seed",
        "dice",
        "play",
        "step",
        "finish",
        "restart",
        "download",
        "copy",
        "theme",
    }
    assert reached >= wanted | {"kv_budget", "batch_size", "spec_length"}


def test_reduced_motion_leaves_no_transition(page: Browser) -> None:
    moving = (
        "[...document.querySelectorAll('*')]"
        ".filter((e) => getComputedStyle(e, '::after').transitionDuration !== '0s').length"
    )
    page.media(prefers_reduced_motion="no-preference")
    assert page.js(moving) > 0
    page.media(prefers_reduced_motion="reduce")
    assert page.js(moving) == 0


def test_pointing_at_one_chart_reads_all_of_them(page: Browser, site: str) -> None:
    visit(page, site, "task=2&seed=0&policy=baseline&rival=")
    page.press("f")
    page.wait(RESULT)
    x, y = page.js(
        "(() => { const b = document.querySelector('[data-panel=queue] svg').getBoundingClientRect();"
        " return [b.x + b.width / 2, b.y + b.height / 2]; })()"
    )
    page.point(x, y)
    page.wait("document.querySelectorAll('.cross line').length === document.querySelectorAll('.panel').length")
    labels = page.js("[...document.querySelectorAll('.panel svg')].map((s) => s.getAttribute('aria-label'))")
    seconds = {re.search(r"at second (\d+)", label)[1] for label in labels}  # type: ignore[index]
    assert len(seconds) == 1 and 80 < int(seconds.pop()) < 120


@pytest.mark.parametrize(
    ("status", "says", "button"),
    [
        (404, "expire", "Replay and go on"),
        (409, "elsewhere", "Replay in a session of its own"),
        (429, "wait 3 s", "Go on"),
        (503, "status 503", "Try again"),
        (0, "does not answer", "Try again"),
    ],
)
def test_a_failed_step_is_told_in_words_and_the_episode_goes_on(
    page: Browser, site: str, status: int, says: str, button: str
) -> None:
    visit(page, site, "task=1&seed=5&policy=manual&rival=baseline")
    for second in (1, 2):
        page.press("s")
        page.wait(f"{SECOND} === {second}")
    fail_next(page, "/step", status, {"detail": "a word from the server"}, {"retry-after": "3"})
    page.press("s")
    page.wait("!document.getElementById('trouble').hidden")
    assert says in page.text("#trouble") and page.text("#trouble button") == button
    assert page.js(SECOND) == 2
    page.click("#trouble button")
    page.wait(f"{SECOND} === 3")
    assert page.js("document.getElementById('trouble').hidden")
    for panel in ("queue", "ttft", "throughput", "reward"):  # untouched knobs are the baseline's: the same three steps
        assert page.text(f"[data-panel={panel}] .now .a") == page.text(f"[data-panel={panel}] .now .b")
    paths = page.js("[...document.querySelectorAll('[data-panel=ttft] .lines path')].map((p) => p.getAttribute('d'))")
    assert paths[0] == paths[1]


def test_a_session_stepped_from_elsewhere_is_noticed_and_replayed(page: Browser, site: str) -> None:
    page.js(
        "(() => { const real = window.fetch; window.fetch = (url, options) => {"
        " window.sent = options?.body ?? window.sent; return real(url, options); }; })()"
    )
    page.press("s")
    page.wait(f"{SECOND} === 1")
    session = json.loads(page.js("window.sent"))["session_id"]
    httpx.post(f"{site}step", json={"session_id": session, "action": {"batch_size": 512}}).raise_for_status()
    page.press("s")
    page.wait("!document.getElementById('trouble').hidden")
    assert "the server is at step 3 and this page at step 1" in page.text("#trouble")
    page.click("#trouble button")
    page.wait(f"{SECOND} === 2")
    assert page.text("[data-panel=reward] .now .a") == page.text("[data-panel=reward] .now .b")


def test_the_table_holds_every_step(page: Browser) -> None:
    for second in range(1, 4):
        page.press("s")
        page.wait(f"{SECOND} === {second}")
    page.click("#table summary")
    page.wait("document.querySelectorAll('#table tbody tr').length === 3")
    assert page.text("#table tbody tr").split("\t")[0] == "3"
    heading = page.text("#table thead")
    assert "Queue, You (requests)" in heading and "Queue, Baseline (requests)" in heading
    assert "NaN" not in page.text("#table") and "undefined" not in page.text("#table")


def test_quick_presses_are_not_lost(page: Browser) -> None:
    for _ in range(5):
        page.press("s")
    page.wait(f"{SECOND} === 5")
    page.press("n")
    page.wait(f"{SECOND} === 0 && document.querySelector('main').ariaBusy === 'false'")
    assert "seed=" + page.js("document.getElementById('seed').value") in page.js("location.search")


def test_a_refused_value_is_told_in_the_servers_words(page: Browser) -> None:
    fail_next(page, "/step", 422, {"detail": [{"field": "body.action.batch_size", "message": "must be 1 to 512"}]})
    page.press("s")
    page.wait("!document.getElementById('trouble').hidden")
    assert "action.batch_size: must be 1 to 512" in page.text("#trouble")
    page.click("#trouble button")
    page.js("document.activeElement.blur()")
    page.press("s")
    page.wait(f"{SECOND} === 1")


def test_a_policy_that_the_server_lacks_leaves_a_way_on(page: Browser) -> None:
    fail_next(page, "/rollout", 422, {"detail": "policy 'trained': this server holds none for task 2"})
    page.choose("#policy", "trained")
    page.wait("!document.getElementById('trouble').hidden")
    assert "this server holds none for task 2" in page.text("#trouble")
    page.click("#trouble button")
    page.wait("document.getElementById('policy').value === 'manual'")
    page.wait("document.querySelector('main').ariaBusy === 'false' && document.getElementById('trouble').hidden")
    page.js("document.activeElement.blur()")
    page.press("s")
    page.wait(f"{SECOND} === 1")
