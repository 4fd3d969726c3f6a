"""Reading ASAP's XML as ASAP does: rings painted one over the other, in the order of the file."""

from xml.etree import ElementTree as ET

import numpy as np
from rasterio import features

from app.pathology.classes import WSSS4LUAD


def paint_asap(document: bytes, shape: tuple[int, int]) -> np.ndarray:
    """Return the (H, W) uint8 class map that the document's polygons paint; 9 where there is none."""
    root = ET.fromstring(document)
    groups = {group.get("Name") for group in root.iterfind("AnnotationGroups/Group")}
    names = [tissue.name for tissue in WSSS4LUAD]
    shapes = []
    for annotation in root.iterfind("Annotations/Annotation"):
        assert annotation.get("PartOfGroup") in groups
        points = [(float(each.get("X", "")), float(each.get("Y", ""))) for each in annotation.iter("Coordinate")]
        ring = [[*points, points[0]]]
        shapes.append(({"type": "Polygon", "coordinates": ring}, names.index(annotation.get("PartOfGroup"))))
    return features.rasterize(shapes, out_shape=shape, fill=9, dtype="uint8")
