import logging
import subprocess
import sys
import traceback
import tracemalloc
import warnings
from functools import partial
from io import BytesIO

import numpy as np
import pytest
from pydicom import Dataset, dcmread, uid
from pydicom.encaps import encapsulate

from app.errors import ExtraMissing, ImageRejected, ImageTooLarge, OutOfMemory, UnreadableImage, UnsupportedImage
from app.imaging.jpeg import states_ycc
from app.interop.dicom_file import to_bytes
from app.pathology.geometry import Size
from app.slides import dicom
from tests.conftest import ROOT
from tests.dicom_pixels import decode_dicom
from tests.dicom_results import segmentation_object
from tests.dicom_sources import (
    ADOBE_RGB,
    ADOBE_YCC,
    CANARY,
    file_of,
    in_ycc,
    jpeg_2000_of,
    jpeg_of,
    microscopic,
    secondary_capture,
    whole_slide,
)
from tests.fakes import classes_of, manifest
from tests.pictures import encoded, noise, plain, quarters
from tests.slides import cmu1

LIMIT = 4096
IMAGE = noise(100, 70)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("syntax", [uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.RLELossless])
def test_a_tiled_slide_is_its_total_pixel_matrix(sparse, syntax):
    data = file_of(whole_slide(IMAGE, tile=32, sparse=sparse, syntax=syntax))
    assert np.array_equal(decode_dicom(data, LIMIT), IMAGE)
    instance = dicom.opened(data, LIMIT)
    assert (instance.size, instance.um_per_px()) == (Size(100, 70), 0.5)


def test_jpeg_2000_comes_back_to_the_pixel():
    data = file_of(whole_slide(IMAGE, tile=32, syntax=uid.JPEG2000Lossless))
    assert np.array_equal(decode_dicom(data, LIMIT), IMAGE)


@pytest.mark.parametrize("sparse", [False, True])
def test_jpeg_tiles_have_the_right_colours(sparse):
    tissue = cmu1(300, 200)
    pixels = decode_dicom(file_of(whole_slide(tissue, sparse=sparse, syntax=uid.JPEGBaseline8Bit)), LIMIT)
    difference = np.abs(pixels.astype(int) - tissue)
    assert difference.mean() < 2
    assert difference.max() < 20


@pytest.mark.parametrize("stated", ["YBR_FULL_422", "RGB"])
def test_jpegs_own_colours_win_over_a_header_that_contradicts_them(stated):
    color = (200, 60, 120)
    jpegs = {
        "YBR_FULL_422": encoded(plain(color, 16, 16), "JPEG", quality=100, keep_rgb=True),
        "RGB": encoded(plain(color, 16, 16), "JPEG", quality=100),
    }
    slide = whole_slide(plain(color, 16, 16), tile=16, syntax=uid.JPEGBaseline8Bit)
    slide.PhotometricInterpretation = stated
    slide.PixelData = encapsulate([jpegs[stated]])
    assert np.abs(decode_dicom(file_of(slide), LIMIT).astype(int) - color).max() <= 3


@pytest.mark.parametrize("stated", ["YBR_FULL_422", "RGB"])
@pytest.mark.parametrize(
    ("is_rgb", "states", "is_ycc"),
    [(False, None, True), (False, ADOBE_YCC, True), (True, None, False), (True, ADOBE_RGB, False)],
)
def test_a_jpegs_marker_wins_over_the_header_whichever_it_is(stated, is_rgb, states, is_ycc):
    """Pillow converts by Adobe's marker, and pydicom converted that once more where the header says YBR."""
    tissue = cmu1(64, 48)
    jpeg = jpeg_of(tissue, is_rgb=is_rgb, states=states)
    slide = whole_slide(tissue, syntax=uid.JPEGBaseline8Bit, PhotometricInterpretation=stated, Rows=48)
    slide.PixelData = encapsulate([jpeg])
    assert np.abs(decode_dicom(file_of(slide), LIMIT).astype(int) - tissue).mean() < 2
    assert states_ycc(jpeg) == is_ycc


@pytest.mark.parametrize(("stated", "is_rgb"), [("YBR_FULL_422", False), ("RGB", True)])
def test_of_a_jpeg_without_a_marker_the_header_says_the_colours(stated, is_rgb):
    tissue = cmu1(64, 64)
    slide = whole_slide(tissue, syntax=uid.JPEGBaseline8Bit, PhotometricInterpretation=stated)
    slide.PixelData = encapsulate([jpeg_of(tissue, is_rgb=is_rgb, states=b"")])
    assert np.abs(decode_dicom(file_of(slide), LIMIT).astype(int) - tissue).mean() < 2


@pytest.mark.parametrize(
    ("beginning", "is_ycc"),
    [
        (b"\xff\xd8" + ADOBE_RGB + b"\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0", True),  # libjpeg goes by JFIF
        (b"\xff\xd8\xff\xe2\xff\xff" + 65_533 * b"p" + ADOBE_YCC, True),  # behind a colour profile
        (b"\xff\xd8" + ADOBE_YCC[:-1], False),
        (b"\xff\xd8\xff\xe0\0\x07JFIF", False),
        (b"\xff\xd8\xff\xda\0\2" + ADOBE_YCC, False),  # among the pixels
        (b"\xff\xd8" + 2000 * b"\xff\xfe\0\2" + ADOBE_YCC, False),
        (b"\xff\x4f\xff\x51" + ADOBE_YCC, False),  # JPEG 2000
        (b"", False),
    ],
)
def test_which_markers_say_that_a_jpeg_is_in_ycc(beginning, is_ycc):
    assert states_ycc(beginning) == is_ycc


@pytest.mark.parametrize("stated", ["RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT"])
def test_a_jpeg_2000_that_was_transformed_from_rgb_is_in_rgb_whatever_the_header_says(stated):
    """Before, OpenJPEG's RGB was taken for YCbCr and converted once more, where the header says YBR_FULL."""
    tissue = cmu1(64, 64)
    slide = whole_slide(tissue, syntax=uid.JPEG2000Lossless, PhotometricInterpretation=stated)
    slide.PixelData = encapsulate([jpeg_2000_of(tissue, transforms=True)])
    assert np.array_equal(decode_dicom(file_of(slide), LIMIT), tissue)


@pytest.mark.parametrize("stated", ["YBR_FULL", "YBR_FULL_422"])
def test_of_a_jpeg_2000_that_was_not_transformed_the_header_says_the_colours(stated):
    tissue = cmu1(64, 64)
    slide = whole_slide(tissue, syntax=uid.JPEG2000Lossless, PhotometricInterpretation=stated)
    slide.PixelData = encapsulate([jpeg_2000_of(in_ycc(tissue), transforms=False)])
    assert np.abs(decode_dicom(file_of(slide), LIMIT).astype(int) - tissue).mean() < 2


def test_a_jpeg_of_other_channels_than_the_header_states_is_refused():
    grey = encoded(cmu1(64, 64)[..., 0], "JPEG")
    slide = whole_slide(cmu1(64, 64), syntax=uid.JPEGBaseline8Bit)
    slide.PixelData = encapsulate([grey])
    with pytest.raises(UnreadableImage, match="more or fewer channels"):
        decode_dicom(file_of(slide), LIMIT)


def test_where_a_sparse_slide_has_no_tile_there_is_glass():
    pixels = decode_dicom(file_of(whole_slide(IMAGE, tile=32, sparse=True, skip=[5])), LIMIT)
    assert (pixels[32:64, 32:64] == 255).all()
    assert np.array_equal(pixels[:32], IMAGE[:32])


@pytest.mark.parametrize("on_slide", [False, True])
def test_a_field_is_its_frame(on_slide):
    assert np.array_equal(decode_dicom(file_of(microscopic(IMAGE, on_slide=on_slide)), LIMIT), IMAGE)


def test_a_secondary_capture_is_its_frame():
    assert np.array_equal(decode_dicom(file_of(secondary_capture(IMAGE)), LIMIT), IMAGE)


def test_uncompressed_ybr_is_converted():
    white, red = (255, 128, 128), (76, 85, 255)
    capture = secondary_capture(np.array([[white, red]], np.uint8), PhotometricInterpretation="YBR_FULL")
    assert np.abs(decode_dicom(file_of(capture), LIMIT).astype(int) - [[(255, 255, 255), (254, 0, 0)]]).max() <= 2


@pytest.mark.parametrize(("kind", "expected"), [("MONOCHROME2", [0, 128, 255]), ("MONOCHROME1", [255, 127, 0])])
def test_sixteen_bit_grey_may_count_from_black_or_from_white(kind, expected):
    capture = secondary_capture(np.array([[0, 32768, 65535]], np.uint16), PhotometricInterpretation=kind)
    assert decode_dicom(file_of(capture), LIMIT)[0].tolist() == [[value] * 3 for value in expected]


def test_twelve_bits_are_scaled_to_eight():
    capture = secondary_capture(np.array([[0, 4095]], np.uint16), BitsStored=12, HighBit=11)
    assert decode_dicom(file_of(capture), LIMIT)[0, :, 0].tolist() == [0, 255]


def test_the_header_comes_without_pixels():
    header = dicom.header(file_of(whole_slide(IMAGE)))
    assert header.PatientName == CANARY
    assert "PixelData" not in header


def test_what_begins_as_a_dicom_file_is_one():
    assert dicom.is_dicom(file_of(secondary_capture(IMAGE)))
    assert not dicom.is_dicom(encoded(IMAGE))
    assert not dicom.is_dicom(b"")


def test_the_longest_side_is_allowed_and_one_more_points_to_the_command_for_slides():
    data = file_of(whole_slide(IMAGE))
    assert decode_dicom(data, 100).shape == (70, 100, 3)
    with pytest.raises(ImageTooLarge, match=r"100x70 px; .* at most 99 px; .*`tessera dicomweb segment`"):
        dicom.opened(data, 99)


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({"TotalPixelMatrixColumns": 2**31, "TotalPixelMatrixRows": 2**31}, "each side may have at most"),
        ({"Rows": 60_000, "Columns": 60_000}, "tiles are 60000x60000 px"),
        ({"Rows": 4000, "Columns": 4000, "NumberOfFrames": 1}, "damaged|one entry for each frame"),
        ({"Rows": 1, "Columns": 1, "NumberOfFrames": 2**14 + 1, "TotalPixelMatrixRows": 4096}, "frames; at most 16384"),
        ({"NumberOfFrames": 2**31 - 1}, "2147483647 frames where 4 cover it"),
    ],
)
@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.JPEGBaseline8Bit])
def test_a_header_that_lies_allocates_nothing(attributes, words, syntax):
    data = file_of(whole_slide(plain((1, 2, 3), 100, 70), syntax=syntax, **attributes))
    dicom.header(data)
    tracemalloc.start()
    try:
        with pytest.raises((ImageTooLarge, UnsupportedImage, UnreadableImage), match=words):
            decode_dicom(data, LIMIT)
        assert tracemalloc.get_traced_memory()[1] < 60 * 2**20  # the largest image that may be
    finally:
        tracemalloc.stop()


def test_a_deflated_file_is_refused_before_it_is_inflated():
    capture = secondary_capture(IMAGE)
    capture.file_meta.TransferSyntaxUID = uid.DeflatedExplicitVRLittleEndian
    with pytest.raises(UnsupportedImage, match="transfer syntax"):
        decode_dicom(file_of(capture), LIMIT)


def test_pixels_may_be_longer_than_a_header():
    data = file_of(secondary_capture(plain((1, 2, 3), 2000, 2000)))
    assert dicom.header(data).Rows == 2000


@pytest.mark.parametrize(
    ("slide", "words"),
    [
        (whole_slide(IMAGE, NumberOfFrames=12), "12 frames where 4 cover it; .* one focal plane"),
        (whole_slide(IMAGE, NumberOfFrames=3), "more or fewer frames"),
        (microscopic(IMAGE, NumberOfFrames=2), "2 frames; send one frame"),
        (secondary_capture(IMAGE, PhotometricInterpretation="HSV"), "colours that are not read"),
        (secondary_capture(IMAGE, PixelRepresentation=1), "8 to 16 bits"),
    ],
)
def test_what_is_not_one_picture_in_known_colours_is_refused(slide, words):
    with pytest.raises((UnsupportedImage, UnreadableImage), match=words):
        decode_dicom(file_of(slide), LIMIT)


def test_two_tiles_in_one_place_are_refused():
    slide = whole_slide(IMAGE, sparse=True)
    groups = slide.PerFrameFunctionalGroupsSequence
    groups[1].PlanePositionSlideSequence = groups[0].PlanePositionSlideSequence
    with pytest.raises(UnsupportedImage, match="lie in one place"):
        decode_dicom(file_of(slide), LIMIT)


def test_a_tile_outside_of_the_slide_is_refused():
    slide = whole_slide(IMAGE, sparse=True)
    position = slide.PerFrameFunctionalGroupsSequence[0].PlanePositionSlideSequence[0]
    position.ColumnPositionInTotalImagePixelMatrix = -5
    with pytest.raises(UnreadableImage, match="outside"):
        decode_dicom(file_of(slide), LIMIT)


def photographic(image: np.ndarray) -> Dataset:
    photograph = microscopic(image, SOPClassUID=uid.VLPhotographicImageStorage, Modality="XC")
    photograph.file_meta.MediaStorageSOPClassUID = photograph.SOPClassUID
    return photograph


ACCEPTED = {
    uid.VLWholeSlideMicroscopyImageStorage: whole_slide,
    uid.VLMicroscopicImageStorage: microscopic,
    uid.VLSlideCoordinatesMicroscopicImageStorage: partial(microscopic, on_slide=True),
    uid.VLPhotographicImageStorage: photographic,
    uid.SecondaryCaptureImageStorage: secondary_capture,
}


@pytest.mark.parametrize("sop_class", ACCEPTED)
def test_each_accepted_class_decodes_and_has_a_segmentation(sop_class):
    image = quarters(100, 70)
    data = file_of(ACCEPTED[sop_class](image))
    assert np.array_equal(decode_dicom(data, LIMIT), image)
    source = dicom.header(data)
    assert source.SOPClassUID == sop_class
    segmentation = segmentation_object(source, classes_of(image), manifest())
    written = dcmread(BytesIO(to_bytes(segmentation)))
    assert written.SourceImageSequence[0].ReferencedSOPClassUID == sop_class
    numbers = {group.SegmentIdentificationSequence[0].ReferencedSegmentNumber for group in per_frame(written)}
    assert numbers == {1, 2, 3}


def per_frame(dataset: Dataset) -> list[Dataset]:
    return list(dataset.PerFrameFunctionalGroupsSequence)


def test_no_other_class_is_accepted():
    storages = [value for name, value in vars(uid).items() if name.endswith("Storage") and isinstance(value, uid.UID)]
    assert set(ACCEPTED) < set(storages)
    for sop_class in set(storages) - set(ACCEPTED):
        with pytest.raises(UnsupportedImage, match="send a VL Whole Slide Microscopy"):
            dicom.opened(file_of(secondary_capture(IMAGE, SOPClassUID=sop_class)), LIMIT)


def test_a_slide_that_does_not_place_its_tiles_is_told_what_it_lacks():
    slide = whole_slide(IMAGE)
    del slide.DimensionOrganizationType
    with pytest.raises(UnsupportedImage, match="neither the Dimension Organization Type TILED_FULL nor Per-frame"):
        decode_dicom(file_of(slide), LIMIT)


def test_places_are_read_where_the_organization_is_not_said():
    slide = whole_slide(IMAGE, sparse=True)
    del slide.DimensionOrganizationType
    assert np.array_equal(decode_dicom(file_of(slide), LIMIT), IMAGE)


@pytest.mark.parametrize(("parts", "is_whole"), [(1, True), (2, False), (None, False)])
def test_a_part_of_a_concatenation_is_not_taken_for_a_sparse_slide(parts, is_whole):
    slide = whole_slide(IMAGE, sparse=True, ConcatenationUID="2.25.7", InConcatenationNumber=1)
    if parts:
        slide.InConcatenationTotalNumber = parts
    if is_whole:
        assert np.array_equal(decode_dicom(file_of(slide), LIMIT), IMAGE)
    else:
        with pytest.raises(UnsupportedImage, match="one part of a concatenation; send the whole instance"):
            decode_dicom(file_of(slide), LIMIT)


@pytest.mark.parametrize("ask", [dicom.header, lambda data: dicom.opened(data, LIMIT)])
def test_the_label_of_a_slide_is_refused(ask):
    with pytest.raises(UnsupportedImage, match="of the slide's label"):
        ask(file_of(whole_slide(IMAGE, ImageType=["ORIGINAL", "PRIMARY", "LABEL", "NONE"])))
    with pytest.raises(UnsupportedImage, match="shows the slide's label"):
        ask(file_of(whole_slide(IMAGE, SpecimenLabelInImage="YES")))


@pytest.mark.parametrize(
    "kind", [["ORIGINAL", "PRIMARY", "OVERVIEW", "LABEL"], ["DERIVED", "PRIMARY"], "DERIVED", "LABEL", None]
)
def test_any_other_kind_of_image_is_read(kind):
    assert np.array_equal(decode_dicom(file_of(whole_slide(IMAGE, ImageType=kind)), LIMIT), IMAGE)


def test_tiles_of_one_pixel_are_not_placed_before_they_are_counted():
    slide = whole_slide(plain((1, 2, 3), 1, 1), tile=1, TotalPixelMatrixRows=4000, TotalPixelMatrixColumns=1000)
    tracemalloc.start()
    try:
        with pytest.raises(UnreadableImage, match="more or fewer frames"):
            decode_dicom(file_of(slide), LIMIT)
        assert tracemalloc.get_traced_memory()[1] < 60 * 2**20
    finally:
        tracemalloc.stop()


def test_an_image_without_pixels_is_refused():
    capture = secondary_capture(IMAGE)
    del capture.PixelData
    with pytest.raises(UnreadableImage, match="no pixels"):
        decode_dicom(file_of(capture), LIMIT)


@pytest.mark.parametrize("data", [b"", b"DICM", bytes(200), encoded(IMAGE)])
def test_other_files_are_refused(data):
    with pytest.raises(UnsupportedImage, match="not a DICOM file"):
        decode_dicom(data, LIMIT)


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.JPEGBaseline8Bit, uid.RLELossless])
@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.95])
def test_a_truncated_file_is_unreadable(syntax, share):
    whole = file_of(whole_slide(IMAGE, tile=32, syntax=syntax))
    with pytest.raises(UnreadableImage):
        decode_dicom(whole[: int(len(whole) * share)], LIMIT)


def malformed() -> list[Dataset]:
    """Images with a canary where a number, a date or a known word belongs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        capture = secondary_capture(IMAGE, PatientBirthDate=CANARY, SpecificCharacterSet=CANARY, PatientSex=CANARY)
        return [
            capture,
            secondary_capture(IMAGE, PhotometricInterpretation=CANARY),
            whole_slide(IMAGE, DimensionOrganizationType=CANARY),
            whole_slide(IMAGE, SOPClassUID=CANARY),
        ]


def test_no_attributes_value_reaches_a_message_a_log_or_a_warning(caplog, capfd, recwarn):
    caplog.set_level(logging.DEBUG)
    files = [file_of(dataset) for dataset in malformed()]
    rows = file_of(secondary_capture(IMAGE)).replace(b"\x28\x00\x10\x00US\x02\x00", b"\x28\x00\x10\x00LO\x02\x00")
    count = file_of(secondary_capture(IMAGE, NumberOfFrames=1234567890)).replace(b"1234567890", CANARY[:10].encode())
    recwarn.clear()
    refused = []
    for data in [*files, rows, count, files[0][:900]]:
        try:
            dicom.header(data)
            decode_dicom(data, LIMIT)
        except ImageRejected as error:
            refused.append("".join(traceback.format_exception(error)))
    assert len(refused) >= 5
    told = "".join([*refused, caplog.text, *capfd.readouterr(), *(str(warning.message) for warning in recwarn)])
    assert "CANARY" not in told


def test_no_memory_is_said_and_may_pass(monkeypatch):
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("app.slides.dicom._places", fail)
    with pytest.raises(OutOfMemory):
        decode_dicom(file_of(secondary_capture(IMAGE)), LIMIT)


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setattr("app.libraries.find_spec", lambda _: None)
    with pytest.raises(ExtraMissing, match="DICOM needs the extra 'dicom'"):
        decode_dicom(b"", LIMIT)


def test_the_modules_import_without_the_extra():
    modules = "app.slides.dicom, app.interop.dicom_seg, app.interop.dicom_sr, app.interop.dicom_file"
    code = f"import sys, {modules}; sys.exit(any(name in sys.modules for name in ('pydicom', 'highdicom')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
