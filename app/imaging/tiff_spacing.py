"""The um/px that a TIFF states of its own pixels: in OME-XML, in ImageJ's words, or in TIFF's tags of resolution.

Why these count and which resolutions do not: docs/decisions/0009. Bounds on what is stated are with whoever uses it.
"""

import re
from contextlib import suppress
from pathlib import Path
from typing import Any
from xml.parsers import expat

from PIL import Image

from app.imaging.tiff import stored_size, tags_of
from app.pathology.geometry import Size, of_square_pixels

_DESCRIPTION, _X_RESOLUTION, _Y_RESOLUTION, _RESOLUTION_UNIT = 270, 282, 283, 296
"""Tags; TIFF 6.0, section 8."""
_UM_BY_RESOLUTION_UNIT = {2: 25_400.0, 3: 10_000.0}
"""Inch and centimetre. Of no unit, 1, it is a ratio; an absent one, which is to mean inches, says nothing here."""
_COARSEST_RESOLUTION_UM = 2.5
"""Of one pixel: 10,160 dots per inch, which no printer, screen or flatbed scanner has by default."""
_LOOKED_AT_BYTES = 2**16
"""Of a description. OME-XML of one image has some 2 KB before its pixels, ImageJ writes 1 KB."""
_MOST_DESCRIPTION_BYTES = 2**20
"""A longer one is not read at all: Pillow would make text of all of it."""
_UM_BY_UNIT = {
    "nm": 1e-3,
    "um": 1.0,
    "\u00b5m": 1.0,  # the micro sign, as the OME schema has it
    "\u03bcm": 1.0,  # the Greek letter
    "\\u00B5m": 1.0,  # as ImageJ writes the sign: its escape, not the sign
    "micron": 1.0,
    "microns": 1.0,
    "mm": 1e3,
    "cm": 1e4,
}
"""Units of length in OME-XML and in ImageJ. Others, such as pixel and reference frame, say nothing of a slide."""
_IMAGEJ_UNIT = re.compile(r"^unit=([^\r\n]{1,20})\r?$", re.MULTILINE)


def tiff_um_per_px(image: Image.Image) -> float | None:
    """Return the pixel spacing in um/px, the mean of the two directions; None where it states none to use.

    The first that states a spacing decides: OME-XML, ImageJ, TIFF's tags. A spacing that is no positive number, or of
    pixels that are not square within 2 %, is none: broken metadata does not cost the pixels.

    Args:
        image: A TIFF that Pillow has opened.

    Raises:
        MemoryError: There is no memory to read it now.
    """
    return _of_tags(getattr(image, "tag_v2", {}))


def _of_tags(tags: Any) -> float | None:
    try:
        description = _description(tags)
        um = _stated_by_ome(description, stored_size(tags)) or _stated_by_imagej(description, tags) or _stated(tags)
        return None if um is None else of_square_pixels(*um)
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001  absent, or damaged in whatever way; the pixels are judged elsewhere
        return None


def tiff_file_um_per_px(path: Path, size: Size) -> float | None:
    """Return what `tiff_um_per_px` does, of a file of whatever kind: None where its first image has not `size`.

    The pixels may be of a kind that Pillow does not decode, such as JPEG 2000.

    Args:
        path: Of the file.
        size: The image's as it is stored: OpenSlide's, which turns nothing.

    Raises:
        MemoryError: There is no memory to read it now.
    """
    try:
        with path.open("rb") as file:
            tags = tags_of(file)
        return _of_tags(tags) if stored_size(tags) == size else None
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001  no TIFF, or one that is damaged in whatever way
        return None


def _description(tags: Any) -> str:
    """Return the description's beginning; Pillow takes its bytes for Latin-1, OME-XML has UTF-8."""
    unread = getattr(tags, "_tagdata", {})  # Pillow's own; where a version has none, the file's length is the bound
    value = tags.get(_DESCRIPTION) if len(unread.get(_DESCRIPTION, b"")) <= _MOST_DESCRIPTION_BYTES else None
    text = value[:_LOOKED_AT_BYTES] if isinstance(value, str) else ""
    return text.encode("latin-1", "replace").decode(errors="replace")


def _stated_by_ome(description: str, size: Size) -> tuple[float, float] | None:
    """Return the height and width in um of a pixel of the image that has `size`; None where no OME-XML states them.

    Source: OME schema 2016-06, Pixels and UnitsLength; the default unit is um.

    Raises:
        ValueError: It tells of other sizes alone: something resized the image and left all words as they were.
        LookupError: A spacing or its unit is missing, or is none of a slide's.
    """
    if not description.startswith(("<?xml", "<OME", "<ome:OME")):
        return None
    told = _pixels_elements(description)
    sides = str(size.width_px), str(size.height_px)
    own = next((pixels for pixels in told if (pixels.get("SizeX"), pixels.get("SizeY")) == sides), None)
    if told and own is None:
        raise ValueError("of another size")
    if own is None or own.keys().isdisjoint(("PhysicalSizeX", "PhysicalSizeY")):
        return None
    return _um_of(own, "PhysicalSizeY"), _um_of(own, "PhysicalSizeX")


def _um_of(pixels: dict[str, str], name: str) -> float:
    return float(pixels[name]) * _UM_BY_UNIT[pixels.get(f"{name}Unit", "um")]


def _pixels_elements(xml: str) -> list[dict[str, str]]:
    """Return the attributes of each Pixels element that begins in `xml`, which may end anywhere.

    No document type is read: entities, which could grow without bounds, are declared nowhere else.
    """
    found: list[dict[str, str]] = []

    def begin(name: str, attributes: dict[str, str]) -> None:
        if name.rpartition(":")[2] == "Pixels":
            found.append(attributes)

    def refuse(*_: object) -> None:
        raise ValueError("a document type")

    parser = expat.ParserCreate("UTF-8")
    parser.StartElementHandler = begin
    parser.StartDoctypeDeclHandler = refuse
    with suppress(expat.ExpatError):  # what was well-formed before stands
        parser.Parse(xml.encode(), False)
    return found


def _stated_by_imagej(description: str, tags: Any) -> tuple[float, float] | None:
    """Return the height and width of a pixel in um; None where ImageJ does not name a unit of length.

    Source: ImageJ 1.54, ij.io.TiffEncoder and FileSaver: `ImageJ=...`, `unit=...`, resolutions in px per unit.
    """
    unit = _IMAGEJ_UNIT.search(description) if description.startswith("ImageJ=") else None
    um = None if unit is None else _UM_BY_UNIT.get(unit[1])
    return None if um is None else (um / float(tags[_Y_RESOLUTION]), um / float(tags[_X_RESOLUTION]))


def _stated(tags: Any) -> tuple[float, float] | None:
    """Return the height and width of a pixel in um, as TIFF's tags of resolution say; None where a printer's may be."""
    um = _UM_BY_RESOLUTION_UNIT.get(tags.get(_RESOLUTION_UNIT))
    if um is None:
        return None
    down, across = um / float(tags[_Y_RESOLUTION]), um / float(tags[_X_RESOLUTION])
    return (down, across) if max(down, across) <= _COARSEST_RESOLUTION_UM else None
