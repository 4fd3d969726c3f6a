"""What tests in a browser share."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page

from app.main import create_app
from tests.e2e.browser import Visit, chromium, visiting
from tests.e2e.viewer_page import settings
from tests.e2e.viewer_service import serving
from tests.fakes import ColourSegmenter


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless Chromium. Of a module, not of the session: while it runs, no other test can call `asyncio.run`."""
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A service with the colour segmenter, shared by the tests that leave it alone."""
    with serving(create_app(settings(), ColourSegmenter())) as running:
        yield running.url


@pytest.fixture
def visit(browser: Browser, url: str) -> Iterator[Visit]:
    with visiting(browser, url, "/viewer") as opened_page:
        yield opened_page


@pytest.fixture
def page(visit: Visit) -> Page:
    return visit.page
