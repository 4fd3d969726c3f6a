"""Pyramids of DICOM whole-slide images, made of the public-domain crop of CMU-1 in `examples/slides`."""

from pathlib import Path

import numpy as np
from PIL import Image
from pydicom.uid import UID, JPEGBaseline8Bit, generate_uid

from app.pathology.arrays import RgbImage
from tests.conftest import ROOT
from tests.dicom_sources import whole_slide

CMU1 = ROOT / "examples" / "slides" / "cmu1-skin.jpg"
CMU1_UM_PER_PX = 0.499
TILE_PX = 256


def cmu1(width_px: int = 1536, height_px: int = 1152) -> RgbImage:
    """Return (H, W, 3) uint8, the crop's top left part."""
    with Image.open(CMU1) as crop:
        return np.asarray(crop.convert("RGB"))[:height_px, :width_px]


def write_slide(
    folder: Path,
    image: RgbImage,
    *,
    name: str = "slide",
    um_per_px: float = CMU1_UM_PER_PX,
    downsamples: tuple[int, ...] = (1, 2, 4),
    flavor: str = "VOLUME",
    syntax: UID = JPEGBaseline8Bit,
) -> list[Path]:
    """Write a slide's levels as DICOM files, an instance each, and return their paths, finest level first.

    Args:
        folder: Where to write them.
        image: (H, W, 3) uint8, the finest level.
        name: Goes into every UID, the accession number and the files' names: others are other slides.
        um_per_px: Of `image`.
        downsamples: One level for each.
        flavor: Image Type value 3: VOLUME for a pyramid, LABEL or OVERVIEW for a picture of the glass.
        syntax: Transfer syntax: JPEG baseline, JPEG 2000 lossless, or uncompressed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    height_px, width_px = image.shape[:2]
    paths = []
    for number, downsample in enumerate(downsamples, start=1):
        size = (width_px // downsample, height_px // downsample)
        level = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX))
        image_type = ["ORIGINAL", "PRIMARY", flavor, "NONE"]
        if number > 1:
            image_type = ["DERIVED", "PRIMARY", flavor, "RESAMPLED"]
        slide = whole_slide(
            level,
            tile=TILE_PX,
            syntax=syntax,
            name=name,
            PatientID=name,
            AccessionNumber=name[:16],
            InstanceNumber=number,
            ImageType=image_type,
            ImagedVolumeWidth=width_px * um_per_px / 1000,
            ImagedVolumeHeight=height_px * um_per_px / 1000,
            SpecimenLabelInImage="NO" if flavor == "VOLUME" else "YES",
        )
        slide.SOPInstanceUID = generate_uid(entropy_srcs=["tessera tests", name, flavor, str(number)])
        slide.file_meta.MediaStorageSOPInstanceUID = slide.SOPInstanceUID
        shared = slide.SharedFunctionalGroupsSequence[0]
        shared.PixelMeasuresSequence[0].PixelSpacing = [um_per_px * downsample / 1000] * 2
        shared.WholeSlideMicroscopyImageFrameTypeSequence[0].FrameType = image_type
        path = folder / f"{name}-{flavor.lower()}-{number}.dcm"
        slide.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths
