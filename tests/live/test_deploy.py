"""What is handed to an operator: the Grafana dashboard names metrics that there are, and the Kubernetes example is one
that the API server's schema accepts and whose script sets the scale subresource."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from inferencegym_jax.live.capacity.settings import SpareSettings
from inferencegym_jax.live.loop.gate import Gate
from inferencegym_jax.live.loop.observer import Observer
from inferencegym_jax.live.proxy.controller import Controller
from inferencegym_jax.live.proxy.metrics import ControlMetrics
from tests.live.conftest import ROOT, Fixed, serving

DEPLOY = ROOT / "deploy"
SCHEMA = json.loads((ROOT / "tests" / "live" / "kubernetes.schema.json").read_text())


def exported() -> dict[str, set[str]]:
    """Names of the proxy's samples and their labels, as they are before anything has happened."""
    gate = Gate()
    metrics = ControlMetrics()
    controller = Controller(Observer((300.0, 2000.0, 2000.0), gate), Fixed(), "fixed", metrics)
    metrics.ttft.labels("interactive").observe(0.1)  # a histogram with labels has no samples before its first
    page = metrics.page(gate, controller).decode()
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            if sample.name.endswith("_created"):  # when a counter was made: no figure of the proxy
                continue
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def test_every_metric_of_the_dashboard_is_exported_with_the_labels_it_reads() -> None:
    dashboard = json.loads((DEPLOY / "grafana.json").read_text())
    there, named = exported(), set()
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            names = re.findall(r"inferencegym_control_\w+", target["expr"])
            assert names and set(names) <= set(there), (panel["title"], set(names) - set(there))
            labels = set.union(*(there[name] for name in names))
            read = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            for group in re.findall(r"by \(([^)]*)\)", target["expr"]):
                read |= {word.strip() for word in group.split(",")}
            assert read <= labels, (panel["title"], read - labels)
            named |= set(names)
    plain = {re.sub(r"_(bucket|sum|count)$", "", name) for name in there}
    shown = {re.sub(r"_(bucket|sum|count)$", "", name) for name in named}
    assert plain == shown  # nothing that is exported is left out either


def test_panels_do_not_overlap_and_ask_the_chosen_source() -> None:
    dashboard = json.loads((DEPLOY / "grafana.json").read_text())
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken and max(x for x, _ in cells) < 24
        taken |= cells
        assert all(target["datasource"]["uid"] == "${datasource}" for target in panel["targets"])
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def documents() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()))


def check(document: dict[str, Any]) -> None:
    """Raise ``ValidationError`` unless the API server's schema accepts it, without a field that it does not know."""
    schema = {"$ref": f"#/$defs/{SCHEMA['kinds'][document['kind']]}", "$defs": SCHEMA["$defs"]}
    jsonschema.Draft202012Validator(schema).validate(document)


@pytest.mark.parametrize("document", documents(), ids=lambda x: f"{x['kind']}-{x['metadata']['name']}")
def test_the_kubernetes_example_is_of_the_apis_schema(document: dict[str, Any]) -> None:
    check(document)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda spec: spec.update(replica=1),
        lambda spec: spec.update(replicas="one"),
        lambda spec: spec.pop("selector"),
        lambda spec: spec["template"]["spec"]["containers"][0].pop("name"),
        lambda spec: spec["template"]["spec"]["containers"][0]["ports"][0].update(port=1),
    ],
)
def test_the_schema_refuses_what_the_api_server_would(wrong: Any) -> None:
    document = next(x for x in documents() if x["kind"] == "Deployment")
    wrong(document["spec"])
    with pytest.raises(jsonschema.ValidationError):
        check(document)


def by_kind(kind: str, name: str) -> dict[str, Any]:
    return next(x for x in documents() if (x["kind"], x["metadata"]["name"]) == (kind, name))


def test_services_find_their_pods_and_the_proxy_may_scale_the_spare_alone() -> None:
    deployments = {x["metadata"]["name"]: x["spec"] for x in documents() if x["kind"] == "Deployment"}
    for name, spec in deployments.items():
        service = by_kind("Service", name)["spec"]
        labels = spec["template"]["metadata"]["labels"]
        assert spec["selector"]["matchLabels"].items() <= labels.items()
        assert service["selector"].items() <= labels.items()
        ports = {port["name"] for port in spec["template"]["spec"]["containers"][0]["ports"]}
        assert {port["targetPort"] for port in service["ports"]} <= ports
    assert deployments["engine-spare"]["replicas"] == 0
    (rule,) = by_kind("Role", "inferencegym-control")["rules"]
    assert rule["resources"] == ["deployments/scale"] and rule["resourceNames"] == ["engine-spare"]
    pod = deployments["inferencegym-control"]["template"]["spec"]
    assert pod["serviceAccountName"] == "inferencegym-control"


def test_the_proxys_arguments_are_those_of_the_command() -> None:
    container = by_kind("Deployment", "inferencegym-control")["spec"]["template"]["spec"]["containers"][0]
    from typer.main import get_command

    from inferencegym_jax.cli.live import app

    control = get_command(app).commands["control"]  # type: ignore[attr-defined]
    values = control.make_context("control", container["args"]).params
    spare = SpareSettings(values["spare"], start_cmd=values["start_cmd"], stop_cmd=values["stop_cmd"])
    assert not spare.sleeps and values["upstream"] == "http://engine:8000" and values["stop_timeout"] == 120.0


def test_the_script_sets_the_scale_subresource(tmp_path: Path) -> None:
    asked: list[tuple[str, str, bytes, Any]] = []

    async def api(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        body = json.loads((await receive())["body"])
        asked.append((scope["method"], scope["path"], dict(scope["headers"])[b"authorization"], body))
        # as an API server whose quota lets nobody have more than one
        scale = {
            "apiVersion": "autoscaling/v1",
            "kind": "Scale",
            "metadata": {"name": "engine-spare"},
            "spec": {"replicas": min(body["spec"]["replicas"], 1)},
        }
        check(scale)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": json.dumps(scale).encode()})

    script = tmp_path / "scale.py"
    script.write_text(by_kind("ConfigMap", "inferencegym-scale")["data"]["scale.py"])
    (tmp_path / "token").write_text("secret\n")
    (tmp_path / "namespace").write_text("serving")
    with serving(api) as root:
        settings = {"KUBERNETES_API": root, "SERVICE_ACCOUNT": str(tmp_path), "no_proxy": "*"}

        def run(replicas: int) -> int:
            command = [sys.executable, str(script), "engine-spare", str(replicas)]
            return subprocess.run(command, env={**os.environ, **settings}, capture_output=True, timeout=60).returncode

        assert (run(1), run(0), run(2)) == (0, 0, 1)
    path = "/apis/apps/v1/namespaces/serving/deployments/engine-spare/scale"
    assert [(method, where, token) for method, where, token, _ in asked] == [("PATCH", path, b"Bearer secret")] * 3
    assert [body for *_, body in asked[:2]] == [{"spec": {"replicas": 1}}, {"spec": {"replicas": 0}}]
