import pytest

from model_export.config import load_recipe
from model_export.errors import InvalidData
from model_export.training.slides import load_slides, require_named


def test_no_table_says_nothing():
    assert load_slides(None) == {}


@pytest.mark.parametrize("recipe", ["luad-lite0", "luad-lite0-0.1", "luad-lite2", "luad-labels", "luad-weak"])
def test_the_shipped_recipes_know_the_slides_of_the_pairs(recipe):
    slides = load_slides(load_recipe(recipe).slides)

    assert slides["12.png"] == slides["16.png"]
    assert slides["16.png"] != slides["17.png"]


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_table_is_read_from_a_file_whatever_else_it_holds(tmp_path, mark):
    path = tmp_path / "slides.csv"
    path.write_text(mark + "image,scanner,slide\na.png,x,S 1\nb.png,,S 1\nc.png,,2\nc.png,y,2\n", encoding="utf-8")

    assert load_slides(str(path)) == {"a.png": "S 1", "b.png": "S 1", "c.png": "2"}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "holds no row"),
        (b"image,slide\n", "holds no row"),
        (b"file,slide\na.png,1\n", "not a CSV file with the columns image and slide"),
        (b"image\na.png\n", "not a CSV file with the columns image and slide"),
        (b"image,slide\na.png\n", "a row lacks its image or its slide"),
        (b"image,slide\n,1\n", "a row lacks its image or its slide"),
        (b"image,slide\na.png,\n", "a row lacks its image or its slide"),
        (b"image,slide\na.png,1\nb.png,1\na.png,2\n", "a.png is of two slides, 1 and 2"),
        (b"image,slide\n" + b"a" * 200_000 + b",1\n", "not a CSV file with the columns image and slide: field larger"),
        (b"\x89PNG\r\n", "not a CSV file with the columns image and slide"),
    ],
)
def test_a_file_that_is_no_table_is_refused_by_name_in_one_line(tmp_path, content, reason):
    path = tmp_path / "slides.csv"
    path.write_bytes(content)

    with pytest.raises(InvalidData) as caught:
        load_slides(str(path))

    assert str(caught.value).startswith(f"{path}: {reason}")
    assert len(str(caught.value).splitlines()) == 1


def test_a_table_that_is_nowhere_is_refused_by_name():
    with pytest.raises(InvalidData, match=r"^camelyon: neither a table of slides of the project nor a file$"):
        load_slides("camelyon")


def test_a_table_has_to_name_one_of_the_images():
    require_named("slides.csv", {"b.png": "S"}, ["a.png", "b.png"])

    with pytest.raises(InvalidData, match=r"^slides\.csv: names none of the pairs; .* needs names such as a\.png$"):
        require_named("slides.csv", {"c.png": "S"}, (name for name in ("a.png", "b.png")))
