import json
from importlib.resources import files

import pytest

from model_export.config import DEFAULT_RECIPE, Recipe, Teacher, load_recipe, sources_of, teachers_of
from model_export.errors import InvalidRecipe
from tests.model_export_support import TINY, write_recipe


def test_the_shipped_recipe_loads_by_name():
    shipped = load_recipe(DEFAULT_RECIPE)

    assert shipped.crop_px == 224
    assert shipped.total_steps == shipped.epochs * shipped.steps_per_epoch


def test_what_a_recipe_leaves_out_is_as_in_the_shipped_one_but_for_its_slides():
    assert Recipe(slides="wsss4luad") == load_recipe(DEFAULT_RECIPE)


@pytest.mark.parametrize("name", sorted(path.stem for path in (files("model_export") / "recipes").glob("*.toml")))
def test_every_shipped_recipe_loads_and_so_do_its_teachers(name):
    assert sources_of(load_recipe(name)) >= set(load_recipe(name).shares)


def test_the_weak_recipes_know_nothing_but_labels():
    weak = load_recipe("luad-weak")
    first = load_recipe(weak.teacher.recipe)

    assert first.teacher is None
    assert weak.label_patch_px == first.label_patch_px
    assert first.bag_weight > 0
    assert sources_of(weak) <= {"wsss4luad", "lc25000"}  # the others come with class maps


def chain(folder, **teachers):
    """Write recipes that each have a teacher: `a="b"` makes a.toml with the teacher b.toml."""
    for name, teacher in teachers.items():
        text = f'[teacher]\nrecipe = "{folder / teacher}.toml"\n' if teacher else "[shares]\nstas = 1.0\n"
        (folder / f"{name}.toml").write_text(text, encoding="utf-8")
    return load_recipe(str(folder / "a.toml"))


def test_a_recipe_draws_from_what_its_teachers_draw_from(tmp_path):
    assert sources_of(chain(tmp_path, a="b", b="c", c=None)) == {"wsss4luad", "stas"}


def test_the_recipes_of_all_teachers_are_read_the_nearest_first(tmp_path):
    recipe = chain(tmp_path, a="b", b="c", c=None)

    found = teachers_of(recipe)

    assert list(found) == [str(tmp_path / "b.toml"), str(tmp_path / "c.toml")]
    assert list(found.values())[1].shares == {"stas": 1.0}
    assert teachers_of(found[str(tmp_path / "c.toml")]) == {}


@pytest.mark.parametrize("teachers", [{"a": "a"}, {"a": "b", "b": "c", "c": "b"}])
def test_a_recipe_that_is_its_own_teacher_is_refused(tmp_path, teachers):
    recipe = chain(tmp_path, **teachers)

    with pytest.raises(InvalidRecipe, match="is its own teacher") as caught:
        sources_of(recipe)
    assert len(str(caught.value).splitlines()) == 1


def test_a_teacher_whose_recipe_is_nowhere_is_refused_by_name(tmp_path):
    with pytest.raises(InvalidRecipe, match=r"b\.toml: neither a recipe of the project .* nor a file"):
        sources_of(chain(tmp_path, a="b"))


def test_a_recipe_loads_from_a_file_and_fills_in_what_it_leaves_out(tmp_path):
    loaded = load_recipe(str(write_recipe(tmp_path / "mine.toml", scale=(0.5, 2.0))))

    assert loaded == Recipe(**TINY, scale=(0.5, 2.0))
    assert loaded.rarity == Recipe().rarity


def test_a_whole_number_and_a_list_do_where_a_recipe_has_a_float_and_a_tuple(tmp_path):
    path = tmp_path / "whole.toml"
    text = 'dropout = 0\nscale = [1, 2]\nshares = { stas = 1 }\n[teacher]\nrecipe = "a"\nseeds = [1]\nscales = [1, 2]\n'
    path.write_text(text, encoding="utf-8")

    loaded = load_recipe(str(path))

    assert (loaded.dropout, loaded.scale, loaded.shares) == (0.0, (1.0, 2.0), {"stas": 1.0})
    assert loaded.teacher == Teacher(recipe="a", seeds=(1,), scales=(1.0, 2.0))


def test_what_a_run_keeps_of_its_recipe_reads_back_as_it():
    weak = load_recipe("luad-weak")

    assert Recipe.model_validate(json.loads(json.dumps(weak.model_dump(mode="json")))) == weak


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("colour = 3", "colour: no such field; model_export/config.py lists them"),
        ("crop_pix = 64", "crop_pix: no such field; nearest: crop_px"),
        ('[teacher]\nrecipe = "a"\nsedes = [1]', "teacher.sedes: no such field; nearest: seeds"),
        ('epochs = "3"', "epochs: Input should be a valid integer"),
        ('detail = "yes"', "detail: Input should be a valid boolean"),
        ("detail = 1", "detail: Input should be a valid boolean"),
        ("dropout = true", "dropout: Input should be a valid number"),
        ('scale = ["0.5", 1.0]', "scale.0: Input should be a valid number"),
        ('shares = { stas = "1" }', "shares.stas: Input should be a valid number"),
        ('[teacher]\nrecipe = "a"\nseeds = ["1"]', "teacher.seeds.0: Input should be a valid integer"),
        ("epochs = 0", "epochs: Input should be greater than or equal to 1"),
        ("epochs = 1.5", "epochs: Input should be a valid integer"),
        ('learning_rate = "fast"', "learning_rate: Input should be a valid number"),
        ("learning_rate = nan", "learning_rate: Input should be a finite number"),
        ("learning_rate = inf", "learning_rate: Input should be a finite number"),
        ("dropout = 1.5", "dropout: Input should be less than 1"),
        ("average_decay = 1.0", "average_decay: Input should be less than 1"),
        ("weight_decay = inf", "weight_decay: Input should be a finite number"),
        ("bag_weight = inf", "bag_weight: Input should be a finite number"),
        ("stain_sigma = inf", "stain_sigma: Input should be less than or equal to 1"),
        ("scale = [0.5, 1e300]", "scale.1: Input should be less than or equal to 10"),
        ("crop_px = 100", "crop_px: Input should be a multiple of 32"),
        ("batch_size = 1", "batch_size: Input should be greater than or equal to 2"),
        ("scale = [0.0, 1.0]", "scale.0: Input should be greater than or equal to 0.1"),
        ("scale = [1.0]", "scale.1: Field required"),
        ("scale = [2.0, 1.0]", "scale must go from the smaller to the larger zoom"),
        ("seed = -1", "seed: Input should be greater than or equal to 0"),
        ("seed = 4294967296", "seed: Input should be less than or equal to 4294967295"),
        ("label_patch_px = 8", "label_patch_px: Input should be greater than or equal to 32"),
        ("bag_weight = -1", "bag_weight: Input should be greater than or equal to 0"),
        ("slides = 3", "slides: Input should be a valid string"),
        ("shares = {}", "shares: Dictionary should have at least 1 item"),
        ("shares = { kaggle = 1 }", "shares.kaggle.[key]: Input should be"),
        ("shares = { stas = 0 }", "shares.stas: Input should be greater than 0"),
        ("frozen_blocks = 17", "frozen_blocks must be at most 16, the blocks of efficientnet-lite0"),
        ('encoder = "efficientnet-lite2"\nfrozen_blocks = 22', "frozen_blocks must be at most 21, the blocks of"),
        ('encoder = "resnet34"', "encoder: Input should be 'efficientnet-lite0' or 'efficientnet-lite2'"),
        ("cutmix = 1.5", "cutmix: Input should be less than or equal to 1"),
        ("[teacher]", "teacher.recipe: Field required"),
        ('[teacher]\nrecipe = "a"\nseeds = []', "teacher.seeds: Tuple should have at least 1 item"),
        ('[teacher]\nrecipe = "a"\nscales = [0.2]', "teacher.scales.0: Input should be greater than or equal to 0.25"),
        ('[teacher]\nrecipe = "a"\nscales = [5]', "teacher.scales.0: Input should be less than or equal to 4"),
        ('[teacher]\nrecipe = "a"\nscales = [nan]', "teacher.scales.0: Input should be"),
        ('[teacher]\nrecipe = "a"\nseeds = [-1]', "teacher.seeds.0: Input should be greater than or equal to 0"),
        ('[teacher]\nrecipe = "a"\nseeds = [4294967296]', "teacher.seeds.0: Input should be less than or equal to"),
        ('[teacher]\nrecipe = "a"\nseeds = [1, 1]', "seeds must differ"),
        ('[teacher]\nrecipe = "a"\nconfidence = 2', "teacher.confidence: Input should be less than or equal to 1"),
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
        shipped = "luad-labels, luad-lite0, luad-lite0-0.1, luad-lite2, luad-weak"
        assert str(caught.value) == f"{name}: neither a recipe of the project ({shipped}) nor a file"


def test_a_folder_or_bytes_are_no_recipe(tmp_path):
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path, binary):
        with pytest.raises(InvalidRecipe) as caught:
            load_recipe(str(path))
        assert str(caught.value).startswith(f"{path}: not readable as TOML: ")
        assert len(str(caught.value).splitlines()) == 1
