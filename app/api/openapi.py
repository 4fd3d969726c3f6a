"""What the API's own description says of what is decided outside of the routes: access, and the request's id."""

from typing import Any

from fastapi import FastAPI

from app.api.problems import MEDIA_TYPE

_SCHEMES = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "An API key, or a token of the issuer that the service trusts.",
    },
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "An API key."},
}
_OPEN = "/health/"
PROBLEM_CONTENT = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
_REFUSALS = {
    "401": {
        "description": "The service asks for a key or token, and the request has none that it accepts.",
        "content": PROBLEM_CONTENT,
    },
    "403": {
        "description": "The key or token does not allow this; for /admin also: the service has no keys or tokens set"
        " up.",
        "content": PROBLEM_CONTENT,
    },
}


def described(headers: dict[str, str]) -> dict[str, Any]:
    """Return OpenAPI's description of response headers, from that of each in words."""
    return {name: {"description": words, "schema": {"type": "string"}} for name, words in headers.items()}


RETRY_AFTER = described({"Retry-After": "Seconds to wait before sending the request again."})
RETRY_AFTER_SOME = described({"Retry-After": "Seconds to wait before sending the request again, where that is known."})
_UNAVAILABLE = {
    "description": "The service cannot answer now, and `type` says why; for example, it cannot check the key or token.",
    "content": PROBLEM_CONTENT,
    "headers": RETRY_AFTER_SOME,
}
_ID = described({"X-Request-ID": "The request's id, as in the log; the caller's own id if that is a UUID."})
_OWN_ID = {
    "name": "X-Request-ID",
    "in": "header",
    "required": False,
    "description": "The request's id, for the answer and the log; anything but a UUID is replaced by a new one.",
    "schema": {"type": "string", "format": "uuid"},
}


def describe_common(app: FastAPI) -> None:
    """Let the description of `app` name the ways to show who asks, the answers to those who may not, and the id."""
    of_routes = app.openapi

    def with_common() -> dict[str, Any]:
        schema = of_routes()
        schema["components"]["securitySchemes"] = _SCHEMES
        schema["security"] = [{}, *({name: []} for name in _SCHEMES)]  # {}: a service may be open
        for path, operations in schema["paths"].items():
            for operation in operations.values():
                if path.startswith(_OPEN):
                    operation["security"] = []
                else:
                    operation["responses"] = {**_REFUSALS, **operation["responses"]}
                    operation["responses"].setdefault("503", _UNAVAILABLE)
                others = [one for one in operation.get("parameters", ()) if one != _OWN_ID]  # FastAPI keeps its schema
                operation["parameters"] = [*others, _OWN_ID]
                for status, response in operation["responses"].items():
                    operation["responses"][status] = {**response, "headers": {**response.get("headers", {}), **_ID}}
        return schema

    setattr(app, "openapi", with_common)  # noqa: B010  a method that FastAPI has applications replace
