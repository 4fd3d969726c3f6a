"""Reading WSSS4LUAD: image and mask pairs, and patches whose labels stand in their file names.

Everything is read and checked before the first step, so that a bad file ends a training in its first second.
"""

import ast
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from app.pathology.arrays import ClassMap, RgbImage
from app.pathology.classes import TissueClass, label_indices
from model_export.errors import InvalidData

_UNREADABLE = (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError)

IGNORE = 255
"""Class index of a pixel that counts in no loss and no score."""

LABEL_MIN_FRACTION = 0.005
"""A patch carries a label from this fraction of its known pixels on; less is an annotator's stray stroke."""

_OTHER_IMAGES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".tif", ".tiff", ".webp"})
_ORIENTATION = 0x0112
"""EXIF's tag; 1 is upright."""

_PNG_DEPTH_AT = 24
"""Where a PNG's header, which is always its first chunk, states it."""
_LABELS_IN_NAME = re.compile(r"(\[[01](?:, ?[01])*\])$")


@dataclass(frozen=True, slots=True)
class Sample:
    """One training image.

    Attributes:
        name: The file's name, for messages and pictures.
        image: (H, W, 3) uint8 RGB.
        class_map: (H, W) uint8, `IGNORE` where a pixel's class is not known; all of it where only labels are.
        labels: (L,) one for each label class, as annotated in the name or read off the class map; None where it is not
            known whether the image holds it.
        guesses: Indices of the classes that a teacher may give to the unknown pixels; see `training/teacher.py`.
        slide: What images of one slide share; the image's own name where nothing is said of slides.
    """

    name: str
    image: RgbImage
    class_map: ClassMap
    labels: tuple[bool | None, ...]
    guesses: tuple[int, ...] = ()
    slide: str = ""

    def __post_init__(self) -> None:
        if not self.slide:
            object.__setattr__(self, "slide", self.name)

    @property
    def has_mask(self) -> bool:
        """Whether any pixel's class is known."""
        return bool((self.class_map != IGNORE).any())


def labels_of(class_map: ClassMap, classes: Sequence[TissueClass]) -> tuple[bool, ...]:
    """Return which label classes fill at least `LABEL_MIN_FRACTION` of the known pixels of `class_map`, (H, W)."""
    known = class_map[class_map != IGNORE]
    counts = np.bincount(known, minlength=len(classes))
    return tuple(bool(counts[index] >= max(1.0, LABEL_MIN_FRACTION * known.size)) for index in label_indices(classes))


def read_pairs(root: Path, classes: Sequence[TissueClass], slides: Mapping[str, str] | None = None) -> list[Sample]:
    """Read `root/img/*.png` and the masks of the same names in `root/mask`, in name order.

    Args:
        root: The folder.
        classes: The classes of the class maps.
        slides: The slide of each image by file name; one that it does not name is a slide of its own.

    Raises:
        InvalidData: A folder, a mask or its image is missing, a file does not decode or is no PNG, sizes differ, or a
            mask holds an index or a colour outside the palette.
    """
    images = _list_png(root / "img")
    names = {path.name for path in images}
    for path in sorted((root / "mask").glob("*.[pP][nN][gG]")):
        if path.name not in names:
            raise InvalidData(f"{path}: a mask whose image, {path.name} in img, is missing")
    samples = []
    for path in images:
        image = read_rgb(path)
        mask_path = root / "mask" / path.name
        if not mask_path.is_file():
            raise InvalidData(f"{mask_path}: missing; {path.name} in img needs a mask of the same name")
        class_map = _read_mask(mask_path, classes)
        if class_map.shape != image.shape[:2]:
            raise InvalidData(
                f"{mask_path}: the mask is {class_map.shape[1]}x{class_map.shape[0]} px"
                f" and its image {image.shape[1]}x{image.shape[0]} px"
            )
        slide = (slides or {}).get(path.name, "")
        samples.append(Sample(path.name, image, class_map, labels_of(class_map, classes), slide=slide))
    return samples


def read_labelled_patches(
    root: Path, classes: Sequence[TissueClass], slides: Mapping[str, str] | None = None
) -> list[Sample]:
    """Read `root/*.png` whose names end in the patch's labels, as in `436219-7159-48057-[1, 0, 1].png`.

    Args:
        root: The folder.
        classes: The classes of the class maps.
        slides: As of `read_pairs`.

    Raises:
        InvalidData: The folder holds no PNG, a name carries no such list or one of another length, or a file does
            not decode.
    """
    samples = []
    wanted = len(label_indices(classes))
    for path in _list_png(root):
        match = _LABELS_IN_NAME.search(path.stem)
        if match is None:
            raise InvalidData(f"{path}: the name does not end in labels such as [1, 0, 1]")
        labels = ast.literal_eval(match.group(1))
        if len(labels) != wanted:
            raise InvalidData(f"{path}: {len(labels)} labels in the name, {wanted} expected")
        image = read_rgb(path)
        unknown = np.full(image.shape[:2], IGNORE, np.uint8)
        slide = (slides or {}).get(path.name, "")
        samples.append(Sample(path.name, image, unknown, tuple(bool(label) for label in labels), slide=slide))
    return samples


def _list_png(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise InvalidData(f"{folder}: no such folder")
    files = sorted(folder.iterdir())
    for path in files:
        if path.suffix.lower() in _OTHER_IMAGES:
            raise InvalidData(f"{path}: images here are PNG files; convert it, or take it away")
        try:
            path.name.encode()
        except UnicodeEncodeError as error:
            raise InvalidData(f"{folder}: the file name {path.name!a} is not in UTF-8; rename it") from error
    paths = [path for path in files if path.suffix.lower() == ".png"]
    if not paths:
        raise InvalidData(f"{folder}: no PNG images here")
    return paths


def read_rgb(path: Path) -> RgbImage:
    """Read an image as (H, W, 3) uint8.

    What the service would show the network otherwise than Pillow's plain conversion does is refused, not learned from.

    Raises:
        InvalidData: It does not decode, is not of 8 bits, has transparent pixels, or is to be turned by its EXIF.
    """
    try:
        with Image.open(path) as image:
            turned = image.getexif().get(_ORIENTATION, 1) != 1
            plain = _plain(image)
            deep = plain and image.format == "PNG" and _png_depth(path) > 8
            pixels = np.array(image.convert("RGB")) if plain else None
            mode = image.mode
    except _UNREADABLE as error:
        raise InvalidData(f"{path}: not a readable image: {error}") from error
    if pixels is None or turned or deep:
        depth = "16 bits a channel" if deep else f"mode {mode}, or has transparent pixels"
        what = "is to be turned by its EXIF" if turned else f"is of {depth}"
        raise InvalidData(f"{path}: {what}; save it upright as opaque RGB of 8 bits")
    return pixels


def _png_depth(path: Path) -> int:
    """Return the bits of a channel, which Pillow's mode hides (PNG, W3C, third edition, section 11.2.1)."""
    with path.open("rb") as file:
        return file.read(_PNG_DEPTH_AT + 1)[_PNG_DEPTH_AT]


def _plain(image: Image.Image) -> bool:
    """Whether `image` is of 8 bits, and opaque."""
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        return image.convert("RGBA").getchannel("A").getextrema() == (255, 255)
    return image.mode in ("1", "L", "P", "RGB")


def read_indices(path: Path, colors: Mapping[int, tuple[int, int, int]]) -> ClassMap:
    """Read a palette-mode or grey image as its (H, W) uint8 values.

    Args:
        path: The file.
        colors: Every index that may be in it, with its colour.

    Raises:
        InvalidData: It does not decode, is of another mode, or holds an index that is not in `colors`, or is painted
            otherwise: a program that re-orders a palette changes what the same picture means.
    """
    try:
        with Image.open(path) as image:
            mode, values = image.mode, np.array(image)
            palette = image.getpalette() if image.mode == "P" else None
    except _UNREADABLE as error:
        raise InvalidData(f"{path}: not a readable mask: {error}") from error
    if mode not in ("P", "L"):
        raise InvalidData(f"{path}: not a mask of indices but of mode {mode}")
    for index in (int(value) for value in np.unique(values)):
        if index not in colors:
            *most, last = sorted(colors)
            raise InvalidData(f"{path}: index {index} is none of {', '.join(map(str, most))} and {last}")
        painted = tuple(palette[3 * index : 3 * index + 3]) if palette is not None else colors[index]
        if painted != colors[index]:
            raise InvalidData(f"{path}: index {index} is painted {painted}, not {colors[index]}")
    return values


def _read_mask(path: Path, classes: Sequence[TissueClass]) -> ClassMap:
    """Read a palette-mode mask by its indices, or an RGB one by its colours, upright and opaque as its image."""
    try:
        with Image.open(path) as image:
            indexed = image.mode in ("P", "L")
            fault = "is to be turned by its EXIF" if image.getexif().get(_ORIENTATION, 1) != 1 else ""
            if image.mode.startswith("I") or (image.format == "PNG" and _png_depth(path) > 8):
                fault = "is of 16 bits a channel"
            elif not indexed and image.mode != "1" and not _plain(image):
                fault = f"is of mode {image.mode}, or has transparent pixels"
            pixels = None if indexed or fault else np.array(image.convert("RGB"))
    except _UNREADABLE as error:
        raise InvalidData(f"{path}: not a readable mask: {error}") from error
    if fault:
        raise InvalidData(f"{path}: {fault}; save the mask upright and opaque, with 8 bits")
    if pixels is not None:
        return _indices_of_colours(path, pixels, classes)
    return read_indices(path, {index: tissue.color for index, tissue in enumerate(classes)})


def _indices_of_colours(path: Path, pixels: RgbImage, classes: Sequence[TissueClass]) -> ClassMap:
    class_map = np.full(pixels.shape[:2], IGNORE, np.uint8)
    for index, tissue in enumerate(classes):
        class_map[(pixels == np.array(tissue.color, np.uint8)).all(axis=2)] = index
    unknown = np.argwhere(class_map == IGNORE)
    if len(unknown):
        y, x = (int(value) for value in unknown[0])
        color = tuple(int(value) for value in pixels[y, x])
        raise InvalidData(f"{path}: the colour {color} at x {x}, y {y} is outside the palette")
    return class_map
