"""Orders over HTTP from Sectra's mock server to the whole application, and back through the call-back address."""

import json
import logging
import socket
import sys
from collections.abc import Callable, Iterator

import httpx2 as httpx
import numpy as np
import pytest
from fastapi import Request, Response
from fastapi.testclient import TestClient
from sectra_client.schemas import ModifyInvocation, Registration, ResultResponse
from sectra_client.schemas import Size as SectraSize

from app.errors import ExtraMissing
from app.main import create_app
from app.pathology.geometry import Size
from app.pathology.tiling import plan_windows
from app.segmentation.sectra import results as results_module
from app.settings import Settings
from tests.fakes import ColourSegmenter, classes_of, manifest
from tests.pictures import BLUE, encoded, plain
from tests.sectra_pacs import (
    APPLICATION,
    TOKEN,
    SectraPacs,
    area,
    areas,
    cancellation,
    drawn_classes,
    rectangle,
    running_pacs,
    whole_slide,
)
from tests.sectra_service import (
    COLORS,
    HEIGHT,
    HOOK,
    WIDTH,
    HeldBack,
    found,
    in_flight,
    landscape,
    listening,
    post,
    posted,
    refused,
    serving,
    settings,
    tissue,
)
from tests.slides import brown, cmu1


@pytest.fixture(scope="module")
def pacs() -> Iterator[SectraPacs]:
    with running_pacs() as running:
        yield running


@pytest.fixture(autouse=True)
def _reset(pacs) -> None:
    pacs.reset()


@pytest.fixture
def client(pacs) -> Iterator[TestClient]:
    with serving(pacs) as running:
        yield running


def test_without_allowed_hosts_there_is_no_hook():
    with TestClient(create_app(Settings(cores=1), ColourSegmenter())) as client:
        assert client.get(HOOK).status_code == 404
        assert client.post(HOOK, json={}).status_code == 404


def test_allowed_hosts_without_the_extra_stop_the_start_with_its_name(pacs, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("app.") and name.split(".")[-1].startswith("sectra")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("app.api.sectra", raising=False)
    monkeypatch.setitem(sys.modules, "sectra_client", None)
    monkeypatch.setitem(sys.modules, "sectra_client.schemas", None)
    with pytest.raises(ExtraMissing, match="Sectra needs the extra 'sectra'"):
        create_app(settings(pacs), ColourSegmenter())


@pytest.mark.parametrize("ordered_on", ["taggedPolygon", "multiArea", "wholeSlide"])
def test_registration_is_what_the_sdk_asks_for_at_the_address_it_was_asked_at(pacs, ordered_on):
    with serving(pacs, sectra_input=ordered_on) as client:
        response = client.get(f"http://analysis.example:8000{HOOK}")
    known = Registration.model_validate_json(response.text)
    assert known.url == "http://analysis.example:8000/sectra/hook"
    assert known.inputTemplate.type == ordered_on
    assert ("content" in response.json()["inputTemplate"]) == (ordered_on == "taggedPolygon")
    assert "research use only" in known.displayName
    assert response.headers["x-sectra-apiversion"] == "1.6"


def test_the_versions_that_answer_are_told(client):
    response = client.get(f"{HOOK}/info")
    assert response.json() == {"apiVersion": "1.6", "softwareVersion": client.app.version}
    assert response.headers["x-sectra-softwareversion"] == client.app.version


def test_an_order_travels_over_http_both_ways_with_the_mocks_own_trigger(pacs):
    slide = pacs.add_image(landscape())
    with listening(create_app(settings(pacs), ColourSegmenter())) as url:
        answer = pacs.trigger(f"{url}{HOOK}", area(pacs, slide, rectangle(0, 0, 1, HEIGHT / WIDTH)))
    [stored] = pacs.results(slide)
    assert ResultResponse.model_validate(answer) == stored
    assert np.array_equal(found(stored), tissue(landscape()))


def test_an_area_becomes_outlines_in_the_palette_a_label_and_properties(pacs, client):
    slide = pacs.add_image(landscape(), um_per_px=0.25)
    answer = post(client, area(pacs, slide, rectangle(0, 0, 1, HEIGHT / WIDTH))).json()
    [stored] = pacs.results(slide)
    assert answer == stored.model_dump(mode="json")
    outline, *classes = stored.data.result.content
    assert [item.style.strokeStyle for item in classes] == list(COLORS)
    assert all(item.style.fillStyle is None for item in classes)
    assert len(classes[0].polylines) == 2  # the island and the hole
    assert np.array_equal(found(stored), tissue(landscape()))
    of_tissue = "of the tissue tumor 77.5 %, stroma 5.6 %, normal 16.9 %"
    composition = f"tumor 36.7 %, stroma 2.7 %, normal 8.0 %, background 52.7 %; {of_tissue} (research use only)"
    assert stored.displayResult == f"{composition}; warning: {stored.displayProperties['warnings']}"
    assert outline.labels[0].label == f"{composition}; colours 1.0"
    assert (outline.labels[0].location.x, outline.labels[0].location.y) == (0, 0)
    assert stored.displayProperties == {
        "tumor": "36.7 % (77.5 % of the tissue)",
        "stroma": "2.7 % (5.6 % of the tissue)",
        "normal": "8.0 % (16.9 % of the tissue)",
        "background": "52.7 %",
        "model": "colours 1.0",
        "model SHA-256": "0" * 64,
        "um/px": "0.25",
        "use": "research use only",
        "warnings": stored.displayProperties["warnings"],  # of a slide that is painted: see below
    }
    assert stored.applicationVersion == client.app.version
    assert {token for _, _, token in pacs.asked} == {f"Bearer {TOKEN}"}
    assert not [path for _, path, _ in pacs.asked if "PHI" in path]


def test_only_what_lies_within_the_drawn_line_counts_and_what_runs_off_the_slide_is_cut_off(pacs, client):
    slide = pacs.add_image(landscape())
    triangle = [(-0.5, 0.1), (0.9, 0.1), (0.1, 0.9)]
    answer = post(client, area(pacs, slide, triangle))
    assert answer.status_code == 200, answer.text
    [stored] = pacs.results(slide)
    inside = drawn_classes(stored, WIDTH, HEIGHT, {"#808080": 0}) == 0
    expected = np.where(inside, tissue(landscape()), -1)
    wrong = found(stored) != expected
    assert 0.3 < inside.mean() < 0.7
    assert wrong.mean() < 0.005  # along the slanted line alone, which is simplified
    assert not wrong[~inside & ~np.roll(inside, 3, axis=1) & ~np.roll(inside, 3, axis=0)].any()
    of_the_area, _, _ = stored.displayResult.partition(";")
    shares = [float(text.split(" %")[0].split()[-1]) for text in of_the_area.split(", ")]
    truth = [100 * (classes_of(landscape())[inside] == index).mean() for index in range(4)]
    assert np.allclose(shares, truth, atol=0.2)
    points = [point for polygon in stored.data.result.content[0].polygons for point in polygon.points]
    assert all(0 <= point.x <= 1 and 0 <= point.y <= HEIGHT / WIDTH + 1e-8 for point in points)


def test_several_areas_have_a_label_each_and_one_result(pacs, client):
    slide = pacs.add_image(landscape())
    tumor, normal = rectangle(0.1, 0.07, 0.6, 0.19), rectangle(0.74, 0.14, 0.92, 0.39)
    post(client, areas(pacs, slide, [tumor, normal])).raise_for_status()
    [stored] = pacs.results(slide)
    labels = [label.label for item in stored.data.result.content for label in item.labels]
    assert labels[0].startswith("tumor 100.0 %")
    assert labels[1].startswith("tumor 0.0 %, stroma 0.0 %, normal 100.0 %")
    assert in_flight(client) == 0


@pytest.mark.parametrize(
    ("stained", "stain", "words"),
    [
        (lambda image: image, "H&E", None),
        (brown, "H&E", "has the colours of haematoxylin and eosin"),
        (brown, "PD-L1 IHC", None),
        (lambda image: np.full_like(image, 250), "H&E", "no tissue was found"),
    ],
    ids=["H&E", "brown", "brown and meant", "glass"],
)
@pytest.mark.parametrize("order", [whole_slide, lambda *given: area(*given, rectangle(0.1, 0.1, 0.3, 0.3))])
def test_a_slide_that_is_not_what_the_model_knows_is_answered_with_a_warning(pacs, order, stained, stain, words):
    """Before, nobody who ordered the tissue of an IHC slide was told that it means nothing."""
    slide = pacs.add_image(stained(cmu1(512, 384)))
    segmenter = ColourSegmenter(manifest().model_copy(update={"stain": stain}))
    with serving(pacs, segmenter) as client:
        post(client, order(pacs, slide)).raise_for_status()
        pacs.wait_for(lambda: "tumor" in pacs.results(slide)[0].displayProperties)
        counted = client.get("/metrics").text
    [stored] = pacs.results(slide)
    assert stored.displayProperties.get("warnings", "").count(words or ".") == (words is not None)
    assert ("; warning: " in stored.displayResult) == (words is not None)
    code = {None: None, "no tissue was found": "low_tissue"}.get(words, "out_of_distribution")
    of_codes = {
        line.split('"')[1]: line.split()[1]
        for line in counted.splitlines()
        if line.startswith("tessera_warnings_total{")
    }
    assert {each for each, count in of_codes.items() if float(count)} == ({code} if code else set())


def test_a_model_that_knows_its_spacing_sees_the_level_nearest_to_it(pacs):
    slide = pacs.add_image(landscape(), um_per_px=0.25)
    segmenter = ColourSegmenter(manifest().model_copy(update={"um_per_px": 0.5}))
    with serving(pacs, segmenter) as client:
        post(client, area(pacs, slide, rectangle(0, 0, 1, HEIGHT / WIDTH))).raise_for_status()
    [stored] = pacs.results(slide)
    assert stored.displayProperties["um/px"] == "0.5"
    levels = {path.split("/")[-2] for _, path, _ in pacs.asked if path.startswith("/images")}
    assert levels == {"8", "9"}  # of 0 to 9, each twice the one before; 9 to look at the slide's stain
    known = segmenter.manifest
    seen = plan_windows(Size(WIDTH // 2, HEIGHT // 2), known.window_px, known.margin_px, known.stride)
    assert len(segmenter.windows) == len(seen)
    assert np.array_equal(found(stored), tissue(landscape()))


def test_connections_are_reused_and_tiles_kept(pacs, client):
    slide = pacs.add_image(landscape())
    post(client, area(pacs, slide, rectangle(0, 0, 1, HEIGHT / WIDTH))).raise_for_status()
    tiles = [path for _, path, _ in pacs.asked if path.startswith("/images")]
    assert len(tiles) == len(set(tiles)) == 5 * 4
    assert len(pacs.peers) <= 8


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:{other}",
        "http://localhost:{port}",
        "http://127.0.0.1:{port}@evil.example",
        "https://evil.example",
    ],
)
def test_a_call_back_that_is_not_allowed_is_never_asked(pacs, client, url):
    slide = pacs.add_image(landscape())
    info = {"url": url.format(port=pacs.port, other=pacs.port + 1), "token": TOKEN}
    order = area(pacs, slide, rectangle(0, 0, 1, 1)).model_dump(mode="json") | {"callbackInfo": info}
    refused(client.post(HOOK, json=order), 403, "callback-refused", "call-back")
    assert pacs.asked == []


def test_a_token_that_the_call_back_does_not_take_is_said(pacs, client):
    slide = pacs.add_image(landscape())
    order = area(pacs, slide, rectangle(0, 0, 1, 1)).model_dump(mode="json")
    order["callbackInfo"]["token"] = "another"
    refused(client.post(HOOK, json=order), 502, "archive-denied", "does not accept the order's token")
    order["callbackInfo"]["token"] = "two words"
    refused(client.post(HOOK, json=order), 403, "callback-refused", "token")


def test_a_call_back_that_is_down_is_said(pacs):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    slide = pacs.add_image(landscape())
    order = area(pacs, slide, rectangle(0, 0, 1, 1)).model_dump(mode="json")
    order["callbackInfo"]["url"] = f"http://127.0.0.1:{port}"
    with serving(pacs, sectra_hosts=f"127.0.0.1:{port}") as client:
        refused(client.post(HOOK, json=order), 502, "archive-unavailable", "cannot be reached")
        assert in_flight(client) == 0


@pytest.mark.parametrize("where", ["info", "images", "results"])
def test_redirects_are_not_followed_wherever_they_lead(pacs, client, where):
    slide = pacs.add_image(landscape())
    with running_pacs() as elsewhere:
        pacs.fault = lambda request: (
            Response(status_code=307, headers={"Location": f"{elsewhere.url}{request.url.path}"})
            if where in request.url.path
            else None
        )
        refused(post(client, area(pacs, slide, rectangle(0, 0, 1, 1))), 502, "archive-refused", "redirects")
        assert elsewhere.asked == []
    assert pacs.results(slide) == []


def answering(where: str, answer: Callable[[], Response]) -> Callable[[Request], Response | None]:
    return lambda request: answer() if where in request.url.path else None


@pytest.mark.parametrize(
    ("where", "answer", "status", "kind", "words"),
    [
        ("images", Response(encoded(plain(BLUE, 63, 64))), 422, "slide-unreadable", "a tile of 63x64 px"),
        ("images", Response(encoded(plain(BLUE, 65, 64))), 422, "slide-unreadable", "at most 64 px"),
        ("images", Response(b"no image"), 422, "slide-unreadable", "a tile that cannot be read"),
        ("images", Response(bytes(100_000)), 502, "archive-refused", "more than 81920 bytes"),
        ("images", Response(status_code=404), 502, "archive-refused", "404 when asked for a tile"),
        ("images", Response(status_code=503), 502, "archive-unavailable", "503"),
        ("info", Response(b"{}"), 422, "slide-unreadable", "a form that its SDK does not have"),
        ("info", Response(b"nothing"), 422, "slide-unreadable", "a form that its SDK does not have"),
        ("results/slide", Response(b"{}"), 502, "archive-refused", "a form that its SDK does not have"),
        ("results/slide", Response(status_code=500), 502, "archive-unavailable", "500"),
    ],
)
def test_what_the_call_back_answers_wrongly_is_one_clear_line(pacs, client, where, answer, status, kind, words):
    slide = pacs.add_image(landscape())
    pacs.fault = answering(where, lambda: Response(answer.body, answer.status_code))
    refused(post(client, area(pacs, slide, rectangle(0, 0, 1, 1))), status, kind, words)
    assert pacs.results(slide) == []
    assert in_flight(client) == 0


def test_tiles_at_the_edge_may_be_padded_to_full_size(pacs, client):
    """A DICOM slide's are; the SDK's examples cut off what is too much."""
    image = landscape()
    slide = pacs.add_image(image)
    whole = np.full((256, 320, 3), 7, np.uint8)
    whole[:HEIGHT, :WIDTH] = image

    def padded(request: Request) -> Response | None:
        if "images" not in request.url.path:
            return None
        column, row = (int(part) for part in request.url.path.rsplit("/", 1)[1].split("_")[:2])
        return Response(encoded(whole[64 * row : 64 * row + 64, 64 * column : 64 * column + 64]))

    pacs.fault = padded
    post(client, area(pacs, slide, rectangle(0, 0, 1, HEIGHT / WIDTH))).raise_for_status()
    assert np.array_equal(found(pacs.results(slide)[0]), tissue(image))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"isStreamable": False}, "no tiles of this slide"),
        ({"tileSize": SectraSize(width=1, height=1)}, "64 to 4096 px"),
        ({"tileSize": SectraSize(width=64, height=9000)}, "64 to 4096 px"),
        ({"imageSize": SectraSize(width=0, height=10)}, "the slide is 0x10 px"),
        ({"availableTileFormats": []}, "no format that is read"),
    ],
)
def test_a_slide_that_cannot_be_read_is_refused_before_any_tile(pacs, client, changes, words):
    slide = pacs.add_image(landscape(), **changes)
    refused(post(client, area(pacs, slide, rectangle(0, 0, 1, 1))), 422, "slide-unreadable", words)
    assert len(pacs.asked) == 1


@pytest.mark.parametrize(
    ("drawn", "words"),
    [
        (rectangle(2, 2, 3, 3), "outside the slide"),
        (rectangle(0.1, HEIGHT / WIDTH, 0.2, 1), "outside the slide"),
        ([(0.1, 0.1), (0.2, 0.2), (0.3, 0.3)], "encloses nothing"),
        ([(0.1, 0.1), (0.2, 0.2)], "at least three points"),
        ([], "at least three points"),
        (rectangle(0.5, 0.3, 0.5001, 0.3001), "less than a pixel"),
    ],
)
def test_an_area_without_a_pixel_of_the_slide_is_refused(pacs, client, drawn, words):
    slide = pacs.add_image(landscape())
    refused(post(client, area(pacs, slide, drawn)), 422, "area-outside", words)


def test_an_area_of_no_number_is_refused(pacs, client):
    order = area(pacs, pacs.add_image(landscape()), rectangle(0, 0, 1, 1)).model_dump_json()
    for number in ("Infinity", "NaN", "1e999"):
        refused(client.post(HOOK, content=order.replace("1.0", number)), 422, "area-outside", "three points")


def test_areas_beyond_the_limits_are_refused(pacs):
    slide = pacs.add_image(landscape(), um_per_px=0.5)
    segmenter = ColourSegmenter(manifest().model_copy(update={"um_per_px": 0.5}))
    with serving(pacs, segmenter, sectra_max_pixels=40_000) as client:
        too_many = areas(pacs, slide, [rectangle(0, 0, 0.1, 0.1)] * 65)
        refused(post(client, too_many), 413, "image-too-large", "at most 64")
        too_large = area(pacs, slide, rectangle(0, 0, 1, HEIGHT / WIDTH))
        refused(post(client, too_large), 413, "image-too-large", "more than 40000 px at the model's 0.5 um/px")
        assert not [path for _, path, _ in pacs.asked if path.startswith("/images")]
        post(client, area(pacs, slide, rectangle(0, 0, 0.5, 0.5))).raise_for_status()


def test_a_model_of_unknown_spacing_sees_the_finest_level_within_the_limit(pacs):
    slide = pacs.add_image(landscape(), um_per_px=0.5)
    with serving(pacs, sectra_max_pixels=40_000) as client:
        post(client, area(pacs, slide, rectangle(0, 0, 1, HEIGHT / WIDTH))).raise_for_status()
    assert pacs.results(slide)[0].displayProperties["um/px"] == "1"


@pytest.mark.parametrize(("trusted", "scheme"), [("127.0.0.1", "https"), ("192.0.2.1", "http")])
def test_registration_gives_the_address_that_a_trusted_proxy_was_asked_at(pacs, monkeypatch, trusted, scheme):
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", trusted)
    headers = {"Host": "analysis.example", "X-Forwarded-Proto": "https"}
    with listening(create_app(settings(pacs), ColourSegmenter())) as url:
        known = httpx.get(f"{url}{HOOK}", headers=headers).json()
    assert known["url"] == f"{scheme}://analysis.example/sectra/hook"


def deletion(pacs: SectraPacs, padding: int) -> bytes:
    order = whole_slide(pacs, "id").model_dump(mode="json") | {"action": "delete", "input": {"data": "x" * padding}}
    return json.dumps(order).encode()


def test_a_deletion_carries_a_large_result_and_an_order_does_not(pacs, client):
    assert client.post(HOOK, content=deletion(pacs, 2**23)).json() == {}
    order = deletion(pacs, 2**20).replace(b'"delete"', b'"create"')
    refused(client.post(HOOK, content=order), 413, "upload-too-large", "more than 1048576 bytes; order fewer areas")
    refused(client.post(HOOK, content=bytes(2**26 + 1)), 413, "upload-too-large", "more than 67108864 bytes")
    assert in_flight(client) == 0


def test_a_full_service_reads_what_is_short_and_nothing_long(pacs):
    segmenter = HeldBack()
    order = area(pacs, pacs.add_image(landscape()), rectangle(0, 0, 1, 1))
    with serving(pacs, segmenter, queue_capacity=1, max_files=1) as client, posted(client, order, segmenter.asked):
        refused(client.post(HOOK, content=deletion(pacs, 2**21)), 429, "queue-full", "1 of 1")
        assert client.post(HOOK, content=deletion(pacs, 10)).json() == {}
        post(client, cancellation(order)).raise_for_status()


def test_nothing_that_was_sent_is_said_back(pacs, client):
    slide = pacs.add_image(landscape())
    order = area(pacs, slide, rectangle(0, 0, 1, 1)).model_dump_json()
    for known, field in [("taggedPolygon", "input"), ("create", "action"), (TOKEN, "callbackInfo token")]:
        broken = order.replace(f'"{known}"', '{"CANARY-DOE": "CANARY-DOE"}')
        answer = client.post(HOOK, content=broken)
        refused(answer, 400, "invalid-request", f"wrong or missing: {field}")
        assert "CANARY" not in answer.text
    for known in ("taggedPolygon", "create"):
        answer = client.post(HOOK, content=order.replace(known, "CANARY-DOE"))
        assert (answer.status_code, "CANARY" in answer.text) == (400, False)


def test_more_areas_than_the_service_has_places_are_too_many_and_not_for_later(pacs):
    slide = pacs.add_image(landscape())
    drawn = rectangle(0, 0, 0.1, 0.1)
    with serving(pacs, queue_capacity=2, max_files=1) as client:
        refused(post(client, areas(pacs, slide, [drawn] * 3)), 413, "image-too-large", "3 areas; at most 2")
        post(client, areas(pacs, slide, [drawn] * 2)).raise_for_status()


def test_results_that_are_too_many_to_list_are_found_out_before_the_work(pacs, client, monkeypatch):
    monkeypatch.setattr(results_module, "_MOST_ANSWER_BYTES", 1000)
    slide = pacs.add_image(landscape())
    pacs.fault = answering("results/slide", lambda: Response(bytes(1001)))
    words = "more than 1000 bytes when asked for the slide's results"
    refused(post(client, area(pacs, slide, rectangle(0, 0, 1, 1))), 502, "archive-refused", words)
    assert [path.split("/")[1] for _, path, _ in pacs.asked] == ["slides", "applications"]


def test_what_is_no_invocation_is_refused(pacs, client):
    slide = pacs.add_image(landscape())
    refused(client.post(HOOK, content=b"nothing"), 400, "invalid-request", "missing: the body as a whole")
    refused(client.post(HOOK, json={"action": "create"}), 400, "invalid-request", "missing: applicationId")
    answer = post(client, area(pacs, slide, rectangle(0, 0, 1, 0.5))).json()
    order = area(pacs, slide, rectangle(0, 0, 1, 1))
    change = ModifyInvocation(**order.model_dump(exclude={"action", "input"}), input=answer)
    refused(post(client, change), 400, "invalid-request", "modify is not taken")
    other = order.model_dump_json().replace('"create"', '"newImageFiles"')
    refused(client.post(HOOK, content=other), 400, "invalid-request", "this action is not taken; order (create)")
    escaping = order.model_copy(update={"slideId": ".."})
    refused(post(client, escaping), 403, "callback-refused", "slideId")


def test_ids_are_escaped_in_paths(pacs, client):
    order = area(pacs, "x/../../applications/1?a=b#c", rectangle(0, 0, 1, 1))
    assert post(client, order).status_code == 502
    assert pacs.raw_paths == [b"/slides/x%2F..%2F..%2Fapplications%2F1%3Fa%3Db%23c/info"]


def test_nothing_of_an_order_reaches_logs_or_metrics(pacs, caplog):
    caplog.set_level(logging.DEBUG)
    slide = pacs.add_image(landscape())
    broken = pacs.add_image(landscape(), isStreamable=False)
    with serving(pacs) as client:
        for order in (area(pacs, slide, rectangle(0, 0, 1, 1)), area(pacs, broken, rectangle(0, 0, 1, 1))):
            post(client, order)
        post(client, whole_slide(pacs, slide)).raise_for_status()
        pacs.wait_for(lambda: any(result.displayResult.startswith("tumor") for result in pacs.results(slide)[1:]))
        metrics = client.get("/metrics").text
    ours = [record.getMessage() + json.dumps(vars(record), default=str) for record in caplog.records]
    ours = [
        line for line, record in zip(ours, caplog.records, strict=True) if record.name.startswith(("app", "urllib3"))
    ]
    assert ours
    for secret in (TOKEN, slide, broken, str(pacs.port), APPLICATION + "/results"):
        assert secret not in metrics + "".join(ours)
