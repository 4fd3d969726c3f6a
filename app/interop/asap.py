"""Polygons as XML of ASAP (Automated Slide Analysis Platform, Computation Pathology Group, Radboud UMC).

ASAP's polygons have no holes. Every region is written by its outer ring, background included, larger before smaller:
what lies in a hole follows what surrounds it, so that painted in order they give the class map again. Where they come
from is in attributes of the root element, of which ASAP reads none; it leaves them out of a file that it saves.
"""

from xml.etree import ElementTree as ET

import shapely

from app.interop.annotations import Annotations

MEDIA_TYPE = "application/vnd.asap.annotation+xml"
"""Not application/xml, which browsers prefer to JSON in their Accept without meaning it."""


def document(annotations: Annotations) -> bytes:
    """Return the annotations as an ASAP file, UTF-8; their polygons are to cover the whole patch."""
    root = ET.Element("ASAP_Annotations", annotations.provenance)
    drawn = ET.SubElement(root, "Annotations")
    rings = [(polygon.class_index, polygon.outline.exterior) for polygon in annotations.polygons]
    for number, (class_index, ring) in enumerate(sorted(rings, key=lambda each: -shapely.Polygon(each[1]).area)):
        tissue = annotations.manifest.classes[class_index]
        one = ET.SubElement(
            drawn,
            "Annotation",
            Name=f"{tissue.name} {number}",
            Type="Polygon",
            PartOfGroup=tissue.name,
            Color=tissue.hex_color,
        )
        coordinates = ET.SubElement(one, "Coordinates")
        for order, (x, y) in enumerate(annotations.ring(ring)[:-1]):
            ET.SubElement(coordinates, "Coordinate", Order=str(order), X=str(x), Y=str(y))
    groups = ET.SubElement(root, "AnnotationGroups")
    for tissue in annotations.manifest.classes:
        group = ET.SubElement(groups, "Group", Name=tissue.name, PartOfGroup="None", Color=tissue.hex_color)
        ET.SubElement(group, "Attributes")
    xml: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return xml
