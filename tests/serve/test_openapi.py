"""What `/openapi.json` promises the server does: schemathesis asks, within it and outside."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from pliant.serve import openapi

schemathesis: Any = pytest.importorskip(
    "schemathesis", reason="schemathesis is not installed: pip install 'pliant[conformance]'"
)

#: A body of the right shape may still be longer than the context, so all are not accepted.
PROMISES = (
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
    "allow_header_conformance",
)

OPERATIONS = [
    (path, method)
    for path, item in openapi.description()["paths"].items()
    for method in item
    if method != "parameters"
]


@pytest.fixture(scope="module")
def interface(live: Any) -> Any:
    return schemathesis.openapi.from_url(f"{live.url}/openapi.json")


@pytest.mark.parametrize(("path", "method"), OPERATIONS, ids=lambda value: str(value))
def test_an_operation_answers_as_it_is_described(interface: Any, path: str, method: str) -> None:
    """Bodies that the document allows, and bodies that it forbids, which must get 4xx."""
    operation = interface[path][method.upper()]
    from schemathesis import GenerationMode, checks
    from schemathesis.specs.openapi import checks as of_documents

    wanted = [checks.not_a_server_error, *(getattr(of_documents, name) for name in PROMISES)]
    modes = list(GenerationMode) if method == "post" else [GenerationMode.POSITIVE]
    for mode in modes:

        @settings(
            max_examples=8 if method == "post" else 3,
            derandomize=True,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.explicit, Phase.generate],
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def ask(case: Any) -> None:
            case.call_and_validate(checks=wanted, timeout=60)

        ask()


def test_every_route_is_described(live: Any) -> None:
    described = {
        (path, method.upper())
        for path, item in openapi.description()["paths"].items()
        for method in item
        if method != "parameters"
    }
    routes = {
        (route.path.replace(":path}", "}"), method)
        for route in openapi_routes(live)
        for method in route.methods
        if method != "HEAD"
    }
    assert described == routes


def openapi_routes(live: Any) -> Any:
    from pliant.serve.routes import make_app
    from pliant.serve.safety import GuardLimits, Keys

    return make_app(live.service, Keys([]), GuardLimits())._app.routes


def test_the_document_is_up_to_date() -> None:
    if not openapi.PAGE.parents[1].exists():
        pytest.skip("the documentation is not part of an installed package")
    assert openapi.PAGE.read_text(encoding="utf-8") == openapi.render(), "run `make docs`"
