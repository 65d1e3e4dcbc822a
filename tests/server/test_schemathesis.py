"""The application against its own OpenAPI: no 5xx, no undocumented status, answers of the documented shape."""

from __future__ import annotations

from typing import Any

import pytest

schemathesis = pytest.importorskip("schemathesis")

from hypothesis import HealthCheck, Phase, settings  # noqa: E402
from schemathesis.checks import not_a_server_error  # noqa: E402
from schemathesis.specs.openapi.checks import (  # noqa: E402
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from server.app import create_app  # noqa: E402
from server.settings import Settings  # noqa: E402
from tests.server.conftest import Running  # noqa: E402

OURS = r"^/(reset|step|state|health|healthz|grader|rollout|tasks|info|baseline|metrics)$"
CHECKS = (not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance)
PATIENCE_S = 120  # the first rollout of a policy is compiled
COMMON: dict[str, Any] = {
    "deadline": None,
    "derandomize": True,
    "phases": [Phase.explicit, Phase.generate],
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
}


schema = schemathesis.openapi.from_dict(create_app(Settings()).openapi()).include(path_regex=OURS)


@pytest.mark.ci
@schema.parametrize()
@settings(max_examples=25, **COMMON)
def test_the_server_keeps_its_own_openapi(case, server: Running):
    case.call_and_validate(base_url=server.url, checks=CHECKS, timeout=PATIENCE_S)


@pytest.mark.slow
@pytest.mark.timeout(900)
@schema.include(method="POST").parametrize()
@settings(max_examples=1000, **COMMON)
def test_four_thousand_bodies_more(case, server: Running):
    case.call_and_validate(base_url=server.url, checks=CHECKS, timeout=PATIENCE_S)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_sequences_of_requests_along_the_links_of_the_openapi(server: Running):
    """A session that a reset answers is stepped, asked and graded with what the schema allows, in any order."""
    linked = schemathesis.openapi.from_url(f"{server.url}/openapi.json").include(path_regex=OURS)
    machine: Any = linked.as_state_machine()
    followed: list[str] = []

    class Sequences(machine):
        def validate_response(self, response: Any, case: Any, *_: Any, **__: Any) -> None:
            case.validate_response(response, checks=CHECKS)
            if case.path != "/reset" and response.status_code == 200:
                followed.append(case.path)

    Sequences.run(settings=settings(max_examples=150, stateful_step_count=8, **COMMON))
    assert {"/step", "/state", "/grader"} <= set(followed)
