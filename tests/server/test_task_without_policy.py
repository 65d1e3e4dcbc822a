"""A task for which no trained policy ships, as a new one is at first: the server and the page say so."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest

import inferencegym_jax as ig
from inferencegym_jax.policies import policy_file as trained
from server.app import create_app
from server.settings import Settings
from tests.server.browser import IDLE, Browser, visit

LACKING = 4, "azure-conversation"


def test_the_server_says_for_which_task_it_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    others = [spec.name for spec in ig.task_specs().values() if not ig.policies.has_trained(spec.id)]
    shipped = trained.data_path

    def without_one(name: str) -> object:
        if name == f"policies/task{LACKING[0]}.npz":
            raise FileNotFoundError(f"{name}: not among the shipped data files of inferencegym_jax")
        return shipped(name)

    monkeypatch.setattr(trained, "data_path", without_one)
    trained.trained.cache_clear()
    app = create_app(Settings(redis_url=None, rate_limit="off"))

    async def ask() -> tuple[httpx.Response, httpx.Response]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as http:
            body = {"task_id": LACKING[0], "seeds": [0], "policy": "trained"}
            return await http.get("/info"), await http.post("/rollout", json=body)

    info, refused = asyncio.run(ask())
    trained.trained.cache_clear()
    lacking = [name for name, there in info.json()["trained_policies"].items() if not there]
    assert lacking == [LACKING[1], *others] and info.json()["policies"]["trained"]
    assert refused.status_code == 422
    assert f"not available for task {LACKING[0]}: policies/task{LACKING[0]}.npz" in refused.json()["detail"]


@pytest.mark.slow
def test_the_page_does_not_offer_it(page: Browser, site: str) -> None:
    answered = httpx.get(f"{site}tasks").json()
    del next(entry for entry in answered["tasks"] if entry["id"] == LACKING[0])["policies"]["trained"]
    source = (
        "{ const usual = window.fetch; window.fetch = (path, options) => String(path).endsWith('/tasks')"
        f" ? Promise.resolve(Response.json({json.dumps(answered)})) : usual(path, options); }}"
    )
    added = page.call("Page.addScriptToEvaluateOnNewDocument", source=source)
    try:
        visit(page, site, f"task={LACKING[0]}&seed=0&policy=trained&rival=trained")
        option = "document.querySelector('#policy [value=trained]')"
        assert page.js(f"[{option}.disabled, {option}.text]") == [True, "Trained (none for this task)"]
        chosen = (
            "[...document.querySelectorAll('#policy, #rival')].map((s) => s.selectedOptions[0].disabled ? '' : s.value)"
        )
        assert page.js(chosen) == ["reactive", "best_static"]  # the page's usual ones, after the trained one
        page.choose("#task", "5")
        page.wait(f"location.search.includes('task=5') && {IDLE}")
        assert page.js(f"[{option}.disabled, {option}.text]") == [False, "Trained"]
        page.choose("#policy", "trained")
        page.choose("#task", str(LACKING[0]))
        page.wait(f"location.search.includes('task={LACKING[0]}') && {IDLE}")
        driver, rival = page.js(chosen)
        assert driver and rival and "trained" not in (driver, rival) and driver != rival
    finally:
        page.call("Page.removeScriptToEvaluateOnNewDocument", identifier=added["identifier"])
