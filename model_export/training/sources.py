"""Reading the data sets beside WSSS4LUAD, each by rules that turn what it knows into class maps with unknown pixels.

- STAS (AI CUP 2022): lung adenocarcinoma with labelled tumor clusters; the rest is anything, only its glass is known.
- EBHI-SEG (Shi et al., Front Med 10, 2023): colon, glands and what lies between; glands of carcinoma stand for tumor.
- LC25000 (Borkowski et al., arXiv:1912.12142): tiles of benign lung, all normal, and of adenocarcinoma, labels alone.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from app.pathology.arrays import RgbImage
from app.pathology.classes import TissueClass, label_indices
from model_export.errors import InvalidData
from model_export.training.dataset import IGNORE, Sample, labels_of, read_rgb

GLASS_BRIGHTNESS = 190
"""A pixel is glass where the 5x5 median of its darkest channel is above this, 0 to 255.

On the WSSS4LUAD pairs such pixels agree with the annotated background at an IoU of 0.81.
"""

LC25000_SIDE_PX = 120
"""The side that a tile of LC25000 has at about the scale of the WSSS4LUAD pairs."""

_TILES_IN_MOSAIC = 2
_Value = TypeVar("_Value", bound=np.generic)
_SUFFIXES = (".jpg", ".jpeg", ".png")


def glass(image: RgbImage) -> NDArray[np.bool_]:
    """Return where (H, W, 3) uint8 `image` shows glass or air, (H, W) bool."""
    darkest = np.minimum(np.minimum(image[:, :, 0], image[:, :, 1]), image[:, :, 2])
    bright = Image.fromarray((darkest > GLASS_BRIGHTNESS).view(np.uint8) * np.uint8(255))
    # a median is above a threshold where most values are, and a mean of ones and zeros is quicker than a median
    return np.asarray(bright.filter(ImageFilter.BoxBlur(2))) > 127


def read_stas(root: Path, classes: Sequence[TissueClass]) -> list[Sample]:
    """Read `root/img/*.jpg` and the 1-bit masks `root/mask/*.png` of tumor clusters.

    Raises:
        InvalidData: A folder or a mask is missing, a file does not decode, or sizes differ.
    """
    tumor, stroma, normal, background = _indices(classes)
    samples = []
    for path in _list(root / "img"):
        image, cluster = _read_binary_pair(path, root / "mask" / f"{path.stem}.png")
        class_map = np.full(image.shape[:2], IGNORE, np.uint8)
        class_map[cluster] = tumor
        class_map[glass(image)] = background
        labels = tuple(True if held else None for held in labels_of(class_map, classes))
        samples.append(Sample(path.name, image, class_map, labels, guesses=(stroma, normal)))
    return samples


def read_ebhi_seg(root: Path, classes: Sequence[TissueClass]) -> list[Sample]:
    """Read `root/{adenocarcinoma,high_grade}/{img,mask}`: glands as tumor, what is dark between them as stroma.

    Raises:
        InvalidData: As for `read_stas`.
    """
    tumor, stroma, _, background = _indices(classes)
    samples = []
    for grade in ("adenocarcinoma", "high_grade"):
        for path in _list(root / grade / "img"):
            image, gland = _read_binary_pair(path, root / grade / "mask" / f"{path.stem}.png")
            class_map = np.where(gland, tumor, stroma).astype(np.uint8)
            class_map[glass(image)] = background
            samples.append(Sample(path.name, image, class_map, labels_of(class_map, classes)))
    return samples


def read_lc25000(root: Path, classes: Sequence[TissueClass]) -> list[Sample]:
    """Read `root/{lung_n,lung_aca}`, shrunk to the scale of WSSS4LUAD and laid together, four tiles to a sample.

    Benign tiles are normal tissue and glass. Adenocarcinoma tiles hold tumor, may hold stroma, and hold nothing normal.

    Raises:
        InvalidData: A folder is missing or has less than four tiles, or a file does not decode.
    """
    tumor, stroma, normal, background = _indices(classes)
    carcinoma = tuple({tumor: True, normal: False}.get(index) for index in label_indices(classes))
    samples = []
    per_sample = _TILES_IN_MOSAIC**2
    for folder, tissue, guesses in (("lung_n", normal, ()), ("lung_aca", IGNORE, (tumor, stroma))):
        paths = _list(root / folder)
        if len(paths) < per_sample:
            raise InvalidData(f"{root / folder}: {len(paths)} tiles, at least {per_sample} are needed")
        for start in range(0, len(paths) - per_sample + 1, per_sample):
            group = paths[start : start + per_sample]
            tiles = [_shrunk(read_rgb(path)) for path in group]
            bright = _mosaic([glass(_whitened(tile) if tissue == normal else tile) for tile in tiles])
            image = _mosaic(tiles)
            class_map = np.where(bright, background, tissue).astype(np.uint8)
            labels = labels_of(class_map, classes) if tissue == normal else carcinoma
            samples.append(Sample(group[0].name, image, class_map, labels, guesses))
    return samples


def _indices(classes: Sequence[TissueClass]) -> tuple[int, ...]:
    """Return the indices of tumor, stroma, normal and background."""
    names = [tissue.name for tissue in classes]
    return tuple(names.index(name) for name in ("tumor", "stroma", "normal", "background"))


def _list(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise InvalidData(f"{folder}: no such folder")
    paths = sorted(path for path in folder.glob("*") if path.suffix.lower() in _SUFFIXES)
    if not paths:
        raise InvalidData(f"{folder}: no JPEG or PNG images here")
    return paths


def _read_binary_pair(image_path: Path, mask_path: Path) -> tuple[RgbImage, NDArray[np.bool_]]:
    if not mask_path.is_file():
        raise InvalidData(f"{mask_path}: missing; {image_path.name} needs a mask of the same name")
    image = read_rgb(image_path)
    mask = read_rgb(mask_path)[:, :, 0] > 127
    if mask.shape != image.shape[:2]:
        raise InvalidData(
            f"{mask_path}: the mask is {mask.shape[1]}x{mask.shape[0]} px"
            f" and its image {image.shape[1]}x{image.shape[0]} px"
        )
    return image, mask


def _shrunk(image: RgbImage) -> RgbImage:
    size = (LC25000_SIDE_PX, LC25000_SIDE_PX)
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))


def _whitened(image: RgbImage) -> RgbImage:
    """Return `image` with its brightest colour made white: LC25000's benign tiles all show air, some of it cream."""
    white = np.percentile(image, 98, axis=(0, 1))
    return np.asarray((image * (255 / white)).clip(0, 255), np.uint8)


def _mosaic(tiles: Sequence[NDArray[_Value]]) -> NDArray[_Value]:
    rows = [np.hstack(tiles[at : at + _TILES_IN_MOSAIC]) for at in range(0, len(tiles), _TILES_IN_MOSAIC)]
    return np.vstack(rows)
