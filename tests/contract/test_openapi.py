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
                assert {"enum", "minimum", "exclusiveMinimum"} & set(parameter["schema"]), parameter["name"]
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
    assert "Retry-After" in operation["429"]["headers"]
    assert all("X-Request-ID" in response["headers"] for response in operation.values())


if __name__ == "__main__":
    SNAPSHOT.write_text(document(), encoding="utf-8")
