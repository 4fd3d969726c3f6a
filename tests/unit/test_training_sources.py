import numpy as np
import pytest
from PIL import Image, ImageFilter

from app.pathology.classes import WSSS4LUAD
from model_export.errors import InvalidData
from model_export.training.dataset import IGNORE
from model_export.training.sources import (
    GLASS_BRIGHTNESS,
    LC25000_SIDE_PX,
    glass,
    read_ebhi_seg,
    read_lc25000,
    read_stas,
)

TUMOR, STROMA, NORMAL, BACKGROUND = range(4)
PINK, WHITE, CREAM = (220, 130, 170), (245, 245, 245), (190, 180, 170)


def picture(color=PINK, bright=(), size=(40, 30)):
    """An (H, W, 3) image of one colour, white in the columns `bright`."""
    width, height = size
    image = np.full((height, width, 3), color, np.uint8)
    image[:, list(bright)] = WHITE
    return image


def write(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write_pair(root, stem, image, held):
    """Write a JPEG and its 1-bit mask."""
    write(root / "img" / f"{stem}.jpg", image)
    write(root / "mask" / f"{stem}.png", held)


def columns(*held, size=(40, 30)):
    width, height = size
    mask = np.zeros((height, width), bool)
    mask[:, list(held)] = True
    return mask


def refusal(call, *arguments):
    with pytest.raises(InvalidData) as caught:
        call(*arguments, WSSS4LUAD)
    [line] = str(caught.value).splitlines()
    return line


# glass


def test_glass_is_what_is_bright_in_every_channel():
    image = picture(bright=range(20, 40))
    image[:, 30:] = (255, 255, GLASS_BRIGHTNESS)  # yellow

    np.testing.assert_array_equal(glass(image), columns(*range(20, 30)))


def test_a_speck_is_neither_glass_nor_tissue_of_its_own():
    image = picture()
    image[10:12, 10:12] = WHITE
    assert not glass(image).any()

    image = picture(WHITE)
    image[10:12, 10:12] = PINK
    assert glass(image).all()


def test_glass_is_where_the_median_of_the_darkest_channel_is_bright():
    image = np.random.default_rng(0).integers(120, 256, (37, 53, 3), np.uint8)
    image[:, ::2] |= 0xC0  # about half are bright: the two sides of the threshold are near

    median = np.asarray(Image.fromarray(image.min(axis=2)).filter(ImageFilter.MedianFilter(5)))

    np.testing.assert_array_equal(glass(image), median > GLASS_BRIGHTNESS)
    assert 0.1 < glass(image).mean() < 0.9


# STAS


def test_of_stas_the_clusters_and_the_glass_are_known(tmp_path):
    write_pair(tmp_path, "b", picture(bright=range(32, 40)), columns(*range(16)))
    write_pair(tmp_path, "a", picture(), columns())

    nothing, cluster = read_stas(tmp_path, WSSS4LUAD)

    assert (nothing.name, cluster.name) == ("a.jpg", "b.jpg")
    assert (nothing.class_map == IGNORE).all()
    row = cluster.class_map[15]
    assert set(row[:16]) == {TUMOR}
    assert set(row[18:30]) == {IGNORE}
    assert set(row[34:]) == {BACKGROUND}
    assert cluster.image.shape == (30, 40, 3)
    assert cluster.class_map.dtype == np.uint8


def test_of_stas_no_label_is_known_to_be_absent_and_tumor_is_never_guessed(tmp_path):
    write_pair(tmp_path, "a", picture(), columns())
    write_pair(tmp_path, "b", picture(), columns(*range(16)))

    nothing, cluster = read_stas(tmp_path, WSSS4LUAD)

    assert nothing.labels == (None, None, None)
    assert cluster.labels == (True, None, None)
    assert nothing.guesses == cluster.guesses == (STROMA, NORMAL)


# EBHI-SEG


def test_of_ebhi_seg_glands_are_tumor_and_the_rest_is_stroma_or_glass(tmp_path):
    write_pair(tmp_path / "adenocarcinoma", "a", picture(bright=range(32, 40)), columns(*range(16)))
    write_pair(tmp_path / "high_grade", "h", picture(), columns(*range(40)))
    write_pair(tmp_path / "normal", "n", picture(), columns(*range(40)))  # glands that are no carcinoma

    carcinoma, high_grade = read_ebhi_seg(tmp_path, WSSS4LUAD)

    row = carcinoma.class_map[15]
    assert (set(row[:16]), set(row[18:30]), set(row[34:])) == ({TUMOR}, {STROMA}, {BACKGROUND})
    assert (carcinoma.labels, carcinoma.guesses) == ((True, True, False), ())
    assert (high_grade.name, high_grade.labels) == ("h.jpg", (True, False, False))


# LC25000


def write_tiles(root, benign=4, carcinoma=4, side_px=60, color=PINK):
    for folder, count in (("lung_n", benign), ("lung_aca", carcinoma)):
        (root / folder).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            tile = picture(color, range(side_px // 2, side_px), (side_px, side_px))
            tile[:, : side_px // 4, 0] -= 10 * index  # no two are alike
            write(root / folder / f"{folder}{index}.jpeg", tile)


@pytest.mark.parametrize("side_px", [60, 224])
def test_four_tiles_of_lc25000_make_a_sample_of_the_pairs_scale(tmp_path, side_px):
    write_tiles(tmp_path, benign=9, carcinoma=4, side_px=side_px)

    samples = read_lc25000(tmp_path, WSSS4LUAD)

    assert [sample.name for sample in samples] == ["lung_n0.jpeg", "lung_n4.jpeg", "lung_aca0.jpeg"]
    assert {sample.image.shape for sample in samples} == {(2 * LC25000_SIDE_PX, 2 * LC25000_SIDE_PX, 3)}
    first = samples[0].image.astype(int)
    reds = [first[y, x, 0] for y in (60, 180) for x in (10, 130)]
    assert reds == sorted(reds, reverse=True)
    assert len(set(reds)) == 4


def test_benign_tiles_are_normal_or_glass(tmp_path):
    write_tiles(tmp_path)

    benign = read_lc25000(tmp_path, WSSS4LUAD)[0]

    row = benign.class_map[60]
    assert (set(row[:55]), set(row[65:115])) == ({NORMAL}, {BACKGROUND})
    assert (benign.labels, benign.guesses) == ((False, False, True), ())


def test_the_air_of_a_benign_tile_may_be_cream(tmp_path):
    write_tiles(tmp_path)
    for path in (tmp_path / "lung_n").iterdir():
        tile = picture((150, 60, 110), (), (60, 60))
        tile[:, 30:] = CREAM
        write(path, tile)

    benign = read_lc25000(tmp_path, WSSS4LUAD)[0]

    assert set(benign.class_map[60, 65:115]) == {BACKGROUND}
    assert set(benign.class_map[60, :55]) == {NORMAL}


def test_of_adenocarcinoma_tiles_the_glass_and_two_labels_are_known(tmp_path):
    write_tiles(tmp_path)

    carcinoma = read_lc25000(tmp_path, WSSS4LUAD)[1]

    row = carcinoma.class_map[60]
    assert (set(row[:55]), set(row[65:115])) == ({IGNORE}, {BACKGROUND})
    assert carcinoma.labels == (True, None, False)
    assert carcinoma.guesses == (TUMOR, STROMA)


# what is wrong with a folder


@pytest.mark.parametrize(
    ("read", "folder"),
    [(read_stas, "img"), (read_ebhi_seg, "adenocarcinoma/img"), (read_lc25000, "lung_n")],
)
@pytest.mark.parametrize("made", [False, True])
def test_a_folder_that_is_missing_or_empty_is_refused_by_name(tmp_path, read, folder, made):
    if made:
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "notes.txt").write_text("no image")

    wrong = "no JPEG or PNG images here" if made else "no such folder"
    assert refusal(read, tmp_path) == f"{tmp_path / folder}: {wrong}"


def test_a_missing_mask_is_refused_by_name(tmp_path):
    write_pair(tmp_path, "a", picture(), columns())
    mask = tmp_path / "mask" / "a.png"
    mask.unlink()

    assert refusal(read_stas, tmp_path) == f"{mask}: missing; a.jpg needs a mask of the same name"


def test_a_mask_of_another_size_is_refused_by_name(tmp_path):
    write_pair(tmp_path, "a", picture(), columns(size=(30, 40)))

    message = refusal(read_stas, tmp_path)

    assert message == f"{tmp_path / 'mask' / 'a.png'}: the mask is 30x40 px and its image 40x30 px"


def test_a_damaged_image_is_refused_by_name(tmp_path):
    write_pair(tmp_path, "a", picture(), columns())
    path = tmp_path / "img" / "a.jpg"
    path.write_bytes(path.read_bytes()[:80])

    assert refusal(read_stas, tmp_path).startswith(f"{path}: not a readable image: ")


def test_too_few_tiles_for_one_sample_are_refused(tmp_path):
    write_tiles(tmp_path, carcinoma=3)

    assert refusal(read_lc25000, tmp_path) == f"{tmp_path / 'lung_aca'}: 3 tiles, at least 4 are needed"


def test_capital_endings_are_endings(tmp_path):
    write_pair(tmp_path, "a", picture(), columns())
    (tmp_path / "img" / "a.jpg").rename(tmp_path / "img" / "a.JPG")

    assert [sample.name for sample in read_stas(tmp_path, WSSS4LUAD)] == ["a.JPG"]
