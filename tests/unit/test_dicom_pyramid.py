"""A pyramid of Segmentations, over a slide of five levels of which the last two are a single tile."""

from collections.abc import Sequence
from copy import deepcopy
from fractions import Fraction
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from highdicom.seg import Segmentation
from pydicom import Dataset, dcmread
from pydicom.uid import UID

from app.errors import ExtraMissing, UnsupportedImage
from app.interop.dicom_file import to_bytes
from app.interop.dicom_pyramid import SAME, _steps, conditions_of, level_spans, pyramid_series_uid
from app.pathology.arrays import ClassMap
from tests.dicom_results import reduced, segmentation_object, segmentation_pyramid
from tests.dicom_sources import as_metadata
from tests.fakes import classes_of, manifest
from tests.pictures import quarters
from tests.slides import CMU1_UM_PER_PX, write_slide

CLASS_MAP = classes_of(quarters(1100, 900))
MODEL = manifest()
SHAPES = [(900, 1100), (450, 550), (225, 275), (112, 137)]

Levels = Sequence[Dataset]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("slide")
    return write_slide(folder, quarters(1100, 900), name="pyramid", downsamples=(1, 2, 4, 8, 16))


@pytest.fixture(scope="module")
def levels(files: list[Path]) -> Levels:
    """What an archive tells of each level."""
    return [as_metadata(dcmread(path)) for path in files]


def class_map_of(seg: Dataset) -> ClassMap:
    """Return the class map that highdicom reads from the object's file: 3 is background, where no segment is."""
    read = Segmentation.from_dataset(dcmread(BytesIO(to_bytes(seg))))
    numbers = read.get_total_pixel_matrix(combine_segments=True)
    return np.where(numbers == 0, 3, numbers - 1).astype(np.uint8)


def test_each_level_down_to_the_first_of_one_tile_has_its_segmentation(levels):
    pyramid = segmentation_pyramid(levels, CLASS_MAP, MODEL)
    assert [(seg.TotalPixelMatrixRows, seg.TotalPixelMatrixColumns) for seg in pyramid] == SHAPES
    for seg, source in zip(pyramid, levels, strict=False):
        shared, of_source = seg.SharedFunctionalGroupsSequence[0], source.SharedFunctionalGroupsSequence[0]
        assert shared.PixelMeasuresSequence[0].PixelSpacing == of_source.PixelMeasuresSequence[0].PixelSpacing
        [instance] = seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence
        assert instance.ReferencedSOPInstanceUID == source.SOPInstanceUID
        assert np.array_equal(
            class_map_of(seg), reduced(CLASS_MAP, (seg.TotalPixelMatrixRows, seg.TotalPixelMatrixColumns))
        )


def test_the_levels_are_one_pyramid_of_one_series_with_the_same_segments(levels):
    pyramid = segmentation_pyramid(levels, CLASS_MAP, MODEL)
    for keyword in ("SeriesInstanceUID", "PyramidUID", "FrameOfReferenceUID", "SegmentSequence", "SeriesDescription"):
        assert all(seg[keyword].value == pyramid[0][keyword].value for seg in pyramid), keyword
    assert [seg.InstanceNumber for seg in pyramid] == [1, 2, 3, 4]
    assert pyramid[0].SeriesInstanceUID == pyramid_series_uid(levels[0], MODEL, SAME)


def test_the_finest_level_shows_what_a_segmentation_of_its_own_does(levels):
    finest = segmentation_pyramid(levels, CLASS_MAP, MODEL)[0]
    alone = segmentation_object(levels[0], CLASS_MAP, MODEL)
    assert finest.PixelData == alone.PixelData
    assert finest.SOPInstanceUID != alone.SOPInstanceUID  # it says that it is a level, so it is another object


def test_the_pyramid_of_a_coarser_level_begins_there_and_is_a_series_of_its_own(levels):
    whole = segmentation_pyramid(levels, CLASS_MAP, MODEL)
    coarse = segmentation_pyramid(levels[1:], reduced(CLASS_MAP, SHAPES[1]), MODEL)
    assert [seg.TotalPixelMatrixColumns for seg in coarse] == [550, 275, 137]
    assert coarse[0].SeriesInstanceUID != whole[0].SeriesInstanceUID
    assert not {seg.SOPInstanceUID for seg in coarse} & {seg.SOPInstanceUID for seg in whole}


def test_every_level_states_the_slides_spacing_and_that_nothing_is_odd(levels):
    for seg in segmentation_pyramid(levels, CLASS_MAP, MODEL):
        [algorithm] = seg.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence
        stated = f"um_per_px={CMU1_UM_PER_PX},scale_factor=1.0,warnings=none"
        assert algorithm.AlgorithmParameters == f"model_sha256={MODEL.sha256},{stated}"


def test_the_slides_warnings_are_stated_at_every_level_of_the_same_series(levels):
    pyramids = {
        " ".join(warnings) or "none": segmentation_pyramid(levels, CLASS_MAP, MODEL, warnings=warnings)
        for warnings in ((), ("pen_marks",), ("pen_marks", "low_tissue"))
    }
    for stated, segs in pyramids.items():
        for seg in segs:
            [algorithm] = seg.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence
            assert algorithm.AlgorithmParameters.endswith(f",warnings={stated}")
    assert len({segs[0].SeriesInstanceUID for segs in pyramids.values()}) == 1
    for same_level in zip(*pyramids.values(), strict=True):
        assert len({seg.SOPInstanceUID for seg in same_level}) == 3


def test_a_slide_of_one_level_is_a_pyramid_of_one(levels):
    [seg] = segmentation_pyramid(levels[:1], CLASS_MAP, MODEL)
    assert np.array_equal(class_map_of(seg), CLASS_MAP)


def test_an_absent_class_keeps_its_number_at_every_level_and_an_empty_map_is_one_empty_frame(levels):
    for seg in segmentation_pyramid(levels, np.full_like(CLASS_MAP, 3), MODEL):
        assert [segment.SegmentNumber for segment in seg.SegmentSequence] == [1, 2, 3]
        assert seg.NumberOfFrames == 1
        assert not any(seg.PixelData)


def test_the_same_input_gives_the_same_bytes_at_every_level(files, levels):
    again = [as_metadata(dcmread(path)) for path in files]
    for one, other in zip(
        segmentation_pyramid(levels, CLASS_MAP, MODEL), segmentation_pyramid(again, CLASS_MAP, MODEL), strict=True
    ):
        assert to_bytes(one) == to_bytes(other)


def test_one_pixel_that_differs_gives_every_level_another_uid(levels):
    """Also where the coarser maps do not show the pixel: tracking UIDs and the pyramid's are others."""
    changed = CLASS_MAP.copy()
    changed[0, 0] = 2
    pairs = zip(
        segmentation_pyramid(levels, CLASS_MAP, MODEL), segmentation_pyramid(levels, changed, MODEL), strict=True
    )
    for one, other in pairs:
        assert one.SOPInstanceUID != other.SOPInstanceUID
        assert one.SeriesInstanceUID == other.SeriesInstanceUID
        assert UID(one.SOPInstanceUID).is_valid
        assert UID(one.PyramidUID).is_valid


def test_a_level_filled_up_to_whole_tiles_shows_each_class_where_its_spacing_puts_it(levels):
    filled = deepcopy(levels[1])
    filled.TotalPixelMatrixRows, filled.TotalPixelMatrixColumns = 512, 768  # 450 x 550 px are the slide's
    filled.NumberOfFrames = 6
    seg = segmentation_pyramid([levels[0], filled], CLASS_MAP, MODEL)[1]
    shown = class_map_of(seg)
    assert shown.shape == (512, 768)
    assert np.array_equal(shown[:450, :550], reduced(CLASS_MAP, SHAPES[1]))
    assert (np.delete(shown, np.s_[:450], 0) == 3).all()
    assert (np.delete(shown, np.s_[:550], 1) == 3).all()


def test_a_spacing_that_is_rounded_moves_nothing():
    """As a scanner writes them: of 80,000 rows the last would lie 16 beyond the end."""
    fine = np.arange(80_000, dtype=np.uint32).astype(np.uint8)[:, np.newaxis]
    steps = _steps((80_000, 1), (0.0002426, 0.0002426), (40_000, 1), (0.0004853, 0.0004853))
    assert steps == (2, 1)
    assert np.array_equal(reduced(fine, (40_000, 1), steps), fine[1::2])


def of_size(source: Dataset, side_px: int, um_per_px: float, across_um: float | None = None) -> Dataset:
    """Return a header of other size and spacing."""
    other = deepcopy(source)
    other.TotalPixelMatrixRows = other.TotalPixelMatrixColumns = side_px
    other.NumberOfFrames = (-(-side_px // other.Rows)) ** 2
    measures = other.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    measures.PixelSpacing = [um_per_px / 1000, (across_um or um_per_px) / 1000]
    return other


def test_levels_whose_sizes_and_spacings_agree_are_taken_at_their_word(levels):
    """Before, the nearest power of two was taken, and the coarse result lay 52 fine px off at its end."""
    fine, coarse = of_size(levels[0], 2100, 0.25), of_size(levels[1], 1024, 0.5127)
    assert level_spans(fine, coarse) == (Fraction(525, 256), Fraction(525, 256))
    class_map = np.zeros((2100, 2100), np.uint8)
    class_map[2050:] = 1  # from row 999.6 on
    shown = class_map_of(segmentation_pyramid([fine, coarse], class_map, MODEL)[1])
    assert (shown[:999] == 0).all()
    assert (shown[1000:] == 1).all()


def test_a_map_that_is_smaller_than_its_filled_up_level_is_no_mistake(levels):
    """The model saw every second pixel, and a pixel of the level that carries the result is as large."""
    carrier = of_size(levels[1], 768, 2 * CMU1_UM_PER_PX)
    seen = classes_of(quarters(550, 450))
    [seg] = segmentation_pyramid([carrier], seen, MODEL)
    shown = class_map_of(seg)
    assert np.array_equal(shown[:450, :550], seen)
    assert (np.delete(shown, np.s_[:450], 0) == 3).all()


@pytest.mark.parametrize(
    ("down_um", "across_um", "stated"), [(0.5, 0.5, "0.5"), (0.5, 0.52, "unknown"), (20, 20, "unknown")]
)
def test_a_spacing_that_is_not_used_is_not_stated_either(levels, down_um, across_um, stated):
    source = of_size(levels[0], 256, down_um, across_um)
    conditions = conditions_of(source, SAME, ())
    assert conditions.stated["um_per_px"] == stated
    [seg] = segmentation_pyramid([source], np.zeros((256, 256), np.uint8), MODEL)
    [algorithm] = seg.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence
    assert f"um_per_px={stated}," in algorithm.AlgorithmParameters


def test_reducing_takes_the_class_at_the_centre_of_each_pixel():
    fine = np.arange(48, dtype=np.uint8).reshape(6, 8)
    assert reduced(fine, (2, 2)).tolist() == [[10, 14], [34, 38]]
    assert reduced(fine, (6, 8)).tolist() == fine.tolist()
    assert reduced(fine[:5, :7], (2, 3)).tolist() == [[9, 11, 13], [25, 27, 29]]


def test_reducing_keeps_the_shares_of_rare_and_thin_classes():
    fine = np.full((2048, 2048), 3, np.uint8)
    fine[:, ::10] = 0  # strands that a vote would lose
    shares = np.bincount(reduced(fine, (171, 171)).ravel(), minlength=4) / 171**2
    assert shares[0] == pytest.approx(0.1, abs=0.03)
    assert shares[1:3].tolist() == [0, 0]


def test_a_map_on_a_grid_of_the_models_own_is_shown_where_it_lies_at_each_level(levels):
    """The slide has 1100x900 px, the model saw each 5/2 of them as one: the last row and column reach beyond."""
    seen = classes_of(quarters(440, 360))
    pyramid = segmentation_pyramid(levels, seen, MODEL, (Fraction(2, 5), Fraction(2, 5)))
    assert [(seg.TotalPixelMatrixRows, seg.TotalPixelMatrixColumns) for seg in pyramid] == SHAPES
    for seg, source in zip(pyramid, levels, strict=False):
        shown = class_map_of(seg)
        assert np.array_equal(shown, classes_of(quarters(*shown.shape[::-1])))
        shared, of_source = seg.SharedFunctionalGroupsSequence[0], source.SharedFunctionalGroupsSequence[0]
        assert shared.PixelMeasuresSequence[0].PixelSpacing == of_source.PixelMeasuresSequence[0].PixelSpacing
        [algorithm] = seg.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence
        assert "scale_factor=0.4" in algorithm.AlgorithmParameters


def test_a_map_that_the_model_made_of_other_pixels_is_another_series(levels):
    spans = (Fraction(1, 2), Fraction(1, 2))
    assert pyramid_series_uid(levels[0], MODEL, spans) != pyramid_series_uid(levels[0], MODEL, SAME)
    halved = segmentation_pyramid(levels, CLASS_MAP[::2, ::2], MODEL, spans)
    assert halved[0].SeriesInstanceUID == pyramid_series_uid(levels[0], MODEL, spans)
    assert halved[0].SOPInstanceUID != segmentation_pyramid(levels, CLASS_MAP, MODEL)[0].SOPInstanceUID


@pytest.mark.parametrize("keyword", ["TotalPixelMatrixRows", "ImageOrientationSlide"])
def test_a_level_that_cannot_be_repeated_is_refused_without_its_values(files, keyword):
    levels = [as_metadata(dcmread(path)) for path in files]
    del levels[1][keyword]
    with pytest.raises(UnsupportedImage, match="repeats of its source"):
        segmentation_pyramid(levels, CLASS_MAP, MODEL)


def test_a_missing_extra_is_named(monkeypatch, levels):
    monkeypatch.setattr("app.libraries.find_spec", lambda _: None)
    with pytest.raises(ExtraMissing, match="DICOM needs the extra 'dicom'"):
        segmentation_pyramid(levels, CLASS_MAP, MODEL)
