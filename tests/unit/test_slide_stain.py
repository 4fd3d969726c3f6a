"""Whether a slide is one for the model, by its header or a look at it from afar."""

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.sr.coding import Code

from app.errors import OtherStain
from app.imaging.plausibility import InputWarning, Rules, WarningCode, rules_for
from app.pathology.geometry import Region, Size
from app.segmentation.stain import check_stain, overview, stain_warnings
from app.slides.dicom_stains import names_other_stains
from app.slides.slide import Level
from tests.unit.test_dicom_stains import HAEMATOXYLIN, HE_METHOD, PAS, header, stained

BROWN = (150, 100, 60)
OF_HE = rules_for("H&E")


class Painted:
    """A slide of any size, whose pixels are made as they are read: tissue left of the middle, glass on the right."""

    def __init__(self, *sizes: Size, colour: tuple[int, int, int] = BROWN) -> None:
        self.levels = tuple(Level(size, None, sizes[0].width_px / size.width_px) for size in sizes)
        self.colour = colour
        self.reads: list[tuple[int, Region]] = []

    def read(self, level: int, region: Region) -> np.ndarray:
        self.reads.append((level, region))
        image = np.full((region.size.height_px, region.size.width_px, 3), 240, np.uint8)
        middle = self.levels[level].size.width_px // 2 - region.x_px
        image[:, : max(0, middle)] = self.colour
        return image


def warning(code: WarningCode) -> tuple[InputWarning]:
    return (InputWarning(code, f"{code}, in words"),)


def warned_of(slide: Painted, says: Dataset, rules: Rules = OF_HE) -> tuple[InputWarning, ...]:
    """Return what is warned of about a slide with the header `says`."""
    return stain_warnings(slide, rules, states_other=names_other_stains(says))


@pytest.mark.parametrize(
    ("sizes", "index"),
    [
        ([(80_000, 40_000), (20_000, 10_000), (5000, 2500), (1250, 625), (300, 150)], 3),
        ([(80_000, 40_000), (20_000, 10_000), (2500, 1250)], 2),
        ([(700, 600), (350, 300)], 0),
        ([(4000, 4096)], 0),
    ],
)
def test_a_slide_is_looked_at_on_its_coarsest_level_that_is_large_enough(sizes, index):
    slide = Painted(*(Size(*size) for size in sizes))
    assert overview(slide).shape == (*sizes[index][::-1], 3)
    assert slide.reads == [(index, Region(0, 0, slide.levels[index].size))]


@pytest.mark.parametrize("size", [Size(100_000, 60_000), Size(1_000_003, 17), Size(9, 2_000_000)])
def test_a_slide_without_coarse_levels_is_looked_at_in_pieces_from_all_over_it(size):
    slide = Painted(size)
    image = overview(slide)
    assert sum(region.size.pixels for _, region in slide.reads) <= 512 * 512
    for _, region in slide.reads:
        assert region.x_px + region.size.width_px <= size.width_px
        assert region.y_px + region.size.height_px <= size.height_px
    assert (image == BROWN).all(axis=2).mean() == pytest.approx(0.5, abs=0.12)
    last = slide.reads[-1][1]
    assert (last.x_px + last.size.width_px, last.y_px + last.size.height_px) == (size.width_px, size.height_px)


def test_the_look_of_a_slide_decides_where_its_header_says_nothing_or_he():
    [found] = warned_of(Painted(Size(2000, 900)), Dataset())
    assert found.code == "out_of_distribution"
    assert warned_of(Painted(Size(2000, 900)), header(stained(HAEMATOXYLIN))) == (found,)
    for says_nothing in (Dataset(), header(stained(HE_METHOD)), header(stained(Code("HE", "99LAB", "H&E")))):
        assert warned_of(Painted(Size(2000, 900), colour=(190, 110, 180)), says_nothing) == ()


def test_no_pixel_is_read_of_a_slide_whose_header_names_another_stain():
    slide = Painted(Size(2000, 900), colour=(190, 110, 180))
    [found] = warned_of(slide, header(stained(PAS)))
    assert found.code == "out_of_distribution"
    assert "header names other stains" in found.message
    assert slide.reads == []


@pytest.mark.parametrize("says", [Dataset(), header(stained(PAS)), header(stained(HE_METHOD))])
def test_neither_header_nor_colours_tell_against_a_slide_where_the_model_is_for_another_stain(says):
    rules = rules_for("PD-L1 IHC")
    assert warned_of(Painted(Size(2000, 900)), says, rules) == ()
    [found] = warned_of(Painted(Size(2000, 900), colour=(240, 240, 240)), says, rules)
    assert found.code == "low_tissue"
    check_stain([(found,), ()])


@pytest.mark.parametrize(
    ("areas", "is_refused"),
    [
        ([warning("out_of_distribution")], True),
        ([warning("low_tissue"), warning("out_of_distribution")], True),
        ([()], False),
        ([warning("pen_marks")], False),
        ([warning("low_tissue")], False),
        ([warning("out_of_distribution"), ()], False),
    ],
)
def test_a_slide_is_refused_if_none_of_its_areas_with_tissue_looks_like_he(areas, is_refused):
    if is_refused:
        with pytest.raises(OtherStain, match=r"^out_of_distribution, in words$"):
            check_stain(areas)
    else:
        check_stain(areas)
