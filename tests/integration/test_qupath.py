"""The QuPath script, run by Groovy against stubs of the QuPath classes that it uses and against the real service.

The stubs in `tests/qupath_stubs` do what QuPath's documentation says of those classes; QuPath itself is not run.
"""

import http.server
import json
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import numpy as np
import pytest
from PIL import Image

from app.imaging.plausibility import WARNING_CODES
from app.pathology.classes import WSSS4LUAD
from tests.conftest import ROOT
from tests.pictures import encoded
from tests.programs import program

SCRIPT = ROOT / "examples" / "qupath" / "segment_selection.groovy"
STUBS = ROOT / "tests" / "qupath_stubs"
REGION = [300, 200, 640, 480]
NOBODY = "http://127.0.0.1:1"
RUN_SECONDS = 120
SHORT_LIVED = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
"""Java compiles little: it runs for a second or two."""


@pytest.fixture(scope="module")
def slide(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("slide") / "slide.png"
    with Image.open(ROOT / "examples" / "slides" / "cmu1-skin.jpg") as image:
        image.save(path)
    return path


def play(slide: Path, url: str, *scenarios: dict[str, Any], key: str = "") -> list[list[dict[str, Any]]]:
    """Return what a user sees after each run of each scenario; see `drive.groovy`."""
    java = Path(program("java")).resolve().parent.parent
    ran = subprocess.run(
        [program("groovy"), "-cp", STUBS, STUBS / "drive.groovy", SCRIPT, slide],
        input=json.dumps(scenarios),
        env={
            **os.environ,
            "JAVA_HOME": str(java),
            "JAVA_OPTS": SHORT_LIVED,
            "TESSERA_URL": url,
            "TESSERA_API_KEY": key,
        },
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return [scenario["runs"] for scenario in json.loads(ran.stdout.splitlines()[-1])]


def of_tessera(run: dict[str, Any]) -> list[dict[str, Any]]:
    return [each for each in run["inside"] if each["name"] != "own"]


@pytest.fixture
def three_runs(service, slide) -> list[dict[str, Any]]:
    """The same annotation at downsample 1, again at 1, and at 2."""
    return play(slide, service.url, {"region": REGION, "runs": [{"downsample": number} for number in (1, 1, 2)]})[0]


def test_what_is_found_lies_inside_the_annotation_in_the_palette_and_replaces_itself_alone(three_runs):
    fine, again, coarse = three_runs
    x, y, width, height = REGION
    colours = {tissue.name: list(tissue.color) for tissue in WSSS4LUAD}
    for run in (fine, again, coarse):
        assert of_tessera(run)
        for each in of_tessera(run):
            assert each["color"] == colours[each["name"]]
            left, top, right, bottom = each["box"]
            assert x <= left < right <= x + width
            assert y <= top < bottom <= y + height
        assert [each["name"] for each in run["inside"]].count("own") == 1
        assert run["beside"] == ["other"]
        assert run["shown"][-1][0] == "info"
    assert again["inside"] == fine["inside"]
    assert not {each["id"] for each in of_tessera(fine)} & {each["id"] for each in of_tessera(coarse)}
    assert "0.499 um/px" in fine["shown"][0][1]


def test_the_pixels_that_are_sent_are_the_regions_own(service, slide, three_runs):
    x, y, width, height = REGION
    crop = np.asarray(Image.open(slide))[y : y + height, x : x + width]
    said = httpx.post(
        f"{service.url}/segment?x={x}&y={y}&min_area=64&mpp=0.499",
        content=encoded(crop),
        headers={"Content-Type": "image/png", "Accept": "application/geo+json"},
    ).json()
    boxes = []
    for feature in said["features"]:
        outline = np.array(feature["geometry"]["coordinates"][0])
        boxes.append([feature["properties"]["name"], *outline.min(0), *outline.max(0)])
    assert [[each["name"], *each["box"]] for each in of_tessera(three_runs[0])] == boxes


def test_what_cannot_be_segmented_is_refused_in_words_and_nothing_changes(slide):
    one = [{"downsample": 1}]
    played = play(
        slide,
        NOBODY,
        {"region": None, "runs": one},
        {"region": REGION, "rgb": False, "runs": one},
        {"region": [5000, 0, 10, 10], "runs": one},
        {"region": REGION, "runs": [{"downsample": 0.5}, {"downsample": None}]},
        {"region": REGION, "runs": one},
    )
    no_selection, not_rgb, outside, (too_fine, cancelled), no_service = played
    words = [runs[0]["shown"][-1] for runs in (no_selection, not_rgb, outside, [too_fine], no_service)]
    assert words == [
        ["error", "Select an annotation that covers an area, and run again."],
        ["error", "tessera reads the first plane of 8-bit RGB (brightfield) images."],
        ["error", "The annotation lies outside the slide."],
        ["error", "The downsample is a number of at least 1."],
        ["error", f"no answer from {NOBODY} (ConnectException)"],
    ]
    assert [kind for kind, _ in cancelled["shown"]] == ["input"]
    for run in [run for runs in played for run in runs]:
        assert ([each["name"] for each in run["inside"]], run["beside"], run["updates"]) == (["own"], ["other"], 0)


def test_a_region_that_is_too_large_is_refused_with_what_would_fit(tmp_path):
    wide = tmp_path / "wide.png"
    Image.new("RGB", (10_000, 20)).save(wide)
    runs = play(wide, NOBODY, {"region": [0, 0, 10_000, 20], "runs": [{"downsample": 1}, {"downsample": 2.45}]})[0]
    said = "The region would be 10000 px long, and tessera takes 4096 px a side"
    assert runs[0]["shown"][-1] == ["error", f"{said}: select a smaller one, or a downsample of at least 2.45."]
    assert "no answer" in runs[1]["shown"][-1][1]


PROBLEM = "application/problem+json"
NOTHING = '{"type": "FeatureCollection", "features": []}'
ANSWERS = {
    "": (401, PROBLEM, '{"title": "Unauthorized", "detail": "a key, please", "request_id": "r"}'),
    "Bearer good": (200, "application/geo+json", NOTHING),
    "Bearer full": (429, PROBLEM, '{"title": "Queue full", "detail": "later", "request_id": "r"}'),
    "Bearer proxy": (502, "text/html", "<h1>nginx</h1>"),
    "Bearer sure": (200, "application/geo+json", NOTHING, ""),
    "Bearer unsure": (200, "application/geo+json", NOTHING, ", ".join(WARNING_CODES)),
    "Bearer newer": (200, "application/geo+json", NOTHING, "pen_marks, folded"),
}
"""Status, media type, body, and `Tessera-Warnings` where the answer has that."""


class Gate(http.server.BaseHTTPRequestHandler):
    """A service behind a key: answers each request by its key, and remembers them."""

    seen: list[tuple[str, dict[str, str]]]

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.seen.append((self.path, dict(self.headers)))
        status, media_type, body, *warnings = ANSWERS[self.headers.get("Authorization", "")]
        self.send_response(status)
        self.send_header("Content-Type", media_type)
        for codes in warnings:
            self.send_header("Tessera-Warnings", codes)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def gate() -> Iterator[tuple[str, list[tuple[str, dict[str, str]]]]]:
    seen: list[tuple[str, dict[str, str]]] = []
    handler = type("Handler", (Gate,), {"seen": seen})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", seen
        finally:
            server.shutdown()
            thread.join()


def test_a_key_is_asked_for_when_it_is_wanted_and_forgotten(slide, gate):
    url, seen = gate
    runs = [{"downsample": 2, "key": key} for key in ("good", None, "full", "proxy")]
    good, cancelled, full, proxy = play(slide, url, {"region": [301, 202, 64, 48], "runs": runs})[0]
    assert [kind for kind, _ in good["shown"]] == ["input", "confirm", "info"]
    assert good["shown"][-1][1] == "Added nothing: no tissue was found"
    assert cancelled["shown"][-1] == ["error", "Unauthorized: a key, please\n\nStatus 401, request r"]
    assert full["shown"][-1] == ["error", "Queue full: later\n\nStatus 429, request r"]
    assert proxy["shown"][-1] == ["error", f"{url} answered 502, not as tessera does."]
    keys = [headers.get("Authorization") for _, headers in seen]
    assert keys == [None, "Bearer good", None, None, "Bearer full", None, "Bearer proxy"]
    assert {path for path, _ in seen} == {"/segment?x=301&y=202&downsample=2.0&min_area=64&mpp=0.998"}


def test_a_spacing_is_sent_where_it_is_known_and_the_service_would_not_refuse_it(slide, gate):
    url, seen = gate
    said_of = [
        ((None, 2), ""),
        ((0.02, 2), ""),
        ((0.5, 32), ""),
        ((0.0001, 1), ""),
        ((0.05, 1), "0.05"),
        ((10, 1), "10.0"),
    ]
    scenarios = [
        {"region": [301, 202, 64, 48], "um_per_px": um_per_px, "runs": [{"downsample": downsample}]}
        for (um_per_px, downsample), _ in said_of
    ]
    runs = [of_scenario[0] for of_scenario in play(slide, url, *scenarios, key="good")]
    assert "full resolution, unknown" in runs[0]["shown"][0][1]
    for run, (_, sent) in zip(runs, said_of, strict=True):
        assert [kind for kind, _ in run["shown"]] == (["input", "info"] if sent else ["input", "warning", "info"])
    unsent = "No um/px are sent ({}): the model sees the region as it is at downsample {}."
    assert runs[0]["shown"][1] == ["warning", unsent.format("the slide does not say them", "2.00")]
    assert runs[2]["shown"][1] == ["warning", unsent.format("16.000 is not within 0.05 to 10.0", "32.00")]
    assert "Sending no um/px: the slide does not say them" in runs[0]["printed"]
    assert seen[0][0] == "/segment?x=301&y=202&downsample=2.0&min_area=64"
    assert [path.partition("&mpp=")[2] for path, _ in seen] == [mpp for _, mpp in said_of]


def test_a_side_that_is_rounded_to_whole_px_scales_what_is_sent_as_it_was_read(slide, gate):
    url, seen = gate
    play(slide, url, {"region": [301, 202, 64, 10], "um_per_px": 0.5, "runs": [{"downsample": 3}]}, key="good")
    ((path, _),) = seen  # 64 px are sent as 21
    assert path == f"/segment?x=301&y=202&downsample={64 / 21}&min_area=64&mpp={0.5 * 64 / 21}"


def test_what_an_earlier_run_found_is_replaced_wherever_below_the_annotation_it_lies(service, slide):
    runs = [{"downsample": 1}, {"downsample": 2, "nested": True}, {"downsample": 2, "nested": True}]
    first, coarser, again = play(slide, service.url, {"region": REGION, "runs": runs})[0]
    assert of_tessera(first)
    assert again["inside"] == coarser["inside"]
    assert {run["below_own"] for run in (first, coarser, again)} == {0}


def test_the_annotations_keep_model_scale_and_warnings(service, slide):
    small = {"region": [300, 200, 20, 20], "runs": [{"downsample": 1}]}
    (of_region,), (of_small,) = play(slide, service.url, {"region": REGION, "runs": [{"downsample": 1}]}, small)
    card = httpx.get(f"{service.url}/model").json()
    kept = of_region["metadata"]
    assert kept["tessera model"] == f"{card['name']} {card['version']}"
    assert kept["tessera model SHA-256"] == card["sha256"]
    assert kept["tessera use"] == "research use only"
    assert kept["tessera scale"].startswith("um_per_px=0.499; source=request; model_um_per_px=1.0; factor=0.499")
    assert of_small["metadata"]["tessera warnings"] == "the region is too small to go by"
    for each in of_tessera(of_region):
        assert each["metadata"]["um_per_px"] == "0.499"
        assert each["metadata"]["model_sha256"] == card["sha256"]
    assert kept["tessera warnings"] == "none" or kept["tessera warnings"] in " ".join(of_region["printed"])


def test_the_services_warnings_are_told_in_words_and_printed(slide, gate):
    runs = [{"downsample": 1, "key": key} for key in ("good", "sure", "unsure", "newer")]
    older, sure, unsure, newer = play(slide, gate[0], {"region": [301, 202, 64, 48], "runs": runs})[0]
    for run in (older, sure):
        assert [kind for kind, _ in run["shown"]] == ["input", "confirm", "info"]
    kinds, messages = zip(*unsure["shown"], strict=True)
    assert kinds == ("input", "confirm", "warning", "info")
    assert messages[2].startswith(
        "The answer may be worth little: the region is too small to go by; it holds hardly any"
    )
    assert len(messages[2].split("; ")) == len(WARNING_CODES)
    assert not [code for code in WARNING_CODES if code in messages[2]], "each in words"
    assert [line for line in unsure["printed"] if line.startswith(f"Warnings: {', '.join(WARNING_CODES)} (")]
    assert newer["shown"][2] == [
        "warning",
        "The answer may be worth little: pen marks, dye or pigment may be taken for tissue; folded.",
    ]


def test_the_service_warns_of_a_region_that_is_too_small(service, slide):
    run = play(slide, service.url, {"region": [300, 200, 20, 20], "um_per_px": None, "runs": [{"downsample": 1}]})[0][0]
    assert [kind for kind, _ in run["shown"]] == ["input", "warning", "warning", "info"]
    assert run["shown"][2] == ["warning", "The answer may be worth little: the region is too small to go by."]


def test_a_key_in_the_environment_is_sent_and_no_name_of_the_slide_is(slide, gate):
    url, seen = gate
    run = play(slide, url, {"region": [301, 202, 64, 48], "runs": [{"downsample": 1}]}, key="good")[0][0]
    assert [kind for kind, _ in run["shown"]] == ["input", "info"]
    [(path, headers)] = seen
    assert headers["Authorization"] == "Bearer good"
    assert (headers["Accept"], headers["Content-Type"]) == ("application/geo+json", "image/png")
    assert "DOE" not in f"{path}{headers}"


@pytest.mark.parametrize("end", ["", "/", "//"])
def test_an_address_may_have_a_path_and_end_in_a_slash(slide, gate, end):
    url, seen = gate
    play(slide, f"{url}/tissue{end}", {"region": [301, 202, 64, 48], "runs": [{"downsample": 1}]}, key="good")
    assert [path.partition("?")[0] for path, _ in seen] == ["/tissue/segment"]
