"""The shipped model under a spacing of its own: the same tissue at other scales, once it is told which."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from app.cli import main
from app.pathology.geometry import Size
from app.settings import DEFAULT_BUNDLE
from model_export.synthetic import draw_patch
from tests.conftest import ROOT
from tests.dicom_sources import file_of, whole_slide
from tests.pictures import opened

SIDE = 128


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    """The shipped bundle, said to be trained at 1 um/px."""
    folder = tmp_path_factory.mktemp("bundles") / "bundle"
    shutil.copytree(DEFAULT_BUNDLE, folder)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    (folder / "manifest.json").write_text(json.dumps({**manifest, "um_per_px": 1.0}), encoding="utf-8")
    return folder


def segmented(folder: Path, *flags: object) -> tuple[dict[str, np.ndarray], dict[str, dict[str, str]], str]:
    """Return the masks, the rows of the table and the output of `tessera segment`, by the images' names."""
    out = folder / "out"
    result = CliRunner().invoke(main, ["segment", str(folder), "--out", str(out), "--device", "cpu", *map(str, flags)])
    assert result.exit_code == 0, result.output
    with (out / "labels.csv").open(newline="", encoding="utf-8") as file:
        rows = {Path(row["file"]).stem: row for row in csv.DictReader(file)}
    masks = {name: np.asarray(opened((out / f"{name}_mask.png").read_bytes())) for name in rows}
    return masks, rows, result.output


def agreement(class_map: np.ndarray, reference: np.ndarray) -> float:
    """Return the share of the pixels of `class_map` that have the class of `reference` there."""
    height, width = class_map.shape
    there = Image.fromarray(reference).resize((width, height), Image.Resampling.NEAREST)
    return float((class_map == np.asarray(there)).mean())


@pytest.mark.parametrize(("factor", "least"), [(4, 0.95), (2, 0.95), (0.5, 0.92)])
def test_a_patch_at_another_scale_has_nearly_its_own_class_map(tmp_path, bundle, factor, least):
    with Image.open(ROOT / "examples" / "patches" / "drawn-tumor-stroma.png") as image:
        own_image = image.convert("RGB").crop((0, 0, SIDE, SIDE))
    side = round(factor * SIDE)
    pictures = {"own": own_image, "other": own_image.resize((side, side), Image.Resampling.LANCZOS)}
    for folder, picture in pictures.items():
        (tmp_path / folder).mkdir()
        picture.save(tmp_path / folder / "patch.png")
    own = segmented(tmp_path / "own", "--bundle", bundle)[0]["patch"]
    masks, rows, output = segmented(tmp_path / "other", "--bundle", bundle, "--mpp", 1 / factor)
    told = agreement(masks["patch"], own)
    assert told > least
    if factor == 4:
        assert told > agreement(segmented(tmp_path / "other", "--bundle", bundle)[0]["patch"], own)
    assert (float(rows["patch"]["um_per_px"]), float(rows["patch"]["scale_factor"])) == (1 / factor, 1 / factor)
    assert "--mpp" not in output


def test_a_dicom_files_own_spacing_is_taken_unless_one_is_stated(tmp_path, bundle):
    image, _ = draw_patch(3, Size(SIDE, SIDE))
    (tmp_path / "slide.dcm").write_bytes(file_of(whole_slide(image)))
    _, rows, _ = segmented(tmp_path, "--bundle", bundle)
    assert (rows["slide"]["um_per_px"], rows["slide"]["scale_factor"]) == ("0.5", "0.5")
    _, rows, _ = segmented(tmp_path, "--bundle", bundle, "--mpp", 1)
    assert (rows["slide"]["um_per_px"], rows["slide"]["scale_factor"]) == ("1", "1")


def test_a_model_without_a_spacing_changes_nothing_and_that_is_said(tmp_path, bundle):
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    unknown = tmp_path / "bundle"
    shutil.copytree(bundle, unknown, ignore=shutil.ignore_patterns("fp16", "int8"))  # whose manifests know it
    (unknown / "manifest.json").write_text(json.dumps({**manifest, "um_per_px": None}), encoding="utf-8")
    images = tmp_path / "images"
    images.mkdir()
    Image.fromarray(draw_patch(3, Size(64, 64))[0]).save(images / "patch.png")
    _, rows, output = segmented(images, "--bundle", unknown, "--mpp", 0.5)
    assert (rows["patch"]["um_per_px"], rows["patch"]["scale_factor"]) == ("0.5", "1")
    assert "--mpp changes nothing: the model names no um_per_px" in output


@pytest.mark.parametrize("mpp", ["0", "40", "20x", "nan", "inf"])
def test_a_spacing_that_is_none_is_refused(tmp_path, mpp):
    refused = CliRunner().invoke(main, ["segment", str(tmp_path), "--out", str(tmp_path / "out"), "--mpp", mpp])
    assert refused.exit_code == 2
    assert "Invalid value for '--mpp'" in refused.output
