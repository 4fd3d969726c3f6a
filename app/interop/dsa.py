"""Polygons as an annotation of the Digital Slide Archive (HistomicsUI, large_image's annotation schema)."""

from typing import Any

import shapely

from app.imaging.contours import TissuePolygon
from app.interop.annotations import Annotations, mean_probability, rgb, rgba
from app.interop.geojson import FILL_OPACITY

MEDIA_TYPE = "application/vnd.dsa.annotation+json"


def annotation(annotations: Annotations) -> dict[str, Any]:
    """Return the annotations as one annotation document, a closed polyline for each region."""
    manifest = annotations.manifest
    return {
        "name": f"{manifest.name} {manifest.version}",
        "description": f"Tissue segmentation, {manifest.intended_use}.",
        "attributes": annotations.provenance,
        "elements": [_element(annotations, polygon) for polygon in annotations.polygons],
    }


def _element(annotations: Annotations, polygon: TissuePolygon) -> dict[str, Any]:
    tissue = annotations.manifest.classes[polygon.class_index]
    return {
        # Element ids are 24 hexadecimal digits there.
        "id": annotations.identify(polygon).replace("-", "")[:24],
        "type": "polyline",
        "closed": True,
        "points": _points(annotations, polygon.outline.exterior),
        "holes": [_points(annotations, ring) for ring in polygon.outline.interiors],
        "label": {"value": tissue.name},
        "group": tissue.name,
        "lineColor": rgb(tissue.color),
        "fillColor": rgba(tissue.color, FILL_OPACITY),
        "user": {"mean_probability": mean_probability(polygon)},
    }


def _points(annotations: Annotations, ring: shapely.LinearRing) -> list[list[float]]:
    """Return a ring as (x, y, z) points without the repeated last one."""
    return [[x, y, 0] for x, y in annotations.ring(ring)[:-1]]
