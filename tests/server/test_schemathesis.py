"""The application against its own OpenAPI: no 5xx, no undocumented status, answers of the documented shape.

Thousands of cases and sequences along the OpenAPI's links: ``test_watchdog``.
"""

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
