"""The pages that show the API's description, in a browser: nothing of them is blocked, also under a prefix."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect

from app.main import create_app
from tests.e2e.browser import visiting
from tests.e2e.viewer_page import settings
from tests.e2e.viewer_service import Gateway, serving
from tests.fakes import ColourSegmenter


@pytest.fixture(scope="module", params=["", "/pathology/lab"], ids=["at-the-root", "under-a-prefix"])
def place(request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of a service that seems to lie there."""
    gateway = Gateway(create_app(settings(), ColourSegmenter()), prefix=request.param)
    with serving(gateway) as running:
        yield running.url + gateway.prefix


def test_the_api_is_described_and_can_be_tried(browser: Browser, place: str) -> None:
    with visiting(browser, place, "/docs") as visit:
        operation = visit.page.locator(".opblock", has_text="/health/live")
        operation.locator(".opblock-summary").click()
        operation.get_by_role("button", name="Try it out").click()
        operation.get_by_role("button", name="Execute").click()
        expect(operation.locator(".live-responses-table")).to_contain_text('"status": "live"')
    assert visit.requests[-1] == f"{place}/health/live"
    assert visit.failed == []


def test_the_other_description_is_whole(browser: Browser, place: str) -> None:
    with visiting(browser, place, "/redoc") as visit:
        visit.page.get_by_role("button", name="post /segment").click()
        expect(visit.page.get_by_text(f"{place}/./segment")).to_be_visible()
        visit.page.wait_for_load_state("networkidle")
    assert visit.failed == []
