import json

import numpy as np
import pytest

from app.pathology.classes import WSSS4LUAD
from model_export.compare import compare
from model_export.errors import InvalidData


def counts(right, wrong):
    """A confusion of tumor and stroma: so many pixels of each class right, and so many taken for the other."""
    confusion = np.zeros((4, 4), int)
    confusion[0, 0] = confusion[1, 1] = right
    confusion[0, 1] = confusion[1, 0] = wrong
    return confusion.tolist()


def written(path, images):
    path.write_text(json.dumps({"images": [{"name": name, **more} for name, more in images.items()]}))
    return path


def table(folder, slides):
    """A table of slides, as `compare` takes it."""
    path = folder / "slides.csv"
    path.write_text("\n".join(["image,slide", *(f"{image},{slide}" for image, slide in slides.items())]))
    return str(path)


@pytest.fixture
def files(tmp_path):
    """Of four images the second network is better in three, and worse in the last."""
    first = {f"{index}.png": {"confusion": counts(80, 20)} for index in range(4)}
    second = {
        f"{index}.png": {"confusion": counts(90 if index < 3 else 60, 10 if index < 3 else 40)} for index in range(4)
    }
    labelled = {"labelled.png": {}}
    return written(tmp_path / "first.json", {**first, **labelled}), written(tmp_path / "second.json", second | labelled)


def test_scores_are_those_of_all_images_together(files):
    comparison = compare(*files, WSSS4LUAD)

    found = {each.name: each for each in comparison.differences}
    assert comparison.slides == {"tumor": 4, "stroma": 4}
    assert comparison.draws == 2000
    assert list(found) == ["iou_tumor", "iou_stroma", "tissue_miou", "pixel_accuracy"]
    assert found["pixel_accuracy"].first == pytest.approx(0.8)
    assert found["pixel_accuracy"].second == pytest.approx(0.825)
    assert found["tissue_miou"].first == pytest.approx(80 / 120)
    assert found["tissue_miou"].second == pytest.approx(330 / (400 + 70))


def test_the_interval_spans_what_other_slides_would_have_said(files):
    [accuracy] = [each for each in compare(*files, WSSS4LUAD).differences if each.name == "pixel_accuracy"]

    # Of four images drawn, all four may be better, or at most three the worse one: one draw in 256 has four of it.
    assert accuracy.low == pytest.approx(-0.125, abs=0.03)
    assert accuracy.high == pytest.approx(0.1)


def test_images_of_one_slide_are_drawn_together(files, tmp_path):
    better = {f"{index}.png": "better" for index in range(3)}

    comparison = compare(*files, WSSS4LUAD, table(tmp_path, better | {"3.png": "worse"}))

    assert comparison.slides == {"tumor": 2, "stroma": 2}
    [accuracy] = [each for each in comparison.differences if each.name == "pixel_accuracy"]
    assert (accuracy.low, accuracy.high) == (pytest.approx(-0.2), pytest.approx(0.1))  # twice the one, or the other


def test_one_slide_says_nothing_of_others(files, tmp_path):
    with pytest.raises(InvalidData, match=r"first\.json: all of one slide, only: nothing can be said of others$"):
        compare(*files, WSSS4LUAD, table(tmp_path, {f"{index}.png": "only" for index in range(4)}))


def test_a_table_that_names_one_of_the_images_leaves_the_others_to_themselves(files, tmp_path):
    assert compare(*files, WSSS4LUAD, table(tmp_path, {"0.png": "0"})) == compare(*files, WSSS4LUAD)


def test_a_table_of_slides_of_other_images_is_refused(files, tmp_path):
    other = table(tmp_path, {str(index): "S" for index in range(4)})  # without the suffix

    for name in (other, "wsss4luad"):
        with pytest.raises(InvalidData) as caught:
            compare(*files, WSSS4LUAD, name)
        assert str(caught.value) == f"{name}: names none of the pairs; its column image needs names such as 0.png"


def test_draws_that_lack_a_class_do_not_count(tmp_path):
    """Else the mean over classes would be one of fewer, in these draws alone."""
    rare = np.zeros((4, 4), int)
    rare[2, 2] = 100
    images = {"0.png": {"confusion": counts(80, 20)}, "1.png": {"confusion": rare.tolist()}}
    path = written(tmp_path / "scores.json", images)

    comparison = compare(path, path, WSSS4LUAD)

    assert comparison.slides == {"tumor": 1, "stroma": 1, "normal": 1}
    assert 900 < comparison.draws < 1100  # half of all have both


def test_other_class_maps_of_the_same_images_cannot_be_compared(files, tmp_path):
    other = written(tmp_path / "other.json", {f"{index}.png": {"confusion": counts(80, 21)} for index in range(4)})

    with pytest.raises(InvalidData, match=r"other\.json are of different class maps of 0\.png$"):
        compare(files[0], other, WSSS4LUAD)


def test_a_network_does_not_differ_from_itself(files):
    for each in compare(files[0], files[0], WSSS4LUAD).differences:
        assert (each.low, each.high, each.first) == (0.0, 0.0, each.second)


def test_the_same_question_has_the_same_answer(files):
    assert compare(*files, WSSS4LUAD) == compare(*files, WSSS4LUAD)


def test_other_images_cannot_be_compared(files, tmp_path):
    other = written(tmp_path / "other.json", {"7.png": {"confusion": counts(1, 0)}})

    with pytest.raises(InvalidData, match=r"first\.json and .*other\.json are of different images: .* has 0\.png$"):
        compare(files[0], other, WSSS4LUAD)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("not JSON", "not a scores.json"),
        ("[]", "not a scores.json"),
        ('{"images": 3}', "not a scores.json"),
        ('{"images": [{"confusion": [[1]]}]}', "not a scores.json"),
        (
            '{"images": [{"name": "a.png", "pixel_accuracy": 1.0}]}',
            "has no confusion of each image; write it anew with",
        ),
        ('{"images": [{"name": "a.png", "confusion": [[1]]}]}', "of other classes"),
    ],
)
def test_a_file_of_something_else_is_refused(files, tmp_path, text, said):
    path = tmp_path / "odd.json"
    path.write_text(text)

    with pytest.raises(InvalidData, match=rf"odd\.json: {said}"):
        compare(files[0], path, WSSS4LUAD)
