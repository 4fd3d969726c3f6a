"""Addresses that lead to a page: the service's own, and those of the pages with a slash behind them.

Where they lead is relative, so that it also works behind a proxy that adds a prefix, and has no query.
"""

from collections.abc import Awaitable, Callable

from fastapi import APIRouter, Response
from fastapi.responses import RedirectResponse

router = APIRouter(include_in_schema=False)


def _leading_to(location: str, status: int) -> Callable[[], Awaitable[Response]]:
    async def lead() -> Response:
        return RedirectResponse(location, status)

    return lead


router.add_api_route("/", _leading_to("viewer", 307))
router.add_api_route("/viewer/index.html", _leading_to("../viewer", 308))  # whose links would lead nowhere from there
for _page in ("viewer", "docs", "redoc"):
    router.add_api_route(f"/{_page}/", _leading_to(f"../{_page}", 308))
