"""How orders of Sectra's end and are stored: whole slides, cancellations, callers that leave, services that stop."""

import asyncio
import contextlib
import logging
import re
import socket
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import httpx2 as httpx
import numpy as np
import pytest
from fastapi import Request, Response
from fastapi.testclient import TestClient
from sectra_client.schemas import DeleteInvocation, ResultResponse

from app.interop import sectra
from app.main import create_app
from app.segmentation import backoff as backoff_module
from app.segmentation.sectra import whole_slide as whole_slide_module
from app.segmentation.sectra.area import AreaSegmentation
from tests.fakes import POISON, ColourSegmenter
from tests.sectra_pacs import (
    SectraPacs,
    area,
    cancellation,
    rectangle,
    running_pacs,
    whole_slide,
)
from tests.sectra_service import (
    HEIGHT,
    HOOK,
    WIDTH,
    HeldBack,
    found,
    in_flight,
    label_of,
    landscape,
    listening,
    post,
    posted,
    refused,
    serving,
    settings,
    tissue,
)
from tests.waiting import until

LEFT = {"route": HOOK, "status": "499"}


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


def test_a_whole_slide_is_answered_at_once_and_replaced_when_it_is_done(pacs):
    slide = pacs.add_image(landscape())
    gate = asyncio.Event()
    with serving(pacs, ColourSegmenter(gate=gate)) as client:
        asked = datetime.now(UTC)
        answer = post(client, whole_slide(pacs, slide)).json()
        assert "on its way" in answer["displayResult"]
        assert "on its way" in label_of(answer)
        latest = re.search(r"until (.+) UTC at the latest; if this still stands then, order", answer["displayResult"])
        until = datetime.strptime(latest[1] + " +0000", "%Y-%m-%d %H:%M %z")
        assert asked + timedelta(seconds=600 + 60) <= until <= datetime.now(UTC) + timedelta(seconds=600 + 60 + 60)
        assert in_flight(client) == 1
        [waiting] = pacs.results(slide)
        client.portal.call(gate.set)
        pacs.wait_for(lambda: pacs.results(slide)[0].versionId != waiting.versionId)
        [done] = pacs.results(slide)
    assert done.id == waiting.id
    assert np.array_equal(found(done), tissue(landscape()))


def not_served(client: TestClient) -> dict[str, float]:
    """Return how many images and requests were not served, by reason."""
    families = client.app.state.running.metrics.registry.collect()
    [family] = [family for family in families if family.name == "tessera_rejections"]
    return {one.labels["reason"]: one.value for one in family.samples if one.name.endswith("_total") and one.value}


def test_a_whole_slide_that_fails_says_so_where_it_was_on_its_way(pacs, client):
    image = landscape()
    image[0, 0] = POISON
    slide = pacs.add_image(image)
    post(client, whole_slide(pacs, slide)).raise_for_status()
    pacs.wait_for(lambda: "not segmented" in pacs.results(slide)[0].displayResult)
    assert "the model failed on this image" in pacs.results(slide)[0].displayResult
    until(lambda: not_served(client) == {"inference-failed": 1})


def test_a_fault_in_segmenting_a_whole_slide_is_told_and_its_cause_is_logged(pacs, client, monkeypatch, caplog):
    cause = RuntimeError("a bug")

    async def broken(*arguments: object) -> None:
        raise cause

    monkeypatch.setattr(AreaSegmentation, "result", broken)
    slide = pacs.add_image(landscape())
    post(client, whole_slide(pacs, slide)).raise_for_status()
    pacs.wait_for(lambda: "a fault of the service; its log has the cause" in pacs.results(slide)[0].displayResult)
    until(lambda: not_served(client) == {"inference-failed": 1})
    assert [record.exc_info[1] for record in caplog.records if record.exc_info] == [cause]


def test_a_result_that_the_user_deleted_while_it_was_on_its_way_stays_deleted(pacs):
    slide = pacs.add_image(landscape())
    gate = asyncio.Event()
    with serving(pacs, ColourSegmenter(gate=gate)) as client:
        answer = post(client, whole_slide(pacs, slide)).json()
        order = whole_slide(pacs, slide)
        deletion = DeleteInvocation(**order.model_dump(exclude={"action", "input"}), input=answer)
        assert post(client, deletion).json() == {}
        pacs.delete_results()
        pacs.asked.clear()
        client.portal.call(gate.set)
        pacs.wait_for(lambda: any("/results/slide/" in path for _, path, _ in pacs.asked))
    assert pacs.results(slide) == []
    assert {method for method, _, _ in pacs.asked} == {"GET"}


def test_a_service_that_stops_says_so_in_the_results_that_were_on_their_way(pacs):
    slide = pacs.add_image(landscape())
    with serving(pacs, ColourSegmenter(gate=asyncio.Event())) as client:
        post(client, whole_slide(pacs, slide)).raise_for_status()
    [stored] = pacs.results(slide)
    assert "the service is stopping" in stored.displayResult


def test_a_whole_slide_past_its_deadline_says_so(pacs):
    slide = pacs.add_image(landscape())
    with serving(pacs, ColourSegmenter(gate=asyncio.Event()), sectra_slide_timeout=0.05) as client:
        post(client, whole_slide(pacs, slide)).raise_for_status()
        pacs.wait_for(lambda: "no answer within 0.05 s" in pacs.results(slide)[0].displayResult)


def test_the_same_order_twice_leaves_one_result_of_the_same_content(pacs, client):
    slide = pacs.add_image(landscape())
    drawn = rectangle(0.1, 0.1, 0.7, 0.5)
    first = post(client, area(pacs, slide, drawn)).json()
    second = post(client, area(pacs, slide, drawn)).json()
    assert second["id"] == first["id"]
    assert second["versionId"] != first["versionId"]
    assert {**second, "versionId": ""} == {**first, "versionId": ""}
    post(client, area(pacs, slide, rectangle(0.1, 0.1, 0.7, 0.6))).raise_for_status()
    assert len(pacs.results(slide)) == 2


def test_orders_at_once_each_get_their_own_result_and_the_same_ones_share_it(pacs, client):
    slides = [pacs.add_image(np.roll(landscape(), 32 * shift, axis=1)) for shift in range(3)]
    answers: list[httpx.Response] = []
    orders = [area(pacs, slide, rectangle(0, 0, 1, HEIGHT / WIDTH)) for slide in slides for _ in range(3)]
    threads = [threading.Thread(target=lambda order=order: answers.append(post(client, order))) for order in orders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answer.status_code for answer in answers] == [200] * 9
    for shift, slide in enumerate(slides):
        [stored] = pacs.results(slide)
        assert np.array_equal(found(stored), tissue(np.roll(landscape(), 32 * shift, axis=1)))
    assert in_flight(client) == 0


def test_a_cancelled_order_ends_at_once_and_stores_nothing(pacs):
    slide = pacs.add_image(landscape())
    segmenter = HeldBack()
    order = area(pacs, slide, rectangle(0, 0, 1, HEIGHT / WIDTH))
    with serving(pacs, segmenter, queue_capacity=1, max_files=1) as client:
        with posted(client, order, segmenter.asked) as answers:
            full = post(client, area(pacs, slide, rectangle(0, 0, 1, 1)))
            refused(full, 429, "queue-full", "1 of 1")
            assert int(full.headers["retry-after"]) >= 1
            stranger = cancellation(order).model_copy(update={"cancellationToken": "another"})
            assert post(client, stranger).json() == []
            assert in_flight(client) == 1
            assert post(client, cancellation(order)).json() == []
        refused(answers[0], 409, "order-cancelled", "cancelled")
        assert pacs.results(slide) == []
        assert in_flight(client) == 0
        client.portal.call(segmenter.gate.set)
        post(client, order).raise_for_status()


def test_an_order_that_is_cancelled_before_its_result_is_written_stores_nothing(pacs):
    slide = pacs.add_image(landscape())
    order = area(pacs, slide, rectangle(0, 0, 1, HEIGHT / WIDTH))
    segmenter = HeldBack()
    held_back = pacs.holding("GET", "/results/slide/")
    with serving(pacs, segmenter) as client, posted(client, order, segmenter.asked) as answers, held_back as (held, _):
        client.portal.call(segmenter.gate.set)
        assert held.wait(20)
        assert post(client, cancellation(order)).json() == []
    refused(answers[0], 409, "order-cancelled", "cancelled")
    assert pacs.results(slide) == []


def test_a_whole_slide_cancelled_while_it_is_told_to_be_on_its_way_says_so(pacs):
    slide = pacs.add_image(landscape())
    order = whole_slide(pacs, slide)
    segmenter = HeldBack()
    with serving(pacs, segmenter) as client:
        with pacs.holding("POST", "/results") as (storing, released), posted(client, order, storing) as answers:
            assert post(client, cancellation(order)).json() == []
            released.set()
        assert "on its way" in answers[0].json()["displayResult"]
        pacs.wait_for(lambda: "the order was cancelled" in pacs.results(slide)[0].displayResult)
    assert not segmenter.asked.is_set()


def test_a_whole_slide_cancelled_before_anything_is_stored_leaves_nothing(pacs):
    slide = pacs.add_image(landscape())
    order = whole_slide(pacs, slide)
    with serving(pacs, HeldBack()) as client:
        with pacs.holding("GET", "/results/slide/") as (listing, released), posted(client, order, listing) as answers:
            assert post(client, cancellation(order)).json() == []
            released.set()
        refused(answers[0], 409, "order-cancelled", "cancelled")
        until(lambda: in_flight(client) == 0)
    assert pacs.results(slide) == []


def test_a_service_that_stops_takes_no_order(pacs, client):
    slide = pacs.add_image(landscape())
    client.portal.call(client.app.state.running.sectra.close)
    for order in (area(pacs, slide, rectangle(0, 0, 1, 1)), whole_slide(pacs, slide)):
        refused(post(client, order), 503, "model-not-ready", "the service is stopping")
    assert pacs.asked == []


def test_a_service_that_stops_waits_for_a_whole_slide_that_has_just_come(pacs, client):
    slide = pacs.add_image(landscape())
    with (
        pacs.holding("GET", "/info") as (opening, released),
        posted(client, whole_slide(pacs, slide), opening) as answers,
    ):
        stopping = client.portal.start_task_soon(client.app.state.running.sectra.close)
        until(lambda: bool(answers))
        released.set()
        stopping.result(20)
    refused(answers[0], 503, "model-not-ready", "the service is stopping")
    assert {path for _, path, _ in pacs.asked} == {f"/slides/{slide}/info"}
    assert in_flight(client) == 0
    assert not_served(client) == {"model-not-ready": 1}, "once, by its answer"


def tissue_of_whole(pacs: SectraPacs, client: TestClient, slide: str) -> ResultResponse:
    post(client, whole_slide(pacs, slide)).raise_for_status()
    pacs.wait_for(lambda: pacs.results(slide)[0].displayResult.startswith("tumor"))
    return pacs.results(slide)[0]


def test_tissue_stays_until_there_is_new_and_when_the_repeated_order_is_cancelled(pacs):
    slide = pacs.add_image(landscape())
    segmenter = ColourSegmenter(gate=asyncio.Event())
    with serving(pacs, segmenter) as client:
        client.portal.call(segmenter.gate.set)
        first = tissue_of_whole(pacs, client, slide)
        client.portal.call(segmenter.gate.clear)
        order = whole_slide(pacs, slide)
        assert post(client, order).json() == first.model_dump(mode="json")
        assert in_flight(client) == 1
        post(client, cancellation(order)).raise_for_status()
        until(lambda: in_flight(client) == 0)
        assert pacs.results(slide) == [first]
        client.portal.call(segmenter.gate.set)
        post(client, whole_slide(pacs, slide)).raise_for_status()
        pacs.wait_for(lambda: pacs.results(slide)[0].versionId != first.versionId)
    [second] = pacs.results(slide)
    assert second.model_copy(update={"versionId": first.versionId}) == first


def failing(method: str, times: int, status: int) -> Callable[[Request], Response | None]:
    left = [Response(status_code=status) for _ in range(times)]
    return lambda request: left.pop() if request.method == method and left else None


@pytest.mark.parametrize(("times", "status"), [(3, 503), (1, 409), (3, 409)])
def test_tissue_is_stored_although_the_call_back_fails_for_a_while(pacs, client, monkeypatch, times, status):
    monkeypatch.setattr(backoff_module, "_FIRST_WAIT_SECONDS", 0.01)
    pacs.fault = failing("PUT", times, status)
    assert np.array_equal(found(tissue_of_whole(pacs, client, pacs.add_image(landscape()))), tissue(landscape()))


def test_tissue_is_not_sent_again_where_the_call_back_refuses_it_or_its_time_is_over(pacs, client, monkeypatch, caplog):
    caplog.set_level(logging.WARNING)
    monkeypatch.setattr(whole_slide_module, "_LEAST_STORING_SECONDS", 0)
    monkeypatch.setattr(backoff_module, "_FIRST_WAIT_SECONDS", 10_000)
    for status in (503, 400):
        pacs.fault = failing("PUT", 10, status)
        post(client, whole_slide(pacs, pacs.add_image(landscape()))).raise_for_status()
        until(lambda: in_flight(client) == 0)
    assert [method for method, _, _ in pacs.asked].count("PUT") == 2
    problems = [record.problem for record in caplog.records if record.name == "app.segmentation.sectra.whole_slide"]
    assert ["503" in problem for problem in problems] == [True, False]
    assert not_served(client) == {"archive-unavailable": 1, "archive-refused": 1}


def test_a_service_that_stops_sends_tissue_once_more_and_no_longer(pacs, monkeypatch):
    monkeypatch.setattr(backoff_module, "_FIRST_WAIT_SECONDS", 60)
    slide = pacs.add_image(landscape())
    pacs.fault = failing("PUT", 1, 503)
    with serving(pacs) as client:
        post(client, whole_slide(pacs, slide)).raise_for_status()
        pacs.wait_for(lambda: "PUT" in {method for method, _, _ in pacs.asked})
    assert pacs.results(slide)[0].displayResult.startswith("tumor")
    pacs.asked.clear()
    pacs.fault = failing("PUT", 10, 503)
    with serving(pacs) as client:
        post(client, whole_slide(pacs, pacs.add_image(landscape()))).raise_for_status()
        pacs.wait_for(lambda: "PUT" in {method for method, _, _ in pacs.asked})
    assert [method for method, _, _ in pacs.asked].count("PUT") == 2


def test_an_areas_result_is_stored_although_another_replaces_it_at_the_same_time(pacs, client):
    slide = pacs.add_image(landscape())
    order = area(pacs, slide, rectangle(0, 0, 1, HEIGHT / WIDTH))
    first = post(client, order).json()
    pacs.fault = failing("PUT", 1, 409)
    second = post(client, order).json()
    assert (second["id"], second["versionId"] == first["versionId"]) == (first["id"], False)
    pacs.fault = failing("PUT", 10, 409)
    refused(post(client, order), 502, "archive-unavailable", "another changes the result at the same time")


def test_an_unforeseen_error_in_a_whole_slide_is_logged_and_keeps_nothing_from_closing(pacs, monkeypatch, caplog):
    def broken(*arguments: object) -> None:
        raise RuntimeError("unforeseen")

    with serving(pacs, ColourSegmenter(gate=asyncio.Event())) as client:
        post(client, whole_slide(pacs, pacs.add_image(landscape()))).raise_for_status()
        monkeypatch.setattr(sectra, "replacing", broken)
    assert any("unforeseen error" in record.message and record.exc_info for record in caplog.records)
    with pytest.raises(RuntimeError, match="shutdown"):
        client.app.state.running.sectra._fetchers._threads.submit(print)


def test_a_cancelled_whole_slide_says_so(pacs):
    slide = pacs.add_image(landscape())
    order = whole_slide(pacs, slide)
    with serving(pacs, ColourSegmenter(gate=asyncio.Event())) as client:
        post(client, order).raise_for_status()
        assert post(client, cancellation(order)).json() == []
        pacs.wait_for(lambda: "the order was cancelled" in pacs.results(slide)[0].displayResult)


def test_an_order_past_its_deadline_is_answered_and_frees_its_place(pacs):
    slide = pacs.add_image(landscape())
    with serving(pacs, ColourSegmenter(gate=asyncio.Event()), request_timeout=0.2) as client:
        refused(
            post(client, area(pacs, slide, rectangle(0, 0, 1, 1))), 504, "deadline-exceeded", "no answer within 0.2 s"
        )
        assert in_flight(client) == 0


@contextlib.contextmanager
def sent(url: str, body: bytes, length: int | None = None) -> Iterator[socket.socket]:
    """Post `body`, of which more may be promised than there is, and keep the connection for the block."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        head = f"POST {HOOK} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: {length or len(body)}"
        connection.sendall(head.encode() + b"\r\n\r\n" + body)
        yield connection


def test_a_body_that_does_not_come_is_not_waited_for_beyond_the_deadline(pacs):
    app = create_app(settings(pacs, request_timeout=0.2), ColourSegmenter())
    with listening(app) as url, sent(url, b'{"action":', length=1000) as connection:
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"urn:problem-type:tessera:request-timeout" in answer
    assert b'"error":"the body did not come within 0.2 s"' in answer


def test_an_order_whose_caller_left_ends_and_stores_nothing(pacs):
    slide = pacs.add_image(landscape())
    segmenter = HeldBack()
    app = create_app(settings(pacs), segmenter)
    order = area(pacs, slide, rectangle(0, 0, 1, HEIGHT / WIDTH))
    with listening(app) as url:
        with sent(url, order.model_dump_json().encode()):
            assert segmenter.asked.wait(20)
        assert segmenter.left.wait(20)
        until(lambda: app.state.running.metrics.registry.get_sample_value("tessera_images_in_flight") == 0)
    assert pacs.results(slide) == []


def test_a_whole_slide_whose_caller_left_before_the_answer_does_not_stay_on_its_way(pacs):
    slide = pacs.add_image(landscape())
    segmenter = HeldBack()
    app = create_app(settings(pacs), segmenter)
    with listening(app) as url, pacs.holding("POST", "/results") as (storing, released):
        with sent(url, whole_slide(pacs, slide).model_dump_json().encode()):
            assert storing.wait(20)
        until(lambda: app.state.running.metrics.registry.get_sample_value("tessera_requests_total", LEFT) == 1)
        released.set()
        pacs.wait_for(lambda: bool(pacs.results(slide)) and "not segmented" in pacs.results(slide)[0].displayResult)
    assert not segmenter.asked.is_set()


def test_a_result_whose_caller_left_before_it_was_written_is_not_stored(pacs):
    slide = pacs.add_image(landscape())
    segmenter = HeldBack()
    order = area(pacs, slide, rectangle(0, 0, 1, HEIGHT / WIDTH))
    app = create_app(settings(pacs), segmenter)
    with listening(app) as url, contextlib.ExitStack() as held_back:
        with sent(url, order.model_dump_json().encode()):
            assert segmenter.asked.wait(20)
            listing, released = held_back.enter_context(pacs.holding("GET", "/results/slide/"))
            segmenter.open()
            assert listing.wait(20)
        until(lambda: app.state.running.metrics.registry.get_sample_value("tessera_requests_total", LEFT) == 1)
        released.set()
    assert pacs.results(slide) == []
