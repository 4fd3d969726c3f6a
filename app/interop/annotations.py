"""What all forms of annotations share: polygons on the slide, and where they come from."""

import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from app.imaging.contours import TissuePolygon
from app.interop.provenance import Conditions
from app.pathology.geometry import Placement
from app.pathology.manifest import ModelManifest

_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "urn:tessera:annotation")
_DIGITS = 3
"""Decimals of a coordinate in full-resolution pixels."""
_PROBABILITY_DIGITS = 4


@dataclass(frozen=True, slots=True)
class Annotations:
    """A patch's polygons and all that their files say of them.

    Attributes:
        polygons: In px of the patch.
        placement: Where the patch lies on its slide.
        manifest: Of the model that drew them.
        image_sha256: Hexadecimal digest of the upload.
        conditions: How the model saw it.
    """

    polygons: Sequence[TissuePolygon]
    placement: Placement
    manifest: ModelManifest
    image_sha256: str
    conditions: Conditions

    @property
    def provenance(self) -> dict[str, str]:
        """What an annotation comes from, as text that viewers show."""
        return {
            "model": self.manifest.name,
            "model_version": self.manifest.version,
            "model_sha256": self.manifest.sha256,
            "image_sha256": self.image_sha256,
            "intended_use": self.manifest.intended_use,
            **self.conditions.stated,
        }

    def identify(self, polygon: TissuePolygon) -> str:
        """Return a UUID that the same upload, model, place and outline always give (RFC 9562, version 5)."""
        parts = (
            self.image_sha256,
            self.manifest.sha256,
            str(self.placement),
            shapely.to_wkb(polygon.outline, hex=True),
        )
        return str(uuid.uuid5(_NAMESPACE, "/".join(parts)))

    def rings(self, polygon: TissuePolygon) -> list[list[list[float]]]:
        """Return a region's rings, the outline before its holes; each as `ring` does.

        By the sign of its area the outline turns counter-clockwise, and holes clockwise (RFC 7946, section 3.1.6): who
        fills by the direction of borders, as canvases do, leaves holes empty.
        """
        outline = shapely.orient_polygons(polygon.outline)
        return [self.ring(ring) for ring in (outline.exterior, *outline.interiors)]

    def ring(self, ring: shapely.LinearRing) -> list[list[float]]:
        """Return a closed ring's points (x, y), the first repeated at the end, in full-resolution pixels."""
        place = self.placement
        points: NDArray[np.float64] = shapely.get_coordinates(ring) * place.downsample + (place.x_px, place.y_px)
        rounded: list[list[float]] = points.round(_DIGITS).tolist()
        return rounded


def mean_probability(polygon: TissuePolygon) -> float:
    """Return how sure the model is of a region, 0 to 1, in the digits that are written."""
    return round(polygon.mean_confidence, _PROBABILITY_DIGITS)


def rgb(color: Sequence[int]) -> str:
    """Return (0, 64, 128) as "rgb(0,64,128)"."""
    return f"rgb({','.join(map(str, color))})"


def rgba(color: Sequence[int], opacity: float) -> str:
    """Return (0, 64, 128) at 0.3 as "rgba(0,64,128,0.3)"."""
    return f"rgba({','.join(map(str, color))},{opacity})"


def json_of_many(head: Mapping[str, Any], name: str, items: Iterable[Mapping[str, Any]]) -> bytes:
    """Return an object of `head` and then a list of `items` as compact JSON, UTF-8.

    Each item is written before the next is made: the lists and dictionaries of 20,000 regions are ten times their text,
    and Python keeps most of what it once took for small objects.
    """
    written = b",".join(_compact(item) for item in items)
    return _compact(head)[:-1] + b"," + _compact(name) + b":[" + written + b"]}"


def _compact(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
