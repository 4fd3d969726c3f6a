"""The pages that show the API's description: /docs (Swagger UI) and /redoc (ReDoc). They are no part of it.

From packaged files: a hospital's network does not reach the usual content delivery networks. Links are relative, so
that the pages also work behind a proxy that adds a prefix.
"""

from functools import cache
from pathlib import Path

from fastapi import APIRouter, Request, Response
from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html

from app.packaged_files import PackagedFiles

router = APIRouter(include_in_schema=False)

SERVER = {"url": ".", "description": "This service; the dot is where its openapi.json lies."}
"""As the description names it: relative to where that lies itself (OpenAPI 3.1.1, section 4.8.5)."""
_DESCRIPTION = "openapi.json"
_FILES = "static-offline-docs"
_STATIC = PackagedFiles(packages=[("fastapi_offline", "static")])
_REDOC = "redoc.standalone.js"
_REDOCS_LOGO, _NO_PICTURE = b"https://cdn.redoc.ly/redoc/logo-mini.svg", b"data:,"
"""The one address outside that ReDoc loads, which no option turns off; it shows none where the picture is none."""


@router.get("/docs")
async def swagger_ui() -> Response:
    """Give the page on which the API can be tried."""
    return get_swagger_ui_html(
        openapi_url=_DESCRIPTION,
        title="tessera: API",
        swagger_js_url=f"{_FILES}/swagger-ui-bundle.js",
        swagger_css_url=f"{_FILES}/swagger-ui.css",
        swagger_favicon_url=f"{_FILES}/favicon.png",
    )


@router.get("/redoc")
async def redoc() -> Response:
    """Give the page on which it can be read."""
    return get_redoc_html(
        openapi_url=_DESCRIPTION,
        title="tessera: API",
        redoc_js_url=f"{_FILES}/{_REDOC}",
        redoc_favicon_url=f"{_FILES}/favicon.png",
        with_google_fonts=False,
    )


@router.get(f"/{_FILES}/{_REDOC}")
def redoc_script() -> Response:
    """Give ReDoc, without what it would load from outside."""
    return Response(_redoc(), media_type="text/javascript", headers={"Cache-Control": "max-age=86400"})


@router.get(f"/{_FILES}/{{path:path}}")
async def file(path: str, request: Request) -> Response:
    """Give one of the pages' scripts, styles or pictures."""
    return await _STATIC.get_response(path, request.scope)


@cache
def _redoc() -> bytes:
    path, _ = _STATIC.lookup_path(_REDOC)
    return Path(path).read_bytes().replace(_REDOCS_LOGO, _NO_PICTURE)
