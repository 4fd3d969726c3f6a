"""What is warned about, and above all what is not. Rates on real images: docs/warnings.md."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from app.imaging.appearance import Appearance, appearance, slide_appearance
from app.imaging.plausibility import input_warnings, rules_for, slide_warnings
from app.imaging.sharpness import sharpness
from app.pathology.classes import NORMAL, STROMA, TUMOR
from app.pathology.geometry import Size
from model_export.corruptions import jpeg
from model_export.synthetic import draw_patch
from tests.conftest import ROOT
from tests.slides import brown

LARGE = Size(224, 224)
HE = Appearance(LARGE, tissue=0.5, he_stain=0.99, ink=0.0, sharpness=0.8)
SKIN = sorted((ROOT / "examples" / "patches").glob("cmu1-skin-*.png"))


def codes(image: np.ndarray) -> list[str]:
    return [warning.code for warning in input_warnings(appearance(image))]


def drawn(*tissues, seed=1) -> np.ndarray:
    return draw_patch(seed, Size(240, 240), tissues or (TUMOR, STROMA, NORMAL))[0]


def rgb(path: Path) -> np.ndarray:
    return np.array(Image.open(path).convert("RGB"))


def skin() -> np.ndarray:
    return rgb(SKIN[1])


def as_sent(image: np.ndarray, quality: int | None) -> np.ndarray:
    """What is left of an image as JPEG of that quality, or as PNG."""
    return image if quality is None else jpeg(image, quality)


def plain(*colour: int) -> np.ndarray:
    return np.full((100, 120, 3), colour, np.uint8)


def blurred(image: np.ndarray, sigma_px: float) -> np.ndarray:
    return np.array(Image.fromarray(image).filter(ImageFilter.GaussianBlur(sigma_px)))


def inked(image: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """A stroke across the image, through which it shows."""
    stroke = Image.new("RGB", (image.shape[1], image.shape[0]), "white")
    ImageDraw.Draw(stroke).line([(0, 40), (image.shape[1], 170)], fill=colour, width=24)
    return (image * (np.asarray(stroke) / 255)).astype(np.uint8)


@pytest.mark.parametrize("path", SKIN, ids=lambda path: path.stem)
@pytest.mark.parametrize("factor", [0.85, 1, 1.15])
def test_real_tissue_is_not_warned_about_under_any_usual_light(path, factor):
    image = np.asarray(Image.open(path).convert("RGB")) * factor
    assert codes(image.clip(0, 255).astype(np.uint8)) == []


@pytest.mark.parametrize("tissues", [(TUMOR,), (STROMA,), (NORMAL,), (TUMOR, STROMA, NORMAL)])
@pytest.mark.parametrize("seed", range(3))
def test_drawn_tissue_is_not_warned_about(tissues, seed):
    assert codes(drawn(*tissues, seed=seed)) == []


def test_yellow_light_is_not_another_stain():
    assert codes((skin() * np.array([0.95, 0.95, 0.75])).astype(np.uint8)) == []


@pytest.mark.parametrize(
    "image",
    [plain(255, 255, 255), plain(243, 242, 244), plain(200, 200, 200), draw_patch(1, Size(200, 200), ())[0]],
    ids=["white", "pale", "grey", "glass"],
)
def test_a_blank_has_low_tissue(image):
    assert codes(image) == ["low_tissue"]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda image: np.repeat(image.mean(axis=2, keepdims=True).astype(np.uint8), 3, axis=2),
        lambda image: 255 - image,
        lambda image: image[..., [1, 0, 2]],
        lambda image: image[..., [0, 2, 1]],
        lambda image: np.random.default_rng(0).integers(0, 256, image.shape, np.uint8),
        np.zeros_like,
    ],
    ids=["grey", "inverted", "green and red swapped", "green and blue swapped", "noise", "black"],
)
def test_what_lacks_the_colours_of_he_is_out_of_distribution(spoil):
    assert codes(np.ascontiguousarray(spoil(skin()))) == ["out_of_distribution"]


def test_dab_is_out_of_distribution():
    brown = np.array([0.27, 0.57, 0.78])  # Ruifrok and Johnston (2001)
    amount = np.abs(np.random.default_rng(0).normal(0.8, 0.4, (60, 60, 1)))
    image = (255 * np.exp(-amount * brown)).astype(np.uint8)
    assert codes(np.pad(image, ((20, 20), (20, 20), (0, 0)), constant_values=250)) == ["out_of_distribution"]


@pytest.mark.parametrize("colour", [(25, 45, 150), (20, 120, 70), (200, 30, 45), (35, 35, 40)])
def test_pens_of_four_colours_are_seen(colour):
    assert codes(inked(skin(), colour)) == ["pen_marks"]


@pytest.mark.parametrize("times", [1, 5])
@pytest.mark.parametrize("sigma_px", [2, 4])
def test_blur_is_seen_at_any_size(times, sigma_px):
    assert codes(np.tile(blurred(drawn(), sigma_px), (times, times, 1))) == ["out_of_focus"]


@pytest.mark.parametrize("path", SKIN, ids=lambda path: path.stem)
@pytest.mark.parametrize("quality", [None, 85, 50], ids=["png", "jpeg 85", "jpeg 50"])
@pytest.mark.parametrize("sigma_px", [2, 3, 4, 6, 8, 12, 16, 24])
def test_blur_is_seen_however_strong_and_however_encoded(path, quality, sigma_px):
    """Before, the noise of encoding passed for detail from 8 px as JPEG, and from 12 px as PNG."""
    assert codes(as_sent(blurred(rgb(path), sigma_px), quality)) == ["out_of_focus"]


@pytest.mark.parametrize("path", SKIN, ids=lambda path: path.stem)
@pytest.mark.parametrize("quality", [None, 85, 50], ids=["png", "jpeg 85", "jpeg 50"])
@pytest.mark.parametrize("factor", [8, 16])
def test_an_enlargement_is_seen_however_encoded(path, quality, factor):
    image = Image.fromarray(rgb(path))
    coarse = image.resize((image.width // factor, image.height // factor), Image.Resampling.BOX)
    enlarged = np.array(coarse.resize(image.size, Image.Resampling.BICUBIC))
    assert codes(as_sent(enlarged, quality)) == ["out_of_focus"]


@pytest.mark.parametrize("quality", [None, 85])
def test_strong_blur_is_seen_in_a_large_patch(quality):
    image = as_sent(blurred(np.tile(rgb(SKIN[0]), (4, 4, 1)), 12), quality)
    assert sharpness(image) == 0.0
    assert codes(image) == ["out_of_focus"]


@pytest.mark.parametrize("path", SKIN, ids=lambda path: path.stem)
@pytest.mark.parametrize("quality", [None, 85, 50], ids=["png", "jpeg 85", "jpeg 50"])
@pytest.mark.parametrize("contrast", [1, 0.5, 0.3])
def test_pale_tissue_in_focus_is_not_taken_for_blurred(path, quality, contrast):
    pale = (255 - contrast * (255 - rgb(path).astype(float))).round().astype(np.uint8)
    measured = sharpness(as_sent(pale, quality))
    assert measured is not None
    assert measured > 0.6


@pytest.mark.parametrize("quality", [None, 75])
def test_a_little_tissue_in_focus_amid_glass_is_not_taken_for_blurred(quality):
    image = np.full((224, 224, 3), 245, np.uint8)
    image[70:125, 70:125] = skin()[:55, :55]
    assert codes(as_sent(image, quality)) == []


@pytest.mark.parametrize("side_px", [224, 2048])
def test_evenly_lit_glass_has_nothing_to_be_blurred(side_px):
    noise = np.random.default_rng(0).normal(243, 1, (side_px, side_px, 3))
    measured = sharpness(noise.round().clip(0, 255).astype(np.uint8))
    assert measured is not None
    assert measured > 0.6


def test_ink_and_blur_are_told_together():
    assert codes(blurred(inked(skin(), (20, 120, 70)), 3)) == ["pen_marks", "out_of_focus"]


def test_a_large_image_is_judged_in_all_its_parts():
    image = np.tile(drawn(), (5, 5, 1))
    image[500:700, 500:700] = 255
    image[:, :600] = blurred(image, 6)[:, :600]
    whole, left = sharpness(image), sharpness(np.ascontiguousarray(image[:, :600]))
    assert whole is not None
    assert left is not None
    assert whole > 1.2 * left


@pytest.mark.parametrize("shape", [(1, 1), (1, 4096), (4096, 1), (3, 500), (31, 31), (32, 32), (129, 257)])
def test_any_shape_can_be_judged(shape):
    seen = appearance(np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8))
    assert all(0 <= share <= 1 for share in (seen.tissue, seen.he_stain, seen.ink))
    if min(shape) < 32:
        assert seen.sharpness is None
        assert [warning.code for warning in input_warnings(seen)] == ["too_small"]
    else:
        assert seen.sharpness is not None
        assert 0 < seen.sharpness < np.inf
        assert [warning.code for warning in input_warnings(seen)] == ["out_of_distribution"]
    assert appearance(np.full((*shape, 3), 200, np.uint8)) == Appearance(Size(*shape[::-1]), 0, 0, 0, None)


@pytest.mark.parametrize(
    ("seen", "code", "number"),
    [
        (Appearance(Size(300, 31), 0.01, 0.2, 0.5, None), "too_small", "300x31 px"),
        (Appearance(LARGE, 0.031, 0.2, 0.5, 0.1), "low_tissue", "3.1%"),
        (Appearance(LARGE, 0.5, 0.42, 0.5, 0.1), "out_of_distribution", "42%"),
        (Appearance(LARGE, 0.5, 0.99, 0.13, 0.8), "pen_marks", "13%"),
        (Appearance(LARGE, 0.5, 0.99, 0.0, 0.234), "out_of_focus", "0.23"),
    ],
)
def test_each_message_says_what_was_measured(seen, code, number):
    (warning,) = input_warnings(seen)
    assert warning.code == code
    assert number in warning.message


@pytest.mark.parametrize("sharp", [0.45, None])
def test_on_the_limit_there_is_no_warning(sharp):
    assert input_warnings(HE) == ()
    assert input_warnings(Appearance(Size(32, 32), 0.05, 0.65, 0.01, sharp)) == ()


@pytest.mark.parametrize(
    ("seen", "left"),
    [
        (Appearance(Size(300, 31), 0.01, 0.2, 0.5, None), "too_small"),
        (Appearance(LARGE, 0.031, 0.2, 0.5, 0.1), "low_tissue"),
        (Appearance(LARGE, 0.5, 0.42, 0.5, 0.1), "out_of_focus"),
        (Appearance(LARGE, 0.5, 0.42, 0.5, 0.45), None),
        (Appearance(LARGE, 0.5, 0.99, 0.13, None), None),
    ],
)
def test_a_stain_without_limits_of_its_own_is_judged_by_density_and_detail_alone(seen, left):
    assert [warning.code for warning in rules_for("PD-L1 IHC").of_patch(seen)] == ([left] if left else [])
    assert rules_for("H&E").of_patch(seen) == input_warnings(seen) != ()
    on_a_slide = rules_for("PD-L1 IHC").of_slide(Appearance(seen.size, seen.tissue / 100, 0.1, 0.5, None))
    assert [warning.code for warning in on_a_slide] == (["low_tissue"] if seen.tissue < 0.1 else [])


def on_glass(tissue: np.ndarray, share: float, seed: int = 0) -> np.ndarray:
    """A slide from afar: a piece of tissue that covers a share of the glass."""
    slide = np.random.default_rng(seed).normal(243, 1.5, (512, 1024, 3)).clip(0, 255).astype(np.uint8)
    side = round((share * 512 * 1024) ** 0.5)
    whole = np.tile(tissue, (-(-side // tissue.shape[0]), -(-side // tissue.shape[1]), 1))
    slide[20 : 20 + side, 300 : 300 + side] = whole[:side, :side]
    return slide


def from_afar(image: np.ndarray, factor: int = 8) -> np.ndarray:
    return np.array(Image.fromarray(image).reduce(factor))


def codes_of_slide(image: np.ndarray) -> list[str]:
    return [warning.code for warning in slide_warnings(slide_appearance(image))]


@pytest.mark.parametrize("share", [0.4, 0.05, 0.005])
def test_a_slide_that_is_nearly_all_glass_is_looked_at_by_its_tissue(share):
    assert codes_of_slide(on_glass(from_afar(skin()), share)) == []
    assert codes_of_slide(on_glass(from_afar(brown(skin())), share)) == ["out_of_distribution"]


def test_what_is_out_of_focus_or_small_in_a_patch_means_nothing_from_afar():
    assert codes(from_afar(skin(), 16)) == ["too_small"]
    assert codes_of_slide(from_afar(skin(), 16)) == []
    assert codes_of_slide(blurred(on_glass(from_afar(skin()), 0.2), 3)) == []


@pytest.mark.parametrize("level", [255, 243, 200])
def test_glass_alone_has_no_tissue(level):
    slide = np.random.default_rng(1).normal(level, 2, (300, 900, 3)).clip(0, 255).astype(np.uint8)
    [warning] = slide_warnings(slide_appearance(slide))
    assert (warning.code, warning.message) == (
        "low_tissue",
        "Less than 0.1% of the slide is stained; no tissue was found on it.",
    )


@pytest.mark.parametrize("ink", [(20, 120, 70), (200, 30, 45), (35, 35, 40)], ids=["green", "red", "black"])
def test_a_pens_strokes_on_the_glass_do_not_make_he_another_stain(ink):
    """Before, they outweighed a small piece of tissue."""
    slide = on_glass(from_afar(skin()), 0.03)
    slide[160:176, 250:600] = slide[160:360, 250:266] = ink
    assert appearance(slide).he_stain < 0.65
    assert codes_of_slide(slide) == ["pen_marks"]
    slide[20:140, 300:425] = on_glass(from_afar(brown(skin())), 0.03)[20:140, 300:425]
    assert codes_of_slide(slide) == ["out_of_distribution"]


def test_ink_alone_is_no_tissue_of_he():
    slide = on_glass(np.full((9, 9, 3), (20, 120, 70), np.uint8), 0.02)
    assert codes_of_slide(slide) == ["out_of_distribution"]


def test_a_message_about_a_slide_says_what_was_measured():
    [warning] = slide_warnings(Appearance(LARGE, tissue=0.01, he_stain=0.03, ink=0.0, sharpness=None))
    assert warning.message.startswith(
        "Only 3% of what is stained on the slide has the colours of haematoxylin and eosin"
    )
