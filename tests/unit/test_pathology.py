import numpy as np
import pytest
from pydantic import ValidationError

from app.pathology.classes import BACKGROUND, NORMAL, STROMA, TUMOR, WSSS4LUAD, TissueClass, code, label_indices
from app.pathology.composition import pixel_counts, present_labels, tissue_fractions
from app.pathology.geometry import Region, Size
from app.pathology.manifest import HE, ModelManifest
from tests.fakes import manifest


def test_the_four_classes_are_those_of_the_challenge_masks():
    assert [(tissue.name, tissue.letter, tissue.color) for tissue in WSSS4LUAD] == [
        ("tumor", "T", (0, 64, 128)),
        ("stroma", "S", (64, 128, 0)),
        ("normal", "N", (243, 152, 0)),
        ("background", "B", (255, 255, 255)),
    ]
    assert label_indices(WSSS4LUAD) == (0, 1, 2)


@pytest.mark.parametrize(
    ("classes", "expected"),
    [((TUMOR, STROMA), "T+S"), ((NORMAL,), "N"), ((TUMOR, STROMA, NORMAL), "T+S+N"), ((), "")],
)
def test_a_code_joins_letters(classes, expected):
    assert code(classes) == expected


@pytest.mark.parametrize("color", [(0, 0, 256), (-1, 0, 0), (0, 0)])
def test_a_colour_is_three_bytes(color):
    with pytest.raises(ValidationError):
        TissueClass(name="x", letter="X", color=color)


def test_pixel_counts_count_every_class():
    class_map = np.array([[0, 0, 3], [1, 3, 3]], np.uint8)
    assert pixel_counts(class_map, 4) == [2, 1, 0, 3]


def test_an_index_outside_the_classes_is_an_error():
    with pytest.raises(ValueError, match="class index 4"):
        pixel_counts(np.array([[4]], np.uint8), 4)


@pytest.mark.parametrize("amounts", [(10, 0, 30, 60), (0.1, 0.0, 0.3, 0.6)])
def test_shares_of_the_tissue_leave_out_what_is_no_label(amounts):
    assert tissue_fractions(amounts, WSSS4LUAD) == pytest.approx((0.25, 0, 0.75, None))


def test_without_tissue_there_are_no_shares_of_it():
    assert tissue_fractions((0, 0, 0, 100), WSSS4LUAD) == (None, None, None, None)


def test_labels_reach_their_own_thresholds():
    known = manifest().model_copy(update={"label_thresholds": (0.5, 0.9, 0.1)})
    assert present_labels(known, [0.5, 0.89, 0.1]) == (TUMOR, NORMAL)
    assert present_labels(known, [0.49, 0.9, 0.09]) == (STROMA,)


def test_sizes_round_up_to_a_stride():
    assert Size(1, 64).rounded_up(32) == Size(32, 64)
    assert Size(65, 31).rounded_up(32) == Size(96, 32)
    assert Size(3, 5).pixels == 15


def test_a_size_has_sides():
    with pytest.raises(ValueError, match="at least 1 px"):
        Size(0, 5)


def test_a_region_indexes_rows_before_columns():
    pixels = np.arange(20).reshape(4, 5)
    region = Region(x_px=1, y_px=2, size=Size(3, 2))
    assert pixels[region.slices].tolist() == [[11, 12, 13], [16, 17, 18]]
    assert region.within(Region(1, 1, Size(4, 3))) == Region(0, 1, Size(3, 2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label_thresholds": (0.5,)}, "one number for each label class"),
        ({"classes": (TUMOR, TUMOR.model_copy(update={"name": "other"}), STROMA, BACKGROUND)}, "share a letter"),
        (
            {"classes": (BACKGROUND, BACKGROUND.model_copy(update={"name": "b", "letter": "b", "color": (0, 0, 0)}))},
            "at least one class must be a label",
        ),
        ({"window_px": 100}, "multiple of stride"),
        ({"margin_px": 32}, "must fit into window_px"),
        ({"sha256": "abc"}, "sha256"),
        ({"format": 2}, "format"),
        ({"name": "../x"}, "name"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(change, message):
    values = manifest().model_dump() | change
    with pytest.raises(ValidationError, match=message):
        ModelManifest.model_validate(values)


@pytest.mark.parametrize("stain", [HE, "PD-L1 IHC", "PAS", "\u03b1-SMA (clone 1A4), DAB", "HES", "x" * 64])
def test_a_manifest_says_what_its_model_is_stained_for(stain):
    said = ModelManifest.model_validate(manifest().model_dump() | {"stain": stain})
    assert said.stain == stain
    assert said.serves_like(manifest()) is (stain == HE)


def test_an_earlier_manifest_is_of_he():
    values = manifest().model_dump()
    del values["stain"]
    assert ModelManifest.model_validate(values).stain == HE


@pytest.mark.parametrize(
    "stain", ["", " ", "PAS ", "\tPAS", "two\nlines", "PAS\x1b[31m", "PAS\u202e", "PAS\u2028", "x" * 65, 5, None]
)
def test_a_stain_that_is_no_short_line_is_refused(stain):
    with pytest.raises(ValidationError, match="stain"):
        ModelManifest.model_validate(manifest().model_dump() | {"stain": stain})


@pytest.mark.parametrize(
    "stain",
    ["HE", "h&e", "H & E", "H/E", "H and E", "haematoxylin and eosin", "Hematoxylin-Eosin", "hematoxylin & eosin"],
)
def test_he_has_one_spelling_so_that_its_rules_are_not_lost_by_another(stain):
    with pytest.raises(ValidationError, match="must be H&E"):
        ModelManifest.model_validate(manifest().model_dump() | {"stain": stain})


def test_a_manifest_survives_its_file():
    known = manifest()
    assert ModelManifest.model_validate_json(known.model_dump_json()) == known
