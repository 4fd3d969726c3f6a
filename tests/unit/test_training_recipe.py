import pytest

from model_export.config import DEFAULT_RECIPE, Recipe, load_recipe
from model_export.errors import InvalidRecipe
from tests.model_export_support import TINY, write_recipe


def test_the_shipped_recipe_loads_by_name():
    shipped = load_recipe(DEFAULT_RECIPE)

    assert shipped.crop_px == 224
    assert shipped.total_steps == shipped.epochs * shipped.steps_per_epoch


def test_a_recipe_loads_from_a_file_and_fills_in_what_it_leaves_out(tmp_path):
    loaded = load_recipe(str(write_recipe(tmp_path / "mine.toml", scale=(0.5, 2.0))))

    assert loaded == Recipe(**TINY, scale=(0.5, 2.0))
    assert loaded.rarity == Recipe().rarity


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("colour = 3", "colour: Extra inputs are not permitted"),
        ("epochs = 0", "epochs: Input should be greater than or equal to 1"),
        ("epochs = 1.5", "epochs: Input should be a valid integer"),
        ('learning_rate = "fast"', "learning_rate: Input should be a valid number"),
        ("learning_rate = nan", "learning_rate: Input should be a finite number"),
        ("learning_rate = inf", "learning_rate: Input should be a finite number"),
        ("dropout = 1.5", "dropout: Input should be less than or equal to 1"),
        ("crop_px = 100", "crop_px: Input should be a multiple of 32"),
        ("batch_size = 1", "batch_size: Input should be greater than or equal to 2"),
        ("scale = [0.0, 1.0]", "scale.0: Input should be greater than 0"),
        ("scale = [1.0]", "scale.1: Field required"),
        ("scale = [2.0, 1.0]", "scale must go from the smaller to the larger zoom"),
        ("seed = -1", "seed: Input should be greater than or equal to 0"),
        ("seed = 4294967296", "seed: Input should be less than or equal to 4294967295"),
        ("epochs = ", "not readable as TOML"),
        ("epochs = 1\nepochs = 2", "not readable as TOML"),
    ],
)
def test_a_wrong_recipe_is_refused_by_file_and_value(tmp_path, line, reason):
    path = tmp_path / "wrong.toml"
    path.write_text(line + "\n", encoding="utf-8")

    with pytest.raises(InvalidRecipe) as caught:
        load_recipe(str(path))

    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert reason in message
    assert len(message.splitlines()) == 1


def test_a_recipe_that_is_nowhere_is_refused_by_name(tmp_path):
    for name in ("luad-lite9", str(tmp_path / "none.toml")):
        with pytest.raises(InvalidRecipe) as caught:
            load_recipe(name)
        assert str(caught.value) == f"{name}: neither a recipe of the project nor a file"


def test_a_folder_or_bytes_are_no_recipe(tmp_path):
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path, binary):
        with pytest.raises(InvalidRecipe) as caught:
            load_recipe(str(path))
        assert str(caught.value).startswith(f"{path}: not readable as TOML: ")
        assert len(str(caught.value).splitlines()) == 1
