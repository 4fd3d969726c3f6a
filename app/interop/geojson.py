"""Polygons as GeoJSON (RFC 7946) that QuPath 0.5 to 0.7 and the Digital Slide Archive both read.

Both take pixels for coordinates, origin at the slide's top left, y downward. One feature that a QuPath does not like
loses its whole import, so every property here has the type that each version takes: colours are arrays, measurements
are numbers, metadata are strings, and a region is one Polygon, never a MultiPolygon.
"""

from typing import Any

from app.imaging.contours import TissuePolygon
from app.interop.annotations import Annotations, json_of_many, mean_probability, rgb, rgba

MEDIA_TYPE = "application/geo+json"

FILL_OPACITY = 0.3


def document(annotations: Annotations) -> bytes:
    """Return the annotations as a FeatureCollection, a Feature for each region; UTF-8."""
    provenance = annotations.provenance
    features = (_feature(annotations, polygon, provenance) for polygon in annotations.polygons)
    return json_of_many({"type": "FeatureCollection"}, "features", features)


def _feature(annotations: Annotations, polygon: TissuePolygon, provenance: dict[str, str]) -> dict[str, Any]:
    tissue = annotations.manifest.classes[polygon.class_index]
    return {
        "type": "Feature",
        "id": annotations.identify(polygon),
        "geometry": {"type": "Polygon", "coordinates": annotations.rings(polygon)},
        "properties": {
            "objectType": "annotation",
            "name": tissue.name,
            "isLocked": True,
            # Of the object itself: QuPath does not overwrite the colour of a class that it knows.
            "color": list(tissue.color),
            "classification": {"name": tissue.name.capitalize(), "color": list(tissue.color)},
            "measurements": {"mean_probability": mean_probability(polygon)},
            "metadata": provenance,
            # The Digital Slide Archive reads these and nothing above.
            "label": {"value": tissue.name},
            "group": tissue.name,
            "lineColor": rgb(tissue.color),
            "fillColor": rgba(tissue.color, FILL_OPACITY),
        },
    }
