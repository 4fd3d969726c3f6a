import json
import math
import shutil
import sys
from base64 import b64encode
from contextlib import nullcontext
from email.parser import BytesParser
from pathlib import Path

import click
import numpy as np
import pytest

from app.imaging.paint import paint_mask
from app.inference.bundle import load_bundle
from app.inference.session import open_session
from app.pathology.classes import WSSS4LUAD
from app.settings import DEFAULT_BUNDLE
from benchmarks.serving import rounds, uploads
from benchmarks.serving import visit as visits
from benchmarks.serving.figures import growth_mb, rows, targets, with_alone
from benchmarks.serving.free_network import BLOCK_PX, write_free_bundle
from benchmarks.serving.load import ClosedLoop, Target, parse_h2load, parse_wrk, percentile
from benchmarks.serving.processes import Memory
from benchmarks.serving.report import page, write_report
from benchmarks.serving.servers import SERVERS, Launch, chosen, class_map_of

MS = 1000


def visit(per_second=50.0, alone_ms=30.0, p99_ms=60.0, failed=0, others=0.02, speed=1.0):
    loop = {"requests": 100, "seconds": 2.0, "failed": failed, "refused": 0, "client_seconds": 0.01}
    latency = {"p50_ms": alone_ms, "p90_ms": alone_ms, "p99_ms": p99_ms}
    memory = {"pss_mb": 180.0, "rss_mb": 220.0, "processes": 3}
    opened = {"share": 0.7, "rate": 35.0, "sent": 35.1, "requests": 70, "failed": 0, "waited": 0.0, **latency}
    return {
        "ready_seconds": 1.5,
        "idle": memory,
        "after": {**memory, "pss_mb": 185.0},
        "alone": {**loop, **latency},
        "capacity": {**loop, **latency, "per_second": per_second, "server_ms": 30.0, "others_share": others},
        "limits": {"int8": 61.5 * speed, "fp32": 50.0 * speed},
        "open": [opened],
    }


def server(name, visits, precision="fp32", **more):
    said = {"server": name, "title": name.title(), "variant": "one", "how": "as it is", "precision": precision}
    return {**said, "visits": visits, **more}


def result(own=58.0, peer=50.0, **alone):
    limit = {"decode_ms": 2.0, "infer_ms": 30.0, "encode_ms": 0.5, "patch_ms": 32.5, "per_second": 61.5}
    rooflines = {"int8": limit, "fp32": {**limit, "infer_ms": 37.5, "per_second": 50.0}}
    servers = {
        "tessera": server("tessera", [visit(own - 1), visit(own + 1)], "int8"),
        "tessera-fp32": server("tessera-fp32", [visit(own - 7)]),
        "peer": server("peer", [visit(peer, others=0.3)]),
        "lost": server("lost", [], did_not_run="Lost did not start: no such port"),
    }
    return {
        "format": 1,
        "date": "2026-11-28",
        "kind": "quick",
        "hardware": {"processor": "A CPU", "cores": 2, "memory_gib": 8.0, "system": "Debian"},
        "tools": {"wrk": "4.1.0", "h2load": "1.52.0"},
        "versions": {"tessera": {"python": "3.11.2", "onnxruntime": "1.31.1"}},
        "settings": {
            "connections": 32,
            "seconds": 2.0,
            "rounds": 2,
            "decoder_of_peers": "pillow",
            "upload_bytes": 121_393,
        },
        "networks": {"default": {"model": {"name": "m"}, "rooflines": rooflines, "servers": servers}},
        "alone": alone,
    }


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [([3.0], 99, 3.0), ([1.0, 2.0, 3.0, 4.0], 50, 2.0), (list(range(1, 101)), 99, 99), (list(range(1, 102)), 99, 100)],
)
def test_a_percentile_is_one_of_the_values(values, percent, expected):
    assert percentile(values, percent) == expected


def test_there_is_no_percentile_of_nothing():
    assert math.isnan(percentile([], 50))


def test_wrk_is_read_by_its_line_of_json():
    line = '{"requests": 120, "seconds": 2.0, "failed": 1, "refused": 20, "p50_ms": 5, "p90_ms": 8, "p99_ms": 9.5}'
    loop = parse_wrk(f"Running 2s test\n  1 threads\nRequests/sec: 60\n{line}\n", client_seconds=0.1)
    assert loop.per_second == 50  # refusals are no answers
    assert (loop.failed, loop.p99_ms, loop.client_seconds) == (1, 9.5, 0.1)


def test_a_load_that_nobody_answered_has_no_latency():
    line = '{"requests": 0, "seconds": 2.0, "failed": 0, "refused": 0, "p50_ms": 0, "p90_ms": 0, "p99_ms": 0}'
    with pytest.raises(click.ClickException, match=r"no request was answered in 2\.0 s"):
        parse_wrk(line, client_seconds=0.0)


def h2load_log(starts_ms, took_ms, status=200):
    return "".join(f"{10**15 + int(MS * start)}\t{status}\t{int(MS * took_ms)}\n" for start in starts_ms)


def read_loop(log, rate, seconds):
    return parse_h2load(log, rate, period_seconds=1.0, seconds=seconds, settling_seconds=1.0, client_seconds=0.5)


def test_an_open_loop_counts_what_lies_between_its_ramps():
    ramp, steady = h2load_log([0, 500, 4600, 5000], 900), h2load_log(range(1000, 4001, 100), 20)
    loop = read_loop(ramp + steady, rate=10, seconds=60)
    assert (loop.requests, loop.failed, loop.p99_ms, loop.waited) == (31, 0, 20.0, 0.0)
    assert loop.sent == pytest.approx(10)
    assert loop.client_ms == pytest.approx(500 / 35)  # of all that it sent


def test_an_open_loop_tells_failures_and_answers_that_outlast_the_period():
    ends = h2load_log([0, 5000], 5)
    log = ends + h2load_log([2000], 5, status=429) + h2load_log([2100], 5, status=-1) + h2load_log([2200, 2300], 1500)
    loop = read_loop(log, rate=10, seconds=60)
    assert (loop.requests, loop.failed, loop.p50_ms, loop.waited) == (4, 2, 1500.0, 0.5)


def test_an_open_loop_ends_with_its_time_whoever_still_has_something_to_send():
    busy = h2load_log(range(0, 3100, 100), 5, status=429) + h2load_log(range(0, 3100, 500), 700)
    tail = h2load_log(range(3500, 9001, 500), 100)
    loop = read_loop(busy + tail, rate=12, seconds=2)
    assert (loop.requests, loop.failed, loop.p99_ms) == (26, 21, 700.0)
    assert loop.sent == pytest.approx(12.5)
    assert loop.answered == pytest.approx(2)  # at 1.2, 1.7, 2.2 and 2.7 s


def test_an_open_loop_of_ramps_alone_is_refused():
    with pytest.raises(click.ClickException, match="too short"):
        read_loop(h2load_log([0, 100, 200], 5), rate=10, seconds=60)


def test_servers_are_named_with_or_without_their_variant():
    (own, serve), (mosec, stages) = chosen("tessera, mosec:stages")
    assert (own.name, serve, mosec.name, stages) == ("tessera", "serve", "mosec", "stages")


@pytest.mark.parametrize("names", ["nginx", "mosec:none"])
def test_servers_that_do_not_exist_are_refused(names):
    with pytest.raises(click.BadParameter, match=names.partition(":")[0]):
        chosen(names)


@pytest.mark.parametrize("name", ["tessera", "pytriton"])
def test_an_answers_class_map_is_read_from_its_mask(name):
    class_map = np.arange(16, dtype=np.uint8).reshape(4, 4) % 4
    answer = json.dumps({"mask": {"base64": b64encode(paint_mask(class_map, WSSS4LUAD)).decode()}}).encode()
    if name == "pytriton":
        answer = b'{"outputs":[{"name":"answer"}]}' + len(answer).to_bytes(4, "little") + answer
    np.testing.assert_array_equal(class_map_of(SERVERS[name], answer), class_map)


@pytest.mark.parametrize("body", [b"", b"{}", b'{"mask": {"base64": "AAAA"}}', b"<html>"])
def test_an_answer_without_a_mask_is_an_error(body):
    with pytest.raises(click.ClickException, match="no segmentation"):
        class_map_of(SERVERS["tessera"], body)


def test_the_free_bundle_loads_and_coarsens_the_red_channel(tmp_path):
    write_free_bundle(tmp_path)
    image = uploads.patch()
    said = open_session(load_bundle(tmp_path).model, "cpu").run(image[None])
    coarse = image[::BLOCK_PX, ::BLOCK_PX, 0] >> 6
    np.testing.assert_array_equal(said.class_maps[0], coarse.repeat(BLOCK_PX, 0).repeat(BLOCK_PX, 1))
    assert said.confidences.shape == (1, 224, 224)
    assert said.label_probabilities.tolist() == [[0.5, 0.5, 0.5]]


def test_a_form_holds_as_many_files_as_asked(tmp_path):
    jpeg = uploads.write_jpeg(tmp_path, "patch", uploads.patch())
    form = uploads.write_form(tmp_path, jpeg, 3)
    head = f"Content-Type: {form.media_type}\r\n\r\n".encode()
    parts = BytesParser().parsebytes(head + form.file.read_bytes()).get_payload()
    assert [part.get_filename() for part in parts] == ["patch.jpg"] * 3
    assert {part.get_payload(decode=True) for part in parts} == {jpeg.file.read_bytes()}


def test_the_big_patch_is_4096_px():
    assert uploads.big_patch().shape == (4096, 4096, 3)


def test_a_server_that_refuses_is_not_said_to_need_less_for_a_patch(tmp_path, monkeypatch):
    loop = ClosedLoop(requests=120, seconds=2.0, failed=0, refused=20, p50_ms=5, p90_ms=8, p99_ms=9, client_seconds=0.1)
    target = Target("http://127.0.0.1:1/", tmp_path, "image/png")
    seconds = iter([10.0, 13.0])
    for name, what in {
        "started": lambda *_: nullcontext((target, 1.0)),
        "check_answer": lambda *_: None,
        "drain": lambda *_: None,
        "memory": lambda: Memory(1.0, 1.0, 1, 1.0),
        "closed_loop": lambda *_: loop,
        "processor_seconds": lambda: next(seconds),
        "machine_seconds": lambda: 0.0,
        "_IDLE_SECONDS": 0,
    }.items():
        monkeypatch.setattr(visits, name, what)
    launch = Launch(Path(sys.executable), DEFAULT_BUNDLE, 0, 2)
    upload = uploads.Upload(tmp_path, "image/png")
    plan = visits.Plan(connections=1, seconds=2.0, shares=())
    seen = visits.visit(SERVERS["tessera"], "serve", launch, "pillow", upload, np.zeros((1, 1), np.uint8), plan)
    assert seen["capacity"]["server_ms"] == 30  # 3 s for 100 answers


def test_rows_are_medians_of_visits_the_fastest_first():
    own, ours_like_peers, peer = rows(result()["networks"]["default"])
    assert (own.precision, round(own.share, 2), round(own.in_fp32, 2)) == ("int8", 0.94, 1.16)
    assert (ours_like_peers.precision, ours_like_peers.share, peer.in_fp32) == ("fp32", 1.02, 1.0)
    assert (own.name, own.per_second, own.opened) == ("tessera", 58.0, {0.7: (30.0, 60.0)})
    assert (peer.name, peer.others_share) == ("peer", 0.3)


def test_servers_are_compared_by_what_the_machine_could_do_when_they_were_visited():
    measured = result()
    slow = [visit(29.0, speed=0.5), visit(58.0), visit(63.8, speed=1.1)]
    measured["networks"]["default"]["servers"]["peer"]["visits"] = slow
    assert {row.name: round(row.in_fp32, 2) for row in rows(measured["networks"]["default"])}["peer"] == 1.16
    assert [target.found for target in targets(measured)][1].startswith("1.00 ")


def test_a_peer_that_is_tessera_is_no_peer():
    assert [target.found for target in targets(result(own=58.0, peer=29.0))][1] == "2.00"


@pytest.mark.parametrize(("variants", "visited"), [((), ["tessera"]), (("int8",), ["tessera", "tessera-fp32"])])
def test_tessera_is_visited_once_for_each_precision(tmp_path, monkeypatch, variants, visited):
    bundle = Path(shutil.copytree(DEFAULT_BUNDLE, tmp_path / "bundle", ignore=shutil.ignore_patterns("fp16", "int8")))
    for variant in variants:
        shutil.copytree(DEFAULT_BUNDLE / variant, bundle / variant)
    expected = {}

    def visit(server, _variant, _launch, _decoder, _upload, class_map, _plan):
        expected[server.name] = class_map
        return {"capacity": {"per_second": 1.0, "server_ms": 1.0, "others_share": 0.0}}

    monkeypatch.setattr(rounds, "visit", visit)
    upload = uploads.write_png(tmp_path, "patch", uploads.patch())
    contestants = chosen("tessera,tessera-fp32")
    launches = {server.name: Launch(Path(sys.executable), bundle, 0, 2) for server, _ in contestants}
    found = rounds.contend(rounds.Contest(contestants, launches, "pillow", upload, None), bundle, 1, "default")

    assert list(found["servers"]) == list(expected) == visited
    assert set(found["rooflines"]) == {"fp32", *variants}
    if variants:
        assert [server["precision"] for server in found["servers"].values()] == ["int8", "fp32"]
        agreement = (expected["tessera"] == expected["tessera-fp32"]).mean()
        assert 0.98 < agreement < 1, "each is compared with what its own graph says"


def test_targets_are_judged_or_not_measured():
    judged = [(target.found, target.verdict) for target in targets(result())]
    assert judged[:4] == [
        ("0.94 (0.93 to 0.96)", "reached"),
        ("1.16", "undecided"),
        ("", "not measured"),
        ("2.00", "reached"),
    ]
    assert judged[-1] == ("", "not measured")
    assert targets(result(own=50.0))[0].verdict == "not reached"


def test_a_target_that_one_visit_reaches_and_another_does_not_is_undecided():
    measured = result()
    measured["networks"]["default"]["servers"]["tessera"]["visits"] = [visit(p99_ms=40.0), visit(p99_ms=90.0)]
    p99 = targets(measured)[3]
    assert (p99.found, p99.verdict) == ("2.17 (1.33 to 3.00)", "undecided")


def test_without_a_visit_targets_of_tessera_alone_are_judged():
    measured = result(big={"ratio": 0.5})
    measured["networks"] = {}
    assert [target.verdict for target in targets(measured)] == [*["not measured"] * 7, "reached", "not measured"]


def test_a_gpu_target_is_not_measured_on_a_cpu():
    on = {"device": "cpu", "share": 0.99}
    assert targets(result(batches=on))[-1].verdict == "not measured"
    assert targets(result(batches={**on, "device": "cuda"}))[-1].verdict == "reached"


def test_the_page_says_who_did_not_run_and_that_the_run_was_disturbed():
    text = page(result(), ["some.json"])
    assert "Lost did not run: Lost did not start: no such port" in text
    assert "up to 30 % of the machine" in text
    assert "| Tessera | int8 | 58.0 | 0.94 | 1.00 |" in text


def test_the_page_says_how_many_were_refused_where_latency_is_only_of_the_others():
    measured = result()
    servers = measured["networks"]["default"]["servers"]
    servers["tessera"]["visits"][0]["open"][0]["failed"] = 14  # of 70, and none of 70
    servers["peer"]["visits"] = [visit() for _ in range(3)]
    servers["peer"]["visits"][0]["open"][0]["failed"] = 1
    text = page(measured, ["some.json"])
    assert "| Tessera | 30.0 | 30 / 60 (10 % failed) | 14 |" in text
    assert "| Peer | 30.0 | 30 / 60 (under 1 % failed) | 1 |" in text
    assert "| Tessera-Fp32 | 30.0 | 30 / 60 | 0 |" in text


def test_what_was_not_measured_of_tessera_alone_is_taken_from_another_run_of_the_same():
    first, second = result(big={"ratio": 0.5}), result(big={"ratio": 9.0}, uploads={})
    first["hardware"]["load_average"], second["hardware"]["load_average"] = 0.1, 2.0
    assert with_alone(first, second)["alone"] == {"big": {"ratio": 0.5}, "uploads": {}}
    assert "`benchmarks/results/a.json` and, of tessera alone, `benchmarks/results/b.json`" in page(
        result(), ["a.json", "b.json"]
    )
    with pytest.raises(ValueError, match="its hardware is another: cores 4, not 2"):
        with_alone(first, {**second, "hardware": {**second["hardware"], "cores": 4}})
    with pytest.raises(ValueError, match="other versions"):
        with_alone(first, {**second, "versions": {"tessera": {"python": "3.12.0"}}})
    second["networks"]["default"]["model"] = {"name": "another"}
    with pytest.raises(ValueError, match="its model is"):
        with_alone(first, second)
    with pytest.raises(ValueError, match="was run without the default network"):
        with_alone(first, {**second, "networks": {"free": second["networks"]["default"]}})


@pytest.mark.parametrize(
    ("mb", "grown"),
    [
        ([180, 190, 190, 190, 190], 0),  # it warms up
        ([180, 181, 182, 183, 184], 4),
        ([180, 110, 182, 113, 184], 4),  # and gives back what it does not use
    ],
)
def test_growth_is_what_each_request_leaves_behind(mb, grown):
    along = [{"requests": 10_000 * part, "own_mb": float(weight)} for part, weight in enumerate(mb)]
    assert growth_mb({"along": along}) == grown
    [judged] = [target for target in targets(result(soak={"along": along})) if "growth" in target.what]
    assert (judged.what, judged.verdict) == (
        "growth over 40,000 requests, MiB",
        "reached" if grown <= 1 else "not reached",
    )


def test_the_report_is_drawn(tmp_path):
    along = [{"requests": count, "own_mb": 180 + count / 50_000} for count in (0, 25_000, 50_000)]
    write_report(result(soak={"along": along}), ["some.json"], tmp_path)
    assert (tmp_path / "performance.md").read_text(encoding="utf-8").startswith("# Performance\n")
    drawn = sorted(file.name for file in (tmp_path / "images").iterdir())
    assert drawn == ["performance-capacity.png", "performance-latency.png", "performance-memory.png"]
