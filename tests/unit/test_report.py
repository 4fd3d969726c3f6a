import csv
import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from app.pathology.classes import WSSS4LUAD
from model_export.errors import InvalidData
from model_export.pictures import errors, write_grid
from model_export.report.charts import DARK, LIGHT, curves, reliability, svg, write_curves
from model_export.report.page import write_report
from model_export.report.record import read_record
from model_export.training.dataset import IGNORE
from tests.model_export_support import masked_sample

CALIBRATION = {
    "ece": 0.05,
    "bins": [
        {"low": 0.0, "high": 0.5, "count": 0, "confidence": None, "accuracy": None},
        {"low": 0.5, "high": 1.0, "count": 40, "confidence": 0.8, "accuracy": 0.75},
    ],
}
SCORES = {
    "classes": ["tumor", "stroma"],
    "confusion": [[30, 10], [0, 60]],
    "calibration": CALIBRATION,
    "images": [
        {"name": "good.png", "confusion": [[19, 1], [0, 0]], "pixel_accuracy": 0.95},
        {"name": "bad<b>.png", "pixel_accuracy": 0.25},
    ],
    "labels": {"classes": ["tumor"], "thresholds": [0.45], "f1": [None], "truth": [[True], [False]]},
}


def write_csv(path, rows):
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        writer.writerows(rows)


def write_run(run, fold="1/2", scores=None):
    run.mkdir(parents=True)
    recipe = {"seed": 7, "shares": {"wsss4luad": 1.0}, "scale": [0.7, 1.5]}
    (run / "recipe.json").write_text(json.dumps({"recipe": recipe, "fold": fold}))
    (run / "environment.json").write_text(json.dumps({"seconds": 61.0, "versions": {"torch": "2.13.0"}}))
    rows = []
    for epoch in (1, 2):
        rows.append({"epoch": epoch, "phase": "train", "loss": 2 / epoch, "cross_entropy": 1 / epoch})
        rows.append({"epoch": epoch, "phase": "validate", "loss": 3 / epoch, "pixel_accuracy": 0.5, "tissue_miou": 0.4})
        rows[-1]["cross_entropy"] = rows[-1]["loss"]
    write_csv(run / "metrics.csv", rows)
    write_csv(run / "steps.csv", [{"step": step, "epoch": 1, "learning_rate": 0.1 * step} for step in range(4)])
    if scores:
        (run / "scores.json").write_text(json.dumps(scores))
    return run


def write_validation(run):
    for index in (1, 2):
        write_run(run / f"fold-{index}", f"{index}/2", scores={"scores": {"pixel_accuracy": 0.9}})
    Image.new("RGB", (40, 20), "red").save(run / "fold-2" / "grid.png")
    pooled = {
        "pooled": {"pixel_accuracy": 0.9125, "ece": 0.05},
        "mean": {"pixel_accuracy": 0.9012, "ece": 0.06},
        "sd": {"pixel_accuracy": 0.0123, "ece": None},
        "count": {"pixel_accuracy": 2, "ece": 1},
        "folds": [{"pixel_accuracy": 0.8889, "ece": 0.07}, {"pixel_accuracy": 0.9135, "ece": 0.05}],
    }
    (run / "scores.json").write_text(json.dumps({**pooled, **SCORES}))
    return run


def page_of(run, tmp_path):
    path = tmp_path / "page.html"
    write_report(read_record(run), path)
    return path.read_text(encoding="utf-8")


def text_of(page):
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))


def test_the_page_of_a_training_tells_scores_recipe_and_circumstances(tmp_path):
    run = write_run(tmp_path / "run", scores={"scores": {"pixel_accuracy": 0.8765}, **SCORES})

    page = page_of(run, tmp_path)

    text = text_of(page)
    for told in ("held out: fold 1/2", "0.8765", "0:01:01", "shares.wsss4luad 1.0", "scale 0.7, 1.5", "2.13.0"):
        assert told in text
    assert "75.0 % 30" in text
    assert text.index("bad&lt;b&gt;.png") < text.index("good.png")
    assert "tumor 1 of 2 0.45 \N{EN DASH}" in text
    assert "bad<b>" not in page


def test_the_page_of_a_cross_validation_tells_each_fold_and_the_spread(tmp_path):
    text = text_of(page_of(write_validation(tmp_path / "cv"), tmp_path))

    assert "pixel_accuracy 0.9125 0.9012 0.0123 2 0.8889 0.9135" in text
    assert "ece 0.0500 0.0600 \N{EN DASH} 1 0.0700 0.0500" in text
    assert "0.9012 ± 0.0123" in text
    assert "0:02:02" in text


def test_the_time_is_that_of_all_teachers_too(tmp_path):
    run = write_validation(tmp_path / "cv")
    teacher = write_run(run / "fold-2" / "teacher" / "seed-0", "2/2")
    write_run(run / "fold-2" / "teacher" / "seed-1", "2/2")
    write_run(teacher / "teacher" / "seed-0", "2/2")

    assert "Trained for 0:05:05 (h:mm:ss) in all." in text_of(page_of(run, tmp_path))
    assert "Trained for 0:04:04 (h:mm:ss) in all." in text_of(page_of(run / "fold-2", tmp_path))


def test_the_page_of_a_finished_cross_validation_says_what_its_scores_are_worth(tmp_path):
    text = text_of(page_of(write_validation(tmp_path / "cv"), tmp_path))

    assert "Cross-validation over 2 folds: each image is scored by a network that never saw it." in text


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda run: shutil.rmtree(run / "fold-2"), "1 trained and scored."),
        (lambda run: shutil.rmtree(run / "fold-1"), "1 trained and scored."),
        (lambda run: (run / "fold-2" / "scores.json").unlink(), "1 trained and scored."),
        (lambda run: (run / "scores.json").unlink(), "their scores are not summed up yet."),
        (lambda run: (run / "scores.json").write_text("{}"), "their scores are not summed up yet."),
    ],
)
def test_the_page_of_a_cross_validation_says_how_far_it_is(tmp_path, spoil, said):
    run = write_validation(tmp_path / "cv")
    spoil(run)

    text = text_of(page_of(run, tmp_path))

    assert f"Cross-validation over 2 folds, unfinished: {said}" in text
    assert "each image is scored by" not in text


def test_a_fold_that_is_none_of_those_asked_for_does_not_count(tmp_path):
    run = write_validation(tmp_path / "cv")
    shutil.rmtree(run / "fold-2")
    write_run(run / "fold-5", "5/5", scores={"scores": {"pixel_accuracy": 0.9}})

    assert "over 2 folds, unfinished: 1 trained" in text_of(page_of(run, tmp_path))


def test_a_training_on_all_pairs_held_nothing_out(tmp_path):
    text = text_of(page_of(write_run(tmp_path / "run", fold="all"), tmp_path))

    assert "One training; nothing is held out." in text
    assert "fold all" not in text


def test_the_page_needs_no_other_file_and_runs_nothing(tmp_path):
    page = page_of(write_validation(tmp_path / "cv"), tmp_path)

    assert "<script" not in page
    addresses = re.findall(r"(?:src|srcset|href)=\"([^\"]{0,16})", page)
    assert len(addresses) == 2 * 2 + 1
    assert all(address.startswith("data:image/") for address in addresses)
    assert "prefers-color-scheme: dark" in page


def test_a_run_without_scores_has_a_page_too(tmp_path):
    run = write_run(tmp_path / "run", fold="all")
    (run / "steps.csv").unlink()
    (run / "environment.json").unlink()

    text = text_of(page_of(run, tmp_path))
    assert "One training; nothing is held out. It has no scores: those are of images that were held out." in text
    assert "scores.json" not in text


def test_a_run_that_is_not_scored_yet_says_no_more_than_that(tmp_path):
    for run in (write_run(tmp_path / "run"), write_validation(tmp_path / "cv")):
        (run / "scores.json").unlink(missing_ok=True)

        assert "There is no scores.json in this folder yet." in text_of(page_of(run, tmp_path))


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(InvalidData, match=r"no run here: neither recipe\.json nor fold-1/recipe\.json"):
        read_record(tmp_path)


def test_a_damaged_file_is_named(tmp_path):
    run = write_run(tmp_path / "run")
    (run / "scores.json").write_text('{"scores": ')

    with pytest.raises(InvalidData, match=r"scores\.json: not JSON"):
        read_record(run)


BIN = {"low": 0.0, "high": 1.0, "count": 3, "confidence": 0.5, "accuracy": 0.5}
LABELS = {"classes": ["tumor"], "thresholds": [0.5], "f1": [1.0], "truth": [[True]]}


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("scores.json", "[" * 100_000, "not JSON: maximum recursion depth exceeded"),
        ("scores.json", "[]", "holds a list, an object is needed"),
        ("scores.json", {"scores": {"ece": "0.5"}}, "scores.ece: Input should be a valid number"),
        ("scores.json", {"pooled": {"ece": 0.5}}, "Value error, pooled needs mean, sd and folds beside it"),
        (
            "scores.json",
            {"pooled": {}, "mean": {}, "sd": {}, "folds": [[]]},
            "folds.0: Input should be a valid dictionary",
        ),
        (
            "scores.json",
            {"classes": ["tumor"], "confusion": []},
            "Value error, confusion holds one row for each of the classes",
        ),
        ("scores.json", {"classes": ["tumor"], "confusion": [[0.5]]}, "confusion.0.0: Input should be a valid integer"),
        ("scores.json", {"calibration": {"bins": [BIN]}}, "calibration.ece: Field required"),
        (
            "scores.json",
            {"calibration": {"ece": 0.1, "bins": [{**BIN, "accuracy": None}]}},
            "calibration.bins.0: Value error, a bin that holds pixels has a confidence and an accuracy",
        ),
        ("scores.json", {"labels": None}, "labels: Input should be a valid dictionary"),
        (
            "scores.json",
            {"labels": {**LABELS, "truth": [[]]}},
            "labels: Value error, thresholds, f1 and each row of truth hold one value for each of the classes",
        ),
        ("scores.json", {"images": [{"pixel_accuracy": 0.5}]}, "images.0.name: Field required"),
        (
            "scores.json",
            {"images": [{"name": "a.png", "iou_tumor": "much"}]},
            "images.0.iou_tumor: Input should be a valid number",
        ),
        ("recipe.json", {"recipe": []}, "recipe: Input should be a valid dictionary"),
        ("recipe.json", {"fold": 1}, "fold: Input should be a valid string"),
        ("recipe.json", {"fold": "5/4"}, "fold: Value error, fold '5/4' is neither 'all' nor K/N with K from 1 to N"),
        ("environment.json", {"seconds": "1"}, "seconds: Input should be a valid number"),
        ("environment.json", '{"seconds": NaN}', "seconds: Input should be less than or equal to 1000000000"),
    ],
)
def test_a_file_that_holds_something_else_is_named_with_what_is_wrong(tmp_path, name, content, what):
    run = write_run(tmp_path / "run", scores={"scores": {"pixel_accuracy": 0.5}, **SCORES})
    (run / name).write_text(content if isinstance(content, str) else json.dumps(content))

    with pytest.raises(InvalidData) as caught:
        read_record(run)

    assert str(caught.value).startswith(f"{run / name}: {what}")
    assert len(str(caught.value).splitlines()) == 1


def test_a_damaged_picture_is_named(tmp_path):
    run = write_run(tmp_path / "run")
    (run / "grid.png").write_bytes(b"no picture")

    with pytest.raises(InvalidData, match=r"grid\.png: not a readable picture: "):
        page_of(run, tmp_path)


def test_scores_of_one_network_in_the_folder_of_a_cross_validation_have_a_page_too(tmp_path):
    run = write_validation(tmp_path / "cv")
    (run / "scores.json").write_text(json.dumps({"scores": {"pixel_accuracy": 0.8765}}))

    assert "score value pixel_accuracy 0.8765" in text_of(page_of(run, tmp_path))


@pytest.mark.parametrize(
    ("name", "text", "what"),
    [
        ("metrics.csv", "epoch,loss\n1,0.5\n", "has no column epoch, phase"),
        ("metrics.csv", "epoch,phase,loss\n1,train,much\n", "loss is 'much' in a row, a number is needed"),
        ("metrics.csv", "epoch,phase,loss\n1.5,train,0.5\n", "epoch is '1.5' in a row, a whole number is needed"),
        ("steps.csv", "step,loss\n0,0.5,7\n", "a number is needed"),
        ("steps.csv", "step,loss\n,0.5\n", "step is '' in a row, a whole number is needed"),
        ("steps.csv", f"step,loss\n{'9' * 400},0.5\n", "a whole number is needed"),
        ("steps.csv", f"step,loss\n0,{'9' * 200_000}\n", "not a table: field larger than field limit"),
    ],
)
def test_a_damaged_table_is_named(tmp_path, name, text, what):
    run = write_run(tmp_path / "run")
    (run / name).write_text(text)

    with pytest.raises(InvalidData, match=rf"{name}: .*{what}|{name}: {what}"):
        read_record(run)


@pytest.mark.parametrize("text", ["", "step,learn"])
def test_a_run_that_has_just_begun_has_no_step_yet(tmp_path, text):
    run = write_run(tmp_path / "run")
    (run / "steps.csv").write_text(text)

    assert read_record(run).steps == []


def test_a_step_that_was_cut_off_is_no_step(tmp_path):
    run = write_run(tmp_path / "run")
    (run / "steps.csv").write_text("step,learning_rate\n0,0.5\n1,9.549150281252633e-")

    assert read_record(run).step_series("learning_rate") == ([0], [0.5])


def test_folds_come_in_their_order(tmp_path):
    for index in (10, 2, 1):
        write_run(tmp_path / f"fold-{index}")
    write_run(tmp_path / "fold-old")

    assert [fold.folder.name for fold in read_record(tmp_path).folds] == ["fold-1", "fold-2", "fold-10"]


def test_curves_show_each_series_of_each_run(tmp_path):
    record = read_record(write_validation(tmp_path / "cv"))

    loss, scores, rate = curves(record.folds, LIGHT).axes

    assert [line.get_ydata().tolist() for line in loss.lines[:3]] == [[1.0, 0.5], [3.0, 1.5], [2.0, 1.0]]
    assert (len(loss.lines), len(scores.lines), len(rate.lines)) == (6, 4, 2)
    assert legend_of(loss) == ["cross-entropy, train", "cross-entropy, validate", "total loss, train"]
    assert legend_of(scores) == ["pixel accuracy", "tissue mean IoU"]


def legend_of(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def without_cross_entropy(run):
    """Make a run one of a program that did not log it by epoch."""
    with (run / "metrics.csv").open(encoding="utf-8", newline="") as file:
        rows = [{name: value for name, value in row.items() if name != "cross_entropy"} for row in csv.DictReader(file)]
    write_csv(run / "metrics.csv", rows)


def test_a_run_that_did_not_log_its_cross_entropy_shows_what_it_has_by_name(tmp_path):
    run = write_run(tmp_path / "run")
    without_cross_entropy(run)

    loss, _, _ = curves([read_record(run)], LIGHT).axes

    assert [line.get_ydata().tolist() for line in loss.lines] == [[3.0, 1.5], [2.0, 1.0]]
    assert legend_of(loss) == ["cross-entropy, validate", "total loss, train"]
    assert "One training" in page_of(run, tmp_path)


def test_a_line_that_only_a_later_fold_has_is_named_too(tmp_path):
    run = write_validation(tmp_path / "cv")
    without_cross_entropy(run / "fold-1")

    loss, _, _ = curves(read_record(run).folds, LIGHT).axes

    assert sorted(legend_of(loss)) == ["cross-entropy, train", "cross-entropy, validate", "total loss, train"]


def test_empty_bins_are_left_out_of_the_reliability_diagram():
    accuracy, counts = reliability(CALIBRATION, LIGHT).axes

    assert [bar.get_height() for bar in accuracy.patches] == [0.75]
    assert [bar.get_height() for bar in counts.patches] == [1.0]
    assert accuracy.lines[1].get_xydata().tolist() == [[0.8, 0.75]]


def test_bins_with_hardly_a_pixel_are_counted_and_say_nothing_of_the_accuracy():
    wide = {"count": 999, "confidence": 0.8, "accuracy": 0.75}
    bins = [{**BIN, "high": 0.5, "count": 1}, {**BIN, **wide, "low": 0.5}]

    few, counts = reliability({"bins": bins}, LIGHT).axes
    assert len(few.patches) == 2  # one of a thousand does
    assert len(counts.patches) == 2

    few, counts = reliability({"bins": [bins[0], {**bins[1], "count": 1000}]}, LIGHT).axes
    assert [bar.get_height() for bar in few.patches] == [0.75]
    assert few.lines[1].get_xydata().tolist() == [[0.8, 0.75]]
    assert len(counts.patches) == 2


def test_epochs_are_whole_numbers_even_if_there_is_but_one(tmp_path):
    run = write_run(tmp_path / "run")
    rows = [{"epoch": 1, "phase": phase, "loss": 2, "tissue_miou": 0.5} for phase in ("train", "validate")]
    write_csv(run / "metrics.csv", rows)

    loss, scores, _ = curves([read_record(run)], LIGHT).axes

    for axes in (loss, scores):
        assert all(tick.is_integer() for tick in axes.get_xticks())
    assert [line.get_markerfacecolor() for line in scores.lines] == ["none", LIGHT.second]  # of train, and of validate


def test_no_legend_lies_on_the_data(tmp_path):
    for figure in (curves([read_record(write_run(tmp_path / "run"))], LIGHT), reliability(CALIBRATION, LIGHT)):
        figure.draw_without_rendering()
        legends = [axes for axes in figure.axes if axes.get_legend()]
        assert legends
        for axes in legends:
            assert axes.get_legend().get_window_extent().y0 >= axes.get_window_extent().y1


def test_a_chart_is_the_same_each_time_and_follows_the_theme():
    light, again, dark = (svg(lambda theme: reliability(CALIBRATION, theme), theme) for theme in (LIGHT, LIGHT, DARK))

    assert light == again
    assert LIGHT.ink in light
    assert DARK.ink in dark
    assert LIGHT.ink not in dark


def test_curves_are_drawn_in_each_folder(tmp_path):
    run = write_validation(tmp_path / "cv")

    write_curves(read_record(run))

    for folder in (run, run / "fold-1", run / "fold-2"):
        with Image.open(folder / "curves.png") as picture:
            assert picture.format == "PNG"
            assert picture.width > 2 * picture.height


def test_errors_are_bright_and_what_is_right_is_dim():
    truth = np.array([[0, 1], [2, IGNORE]], np.uint8)
    sample = masked_sample(truth)

    picture = errors(sample, np.array([[0, 2], [2, 3]], np.uint8))

    assert picture[0, 1].tolist() == [230, 30, 140]
    assert picture[1, 1].tolist() == [128, 128, 128]
    assert (picture[0, 0] > sample.image[0, 0]).all()
    assert (picture[0, 0] >= 190).all()


def test_a_grid_has_four_columns_and_a_row_for_each_sample(tmp_path):
    samples = [masked_sample(np.zeros((30, 20), np.uint8)), masked_sample(np.ones((20, 30), np.uint8))]

    write_grid(tmp_path / "grid.png", samples, [sample.class_map for sample in samples], WSSS4LUAD)

    with Image.open(tmp_path / "grid.png") as grid:
        pixels = np.asarray(grid)
    middle = [pixels[24 + 120 + row * 270, 6 + 120 + column * 246].tolist() for row in (0, 1) for column in range(4)]
    tumor, stroma = [0, 64, 128], [64, 128, 0]
    dim = [[191, 207, 223], [207, 223, 191]]
    assert middle == [tumor, tumor, tumor, dim[0], stroma, stroma, stroma, dim[1]]
