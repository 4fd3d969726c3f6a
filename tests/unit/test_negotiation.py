import pytest

from app.api.negotiation import choose
from app.api.problems import NotAcceptable

OFFERED = ("application/json", "image/png")


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        (None, "application/json"),
        ("", "application/json"),
        ("*/*", "application/json"),
        ("image/png", "image/png"),
        ("image/*", "image/png"),
        ("IMAGE/PNG", "image/png"),
        ("application/json;q=0.5, image/png", "image/png"),
        ("image/png;q=0.2, */*;q=0.1", "image/png"),
        ("application/json, image/png", "application/json"),
        ("text/html, image/avif, image/png, */*;q=0.8", "image/png"),
        ("application/json;q=0, */*", "image/png"),
        ("application/json; charset=utf-8", "application/json"),
    ],
)
def test_the_client_gets_what_it_weighs_highest(accept, chosen):
    assert choose(accept, OFFERED) == chosen


@pytest.mark.parametrize("accept", ["text/html", "image/png;q=0", "image/png;q=nonsense", "*/*;q=0"])
def test_nothing_in_common_is_said(accept):
    with pytest.raises(NotAcceptable, match="application/json or image/png"):
        choose(accept, OFFERED)
