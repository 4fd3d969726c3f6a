"""`/segment` answers polygons that viewers read: GeoJSON, the Digital Slide Archive's annotations, ASAP's XML."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import shapely
from rasterio import features

from app.imaging.contours import MAX_REGIONS, TissuePolygon
from app.interop.annotations import Annotations
from app.pathology.classes import WSSS4LUAD
from app.pathology.geometry import Placement
from tests.asap import paint_asap
from tests.dicom_results import AS_IT_IS
from tests.fakes import classes_of, manifest
from tests.pictures import BLUE, GREEN, WHITE, encoded, noise, plain, quarters

PNG = {"Content-Type": "image/png"}
GEOJSON, DSA, ASAP = (
    "application/geo+json",
    "application/vnd.dsa.annotation+json",
    "application/vnd.asap.annotation+xml",
)

READ_BY_THE_ARCHIVE = """
import json, sys
import jsonschema
from girder_large_image_annotation.models.annotation import AnnotationSchema
from girder_large_image_annotation.utils import GeoJSONAnnotation
for line in sys.stdin:
    document = json.loads(line)
    if document.get("type") == "FeatureCollection":
        document = GeoJSONAnnotation(document).annotation
    jsonschema.Draft6Validator(AnnotationSchema.annotationSchema).validate(document)
    print(json.dumps(document), flush=True)
"""


@pytest.fixture(scope="module")
def read_by_the_archive() -> Iterator[Callable[[bytes], dict]]:
    """Return what the Digital Slide Archive's own code makes of a document, which its own schema has checked."""
    command = [sys.executable, "-W", "ignore", "-c", READ_BY_THE_ARCHIVE]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as archive:

        def read(document: bytes) -> dict:
            archive.stdin.write(json.dumps(json.loads(document)) + "\n")
            archive.stdin.flush()
            answer = archive.stdout.readline()
            assert answer, "the archive refuses it, and says why on standard error"
            return json.loads(answer)

        yield read


def ask(client, image, accept, **parameters):
    response = client.post("/segment", params=parameters, content=encoded(image), headers=PNG | {"Accept": accept})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == accept
    return response


def blob() -> np.ndarray:
    """A tumor with a lumen of glass, in stroma."""
    image = plain(GREEN, 120, 90)
    image[20:70, 30:90] = BLUE
    image[35:50, 50:70] = WHITE
    return image


def test_geojson_has_a_polygon_with_holes_for_each_region(client):
    response = ask(client, blob(), GEOJSON, simplify=0)
    tumor, stroma = sorted(response.json()["features"], key=lambda each: each["properties"]["name"], reverse=True)
    assert [tumor["properties"]["name"], stroma["properties"]["name"]] == ["tumor", "stroma"]
    rings = tumor["geometry"]["coordinates"]
    assert shapely.Polygon(rings[0]).bounds == (30, 20, 90, 70)
    assert shapely.Polygon(rings[1]).bounds == (50, 35, 70, 50)
    assert tumor["properties"]["metadata"]["model"] == "colours"
    assert response.headers["tessera-code"] == "T+S"
    assert response.headers["vary"] == "Accept"


def test_simplify_leaves_corners_out(client):
    image = plain(GREEN, 250, 250)
    steps = np.random.default_rng(1).integers(-1, 2, 250).cumsum() + 120
    image[np.arange(250)[:, None] > steps[None]] = BLUE
    sizes = [len(ask(client, image, GEOJSON, simplify=tolerance).content) for tolerance in (0, 1.5)]
    assert sizes[1] < sizes[0] / 2


def test_ids_follow_from_upload_model_and_place():
    square = TissuePolygon(0, shapely.box(0, 0, 9, 9), 0.5)
    known = Annotations([square], Placement(), manifest(), "0" * 64, AS_IT_IS)
    others = (
        replace(known, image_sha256="1" * 64),
        replace(known, manifest=manifest().model_copy(update={"sha256": "1" * 64})),
        replace(known, placement=Placement(1, 0, 1)),
    )
    assert len({each.identify(square) for each in (known, *others)}) == 4
    assert known.identify(square) != known.identify(replace(square, outline=shapely.box(0, 0, 9, 8)))


def test_geojson_lies_where_the_patch_lies_on_its_slide(client):
    response = ask(client, blob(), GEOJSON, x=1000, y=2000, downsample=4, simplify=0)
    tumor = next(each for each in response.json()["features"] if each["properties"]["name"] == "tumor")
    assert shapely.Polygon(tumor["geometry"]["coordinates"][0]).bounds == (1120, 2080, 1360, 2280)


def test_geojson_is_the_class_map_of_the_mask(client):
    image = quarters(120, 80)
    answer = ask(client, image, GEOJSON, simplify=0).json()
    names = [tissue.name for tissue in WSSS4LUAD]
    shapes = [(each["geometry"], names.index(each["properties"]["name"])) for each in answer["features"]]
    painted = features.rasterize(shapes, out_shape=image.shape[:2], fill=3, dtype="uint8")
    assert np.array_equal(painted, classes_of(image))


def test_the_same_upload_gives_the_same_bytes(client):
    for accept in (GEOJSON, DSA, ASAP):
        assert ask(client, blob(), accept).content == ask(client, blob(), accept).content


def test_glass_alone_is_an_empty_collection(client):
    assert ask(client, plain(WHITE, 30, 30), GEOJSON).json() == {"type": "FeatureCollection", "features": []}


def test_a_browsers_own_accept_still_gives_json(client):
    accept = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"
    response = client.post("/segment", content=encoded(blob()), headers=PNG | {"Accept": accept})
    assert response.headers["content-type"] == "application/json"


def test_small_regions_are_merged_when_asked(client):
    image = plain(GREEN, 60, 60)
    image[10:13, 10:13] = BLUE
    assert len(ask(client, image, GEOJSON).json()["features"]) == 2
    assert len(ask(client, image, GEOJSON, min_area=10).json()["features"]) == 1


def test_the_digital_slide_archive_reads_both_of_its_forms(client, read_by_the_archive):
    for accept in (GEOJSON, DSA):
        document = read_by_the_archive(ask(client, blob(), accept, simplify=0).content)
        tumor = next(each for each in document["elements"] if each["group"] == "tumor")
        assert (tumor["type"], tumor["closed"], tumor["label"]) == ("polyline", True, {"value": "tumor"})
        assert (tumor["lineColor"], tumor["fillColor"]) == ("rgb(0,64,128)", "rgba(0,64,128,0.3)")
        assert sorted(tumor["points"]) == [[30, 20, 0], [30, 70, 0], [90, 20, 0], [90, 70, 0]]
        assert sorted(tumor["holes"][0]) == [[50, 35, 0], [50, 50, 0], [70, 35, 0], [70, 50, 0]]
        rings = [shapely.LinearRing(ring) for ring in (tumor["points"], *tumor["holes"])]
        assert [ring.is_ccw for ring in rings] == [True, False]


def test_the_archive_names_the_annotation_after_the_model(client, read_by_the_archive):
    document = read_by_the_archive(ask(client, blob(), DSA).content)
    assert document["name"] == "colours 1.0"
    assert "research use only" in document["description"]
    assert len(document["attributes"]["image_sha256"]) == 64


def test_the_archive_takes_an_empty_result(client, read_by_the_archive):
    assert read_by_the_archive(ask(client, plain(WHITE, 30, 30), DSA).content)["elements"] == []


def test_asaps_rings_painted_in_order_are_the_mask(client):
    image = blob()
    response = ask(client, image, ASAP, simplify=0)
    assert np.array_equal(paint_asap(response.content, image.shape[:2]), classes_of(image))


def test_a_mask_of_too_many_regions_is_refused_in_words(client):
    image = plain(GREEN, 290, 290)
    image[::2, ::2] = BLUE
    image[1::2, 1::2] = BLUE
    response = client.post("/segment", content=encoded(image), headers=PNG | {"Accept": GEOJSON})
    assert response.status_code == 422
    problem = response.json()
    assert problem["type"] == "urn:problem-type:tessera:too-many-regions"
    assert f"more than {MAX_REGIONS} regions" in problem["detail"]
    assert "min_area" in problem["detail"]


@pytest.mark.parametrize("accept", [GEOJSON, DSA, ASAP])
def test_polygons_answer_one_image(client, accept):
    parts = [("file", encoded(noise(4, 4)))] * 2
    response = client.post("/segment", files=parts, headers={"Accept": accept})
    assert response.status_code == 400
    assert f"{accept} answers one image, not 2" in response.json()["detail"]


@pytest.mark.parametrize(
    "parameters", [{"downsample": 0}, {"downsample": "nan"}, {"x": "inf"}, {"simplify": -1}, {"min_area": -1}]
)
def test_places_that_make_no_sense_are_refused(client, parameters):
    response = client.post("/segment", params=parameters, content=encoded(noise(4, 4)), headers=PNG)
    assert response.status_code == 400
    assert response.json()["detail"].startswith(f"query {next(iter(parameters))}: ")
