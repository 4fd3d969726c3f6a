"""Content negotiation: which of a route's media types a client wants (RFC 9110, section 12.5.1)."""

from collections.abc import Sequence

from app.api.problems import NotAcceptable


def choose(accept: str | None, offered: Sequence[str]) -> str:
    """Return the media type of `offered` that `accept` weighs highest; the first offered wins a tie.

    Raises:
        NotAcceptable: `accept` allows none of them.
    """
    if not accept or not accept.strip():
        return offered[0]
    ranges = [_parse(part) for part in accept.split(",") if part.strip()]
    weights = {media_type: _weight(media_type, ranges) for media_type in offered}
    best = max(offered, key=lambda media_type: weights[media_type])
    if weights[best] <= 0:
        raise NotAcceptable(f"the answer comes as {' or '.join(offered)}; name one of them in Accept")
    return best


def _parse(text: str) -> tuple[str, float]:
    """Return a media range and its weight; a weight that is no number counts as 0."""
    media_range, *parameters = (part.strip() for part in text.lower().split(";"))
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                return media_range, min(1.0, max(0.0, float(value)))
            except ValueError:
                return media_range, 0.0
    return media_range, 1.0


def _weight(media_type: str, ranges: Sequence[tuple[str, float]]) -> float:
    """Return the weight of the most specific range that covers `media_type`."""
    family = media_type.split("/", maxsplit=1)[0]
    for specific in (media_type, f"{family}/*", "*/*"):
        found = [weight for media_range, weight in ranges if media_range == specific]
        if found:
            return max(found)
    return 0.0
