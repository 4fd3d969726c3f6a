"""Valid DICOM images to segment, made of arrays: whole slides, single frames, secondary captures.

Written with pydicom alone, so that what reads and writes them in the service is not tested against itself. The patient
is invented; UIDs depend on the arguments alone.
"""

import math
import struct
from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image, ImageCms
from pydicom import Dataset, FileDataset, dcmread, uid
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.encoders.base import RLELosslessEncoder
from pydicom.sr.coding import Code
from pydicom.uid import UID, generate_uid

CANARY = "CANARY^PATIENT"
"""The patient's name: it must not appear anywhere but in a DICOM object."""

_UM_PER_PX = 0.5


def file_of(dataset: Dataset) -> bytes:
    file = BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


def header_of(dataset: Dataset) -> Dataset:
    """The dataset as read from a file, without its pixels."""
    return dcmread(BytesIO(file_of(dataset)), stop_before_pixels=True)


def as_metadata(dataset: Dataset) -> Dataset:
    """The dataset as a DICOMweb archive gives it in WADO-RS metadata: JSON, without pixels and file meta."""
    copy = dcmread(BytesIO(file_of(dataset)))
    del copy.PixelData
    return Dataset.from_json(copy.to_json_dict())


def whole_slide(
    image: np.ndarray,
    *,
    tile: int = 64,
    sparse: bool = False,
    syntax: UID = uid.ExplicitVRLittleEndian,
    name: str = "slide",
    skip: Sequence[int] = (),
    **attributes: Any,
) -> FileDataset:
    """A VL Whole Slide Microscopy instance of one level, edge tiles padded with grey.

    Args:
        image: (H, W, 3) uint8.
        tile: Side of a tile, in px.
        sparse: TILED_SPARSE, its frames in reverse order, instead of TILED_FULL.
        syntax: How the frames are encoded: uncompressed, RLE, JPEG baseline or JPEG 2000 lossless.
        name: Goes into the UIDs.
        skip: Numbers of tiles, row by row from 0, that a sparse slide leaves out.
        attributes: More of them, by keyword.
    """
    height, width = image.shape[:2]
    down, across = math.ceil(height / tile), math.ceil(width / tile)
    padded = np.full((down * tile, across * tile, 3), 128, np.uint8)
    padded[:height, :width] = image
    places = [(x * tile, y * tile) for y in range(down) for x in range(across)]
    if sparse:
        places = [place for number, place in enumerate(places) if number not in skip][::-1]

    slide = _image(uid.VLWholeSlideMicroscopyImageStorage, name, syntax)
    slide.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    slide.FrameOfReferenceUID = _uid(name, "frame of reference")
    slide.PositionReferenceIndicator = "SLIDE_CORNER"
    slide.DimensionOrganizationType = "TILED_SPARSE" if sparse else "TILED_FULL"
    organization = Dataset()
    organization.DimensionOrganizationUID = _uid(name, "dimensions")
    slide.DimensionOrganizationSequence = [organization]
    slide.DimensionIndexSequence = [
        _dimension(organization.DimensionOrganizationUID, pointer) for pointer in (0x0048021F, 0x0048021E)
    ]
    slide.TotalPixelMatrixRows, slide.TotalPixelMatrixColumns = height, width
    slide.TotalPixelMatrixFocalPlanes = 1
    slide.NumberOfOpticalPaths = 1
    origin = Dataset()
    origin.XOffsetInSlideCoordinateSystem, origin.YOffsetInSlideCoordinateSystem = "20.0", "40.0"
    slide.TotalPixelMatrixOriginSequence = [origin]
    slide.ImageOrientationSlide = ["0", "-1", "0", "-1", "0", "0"]
    slide.ImagedVolumeWidth, slide.ImagedVolumeHeight = width * _UM_PER_PX / 1e3, height * _UM_PER_PX / 1e3
    slide.ImagedVolumeDepth = 5.0
    slide.SpecimenLabelInImage = "NO"
    slide.VolumetricProperties = "VOLUME"
    slide.FocusMethod = "AUTO"
    slide.ExtendedDepthOfField = "NO"
    slide.OpticalPathSequence = [_optical_path()]
    slide.SharedFunctionalGroupsSequence = [_shared_groups()]
    if sparse:
        rows, columns = sorted({y for _, y in places}), sorted({x for x, _ in places})
        slide.PerFrameFunctionalGroupsSequence = [
            _frame_group(x, y, (rows.index(y) + 1, columns.index(x) + 1)) for x, y in places
        ]
    slide.AcquisitionDateTime = "20200102030405"
    _add_specimen(slide, name)
    _add_pixels(slide, [padded[y : y + tile, x : x + tile] for x, y in places], syntax)
    slide.NumberOfFrames = len(places)
    return _with(slide, attributes)


ADOBE_RGB, ADOBE_YCC = (b"\xff\xee\0\x0eAdobe\0d\0\0\0\0" + bytes([transform]) for transform in (0, 1))
"""Segments of a JPEG that state its colours (ITU-T T.872, section 6.5.3)."""


def jpeg_of(image: np.ndarray, *, is_rgb: bool = False, states: bytes | None = None) -> bytes:
    """A JPEG whose channels are numbered from 1, as those of YCbCr and of most RGB are.

    Args:
        image: (H, W, 3) uint8.
        is_rgb: Whether it holds RGB, and not YCbCr.
        states: The segment that says which; None for what Pillow writes: JFIF's of YCbCr, Adobe's of RGB.
    """
    file = BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=95, subsampling="4:4:4", keep_rgb=is_rgb)
    jpeg = bytearray(file.getvalue())
    if is_rgb:
        frame, scan = jpeg.index(b"\xff\xc0"), jpeg.index(b"\xff\xda")
        for number in range(3):
            jpeg[frame + 10 + 3 * number] = jpeg[scan + 5 + 2 * number] = number + 1
    following = 4 + int.from_bytes(jpeg[4:6])
    return bytes(jpeg if states is None else jpeg[:2] + states + jpeg[following:])


def in_ycc(image: np.ndarray) -> np.ndarray:
    """The YCbCr of (H, W, 3) uint8 RGB."""
    return np.asarray(Image.fromarray(image).convert("YCbCr"))


def jpeg_2000_of(image: np.ndarray, *, transforms: bool, is_lossy: bool = False) -> bytes:
    """A codestream of (H, W, 3) uint8 whose components are transformed, as those of RGB are, or not."""
    file = BytesIO()
    Image.fromarray(image).save(file, "JPEG2000", irreversible=is_lossy, mct=int(transforms), no_jp2=True)
    return file.getvalue()


def rle_of(image: np.ndarray) -> bytes:
    """A frame of RLE of (H, W, 3) uint8, whatever its colours are."""
    return RLELosslessEncoder.encode(
        np.ascontiguousarray(image),
        rows=image.shape[0],
        columns=image.shape[1],
        number_of_frames=1,
        samples_per_pixel=3,
        bits_allocated=8,
        bits_stored=8,
        photometric_interpretation="RGB",
        pixel_representation=0,
        planar_configuration=0,
    )


def over_one_another(frame: bytes, side: int, *, tile: int, syntax: UID) -> FileDataset:
    """A slide of `side` px squared all of whose tiles are the same bytes, by its table of offsets (PS3.3, C.7.6.3)."""
    slide = whole_slide(np.zeros((side, side, 3), np.uint8), tile=tile, syntax=syntax)
    frame += bytes(len(frame) % 2)
    slide.PixelData = encapsulate([frame], has_bot=False)
    slide.ExtendedOffsetTable = bytes(8 * slide.NumberOfFrames)
    slide.ExtendedOffsetTableLengths = struct.pack("<Q", len(frame)) * slide.NumberOfFrames
    return slide


def microscopic(image: np.ndarray, *, on_slide: bool = False, name: str = "field", **attributes: Any) -> FileDataset:
    """A single-frame VL Microscopic image of (H, W, 3) uint8, or one with slide coordinates."""
    sop_class = uid.VLSlideCoordinatesMicroscopicImageStorage if on_slide else uid.VLMicroscopicImageStorage
    field = _image(sop_class, name, uid.ExplicitVRLittleEndian)
    field.ImageType = ["ORIGINAL", "PRIMARY"]
    field.Modality = "SM" if on_slide else "GM"
    field.PatientOrientation = None
    field.AcquisitionDateTime = "20200102030405"
    _add_specimen(field, name)
    if on_slide:
        field.FrameOfReferenceUID = _uid(name, "frame of reference")
        field.PositionReferenceIndicator = "SLIDE_CORNER"
        center = Dataset()
        center.XOffsetInSlideCoordinateSystem = "20.0"
        center.YOffsetInSlideCoordinateSystem = "40.0"
        center.ZOffsetInSlideCoordinateSystem = "0.0"
        field.ImageCenterPointCoordinatesSequence = [center]
        field.PixelSpacing = ["0.0005", "0.0005"]
    _add_pixels(field, [image], uid.ExplicitVRLittleEndian)
    return _with(field, attributes)


def secondary_capture(image: np.ndarray, *, name: str = "capture", **attributes: Any) -> FileDataset:
    """A single-frame Secondary Capture of (H, W, 3) uint8 or grey (H, W) uint8 or uint16."""
    capture = _image(uid.SecondaryCaptureImageStorage, name, uid.ExplicitVRLittleEndian)
    capture.ConversionType = "WSD"
    capture.Modality = "OT"
    capture.BodyPartExamined, capture.Laterality = "LUNG", "L"
    capture.PatientOrientation = None
    del capture.AcquisitionContextSequence
    _add_pixels(capture, [image], uid.ExplicitVRLittleEndian)
    return _with(capture, attributes)


def _image(sop_class: UID, name: str, syntax: UID) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = sop_class
    meta.MediaStorageSOPInstanceUID = _uid(name, "instance")
    meta.TransferSyntaxUID = syntax
    image = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    image.SpecificCharacterSet = "ISO_IR 100"
    image.SOPClassUID, image.SOPInstanceUID = sop_class, meta.MediaStorageSOPInstanceUID
    image.StudyInstanceUID, image.SeriesInstanceUID = _uid(name, "study"), _uid(name, "series")
    image.PatientName = CANARY
    image.PatientID = "CANARY-7"
    image.PatientBirthDate = "19500607"
    image.PatientSex = "F"
    image.StudyID, image.AccessionNumber = "S1", "A1"
    image.StudyDate, image.StudyTime = "20200102", "030405"
    image.ReferringPhysicianName = "Müller^Ängström"
    image.Modality = "SM"
    image.SeriesNumber, image.InstanceNumber = 1, 1
    image.Manufacturer, image.ManufacturerModelName = "Scanners", "One"
    image.DeviceSerialNumber, image.SoftwareVersions = "1", "1"
    image.ContentDate, image.ContentTime = "20200102", "030405"
    image.AcquisitionContextSequence = []
    image.BurnedInAnnotation = "NO"
    image.LossyImageCompression = "00"
    return image


def _add_specimen(image: Dataset, name: str) -> None:
    specimen = Dataset()
    specimen.SpecimenIdentifier = "B-1"
    specimen.SpecimenUID = _uid(name, "specimen")
    specimen.IssuerOfTheSpecimenIdentifierSequence = []
    specimen.SpecimenPreparationSequence = []
    image.ContainerIdentifier = "C-1"
    image.IssuerOfTheContainerIdentifierSequence = []
    image.ContainerTypeCodeSequence = [_code(Code("258661006", "SCT", "Slide"))]
    image.SpecimenDescriptionSequence = [specimen]


def _add_pixels(image: Dataset, tiles: Sequence[np.ndarray], syntax: UID) -> None:
    first = tiles[0]
    image.Rows, image.Columns = first.shape[:2]
    image.SamplesPerPixel = 3 if first.ndim == 3 else 1
    image.PhotometricInterpretation = "RGB" if first.ndim == 3 else "MONOCHROME2"
    if first.ndim == 3:
        image.PlanarConfiguration = 0
    image.BitsAllocated = image.BitsStored = 8 * first.itemsize
    image.HighBit = image.BitsStored - 1
    image.PixelRepresentation = 0
    if not syntax.is_encapsulated:
        pixels = b"".join(tile.tobytes() for tile in tiles)
        image.add_new("PixelData", "OB" if first.itemsize == 1 else "OW", pixels + bytes(len(pixels) % 2))
        return
    if syntax == uid.JPEGBaseline8Bit:
        image.PhotometricInterpretation = "YBR_FULL_422"
        image.LossyImageCompression = "01"
        image.LossyImageCompressionRatio, image.LossyImageCompressionMethod = "10", "ISO_10918_1"
    image.add_new("PixelData", "OB", encapsulate([_encoded(tile, syntax) for tile in tiles]))
    image["PixelData"].is_undefined_length = True


def _encoded(tile: np.ndarray, syntax: UID) -> bytes:
    if syntax == uid.JPEG2000Lossless:
        return jpeg_2000_of(tile, transforms=False)
    if syntax == uid.RLELossless:
        return rle_of(tile)
    file = BytesIO()
    Image.fromarray(tile).save(file, "JPEG", quality=95, subsampling="4:2:2")
    return file.getvalue()


def _dimension(organization: str, pointer: int) -> Dataset:
    item = Dataset()
    item.DimensionOrganizationUID = organization
    item.DimensionIndexPointer = pointer
    item.FunctionalGroupPointer = 0x0048021A
    return item


def _shared_groups() -> Dataset:
    measures, kind, path, shared = Dataset(), Dataset(), Dataset(), Dataset()
    measures.PixelSpacing = [str(_UM_PER_PX / 1e3)] * 2
    measures.SliceThickness = "0.005"
    measures.SpacingBetweenSlices = "0.005"
    kind.FrameType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    path.OpticalPathIdentifier = "1"
    shared.PixelMeasuresSequence = [measures]
    shared.WholeSlideMicroscopyImageFrameTypeSequence = [kind]
    shared.OpticalPathIdentificationSequence = [path]
    return shared


def _frame_group(x: int, y: int, index: tuple[int, int]) -> Dataset:
    position, content, group = Dataset(), Dataset(), Dataset()
    position.ColumnPositionInTotalImagePixelMatrix = x + 1
    position.RowPositionInTotalImagePixelMatrix = y + 1
    position.XOffsetInSlideCoordinateSystem = f"{20 - y * _UM_PER_PX / 1e3:.4f}"
    position.YOffsetInSlideCoordinateSystem = f"{40 - x * _UM_PER_PX / 1e3:.4f}"
    position.ZOffsetInSlideCoordinateSystem = "0.0"
    content.DimensionIndexValues = list(index)
    group.PlanePositionSlideSequence = [position]
    group.FrameContentSequence = [content]
    return group


def _optical_path() -> Dataset:
    path = Dataset()
    path.OpticalPathIdentifier = "1"
    path.IlluminationTypeCodeSequence = [_code(Code("111744", "DCM", "Brightfield illumination"))]
    path.IlluminationColorCodeSequence = [_code(Code("371251000", "SCT", "White color"))]
    path.ICCProfile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    path.ColorSpace = "SRGB"
    path.ObjectiveLensPower = "20"
    return path


def _code(code: Code) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code.value, code.scheme_designator, code.meaning
    return item


def _uid(name: str, what: str) -> UID:
    return generate_uid(entropy_srcs=["tessera tests", name, what])


def _with(image: FileDataset, attributes: dict[str, Any]) -> FileDataset:
    for keyword, value in attributes.items():
        setattr(image, keyword, value)
    return image
