"""Sectra's orders to areas of a slide. Coordinates are divided by the slide's width, y as well as x."""

import numpy as np
import shapely
from sectra_client.schemas import CreateInvocation, MultiAreaInput, Polygon, TaggedPolygonInput

from app.errors import AreaOutside, ImageTooLarge
from app.pathology.geometry import Size

_MOST_POINTS = 5000
"""The most points of an area. One drawn by hand has about a thousand; cutting it at the slide's borders can take time
that grows with their square."""
_MOST_CROSSINGS = 1000
"""The most crossings of an area's line with itself. One drawn by hand has about ten; each costs time and memory."""
_BLOCK = 64
"""How many pieces of a line are searched for crossings before their number is compared with the most."""
_FARTHEST = 1000


def ordered_polygons(order: CreateInvocation) -> list[Polygon] | None:
    """Return the polygons that were drawn, or None for a whole slide.

    Raises:
        AreaOutside: Areas were ordered, and there is none.
    """
    if isinstance(order.input, TaggedPolygonInput):
        return [order.input.content.polygon]
    if not isinstance(order.input, MultiAreaInput):
        return None
    if not order.input.content.polygons:
        raise AreaOutside("the order has no area; draw one on the tissue")
    return list(order.input.content.polygons)


def whole(slide: Size) -> shapely.MultiPolygon:
    """Return all of a slide as an area."""
    return shapely.MultiPolygon([shapely.box(0, 0, slide.width_px, slide.height_px)])


def area(drawn: Polygon, slide: Size) -> shapely.MultiPolygon:
    """Return what was drawn, in px of the slide's finest level and cut off at its borders.

    A line that was drawn across itself encloses all that it runs around.

    Raises:
        AreaOutside: It has no area on the slide.
        ImageTooLarge: Its line has too many points, or crosses itself too often.
    """
    if len(drawn.points) > _MOST_POINTS:
        raise ImageTooLarge(f"an area has {len(drawn.points)} points; draw it with at most {_MOST_POINTS}")
    points = np.array([(point.x, point.y) for point in drawn.points])
    if len(points) < 3 or not (abs(points) <= _FARTHEST).all():
        raise AreaOutside(f"an area needs at least three points, none more than {_FARTHEST} slides' widths away")
    polygon = shapely.Polygon(points * slide.width_px)
    if not polygon.is_valid:
        _check_crossings(polygon.exterior)
        polygon = shapely.make_valid(polygon, method="structure", keep_collapsed=False)
    cut = shapely.intersection(polygon, whole(slide))
    found = shapely.MultiPolygon([part for part in shapely.get_parts(cut) if isinstance(part, shapely.Polygon)])
    if found.is_empty:
        raise AreaOutside("an area lies outside the slide or encloses nothing; draw it on the tissue")
    return found


def _check_crossings(ring: shapely.LinearRing) -> None:
    """Count where a line meets itself, a block of its pieces at a time, so that a tangle is known by its first."""
    corners = shapely.get_coordinates(ring)
    pieces = shapely.linestrings(np.stack([corners[:-1], corners[1:]], axis=1))
    pieces = pieces[shapely.length(pieces) > 0]  # where the pen rested
    tree = shapely.STRtree(pieces)
    met = -3 * len(pieces)  # each meets itself and both its neighbours
    for start in range(0, len(pieces), _BLOCK):
        met += tree.query(pieces[start : start + _BLOCK], predicate="intersects").shape[1]
        if met > 2 * _MOST_CROSSINGS:  # each crossing is met from both sides
            raise ImageTooLarge(f"an area's line crosses itself more than {_MOST_CROSSINGS} times; draw around it once")
