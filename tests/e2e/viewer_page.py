"""What a test does on the page, and what it reads off it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Locator, Page, Route, expect

from app.main import create_app
from app.pathology.arrays import RgbImage
from app.settings import Settings
from tests.e2e.browser import eventually, visiting
from tests.e2e.viewer_service import Gateway, serving
from tests.fakes import ColourSegmenter
from tests.pictures import BLUE, GREEN, ORANGE, WHITE, encoded, opened, quarters

SIDE = 256
TUMOR, STROMA, NORMAL = (0, 64, 128), (64, 128, 0), (243, 152, 0)
QUARTERS = {"tumor": (-1, -1), "stroma": (1, -1), "normal": (-1, 1), "background": (1, 1)}
"""Where `quarters` has which class, in quarters of a side from the middle."""
IMAGE = {"tumor": BLUE, "stroma": GREEN, "normal": ORANGE, "background": WHITE}
MASK = {"tumor": TUMOR, "stroma": STROMA, "normal": NORMAL}
SURE_200 = (76, 192, 108)
"""viridis at 200/255 on a scale from 1/4 to 1: in 8 steps, 0.699 of the way from the sixth colour to the seventh."""
STAGE = (227, 231, 236)
"""What lies behind the pictures."""
UNSHOWN = (158, 158, 158)
"""What lies behind the confidence."""
NAME = "doe-john-1970-01-01.png"


def settings() -> Settings:
    return Settings(cores=2, device="cpu")


def upload(name: str = NAME, content: bytes | None = None, media_type: str = "image/png") -> Any:
    return {"name": name, "mimeType": media_type, "buffer": content or encoded(quarters(SIDE, SIDE))}


def choose(page: Page, *files: Any) -> None:
    page.get_by_label("Choose patches").set_input_files(list(files) or [upload()])


def show(page: Page, *files: Any) -> None:
    """Choose patches and wait until all are answered and one is seen."""
    choose(page, *files)
    expect(page.get_by_role("button", name="Clear list")).to_be_visible()
    expect(page.locator("#busy")).to_be_empty()


def pick(page: Page, label: str) -> None:
    """Choose one of a group of radio buttons; what is seen and clicked is its label."""
    page.locator(".choice").get_by_text(label, exact=True).click()


def picture_of(pane: Locator) -> RgbImage:
    return np.asarray(opened(pane.screenshot()).convert("RGB")).astype(float)


def place_of(picture: RgbImage, name: str) -> RgbImage:
    """Return some px around the middle of a class's quarter; the square image fills the pane's shorter side."""
    height, width = picture.shape[:2]
    right, down = QUARTERS[name]
    x, y = (round(whole / 2 + step * min(width, height) / 4) for whole, step in ((width, right), (height, down)))
    return picture[y - 20 : y + 20, x - 20 : x + 20]


def blended(name: str, opacity: float) -> tuple[float, ...]:
    if name not in MASK:
        return IMAGE[name]
    return tuple((1 - opacity) * of + opacity * colour for of, colour in zip(IMAGE[name], MASK[name], strict=True))


def grey(color: tuple[int, int, int]) -> float:
    """Return the luminosity that browsers leave of a colour without saturation."""
    return float(np.dot((0.3, 0.59, 0.11), color))


def assert_seen(pane: Locator, expected: dict[str, tuple[float, ...]], within: float = 1) -> None:
    """Check the colour of every pixel around the middle of each quarter named."""

    def check() -> None:
        picture = picture_of(pane)
        for name, colour in expected.items():
            seen = place_of(picture, name)
            assert np.abs(seen - colour).max() <= within, (name, seen[20, 20], colour)

    eventually(check)


def assert_accessible(page: Page) -> None:
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


def downloaded(page: Page, button: str) -> tuple[str, bytes]:
    with page.expect_download() as waiting:
        page.locator("#downloads").get_by_role("button", name=button).click()
    return waiting.value.suggested_filename, waiting.value.path().read_bytes()


@contextmanager
def behind_gateway(browser: Browser, segmenter: ColourSegmenter | None = None, **gate: Any) -> Iterator[Any]:
    """Open the page behind a gateway of its own; give both, and the server."""
    gateway = Gateway(create_app(settings(), segmenter or ColourSegmenter()), **gate)
    with serving(gateway) as running, visiting(browser, running.url + gateway.prefix, "/viewer") as opened_page:
        yield opened_page, gateway, running


def equal(one: int, other: int) -> None:
    assert one == other


def arrived(page: Page, routes: list[Route], count: int) -> None:
    """Wait for requests; what is caught is only told of while Playwright is waited for."""

    def check() -> None:
        page.wait_for_timeout(20)
        assert len(routes) == count

    eventually(check)
