"""What whole slides are warned about: slides put together from images of tissue, as they look from afar.

    python -m benchmarks.slide_warnings DATA

prints a table of docs/warnings.md. It needs what `benchmarks.input_warnings` needs.
"""

import argparse
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import skimage.data
import tifffile
from PIL import Image

from app.imaging.appearance import appearance, slide_appearance
from app.imaging.plausibility import LEAST_HE_STAIN, slide_warnings
from app.pathology.arrays import RgbImage
from benchmarks import impostors
from benchmarks.input_warnings import IMAGES, SLIDES

_HEIGHT_PX, _WIDTH_PX = 512, 1024
_GLASS = (243, 242, 244)
_SHARES = (0.3, 0.05, 0.01, 0.003)
_REDUCTIONS = (8, 32)
_OF_ONE_SLIDE = 12
"""So many images of a group make up the tissue of one slide."""
_EACH = 6
"""So many slides for each share of tissue and each reduction."""
_PEN_SHARES = (0.003, 0.01, 0.03, 0.1)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    data: Path = parser.parse_args().data
    rng = np.random.default_rng(29)
    print("| slides | number | share of H&E's colours | as patches | warned about |\n|---|---|---|---|---|")
    for name, file in SLIDES.items():
        finest = tifffile.imread(data / "slides" / file, key=0)
        _report(f"{name}, at 1/4 to 1/16", (_reduced(finest, by) for by in (4, 8, 16)))
    groups = {name: [_rgb(path) for path in sorted((data / folder).iterdir())] for name, folder in IMAGES.items()}
    for name, images in groups.items():
        _report(name, _slides(images, rng))
    he = [image for images in groups.values() for image in images[:: max(1, len(images) // 60)]]
    ihc = skimage.data.immunohistochemistry()
    _report("IHC (DAB), scikit-image", _slides([ihc], rng))
    for factor in (1.5, 3):
        _report(f"the same, {factor} times as dense", _slides([_denser(ihc, factor)], rng))
    _report("H&E with DAB for its eosin, computed", _slides(list(map(impostors.as_ihc, he)), rng))
    _report("glass", (_glass(level, sigma, rng) for level in (255, 243, 230, 200) for sigma in (0, 1.5, 4)))
    for ink in impostors.INKS:
        for share in _PEN_SHARES:
            slides = (impostors.marked(slide, ink, share, rng) for slide in _slides(he, rng))
            _report(f"{ink} pen over {share:.1%} of an H&E slide", slides)


def _report(name: str, slides: Iterable[RgbImage]) -> None:
    he_stain: list[float] = []
    as_patch: list[float] = []
    found: Counter[str] = Counter()
    for slide in slides:
        seen = slide_appearance(slide)
        he_stain.append(seen.he_stain)
        as_patch.append(appearance(slide).he_stain)
        found.update(warning.code for warning in slide_warnings(seen))
    warned = ", ".join(f"`{code}` {count / len(he_stain):.1%}" for code, count in found.most_common())
    refused = np.mean(np.array(as_patch) < LEAST_HE_STAIN)
    print(
        f"| {name} | {len(he_stain)} | {min(he_stain):.2f} to {max(he_stain):.2f} | {refused:.1%} | {warned or '0'} |",
        flush=True,
    )


def _slides(images: list[RgbImage], rng: np.random.Generator) -> Iterator[RgbImage]:
    """Yield slides of `images`' tissue: a roundish piece in the middle of the glass."""
    for share in _SHARES:
        for by in _REDUCTIONS:
            for _ in range(_EACH):
                slide, inside = _glass(_GLASS, 1.5, rng), _piece(share, rng)
                chosen = [images[index] for index in rng.integers(len(images), size=_OF_ONE_SLIDE)]
                slide[inside] = _tiled([_reduced(image, by) for image in chosen], rng)[inside]
                yield slide


def _piece(share: float, rng: np.random.Generator) -> np.ndarray:
    y, x = np.mgrid[:_HEIGHT_PX, :_WIDTH_PX]
    y, x = y - _HEIGHT_PX / 2, x - _WIDTH_PX / 2
    angle = np.arctan2(y, x) + rng.uniform(0, 2 * np.pi)
    radius = (share * _HEIGHT_PX * _WIDTH_PX / np.pi) ** 0.5 * (1 + 0.15 * np.sin(3 * angle) + 0.1 * np.sin(7 * angle))
    return np.asarray(x * x + y * y < radius * radius)


def _tiled(images: list[RgbImage], rng: np.random.Generator) -> RgbImage:
    side = min(min(image.shape[:2]) for image in images)
    rows = [
        np.hstack([images[index][:side, :side] for index in rng.integers(len(images), size=-(-_WIDTH_PX // side))])
        for _ in range(-(-_HEIGHT_PX // side))
    ]
    return np.vstack(rows)[:_HEIGHT_PX, :_WIDTH_PX]


def _glass(level: int | tuple[int, int, int], sigma: float, rng: np.random.Generator) -> RgbImage:
    return np.clip(level + rng.normal(0, sigma, (_HEIGHT_PX, _WIDTH_PX, 3)), 0, 255).astype(np.uint8)


def _denser(image: RgbImage, factor: float) -> RgbImage:
    return (np.exp(np.log((image + 1.0) / 256) * factor) * 256 - 1).clip(0).astype(np.uint8)


def _reduced(image: RgbImage, by: int) -> RgbImage:
    size = (max(1, image.shape[1] // by), max(1, image.shape[0] // by))
    return np.array(Image.fromarray(image).resize(size, Image.Resampling.BOX))


def _rgb(path: Path) -> RgbImage:
    return np.array(Image.open(path).convert("RGB"))


if __name__ == "__main__":
    main()
