"""What a user sees on the page at /: charts, knobs, small screens, dark mode, the keyboard, assistive technology."""

from __future__ import annotations

import re

import pytest

import inferencegym_jax as ig
from inferencegym_jax.models import KNOBS, METRICS, OUTCOME, WORKLOAD
from tests.server.browser import IDLE, RESULT, SECOND, Browser, visit

pytestmark = pytest.mark.browser


def test_two_policies_are_drawn_over_each_other_with_a_legend(page: Browser, site: str) -> None:
    visit(page, site, "task=2&seed=0&policy=best_static&rival=baseline")
    page.press("f")
    page.wait(RESULT)
    legend = page.text("#legend")
    assert "Best static" in legend and "Baseline" in legend
    for panel in ("queue_depth", "ttft_p50_ms", "tpot_ms", "tokens_per_sec", "gpu_memory_gb", "reward"):
        paths = page.js(
            f"[...document.querySelectorAll('[data-panel={panel}] .lines path')].map((p) => p.getAttribute('d'))"
        )
        assert len(paths) == 2 and paths[0] != paths[1]
        assert all(path.count("L") == 199 and "NaN" not in path for path in paths)
    assert page.js("document.querySelectorAll('#result .grade').length") == 2
    crashes = page.js("[...document.querySelectorAll('#result .oom')].map((p) => p.innerText)")
    assert crashes[0] == "Never out of memory." and len(crashes) == 2


def test_locked_knobs_say_why_and_cannot_be_moved(page: Browser, site: str) -> None:
    for task, active in ((1, {"kv_budget", "batch_size"}), (3, set(KNOBS))):
        visit(page, site, f"task={task}&seed=0&policy=manual&rival=")
        for name in KNOBS:
            knob = f"document.querySelector('[data-knob={name}]')"
            assert page.js(f"{knob}.disabled") is (name not in active)
            assert ("Locked" in page.js(f"{knob}.textContent")) is (name not in active)


def test_a_locked_knob_stays_at_its_default_whatever_a_policy_asks_for(page: Browser, site: str) -> None:
    visit(page, site, "task=1&seed=0&policy=random&rival=")
    page.press("f")
    page.wait(RESULT)
    for name in ("spec_length", "quant_tier"):
        assert page.js(f"document.querySelector('[data-knob={name}] input:checked').value") == str(KNOBS[name].default)
    assert (
        page.js("document.querySelector('[data-knob=prefill_disagg] input').checked") is KNOBS["prefill_disagg"].default
    )


def test_reward_and_slo_can_be_overridden_and_given_back(page: Browser, site: str) -> None:
    visit(page, site, "task=2&seed=3&policy=baseline&rival=")
    page.press("f")
    page.wait(RESULT)
    own = page.text("[data-panel=reward] .now .a")
    page.click("#overrides summary")
    page.choose("[name=gamma]", "0")
    page.choose("[name=slo_ttft_ms]", "150.5")
    page.wait("location.search.includes('gamma=0&slo_ttft_ms=150.5')")
    page.wait(f"{IDLE} && {SECOND} === 0")
    assert page.text("#overrides summary span") == "2 changed"
    assert page.text("#task-facts li") == "SLO 150.5 ms TTFT"
    assert page.js("document.querySelector('[data-panel=ttft_p50_ms] .limits text').textContent") == "SLO 150.5 ms"
    page.js("document.activeElement.blur()")
    page.press("f")
    page.wait(RESULT)
    env, params = ig.make(2, config={"gamma": 0, "slo_ttft_ms": 150.5})
    total = float(ig.evaluate(env, params, ig.policies.baseline, [3]).total_reward[0])
    assert page.text("[data-panel=reward] .now .a") == f"{total:.1f}" != own
    for code in ("python", "curl"):
        page.click(f"#tab-{code}")
        assert '{"gamma":0,"slo_ttft_ms":150.5}' in page.text("#code")

    page.choose("[name=delta]", "-1")  # refused where it stands: the episode on the page stays
    assert not page.js("document.querySelector('[name=delta]').checkValidity()")
    page.choose("[name=slo_ttft_ms]", "0")
    assert not page.js("document.querySelector('[name=slo_ttft_ms]').checkValidity()")
    assert not page.js("document.getElementById('result').hidden")
    page.click("#overrides button")
    page.wait(f"!location.search.includes('gamma') && {IDLE} && document.getElementById('result').hidden")
    assert page.text("#task-facts li") == "SLO 300 ms TTFT"


@pytest.mark.slow
def test_the_trained_policy_can_be_chosen_on_every_task_that_has_one(page: Browser, site: str) -> None:
    visit(page, site, "task=3&seed=0&policy=trained&rival=trained")
    for task in ("4", "5", "1"):
        page.choose("#task", task)
        page.wait(f"location.search.includes('task={task}') && {IDLE}")
        assert page.js("[...document.querySelectorAll('#policy, #rival')].map((s) => s.value)") == ["trained"] * 2
        assert not page.js("document.querySelector('#policy [value=trained]').disabled")
        assert page.js("document.querySelector('#policy [value=trained]').text") == "Trained"


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
        "[...document.querySelectorAll('.panel')].map((p) => ({id: p.dataset.panel, hidden: p.hidden,"
        " axes: [...p.querySelectorAll('text.axis')].map((t) => t.textContent),"
        " label: p.querySelector('svg').getAttribute('aria-label')}))"
    )
    asked = {name for table in (METRICS, WORKLOAD, OUTCOME) for name, quantity in table.items() if quantity.chart}
    numbers = {name for name, knob in KNOBS.items() if knob.kind in ("float", "int")}
    assert {panel["id"] for panel in panels} == asked | numbers | {"reward", "on_time"}
    for panel in panels:
        if panel["hidden"]:
            continue
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
    page.js("document.getElementById('time').textContent = '200 / 200 s'")  # the longest that they get
    page.js("document.getElementById('phase').textContent = 'Normal traffic'")
    apart, within, one_line = page.js(
        "(() => { const box = (q) => document.querySelector(q).getBoundingClientRect();"
        " const bar = document.querySelector('.transport'), time = box('#time'), phase = box('#phase');"
        " const inside = bar.getBoundingClientRect().right - parseFloat(getComputedStyle(bar).paddingRight);"
        " return [phase.right <= time.left, Math.max(time.right, box('#progress').right) <= inside + 0.5,"
        "  phase.height < 1.5 * parseFloat(getComputedStyle(document.getElementById('phase')).fontSize) + 8]; })()"
    )
    assert (apart, within, one_line) == (True, True, True)


def test_dark_mode_follows_the_system_and_the_button(page: Browser, site: str) -> None:
    def brightness() -> float:
        colour = page.js("getComputedStyle(document.body).backgroundColor")
        return sum(map(float, colour[colour.index("(") + 1 : -1].split(",")[:3])) / (3 * 255)

    assert brightness() > 0.8
    page.media(prefers_color_scheme="dark")
    assert brightness() < 0.2
    page.click("#theme")
    assert brightness() > 0.8
    visit(page, site, "task=2&seed=0&policy=manual&rival=baseline")
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
    for _ in range(80):
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
        "(() => { const b = document.querySelector('[data-panel=queue_depth] svg').getBoundingClientRect();"
        " return [b.x + b.width / 2, b.y + b.height / 2]; })()"
    )
    page.point(x, y)
    page.wait(
        "document.querySelectorAll('.cross line').length === document.querySelectorAll('.panel:not([hidden])').length"
    )
    labels = page.js(
        "[...document.querySelectorAll('.panel:not([hidden]) svg')].map((s) => s.getAttribute('aria-label'))"
    )
    seconds = {re.search(r"at second (\d+)", label)[1] for label in labels}  # type: ignore[index]
    assert len(seconds) == 1 and 80 < int(seconds.pop()) < 120


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
