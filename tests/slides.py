"""Pyramids of DICOM whole-slide images, made of the public-domain crop of CMU-1 in `examples/slides`."""

from pathlib import Path
from typing import Any

import numpy as np
from highdicom import SpecimenPreparationStep, SpecimenStaining
from PIL import Image
from pydicom import Dataset, Sequence, dcmread
from pydicom.encaps import encapsulate, generate_frames
from pydicom.sr.codedict import codes
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
    coarsest_tile_px: int = TILE_PX,
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
        coarsest_tile_px: Side of the coarsest level's tiles, which some scanners make as small as the level.
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
            tile=coarsest_tile_px if number == len(downsamples) else TILE_PX,
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


def changed(path: Path, times: int = 1, **attributes: Any) -> Path:
    """Write an instance anew, with other attributes, under another UID; None takes one away.

    Args:
        path: Of the instance.
        times: How often it has its frames, as one of several focal planes does.
        attributes: By keyword.
    """
    slide = dcmread(path)
    if times > 1:
        frames = list(generate_frames(slide.PixelData, number_of_frames=slide.NumberOfFrames))
        slide.PixelData, slide.NumberOfFrames = encapsulate(times * frames), times * len(frames)
    slide.SOPInstanceUID = generate_uid(entropy_srcs=[slide.SOPInstanceUID, repr(attributes)])
    slide.file_meta.MediaStorageSOPInstanceUID = slide.SOPInstanceUID
    for keyword, value in attributes.items():
        if value is None:
            delattr(slide, keyword)
        else:
            setattr(slide, keyword, value)
    other = path.with_name(f"{path.stem}-changed.dcm")
    slide.save_as(other, enforce_file_format=True)
    return other


def brown(image: RgbImage) -> RgbImage:
    """All stain as DAB, whose optical densities are by Ruifrok and Johnston (2001)."""
    density = -np.log((image + 1.0) / 256).mean(axis=2, keepdims=True)
    return (np.exp(-density * np.array([0.27, 0.57, 0.78]) / 0.54) * 256 - 1).clip(0).astype(np.uint8)


def stained_with_pas() -> Sequence:
    """Return a specimen's description whose header says that it is stained with PAS."""
    specimen = Dataset()
    specimen.SpecimenIdentifier, specimen.SpecimenUID = "B-1", "2.25.11"
    specimen.IssuerOfTheSpecimenIdentifierSequence = []
    pas = SpecimenStaining([codes.cid8112.PeriodicAcidSchiffStain, codes.cid8112.HematoxylinStain])
    specimen.SpecimenPreparationSequence = [SpecimenPreparationStep("B-1", pas)]
    return Sequence([specimen])
