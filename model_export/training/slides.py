"""Which images come from one slide, so that no slide is on both sides of a split."""

import csv
from collections.abc import Iterable, Mapping
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from model_export.errors import InvalidData


def is_shipped(name_or_path: str | None) -> bool:
    """Whether a table of this name ships with the project; it is of the images that the project was trained on."""
    return name_or_path is not None and _shipped(name_or_path).is_file()


def _shipped(name: str) -> Traversable:
    return files("model_export") / "recipes" / f"{name}-slides.csv"


def load_slides(name_or_path: str | None) -> Mapping[str, str]:
    """Load a table that ships with the project, by name, or a CSV file with the columns `image` and `slide`, by path.

    Returns:
        The slide of each image, by the image's file name. Empty for None: each image then is a slide of its own.

    Raises:
        InvalidData: There is no such table, it lacks rows, a column or a value, or names two slides for one image.
    """
    if name_or_path is None:
        return {}
    source = _shipped(name_or_path) if is_shipped(name_or_path) else Path(name_or_path)
    try:
        rows = list(csv.DictReader(source.read_text(encoding="utf-8-sig").splitlines()))
        pairs = [(row["image"], row["slide"]) for row in rows]
    except FileNotFoundError:
        raise InvalidData(f"{name_or_path}: neither a table of slides of the project nor a file") from None
    except (KeyError, UnicodeDecodeError, OSError, csv.Error) as error:
        raise InvalidData(f"{name_or_path}: not a CSV file with the columns image and slide: {error}") from error
    if not pairs:
        raise InvalidData(f"{name_or_path}: holds no row")
    if not all(image and slide for image, slide in pairs):
        raise InvalidData(f"{name_or_path}: a row lacks its image or its slide")
    slides = dict(pairs)
    for image, slide in pairs:
        if slides[image] != slide:
            raise InvalidData(f"{name_or_path}: {image} is of two slides, {slide} and {slides[image]}")
    return slides


def require_named(name_or_path: str, slides: Mapping[str, str], images: Iterable[str]) -> None:
    """Make sure that a table, as `load_slides` read it, names one of `images`, of which there is one.

    Raises:
        InvalidData: It is of other images.
    """
    names = list(images)
    if slides.keys().isdisjoint(names):
        raise InvalidData(f"{name_or_path}: names none of the pairs; its column image needs names such as {names[0]}")
