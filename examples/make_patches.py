"""Makes `examples/patches` and `examples/slides`: crops of a CC0 slide, and H&E-like patches that the project draws.

python examples/make_patches.py --slide CMU-1-Small-Region.svs

The slide is OpenSlide's `CMU-1-Small-Region.svs` (CC0, Carnegie Mellon University; skin, 0.499 um/px). Its crops are
halved, to about the scale of the images that the default model learned from; the slide for the tests of DICOM and of
archives is cut at full resolution. Without --slide only the drawn ones are made.
"""

import argparse
from pathlib import Path

from PIL import Image

from app.pathology.classes import NORMAL, STROMA, TUMOR, TissueClass
from app.pathology.geometry import Region, Size
from model_export.synthetic import draw_patch

OUT = Path(__file__).parent / "patches"
SLIDES = Path(__file__).parent / "slides"

CROPS = {
    "cmu1-skin-1": Region(900, 1250, Size(512, 512)),
    "cmu1-skin-2": Region(950, 800, Size(512, 512)),
    "cmu1-skin-3": Region(550, 2300, Size(600, 600)),
}
SLIDE = Region(500, 700, Size(1536, 1152))
DRAWN: dict[str, tuple[int, tuple[TissueClass, ...]]] = {
    "drawn-tumor-stroma": (0, (TUMOR, STROMA)),
    "drawn-normal": (1, (NORMAL,)),
    "drawn-stroma": (3, (STROMA,)),
}


def _cut(pixels: Image.Image, region: Region) -> Image.Image:
    right, bottom = region.x_px + region.size.width_px, region.y_px + region.size.height_px
    return pixels.crop((region.x_px, region.y_px, right, bottom)).convert("RGB")


def main() -> None:
    """Write the patches that the arguments ask for."""
    parser = argparse.ArgumentParser(description="Make the example patches.")
    parser.add_argument("--slide", type=Path, help="CMU-1-Small-Region.svs; without it only the drawn ones are made.")
    slide: Path | None = parser.parse_args().slide
    OUT.mkdir(exist_ok=True)
    for name, (seed, tissues) in DRAWN.items():
        image, _ = draw_patch(seed, Size(290, 290), tissues)
        Image.fromarray(image).save(OUT / f"{name}.png", optimize=True)
    if slide is not None:
        with Image.open(slide) as pixels:
            for name, region in CROPS.items():
                _cut(pixels, region).reduce(2).save(OUT / f"{name}.png", optimize=True)
            SLIDES.mkdir(exist_ok=True)
            _cut(pixels, SLIDE).save(SLIDES / "cmu1-skin.jpg", quality=85)
    print(f"written: {OUT}")


if __name__ == "__main__":
    main()
