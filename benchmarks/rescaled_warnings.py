"""How often H&E is warned about once it was brought to another um/px, for which the limits were not chosen.

    python -m benchmarks.rescaled_warnings DATA

prints the table of docs/warnings.md, "After rescaling".
"""

import argparse
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from app.imaging.appearance import appearance
from app.imaging.plausibility import input_warnings
from app.imaging.resampling import resample_image
from app.pathology.arrays import RgbImage
from app.pathology.geometry import Size

_FACTORS = (1 / 4, 1 / 2, 2, 3, 4)
_MOST = 100
"""Images of a group, evenly spread."""
_IMAGES = {
    "WSSS4LUAD pairs": "wsss4luad/pairs/img",
    "STAS": "stas/img",
    "LC25000 adenocarcinoma": "lc25000/lung_aca",
    "LC25000 benign": "lc25000/lung_n",
}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    data: Path = parser.parse_args().data
    print("| group | images | " + " | ".join(f"x {factor:g}" for factor in _FACTORS) + " |")
    print("|---|" + "---|" * (1 + len(_FACTORS)))
    for name, folder in _IMAGES.items():
        paths = sorted((data / folder).iterdir())
        images = [_read(path) for path in paths[:: -(-len(paths) // _MOST)]]
        found = [Counter(code for image in images for code in _codes(image, factor)) for factor in _FACTORS]
        cells = [", ".join(f"{count} `{code}`" for code, count in each.items()) or "0" for each in found]
        print(f"| {name} | {len(images)} | " + " | ".join(cells) + " |", flush=True)


def _read(path: Path) -> RgbImage:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def _codes(image: RgbImage, factor: float) -> list[str]:
    size = Size(round(factor * image.shape[1]), round(factor * image.shape[0]))
    return [warning.code for warning in input_warnings(appearance(resample_image(image, size)))]


if __name__ == "__main__":
    main()
