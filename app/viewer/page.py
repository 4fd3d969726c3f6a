"""The page and its files. It talks to the service's own API, and to nothing else; nothing is kept here.

Its links are relative, so that it also works behind a proxy that adds a prefix.
"""

from pathlib import Path

from fastapi import APIRouter, Request, Response

from app.packaged_files import PackagedFiles

router = APIRouter(prefix="/viewer", include_in_schema=False)

_STATIC = PackagedFiles(directory=Path(__file__).parent / "static")
_EMPTY = "'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='"
"""Digest of nothing: the one inline style of the page is an empty mark that OpenSeadragon looks for."""
_HEADERS = {
    # The browser itself refuses what the page promises not to do: foreign requests, inline scripts, other frames.
    "Content-Security-Policy": (
        f"default-src 'self'; style-src 'self' {_EMPTY}; object-src 'none'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'self'"
    ),
    # Kept, and asked for anew each time: a page and scripts of two versions must never meet.
    "Cache-Control": "no-cache",
}


@router.get("")
async def page(request: Request) -> Response:
    """Give the page."""
    return await _file("index.html", request)


@router.get("/{path:path}")
async def file(path: str, request: Request) -> Response:
    """Give one of the page's scripts, styles or pictures."""
    return await _file(path, request)


async def _file(path: str, request: Request) -> Response:
    """Return a file with its ETag, or 304 where the browser has it.

    Raises:
        HTTPException: There is none (404).
    """
    response = await _STATIC.get_response(path, request.scope)
    response.headers.update(_HEADERS)
    return response
