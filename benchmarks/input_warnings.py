"""How often each warning is given: to H&E, which should get none, and to what is not H&E, which should.

    python -m benchmarks.input_warnings DATA --photos FOLDER

prints the table of docs/warnings.md. It needs `pip install scikit-image imagecodecs` beside the development install:
scikit-image carries photographs and an IHC image, and reads the slides with imagecodecs. FOLDER holds photographs that
no limit was chosen on.
"""

import argparse
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import skimage.data
import tifffile
import torch
from PIL import Image

from app.imaging.appearance import appearance
from app.imaging.plausibility import WARNING_CODES, input_warnings
from app.pathology.arrays import RgbImage
from benchmarks import impostors
from model_export.corruptions import blurred, jpeg
from model_export.training.augment import jitter_stain

_SIDE_PX = 224
_CHOSEN_ON = 50
"""Of each larger group of H&E, so many images, evenly spread, are what the limits were chosen on; they are left out."""
SLIDES = {"CMU-1": "CMU-1-Small-Region.svs", "TCGA": "TCGA-CR-7395-01A-01-TS1.svs"}
IMAGES = {
    "WSSS4LUAD pairs": "wsss4luad/pairs/img",
    "WSSS4LUAD patches": "wsss4luad/patches",
    "STAS": "stas/img",
    "LC25000 benign": "lc25000/lung_n",
    "LC25000 adenocarcinoma": "lc25000/lung_aca",
    "EBHI-SEG adenocarcinoma": "ebhi_seg/adenocarcinoma/img",
    "EBHI-SEG high grade": "ebhi_seg/high_grade/img",
    "EBHI-SEG normal": "ebhi_seg/normal/img",
}
_PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket", "retina", "hubble_deep_field")
_GREY = ("camera", "coins", "moon", "brick", "grass", "gravel", "page", "text", "clock", "cell")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--photos", type=Path, required=True)
    arguments = parser.parse_args()
    rng = np.random.default_rng(20)
    print("| group | images | warned | " + " | ".join(f"`{code}`" for code in WARNING_CODES) + " |")
    print("|---|" + "---|" * (2 + len(WARNING_CODES)))

    base: list[RgbImage] = []
    for name, folder in IMAGES.items():
        base += _report_he(name, _unseen(sorted((arguments.data / folder).iterdir())), rng)
    glass: list[RgbImage] = []
    for name, file in SLIDES.items():
        crops = list(_crops(tifffile.imread(arguments.data / "slides" / file, key=0)))
        base += _report_he(name, [crop for crop in crops if (crop[..., 1] < 200).mean() > 0.2], rng)
        glass += [crop for crop in crops if (crop[..., 1] < 230).mean() < 0.005]

    for name in ("scikit-image", "others"):
        folder = arguments.photos if name == "others" else None
        _report(f"photographs, {name}", _photographs(folder))
    _report("grey photographs, scikit-image", (crop for name in _GREY for crop in _pieces(_rgb(_loaded(name)))))
    _report("IHC, scikit-image", _crops(skimage.data.immunohistochemistry(), step_px=72))
    _report("H&E made IHC", map(impostors.as_ihc, base))
    _report("glass of the slides", glass)
    _report("blank", impostors.blanks(rng))
    _report("noise", impostors.noise(rng))
    _report("grey H&E", map(impostors.as_grey, base))
    _report("inverted H&E", (255 - image for image in base))
    for order in ("grb", "rbg", "gbr", "brg", "bgr"):
        _report(f"channels as {order.upper()}", map(impostors.swapped(order), base))
    _report_blur(base)
    for ink in impostors.INKS:
        for share in (0.02, 0.05, 0.1, 0.3):
            _report(f"{ink} pen, {share:.0%}", (impostors.marked(image, ink, share, rng) for image in base))


def _report_he(name: str, paths_or_images: Iterable[Path | RgbImage], rng: np.random.Generator) -> list[RgbImage]:
    """Report a group of H&E and its everyday variations; return some of its images, to be spoiled."""
    some: list[RgbImage] = []

    def images() -> Iterator[RgbImage]:
        for number, item in enumerate(paths_or_images):
            image = _rgb(Image.open(item)) if isinstance(item, Path) else item
            if number % 8 == 0:
                some.append(image)
            yield image

    _report(name, images())
    changes = (
        partial(jpeg, quality=50),
        partial(impostors.brighter, factor=0.85),
        partial(impostors.brighter, factor=1.15),
        partial(_restained, rng=rng),
    )
    _report(f"{name}, changed", (change(image) for image in some for change in changes))
    return some[::3]


def _report_blur(base: list[RgbImage]) -> None:
    """Report H&E that is out of focus or enlarged, as PNG and as JPEG."""
    ways: dict[str, Callable[[RgbImage], RgbImage]] = {
        f"blur, sigma {sigma_px} px": partial(blurred, sigma_px=sigma_px) for sigma_px in (1, 2, 3, 4, 8, 12, 16, 24)
    }
    ways |= {f"enlarged {factor} times": partial(_enlarged, factor=factor) for factor in (4, 8, 16)}
    for name, spoil in ways.items():
        spoilt = [spoil(image) for image in base]
        _report(name, spoilt)
        for quality in (85, 50):
            _report(f"{name}, JPEG {quality}", (jpeg(image, quality) for image in spoilt))


def _enlarged(image: RgbImage, factor: int) -> RgbImage:
    """Return what a coarse upload of the image is, brought back to its size."""
    height, width = image.shape[:2]
    coarse = Image.fromarray(image).resize((max(1, width // factor), max(1, height // factor)), Image.Resampling.BOX)
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


def _report(name: str, images: Iterable[RgbImage]) -> None:
    count = warned = 0
    found: Counter[str] = Counter()
    for image in images:
        codes = [warning.code for warning in input_warnings(appearance(image))]
        count += 1
        warned += bool(codes)
        found.update(codes)
    shares = [f"{found[code] / count:.1%}" if found[code] else "" for code in WARNING_CODES]
    print(f"| {name} | {count} | {warned / count:.1%} | " + " | ".join(shares) + " |", flush=True)


def _unseen(paths: list[Path]) -> list[Path]:
    if len(paths) <= 2 * _CHOSEN_ON:
        return paths
    chosen = set(np.linspace(0, len(paths) - 1, _CHOSEN_ON).astype(int).tolist())
    return [path for number, path in enumerate(paths) if number not in chosen]


def _restained(image: RgbImage, rng: np.random.Generator) -> RgbImage:
    batch = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float()
    return np.asarray(jitter_stain(batch, 0.1, rng)[0].permute(1, 2, 0).round().byte())


def _photographs(folder: Path | None) -> Iterator[RgbImage]:
    if folder is None:
        pictures = [_rgb(_loaded(name)) for name in _PHOTOGRAPHS]
    else:
        pictures = [_rgb(Image.open(path)) for path in sorted(folder.iterdir())]
    for picture in pictures:
        yield picture
        yield from _pieces(picture)


def _loaded(name: str) -> Image.Image:
    return Image.fromarray(getattr(skimage.data, name)())


def _rgb(image: Image.Image) -> RgbImage:
    return np.array(image.convert("RGB"))


def _pieces(picture: RgbImage) -> Iterator[RgbImage]:
    """Yield the crops of a picture, at most 12 of them."""
    crops = list(_crops(picture))
    yield from crops[:: max(1, -(-len(crops) // 12))]


def _crops(image: RgbImage, step_px: int = _SIDE_PX) -> Iterator[RgbImage]:
    height, width = image.shape[:2]
    for y in range(0, height - _SIDE_PX + 1, step_px):
        for x in range(0, width - _SIDE_PX + 1, step_px):
            yield np.ascontiguousarray(image[y : y + _SIDE_PX, x : x + _SIDE_PX])


if __name__ == "__main__":
    main()
