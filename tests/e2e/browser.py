"""Debian's Chromium, headless, driven by Playwright; and pages that are watched for what must not happen on them."""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright

from tests.programs import program

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
_ACTION_MS = 10_000
_DRAW_SECONDS = 30
expect.set_options(timeout=1000 * _DRAW_SECONDS)
_FAILED_REQUEST = re.compile(r"Failed to load resource: .*status of (\d+)|Failed to load resource: net::(\w+)")


def eventually(check: Callable[[], None]) -> None:
    """Look again until `check` passes: what is drawn is not announced by anything in a page."""
    deadline = time.monotonic() + _DRAW_SECONDS
    while True:
        try:
            return check()
        except AssertionError:
            if time.monotonic() > deadline:
                raise


@contextmanager
def chromium() -> Iterator[Browser]:
    """Run a browser. Nothing of it outlives the block."""
    path = program("chromium")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        try:
            yield running
        finally:
            running.close()


@dataclass
class Visit:
    """A page, and what happened on it.

    Attributes:
        page: The page.
        complaints: What the browser's console called an error, and what scripts threw.
        failed: The status (or network error) of each request that failed; the browser says so on its console, too.
        requests: The URL of each request.
    """

    page: Page
    complaints: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def heard(self, message: ConsoleMessage) -> None:
        """Note an error on the console."""
        if message.type != "error":
            return
        if found := _FAILED_REQUEST.match(message.text):
            self.failed.append(found.group(1) or found.group(2))
        else:
            self.complaints.append(message.text)


@contextmanager
def visiting(browser: Browser, url: str, path: str, **context: Any) -> Iterator[Visit]:
    """Open `path` of the server at `url`; afterwards, check that nobody complained and no other server was asked."""
    opened = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **context})
    opened.set_default_timeout(_ACTION_MS)
    visit = Visit(opened.new_page())
    visit.page.on("console", visit.heard)
    visit.page.on("pageerror", lambda error: visit.complaints.append(str(error)))
    visit.page.on("request", lambda request: visit.requests.append(request.url))
    try:
        visit.page.goto(url + path)
        yield visit
    finally:
        opened.close()
    assert visit.complaints == []
    assert [address for address in visit.requests if not address.startswith((f"{url}/", "blob:", "data:"))] == []
