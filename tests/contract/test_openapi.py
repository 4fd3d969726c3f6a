"""The API as clients see it. When it changes on purpose, rewrite the snapshot and say so in the changelog:

python -m tests.contract.test_openapi
"""

import json
from pathlib import Path

from app.main import create_app
from app.settings import Settings
from tests.fakes import ColourSegmenter
from tests.pictures import encoded, noise

PNG = {"Content-Type": "image/png"}
SNAPSHOT = Path(__file__).with_name("openapi.json")


def document() -> str:
    schema = create_app(Settings(cores=1), ColourSegmenter()).openapi()
    schema["info"].pop("version")
    return json.dumps(schema, indent=1, sort_keys=True) + "\n"


def test_the_document_is_the_snapshot():
    assert document() == SNAPSHOT.read_text(encoding="utf-8")


def test_every_operation_has_words_and_documents_its_problems():
    paths = json.loads(document())["paths"]
    assert set(paths) == {
        "/segment",
        "/classify",
        "/model",
        "/health/live",
        "/health/ready",
        "/metrics",
        "/admin/reload",
    }
    for operations in paths.values():
        for operation in operations.values():
            assert operation["description"]
    for path in ("/segment", "/classify"):
        operation = paths[path]["post"]
        assert {"400", "413", "415", "422", "429", "503", "504"} <= set(operation["responses"])
        assert "multipart/form-data" in operation["requestBody"]["content"]
        assert "image/tiff" in operation["requestBody"]["content"]


def test_what_a_request_may_state_is_optional_and_never_null():
    for operations in json.loads(document())["paths"].values():
        for operation in operations.values():
            for parameter in operation.get("parameters", []):
                assert not parameter["required"]
                assert {"enum", "minimum", "exclusiveMinimum", "format"} & set(parameter["schema"]), parameter["name"]
                assert parameter["schema"]["type"] in ("number", "integer", "string"), parameter["name"]


def test_every_operation_but_health_says_that_a_key_may_be_asked_for():
    found = json.loads(document())
    assert set(found["components"]["securitySchemes"]) == {"bearer", "key"}
    assert found["security"] == [{}, {"bearer": []}, {"key": []}]
    for path, operations in found["paths"].items():
        for operation in operations.values():
            is_open = path.startswith("/health/")
            assert operation.get("security") == ([] if is_open else None)
            assert {"401", "403"}.isdisjoint(operation["responses"]) == is_open


def test_the_headers_that_are_documented_are_those_that_are_sent(client):
    operation = json.loads(document())["paths"]["/segment"]["post"]["responses"]
    sent = client.post("/segment", content=encoded(noise(16, 16)), headers={**PNG, "Accept": "image/png"}).headers
    told = {name.lower() for name in operation["200"]["headers"]}
    assert told == {name for name in sent if name.startswith("tessera-")} | {"x-request-id"}
    assert all("Retry-After" in operation[status]["headers"] for status in ("429", "503"))
    assert all("X-Request-ID" in response["headers"] for response in operation.values())


def test_every_request_may_state_its_id_once_however_often_the_document_is_asked_for():
    app = create_app(Settings(cores=1), ColourSegmenter())
    app.openapi()
    for operations in app.openapi()["paths"].values():
        for operation in operations.values():
            assert [one["name"] for one in operation["parameters"]].count("X-Request-ID") == 1


def test_what_readiness_answers_has_a_schema(client):
    responses = json.loads(document())["paths"]["/health/ready"]["get"]["responses"]
    assert responses["200"]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/Ready"}
    assert client.get("/health/ready").json() == {"status": "ready"}


def test_the_route_for_sectra_documents_its_problems_and_their_line_for_the_user():
    paths = create_app(Settings(cores=1, sectra_hosts="pacs.example"), ColourSegmenter()).openapi()["paths"]
    responses = paths["/sectra/hook"]["post"]["responses"]
    problems = {"400", "401", "403", "408", "409", "413", "422", "429", "500", "502", "503", "504"}
    assert set(responses) == {"200"} | problems
    for status in problems - {"401"}:  # which never gets as far as the route
        problem, more = responses[status]["content"]["application/problem+json"]["schema"]["allOf"]
        assert problem == {"$ref": "#/components/schemas/Problem"}
        assert "error" in more["properties"]
    assert "call-back" in responses["403"]["description"]
    assert all("Retry-After" in responses[status]["headers"] for status in ("429", "503"))


if __name__ == "__main__":
    SNAPSHOT.write_text(document(), encoding="utf-8")
