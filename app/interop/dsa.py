"""Polygons as an annotation of the Digital Slide Archive (HistomicsUI, large_image's annotation schema)."""

from typing import Any

from app.imaging.contours import TissuePolygon
from app.interop.annotations import Annotations, json_of_many, mean_probability, rgb, rgba
from app.interop.geojson import FILL_OPACITY

MEDIA_TYPE = "application/vnd.dsa.annotation+json"


def document(annotations: Annotations) -> bytes:
    """Return the annotations as one annotation document, a closed polyline for each region; UTF-8."""
    manifest = annotations.manifest
    head = {
        "name": f"{manifest.name} {manifest.version}",
        "description": f"Tissue segmentation, {manifest.intended_use}.",
        "attributes": annotations.provenance,
    }
    return json_of_many(head, "elements", (_element(annotations, polygon) for polygon in annotations.polygons))


def _element(annotations: Annotations, polygon: TissuePolygon) -> dict[str, Any]:
    tissue = annotations.manifest.classes[polygon.class_index]
    # Points (x, y, z), closed without the last.
    outline, *holes = ([[x, y, 0] for x, y in ring[:-1]] for ring in annotations.rings(polygon))
    return {
        # Element ids are 24 hexadecimal digits there.
        "id": annotations.identify(polygon).replace("-", "")[:24],
        "type": "polyline",
        "closed": True,
        "points": outline,
        "holes": holes,
        "label": {"value": tissue.name},
        "group": tissue.name,
        "lineColor": rgb(tissue.color),
        "fillColor": rgba(tissue.color, FILL_OPACITY),
        "user": {"mean_probability": mean_probability(polygon)},
    }
