"""A whole-slide file's results, by a segmenter that tells tissue by colour: what is where, in which pixels."""

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from PIL import Image
from prometheus_client import CollectorRegistry

from app.pathology.geometry import Region, Size
from app.pathology.tiling import plan_windows
from app.segmentation import slide_files
from app.segmentation.folder import FileResult
from app.segmentation.slide_files import SlideFileOptions, SlideFileSegmentation, columns
from app.segmentation.workers import Workers
from app.slides.openslide import WholeSlideFile
from app.telemetry.metrics import SegmentationMetrics
from tests.fakes import POISON, ColourSegmenter, manifest
from tests.full_disk import full_at
from tests.pictures import BLUE, GREEN, ORANGE, noise, plain, quarters
from tests.whole_slides import with_a_hole, write_scn, write_svs

AT_1_UM = manifest().model_copy(update={"um_per_px": 1.0})


def segmented(path: Path, out: Path, segmenter: ColourSegmenter | None = None, **options: Any) -> FileResult:
    """Segment one slide into a folder; the model sees 1 um/px."""
    given = {"um_per_px": None, "max_pixels": 2**20, "mpp": None, "opacity": 0.4} | options
    told: list[tuple[int, int]] = []

    async def run() -> FileResult:
        model = segmenter or ColourSegmenter(AT_1_UM)
        metrics = SegmentationMetrics(CollectorRegistry())
        workers = Workers(2, metrics)
        await model.start(metrics)
        try:
            slides = SlideFileSegmentation(model, workers, metrics, SlideFileOptions(**given), out)
            return await slides.segment(path, lambda done, total: told.append((done, total)))
        finally:
            await model.close()
            await workers.close()

    out.mkdir(exist_ok=True)
    result = asyncio.run(run())
    if result.problem is None:
        assert told == [(done, told[0][1]) for done in range(1, told[0][1] + 1)]
        assert sorted(entry.name for entry in out.iterdir()) == [
            f"{path.stem}{ending}" for ending in (".geojson", "_mask.tif", "_overlay.png")
        ]
    return result


def row(result: FileResult) -> dict[str, str]:
    return dict(zip(columns(AT_1_UM), result.row, strict=True))


def outlines(path: Path) -> dict[str, shapely.Geometry]:
    """Return what each class covers."""
    features = json.loads(path.read_text())["features"]
    names = {feature["properties"]["name"] for feature in features}
    return {
        name: shapely.union_all(
            [
                shapely.geometry.shape(feature["geometry"])
                for feature in features
                if feature["properties"]["name"] == name
            ]
        )
        for name in names
    }


def test_results_lie_over_the_slide_where_the_model_sees_it_coarser(tmp_path):
    result = segmented(write_svs(tmp_path / "x.svs", quarters(1024, 768), mpp=0.25), tmp_path / "out")
    found = row(result)
    assert found["code"] == "T+S+N"
    assert [found[f"{name}_fraction"] for name in ("tumor", "stroma", "normal", "background")] == ["0.250000"] * 4
    assert found["tumor_mm2"] == f"{512 * 384 * 0.25**2 / 1e6:.4f}"
    expected = {"width_px": "1024", "height_px": "768", "left_px": "0", "top_px": "0", "um_per_px": "0.25"}
    expected |= {"level": "2", "level_um_per_px": "1", "seen_um_per_px": "1", "mask_downsample": "4"}
    assert {name: found[name] for name in expected} == expected
    with Image.open(tmp_path / "out" / "x_mask.tif") as mask:
        half = np.repeat([[0, 1], [2, 3]], 96, axis=0).repeat(128, axis=1)
        assert (np.asarray(mask) == half).all()
        assert mask.info["dpi"] == (25_400, 25_400)
    covered = outlines(tmp_path / "out" / "x.geojson")
    assert covered["tumor"].equals(shapely.box(0, 0, 512, 384))
    assert covered["stroma"].equals(shapely.box(512, 0, 1024, 384))
    assert covered["normal"].equals(shapely.box(0, 384, 512, 768))
    assert "background" not in covered
    with Image.open(tmp_path / "out" / "x_overlay.png") as overlay:
        assert overlay.size == (256, 192)
        tumor = np.array([0, 64, 128])
        assert np.abs(np.array(overlay.getpixel((5, 5))) - (0.6 * np.array(BLUE) + 0.4 * tumor)).max() <= 1
        assert overlay.getpixel((250, 180)) == (255, 255, 255)


def test_results_lie_over_a_slide_of_odd_sides(tmp_path):
    """Its coarse level is rounded down to 255x200 px, each of 4.01 of the finest."""
    path = write_svs(tmp_path / "x.svs", quarters(1023, 803), mpp=0.25, steps=(1, 4))
    found = row(segmented(path, tmp_path / "out"))
    assert [found[name] for name in ("width_px", "height_px", "level", "mask_downsample")] == [
        "1023",
        "803",
        "1",
        "4.01338",
    ]
    with Image.open(tmp_path / "out" / "x_mask.tif") as mask, Image.open(tmp_path / "out" / "x_overlay.png") as overlay:
        assert mask.size == overlay.size == (255, 200)
    covered = outlines(tmp_path / "out" / "x.geojson")
    places = {"tumor": (0, 0, 511, 401), "stroma": (511, 0, 1023, 401), "normal": (0, 401, 511, 803)}
    for name, place in places.items():
        assert np.abs(np.array(covered[name].bounds) - place).max() <= 2.5, name
        assert covered[name].area == pytest.approx(shapely.box(*place).area, rel=0.01), name


def test_a_feature_says_what_the_services_do(tmp_path):
    segmented(write_svs(tmp_path / "x.svs", quarters(512, 512)), tmp_path / "out")
    features = json.loads((tmp_path / "out" / "x.geojson").read_text())["features"]
    [tumor] = [feature for feature in features if feature["properties"]["name"] == "tumor"]
    assert tumor["properties"]["classification"] == {"name": "Tumor", "color": [0, 64, 128]}
    assert tumor["properties"]["metadata"]["um_per_px"] == "0.5"
    assert tumor["properties"]["metadata"]["scale_factor"] == "0.5"


def test_an_overlay_of_a_large_slide_is_an_overview(tmp_path):
    image = np.zeros((300, 5000, 3), np.uint8)
    image[:], image[:, 2500:] = BLUE, ORANGE
    segmented(write_svs(tmp_path / "x.svs", image, mpp=1.0, steps=(1,)), tmp_path / "out", max_pixels=2**21)
    with Image.open(tmp_path / "out" / "x_overlay.png") as overlay:
        assert overlay.size == (1667, 100)
        left, right = overlay.getpixel((820, 50)), overlay.getpixel((846, 50))
    assert left[2] > left[0]
    assert right[0] > right[2]


def test_no_pixel_is_read_that_the_model_does_not_see_but_for_a_look_from_afar_first(tmp_path, monkeypatch):
    read: list[tuple[int, Region]] = []
    real = WholeSlideFile.read

    def spied(slide: WholeSlideFile, level: int, region: Region) -> np.ndarray:
        read.append((level, region))
        return real(slide, level, region)

    monkeypatch.setattr(WholeSlideFile, "read", spied)
    segmented(write_svs(tmp_path / "x.svs", noise(400, 300), mpp=1.0, steps=(1,)), tmp_path / "out")
    windows = [(0, window.read) for window in plan_windows(Size(400, 300), 64, 8, 32)]
    assert read[0] == (0, Region(0, 0, Size(400, 300)))
    assert sorted(map(str, read[1:])) == sorted(map(str, windows))


def test_a_hole_in_a_level_that_the_model_does_not_see_costs_nothing(tmp_path):
    path = with_a_hole(write_svs(tmp_path / "x.svs", quarters(2048, 1024), mpp=0.25))
    assert row(segmented(path, tmp_path / "out"))["level"] == "2"


def test_a_slide_that_was_scanned_in_part_has_results_of_that_part(tmp_path):
    areas = [(100, 200, plain(BLUE, 600, 400)), (800, 900, plain(GREEN, 400, 300))]
    path = write_scn(tmp_path / "x.scn", Size(2000, 2000), areas)
    found = row(segmented(path, tmp_path / "out", max_pixels=2**22))
    assert [found[name] for name in ("width_px", "height_px", "left_px", "top_px")] == ["1100", "1000", "100", "200"]
    covered = outlines(tmp_path / "out" / "x.geojson")
    assert covered["tumor"].equals(shapely.box(0, 0, 600, 400))
    assert covered["stroma"].equals(shapely.box(700, 700, 1100, 1000))


def test_a_spacing_that_is_not_known_is_warned_of_and_can_be_stated(tmp_path):
    path = write_svs(tmp_path / "x.svs", quarters(256, 256), mpp=None)
    unknown = segmented(path, tmp_path / "out")
    assert any("pixel spacing is not known" in said and said.endswith("--mpp states it") for said in unknown.warnings)
    assert [row(unknown)[name] for name in ("um_per_px", "tumor_mm2", "mask_downsample")] == ["", "", "1"]
    stated = segmented(path, tmp_path / "out", mpp=0.5)
    assert [row(stated)[name] for name in ("um_per_px", "mask_downsample")] == ["0.5", "2"]
    assert not any("spacing" in said for said in stated.warnings)


@pytest.mark.parametrize(("mpp", "is_said"), [(0.25, True), (0.505, False), (None, False)])
def test_a_spacing_that_the_file_states_wins_and_that_is_said(tmp_path, mpp, is_said):
    result = segmented(write_svs(tmp_path / "x.svs", quarters(256, 256), mpp=0.499), tmp_path / "out", mpp=mpp)
    assert row(result)["um_per_px"] == "0.499"
    said = [warning for warning in result.warnings if "--mpp" in warning]
    assert said == ["the file states 0.499 um/px, which counts; --mpp 0.25 is not used"] * is_said


def test_what_is_unlike_he_is_warned_of_and_segmented(tmp_path):
    brown = row(segmented(write_svs(tmp_path / "brown.svs", plain((150, 100, 60), 512, 512)), tmp_path / "out"))
    assert brown["warnings"] == "out_of_distribution"


def test_glass_alone_is_warned_of(tmp_path):
    result = segmented(write_svs(tmp_path / "x.svs", plain((240, 240, 240), 512, 512)), tmp_path / "out")
    assert row(result)["warnings"] == "low_tissue"
    assert "no tissue was found on it" in result.warnings[0]
    assert outlines(tmp_path / "out" / "x.geojson") == {}


def test_a_slide_that_is_too_large_is_refused_before_a_window_is_read(tmp_path):
    model = ColourSegmenter(AT_1_UM)
    path = write_svs(tmp_path / "x.svs", quarters(512, 512))
    result = segmented(path, tmp_path / "out", model, max_pixels=65_535)
    assert "256x256 px" in result.problem
    assert "ask for a coarser --um-per-px or allow more --max-pixels" in result.problem
    assert model.windows == []
    assert segmented(path, tmp_path / "out", max_pixels=65_536).problem is None


def test_a_slide_of_unknown_spacing_that_is_too_large_can_be_segmented_by_stating_it(tmp_path):
    """Asking for a coarser spacing would change nothing."""
    path = write_svs(tmp_path / "x.svs", quarters(512, 512), mpp=None, steps=(1,))
    result = segmented(path, tmp_path / "out", max_pixels=65_536)
    assert result.problem == (
        "the slide is 512x512 px at an unknown pixel spacing, over the 65536 px allowed; state it with --mpp, so that"
        " the model sees the slide at its own, or allow more --max-pixels"
    )
    assert segmented(path, tmp_path / "out", max_pixels=65_536, mpp=0.5).problem is None


def test_a_slide_of_unknown_spacing_is_seen_at_its_finest_level_that_is_not_too_large(tmp_path):
    path = write_svs(tmp_path / "x.svs", quarters(512, 512), mpp=None)
    assert row(segmented(path, tmp_path / "out", max_pixels=65_536))["level"] == "1"


@pytest.mark.parametrize("mpp", [0.5, None])
def test_where_no_spacing_says_how_the_model_is_to_see_a_slide_the_message_says_so(tmp_path, mpp):
    """To state the slide's own would not help; to state the model's does."""
    path, model = write_svs(tmp_path / "x.svs", quarters(512, 512), mpp=mpp), ColourSegmenter(manifest())

    unknown = segmented(path, tmp_path / "out", model)
    stated = segmented(path, tmp_path / "out", model, um_per_px=1.0)

    about = "at which um/px the model was trained is not known: it sees the slide's finest level that fits, as it is"
    assert about in unknown.warnings
    assert not any("--mpp" in warning for warning in unknown.warnings)
    assert about not in stated.warnings


def test_a_coarser_spacing_can_be_asked_for(tmp_path):
    found = row(segmented(write_svs(tmp_path / "x.svs", quarters(512, 512)), tmp_path / "out", um_per_px=2.0))
    assert [found["seen_um_per_px"], found["mask_downsample"]] == ["2", "4"]
    assert outlines(tmp_path / "out" / "x.geojson")["tumor"].equals(shapely.box(0, 0, 256, 256))


def test_where_the_model_fails_nothing_is_left_of_older_results_either(tmp_path):
    image = quarters(512, 512)
    assert segmented(write_svs(tmp_path / "x.svs", image, mpp=1.0), tmp_path / "out").problem is None
    image[:2, :2] = POISON
    result = segmented(write_svs(tmp_path / "x.svs", image, mpp=1.0), tmp_path / "out")
    assert "the model failed" in result.problem
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("step", ["slide_outlines", "Overview", "write_mask_tiff"])
def test_where_memory_does_not_suffice_it_costs_that_slide_alone(tmp_path, monkeypatch, step):
    def full(*_arguments: object) -> None:
        raise MemoryError

    path = write_svs(tmp_path / "x.svs", quarters(256, 256), mpp=1.0)
    monkeypatch.setattr(slide_files, step, full)
    result = segmented(path, tmp_path / "out")
    assert result.problem.startswith("there is no memory to segment this slide now")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(("most_bytes", "file"), [(100, "x_mask.tif"), (2_000, "x_mask.tif"), (20_000, "x.geojson")])
def test_on_a_full_disk_nothing_is_left_and_the_file_that_did_not_fit_is_named(tmp_path, most_bytes, file):
    image = quarters(512, 512)
    image[64:192, 64:192] = noise(128, 128)
    path = write_svs(tmp_path / "x.svs", image, mpp=1.0)
    with full_at(most_bytes):
        result = segmented(path, tmp_path / "out")
    assert result.problem == f"{tmp_path / 'out' / file}: File too large"
    assert list((tmp_path / "out").iterdir()) == []
