import os

import numpy as np
import pytest
from PIL import Image

from app.pathology.classes import NORMAL, STROMA, TUMOR, WSSS4LUAD
from app.pathology.geometry import Size
from model_export.errors import InvalidData
from model_export.synthetic import draw_patch
from model_export.training.dataset import IGNORE, labels_of, read_labelled_patches, read_pairs
from tests.model_export_support import masked_sample, write_huge_png, write_mask, write_pair, write_pairs, write_patches
from tests.pictures import exif, png_of, unfiltered


def refusal(call, *arguments):
    """Return the one line that the call is refused with."""
    with pytest.raises(InvalidData) as caught:
        call(*arguments)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


def test_pairs_come_in_name_order_with_image_class_map_and_labels(tmp_path):
    lung = np.full((24, 40), 2, np.uint8)
    drawn = {"b.png": (masked_sample(lung).image, lung), "a.png": draw_patch(2, Size(33, 57), (TUMOR, STROMA))}
    for name, (image, class_map) in drawn.items():
        write_pair(tmp_path, name, image, class_map)

    samples = read_pairs(tmp_path, WSSS4LUAD)

    assert [sample.name for sample in samples] == ["a.png", "b.png"]
    for sample in samples:
        image, class_map = drawn[sample.name]
        np.testing.assert_array_equal(sample.image, image)
        np.testing.assert_array_equal(sample.class_map, class_map)
        assert sample.image.dtype == sample.class_map.dtype == np.uint8
        assert sample.has_mask
    assert samples[1].labels == (False, False, True)


def test_a_pair_that_the_table_of_slides_does_not_name_is_a_slide_of_its_own(tmp_path):
    write_pairs(tmp_path, 3)

    samples = read_pairs(tmp_path, WSSS4LUAD, {"00.png": "A", "02.png": "A", "elsewhere.png": "B"})

    assert [sample.slide for sample in samples] == ["A", "01.png", "A"]
    assert [sample.slide for sample in read_pairs(tmp_path, WSSS4LUAD)] == ["00.png", "01.png", "02.png"]


def test_a_grey_mask_is_read_by_its_indices(tmp_path):
    image, class_map = draw_patch(0, Size(32, 32))
    write_pair(tmp_path, "a.png", image, class_map)
    Image.fromarray(class_map).save(tmp_path / "mask" / "a.png")

    np.testing.assert_array_equal(read_pairs(tmp_path, WSSS4LUAD)[0].class_map, class_map)


def test_an_rgb_mask_is_read_by_its_colours(tmp_path):
    image, class_map = draw_patch(0, Size(48, 32), (TUMOR, STROMA, NORMAL))
    write_pair(tmp_path, "a.png", image, class_map)
    colors = np.array([tissue.color for tissue in WSSS4LUAD], np.uint8)
    Image.fromarray(colors[class_map]).save(tmp_path / "mask" / "a.png")

    np.testing.assert_array_equal(read_pairs(tmp_path, WSSS4LUAD)[0].class_map, class_map)


def test_an_opaque_rgba_image_is_read_without_its_alpha(tmp_path):
    image, class_map = draw_patch(0, Size(32, 32))
    write_pair(tmp_path, "a.png", image, class_map)
    Image.fromarray(image).convert("RGBA").save(tmp_path / "img" / "a.png")

    np.testing.assert_array_equal(read_pairs(tmp_path, WSSS4LUAD)[0].image, image)


def turned(path, image):
    Image.fromarray(image).save(path, exif=exif(6))


def deep(path, image):
    """Write a PNG of 16 bits a channel, which Pillow opens as RGB: of 12 bits of a camera it would be black."""
    path.write_bytes(png_of((image.shape[1], image.shape[0]), 16, 2, unfiltered(image.astype(np.uint16))))


def test_a_name_that_is_not_in_utf_8_is_refused(tmp_path):
    image, class_map = draw_patch(0, Size(32, 32))
    write_pair(tmp_path, "a.png", image, class_map)
    (tmp_path / "img" / "a.png").rename(os.fsdecode(os.fsencode(tmp_path / "img") + b"/\xe9.png"))  # Latin-1

    message = refusal(read_pairs, tmp_path, WSSS4LUAD)

    assert message == f"{tmp_path / 'img'}: the file name '\\udce9.png' is not in UTF-8; rename it"


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (
            lambda path, image: Image.fromarray(image[..., 0].astype(np.uint16) << 8).save(path),
            "is of mode I;16, or has transparent pixels",
        ),
        (
            lambda path, image: Image.fromarray(np.dstack([image, image[..., :1] // 2])).save(path),
            "is of mode RGBA, or has transparent pixels",
        ),
        (turned, "is to be turned by its EXIF"),
        (deep, "is of 16 bits a channel"),
    ],
    ids=["16 bits", "transparent", "turned", "16 bits RGB"],
)
def test_an_image_that_the_service_would_show_otherwise_is_refused_by_name(tmp_path, spoil, what):
    image, class_map = draw_patch(0, Size(32, 32))
    write_pair(tmp_path, "a.png", image, class_map)
    path = tmp_path / "img" / "a.png"
    spoil(path, image)

    message = refusal(read_pairs, tmp_path, WSSS4LUAD)

    assert message == f"{path}: {what}; save it upright as opaque RGB of 8 bits"


def test_the_case_of_a_suffix_does_not_matter(tmp_path):
    image, class_map = draw_patch(0, Size(32, 32))
    write_pair(tmp_path, "a.PNG", image, class_map)
    write_pair(tmp_path, "b.png", image, class_map)

    assert [sample.name for sample in read_pairs(tmp_path, WSSS4LUAD)] == ["a.PNG", "b.png"]


def test_an_image_of_another_format_is_not_passed_over(tmp_path):
    write_pairs(tmp_path, 2)
    path = tmp_path / "img" / "02.jpg"
    Image.fromarray(draw_patch(0, Size(32, 32))[0]).save(path)

    message = refusal(read_pairs, tmp_path, WSSS4LUAD)

    assert message == f"{path}: images here are PNG files; convert it, or take it away"


def test_a_mask_without_an_image_is_not_passed_over(tmp_path):
    write_pairs(tmp_path, 2)
    (tmp_path / "img" / "01.png").unlink()

    message = refusal(read_pairs, tmp_path, WSSS4LUAD)

    assert message == f"{tmp_path / 'mask' / '01.png'}: a mask whose image, 01.png in img, is missing"


@pytest.mark.parametrize("made", ["nothing", "root", "empty img"])
def test_a_folder_without_images_is_refused_by_name(tmp_path, made):
    root = tmp_path / "pairs"
    if made != "nothing":
        root.mkdir()
    if made == "empty img":
        (root / "img").mkdir()

    wrong = "no PNG images here" if made == "empty img" else "no such folder"
    assert refusal(read_pairs, root, WSSS4LUAD) == f"{root / 'img'}: {wrong}"


def test_a_missing_mask_is_refused_by_name(tmp_path):
    write_pairs(tmp_path, 3)
    mask = tmp_path / "mask" / "01.png"
    mask.unlink()

    message = refusal(read_pairs, tmp_path, WSSS4LUAD)

    assert message.startswith(f"{mask}: missing")
    assert "01.png in img" in message


def test_a_mask_of_another_size_is_refused_by_name(tmp_path):
    write_pairs(tmp_path, 2)
    write_mask(tmp_path / "mask" / "01.png", np.zeros((32, 64), np.uint8))

    message = refusal(read_pairs, tmp_path, WSSS4LUAD)

    assert message == f"{tmp_path / 'mask' / '01.png'}: the mask is 64x32 px and its image 64x64 px"


@pytest.mark.parametrize("mode", ["P", "L"])
def test_an_index_outside_the_palette_is_refused_by_name(tmp_path, mode):
    write_pairs(tmp_path, 1)
    mask = tmp_path / "mask" / "00.png"
    class_map = np.zeros((64, 64), np.uint8)
    class_map[5, 7] = 4
    if mode == "P":
        write_mask(mask, class_map, [*(tissue.color for tissue in WSSS4LUAD), (9, 9, 9)])
    else:
        Image.fromarray(class_map).save(mask)

    assert refusal(read_pairs, tmp_path, WSSS4LUAD) == f"{mask}: index 4 is none of 0, 1, 2 and 3"


def test_a_palette_painted_with_another_colour_is_refused_by_name(tmp_path):
    write_pairs(tmp_path, 1)
    mask = tmp_path / "mask" / "00.png"
    write_mask(mask, np.ones((64, 64), np.uint8), [TUMOR.color, NORMAL.color, STROMA.color, (255, 255, 255)])

    message = refusal(read_pairs, tmp_path, WSSS4LUAD)

    assert message == f"{mask}: index 1 is painted {NORMAL.color}, not {STROMA.color}"


def test_a_palette_colour_that_no_pixel_uses_is_nobodys_business(tmp_path):
    write_pairs(tmp_path, 1)
    class_map = np.zeros((64, 64), np.uint8)
    write_mask(tmp_path / "mask" / "00.png", class_map, [TUMOR.color, (1, 2, 3)])

    np.testing.assert_array_equal(read_pairs(tmp_path, WSSS4LUAD)[0].class_map, class_map)


def test_an_rgb_mask_with_a_colour_outside_the_palette_is_refused_by_name_and_place(tmp_path):
    write_pairs(tmp_path, 1)
    mask = tmp_path / "mask" / "00.png"
    pixels = np.full((64, 64, 3), TUMOR.color, np.uint8)
    pixels[11, 20] = (0, 64, 129)
    Image.fromarray(pixels).save(mask)

    message = refusal(read_pairs, tmp_path, WSSS4LUAD)

    assert message == f"{mask}: the colour (0, 64, 129) at x 20, y 11 is outside the palette"


@pytest.mark.parametrize("folder", ["img", "mask"])
@pytest.mark.parametrize("keep", [0.0, 0.05, 0.5, 0.7])
def test_a_truncated_file_is_refused_by_name(tmp_path, folder, keep):
    write_pairs(tmp_path, 2)
    path = tmp_path / folder / "01.png"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])

    message = refusal(read_pairs, tmp_path, WSSS4LUAD)

    assert message.startswith(f"{path}: not a readable {'image' if folder == 'img' else 'mask'}: ")


@pytest.mark.parametrize("folder", ["img", "mask"])
def test_a_png_that_promises_too_many_pixels_is_refused_by_name(tmp_path, monkeypatch, folder):
    monkeypatch.setattr(
        Image, "MAX_IMAGE_PIXELS", 2**20
    )  # Pillow has a limit; the service, which has its own, lifts it
    write_pairs(tmp_path, 1)
    path = tmp_path / folder / "00.png"
    write_huge_png(path)

    message = refusal(read_pairs, tmp_path, WSSS4LUAD)

    assert message.startswith(f"{path}: not a readable")
    assert "exceeds limit" in message


def test_a_folder_named_like_an_image_is_refused_by_name(tmp_path):
    write_pairs(tmp_path, 1)
    (tmp_path / "img" / "zz.png").mkdir()

    assert refusal(read_pairs, tmp_path, WSSS4LUAD).startswith(f"{tmp_path / 'img' / 'zz.png'}: not a readable image")


def test_labels_are_parsed_from_a_patchs_name(tmp_path):
    write_patches(tmp_path, "1-2-3-[1, 0, 1].png", "1-2-4-[0,1,0].png", "[0, 0, 0].png")

    samples = read_labelled_patches(tmp_path, WSSS4LUAD)

    assert {sample.name: sample.labels for sample in samples} == {
        "1-2-3-[1, 0, 1].png": (True, False, True),
        "1-2-4-[0,1,0].png": (False, True, False),
        "[0, 0, 0].png": (False, False, False),
    }
    for sample in samples:
        assert sample.image.shape == (48, 48, 3)
        assert (sample.class_map == IGNORE).all()
        assert sample.class_map.shape == (48, 48)
        assert not sample.has_mask


def test_a_patch_is_of_the_slide_that_a_table_names(tmp_path):
    named, other = "1-2-3-[1, 0, 1].png", "1-2-4-[0, 1, 0].png"
    write_patches(tmp_path, named, other)

    samples = read_labelled_patches(tmp_path, WSSS4LUAD, {named: "S-0012"})

    assert [sample.slide for sample in samples] == ["S-0012", other]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("1-2-3-[1, 0].png", "2 labels in the name, 3 expected"),
        ("1-2-3-[1, 0, 1, 0].png", "4 labels in the name, 3 expected"),
        ("1-2-3.png", "the name does not end in labels such as [1, 0, 1]"),
        ("1-2-3-[].png", "the name does not end in labels such as [1, 0, 1]"),
        ("1-2-3-[2, 0, 1].png", "the name does not end in labels such as [1, 0, 1]"),
        ("1-2-[1, 0, 1]-3.png", "the name does not end in labels such as [1, 0, 1]"),
    ],
)
def test_a_name_without_three_labels_is_refused(tmp_path, name, reason):
    write_patches(tmp_path, "0-[1, 0, 1].png", name)

    assert refusal(read_labelled_patches, tmp_path, WSSS4LUAD) == f"{tmp_path / name}: {reason}"


def test_a_patch_folder_without_images_is_refused_by_name(tmp_path):
    assert refusal(read_labelled_patches, tmp_path / "no", WSSS4LUAD) == f"{tmp_path / 'no'}: no such folder"


def test_a_truncated_patch_is_refused_by_name(tmp_path):
    write_patches(tmp_path, "0-[1, 0, 1].png")
    path = tmp_path / "0-[1, 0, 1].png"
    path.write_bytes(path.read_bytes()[:500])

    assert refusal(read_labelled_patches, tmp_path, WSSS4LUAD).startswith(f"{path}: not a readable image: ")


def test_a_label_needs_half_a_percent_of_the_known_pixels():
    class_map = np.full((20, 20), 3, np.uint8)
    class_map[0, 0] = 0
    class_map[1, :2] = 1
    assert labels_of(class_map, WSSS4LUAD) == (False, True, False)  # 1 and 2 pixels of 400

    class_map[10:] = IGNORE
    assert labels_of(class_map, WSSS4LUAD) == (True, True, False)  # 1 and 2 pixels of 200


def test_nothing_known_is_no_label():
    assert labels_of(np.full((8, 8), IGNORE, np.uint8), WSSS4LUAD) == (False, False, False)


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (
            lambda path, colours: Image.fromarray(np.dstack([colours, np.zeros_like(colours[..., :1])])).save(path),
            "is of mode RGBA, or has transparent pixels",
        ),
        (turned, "is to be turned by its EXIF"),
        (
            lambda path, colours: Image.fromarray(colours[..., 0].astype(np.uint16)).save(path),
            "is of 16 bits a channel",
        ),
        (deep, "is of 16 bits a channel"),
    ],
    ids=["transparent", "turned", "16 bits", "16 bits RGB"],
)
def test_a_mask_is_upright_and_opaque_as_its_image(tmp_path, spoil, what):
    image, class_map = draw_patch(0, Size(32, 32))
    write_pair(tmp_path, "a.png", image, class_map)
    path = tmp_path / "mask" / "a.png"
    spoil(path, np.array([tissue.color for tissue in WSSS4LUAD], np.uint8)[class_map])

    message = refusal(read_pairs, tmp_path, WSSS4LUAD)

    assert message == f"{path}: {what}; save the mask upright and opaque, with 8 bits"
