"""Requests made from the API's own document, valid and not: each is answered as the document says."""

from collections.abc import Iterator

import pytest
import schemathesis
from fastapi import FastAPI
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from app.main import create_app
from app.settings import Settings
from tests.fakes import ColourSegmenter

# A server's error that the document has is none: who allows next to no time is answered by 504. 500 is not in it.
CHECKS = [
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


@pytest.fixture(scope="module")
def app() -> Iterator[FastAPI]:
    served = create_app(Settings(cores=1), ColourSegmenter())
    with TestClient(served):
        yield served


@pytest.mark.parametrize(
    ("method", "path", "mode"),
    [
        *[("POST", path, mode) for path in ("/segment", "/classify") for mode in GenerationMode],
        # They have no parameter that can be wrong: an id that is none is replaced.
        *[("GET", path, GenerationMode.POSITIVE) for path in ("/model", "/health/live", "/health/ready", "/metrics")],
    ],
)
def test_answers_are_what_the_document_says(app, method, path, mode):
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)

    @given(schema[path][method].as_strategy(generation_mode=mode))
    @settings(
        max_examples=25 if method == "POST" else 3,
        derandomize=True,
        database=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    def ask(case):
        case.call_and_validate(checks=CHECKS)

    ask()
