"""Tissue to Sectra's results, and what its configuration asks for.

Follows the published SDK (github.com/sectra-medical/dpat_imageanalysisapi_sdk) in the schemas of PyPI's
`sectra-image-analysis-api`. Coordinates are divided by the slide's width, y as well as x. Results are primitives, not
patch collections: a tissue map is areas with borders, which a gallery of squares to sort cannot show.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import shapely
from sectra_client.schemas import (
    AdaptedResult,
    CreateInvocation,
    InputTemplate,
    InputType,
    Label,
    Point,
    Polygon,
    Polyline,
    PrimitiveItem,
    PrimitiveResultContent,
    Registration,
    Result,
    ResultData,
    Style,
    TaggedPolygonInputContent,
)

from app.imaging.contours import TissuePolygon
from app.imaging.plausibility import InputWarning
from app.pathology.composition import tissue_fractions
from app.pathology.geometry import Size
from app.pathology.manifest import ModelManifest
from app.software import software_version

APPLICATION = "tessera"
USE = "research use only"

_AREA_COLOR = "#808080"
_STROKE_PX = 2
_DIGITS = 8
"""Decimals of a coordinate, in slide widths: a hundredth of a pixel on the widest slides."""


@dataclass(frozen=True, slots=True)
class AreaTissue:
    """What was found in one area that was ordered.

    Attributes:
        outline: The area, in px of the slide's finest level.
        tissue: Its regions, likewise.
        pixel_counts: Its pixels by class, at the resolution that the model saw.
        um_per_px: That resolution, or None where the slide does not say.
    """

    outline: shapely.MultiPolygon
    tissue: Sequence[TissuePolygon]
    pixel_counts: Sequence[int]
    um_per_px: float | None


def registration(url: str, ordered_on: str) -> dict[str, Any]:
    """Return what Sectra's configuration page asks for, to be called at `url`; `ordered_on` is an input type's name."""
    input_type = InputType(ordered_on)
    tags = TaggedPolygonInputContent(tags=[]) if input_type is InputType.TAGGED_POLYGON else None
    known = Registration(
        applicationId=APPLICATION,
        displayName=f"Tissue map ({USE})",
        manufacturer=APPLICATION,
        url=url,
        inputTemplate=InputTemplate(type=input_type, content=tags),
    )
    return _json(known)


def order_key(order: CreateInvocation) -> str:
    """Return a digest of what was ordered on the slide: the same order always has the same."""
    return hashlib.sha256(json.dumps(_json(order.input), sort_keys=True).encode()).hexdigest()


def tissue_result(
    order: CreateInvocation,
    found: Sequence[AreaTissue],
    slide: Size,
    manifest: ModelManifest,
    warnings: Sequence[InputWarning],
) -> dict[str, Any]:
    """Return a result: regions in the classes' colours, and for each area its outline and what it is made of.

    What the slide is unlike stands beside that in words: where a viewer shows the result's text alone, there too.
    """
    total = [sum(counts) for counts in zip(*(area.pixel_counts for area in found), strict=True)]
    spacings = [area.um_per_px for area in found if area.um_per_px is not None]
    items = [_outline_item(area, slide, manifest) for area in found] + _tissue_items(found, slide, manifest)
    properties = {
        **_shares(total, manifest),
        "model": f"{manifest.name} {manifest.version}",
        "model SHA-256": manifest.sha256,
        "um/px": f"{max(spacings):g}" if spacings else "unknown",
        "use": USE,
        **({"warnings": " ".join(warning.message for warning in warnings)} if warnings else {}),
    }
    text = "; ".join([_composition(total, manifest), *(f"warning: {warning.message}" for warning in warnings)])
    return _result(order, False, text, properties, items)


def message_result(order: CreateInvocation, message: str, slide: Size) -> dict[str, Any]:
    """Return a result that says something in place of tissue: that it is on its way, or why it is not."""
    text = f"{message} ({USE})"
    top = Label(location=_point(0, 0, slide), label=text)
    return _result(order, True, text, {"use": USE}, [PrimitiveItem(labels=[top])])


def replacing(result: Mapping[str, Any], version_id: str) -> dict[str, Any]:
    """Return `result` as what replaces the stored one of that version."""
    return _json(AdaptedResult(**result, versionId=version_id))


def _result(
    order: CreateInvocation,
    is_message: bool,
    text: str,
    properties: Mapping[str, str],
    items: Sequence[PrimitiveItem],
) -> dict[str, Any]:
    known = Result(
        slideId=order.slideId,
        displayResult=text,
        displayProperties=dict(properties),
        applicationVersion=software_version(),
        data=ResultData(
            context={"order": order_key(order), "message": is_message},
            result=PrimitiveResultContent(content=list(items)),
        ),
    )
    return _json(known)


def _tissue_items(found: Sequence[AreaTissue], slide: Size, manifest: ModelManifest) -> list[PrimitiveItem]:
    """Return an item for each class that was found.

    Sectra's polygons have no holes, so a hole's border is drawn as a line that closes: what lies within is not claimed
    by an area of its own, and belongs to whatever is drawn there.
    """
    items = []
    for index, tissue in enumerate(manifest.classes):
        outlines = [region.outline for area in found for region in area.tissue if region.class_index == index]
        if outlines:
            items.append(
                PrimitiveItem(
                    style=_style(tissue.hex_color),
                    polygons=[_polygon(outline.exterior, slide) for outline in outlines],
                    polylines=[
                        Polyline(points=_points(hole, slide)) for outline in outlines for hole in outline.interiors
                    ],
                )
            )
    return items


def _outline_item(area: AreaTissue, slide: Size, manifest: ModelManifest) -> PrimitiveItem:
    parts = area.outline.geoms
    x, y = min((point for part in parts for point in part.exterior.coords), key=lambda point: (point[1], point[0]))
    text = f"{_composition(area.pixel_counts, manifest)}; {manifest.name} {manifest.version}"
    return PrimitiveItem(
        style=_style(_AREA_COLOR),
        polygons=[_polygon(part.exterior, slide) for part in parts],
        labels=[Label(location=_point(x, y, slide), label=text)],
    )


def _composition(pixel_counts: Sequence[int], manifest: ModelManifest) -> str:
    """Return what an area is made of, of all its pixels and of those of tissue."""
    fractions = [count / sum(pixel_counts) for count in pixel_counts]
    of_tissue = _named(tissue_fractions(pixel_counts, manifest.classes), manifest)
    return f"{_named(fractions, manifest)}; {f'of the tissue {of_tissue}' if of_tissue else 'no tissue'} ({USE})"


def _named(shares: Sequence[float | None], manifest: ModelManifest) -> str:
    named = zip(manifest.classes, shares, strict=True)
    return ", ".join(f"{tissue.name} {_percent(share)}" for tissue, share in named if share is not None)


def _shares(pixel_counts: Sequence[int], manifest: ModelManifest) -> dict[str, str]:
    """Return the same for each class by its name."""
    of_tissue = tissue_fractions(pixel_counts, manifest.classes)
    shares = {}
    for tissue, count, share in zip(manifest.classes, pixel_counts, of_tissue, strict=True):
        of_all = _percent(count / sum(pixel_counts))
        shares[tissue.name] = of_all if share is None else f"{of_all} ({_percent(share)} of the tissue)"
    return shares


def _percent(share: float) -> str:
    return f"{share:.1%}".replace("%", " %")


def _style(color: str) -> Style:
    return Style(strokeStyle=color, fillStyle=None, size=_STROKE_PX)


def _polygon(ring: shapely.LinearRing, slide: Size) -> Polygon:
    return Polygon(points=_points(ring, slide)[:-1])


def _points(ring: shapely.LinearRing, slide: Size) -> list[Point]:
    return [_point(x, y, slide) for x, y in shapely.get_coordinates(ring).tolist()]


def _point(x_px: float, y_px: float, slide: Size) -> Point:
    return Point(x=round(x_px / slide.width_px, _DIGITS), y=round(y_px / slide.width_px, _DIGITS))


def _json(model: Any) -> dict[str, Any]:
    known: dict[str, Any] = model.model_dump(mode="json")
    return known
