"""What the API's own description says of access, which is decided outside of the routes."""

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
_PROBLEM = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
_REFUSALS = {
    "401": {"description": "The service asks for a key or token, and this is none that it takes.", "content": _PROBLEM},
    "403": {"description": "The key or token does not allow this.", "content": _PROBLEM},
}
_UNKNOWN = {"description": "Whether the key or token is valid cannot be told now.", "content": _PROBLEM}


def describe_access(app: FastAPI) -> None:
    """Let the description of `app` name the ways to show who asks, and the answers to those who may not."""
    described = app.openapi

    def with_access() -> dict[str, Any]:
        schema = described()
        schema["components"]["securitySchemes"] = _SCHEMES
        schema["security"] = [{}, *({name: []} for name in _SCHEMES)]  # {}: a service may be open
        for path, operations in schema["paths"].items():
            for operation in operations.values():
                if path.startswith(_OPEN):
                    operation["security"] = []
                else:
                    operation["responses"].update(_REFUSALS)
                    operation["responses"].setdefault("503", _UNKNOWN)
        return schema

    setattr(app, "openapi", with_access)  # noqa: B010  a method that FastAPI has applications replace
