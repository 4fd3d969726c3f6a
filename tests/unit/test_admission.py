from contextlib import ExitStack
from types import SimpleNamespace

import pytest
from prometheus_client import CollectorRegistry

from app.errors import QueueFull
from app.segmentation.admission import Admission, Places
from app.telemetry.metrics import Metrics


def test_the_door_counts_images_not_requests():
    door = Admission(5, 10**6, Metrics(CollectorRegistry()))
    with door.admit(4):
        with (
            pytest.raises(QueueFull, match="4 of 5 places for images are taken, and this needs 2 more;") as refused,
            door.admit(2),
        ):
            pass
        assert refused.value.retry_after_seconds >= 1
        with door.admit(1):
            pass
    with door.admit(5):
        pass


def test_who_is_inside_is_not_refused_for_another_who_only_looks():
    places = Places(2)
    door = Admission(1, 10**6, Metrics(CollectorRegistry()), places.seen_by(0, 0))
    other = places.seen_by(1, 0)

    with door.admit(1) as held:
        other.take(images=1)  # as another front does before it finds no place
        held.grow(0)
        other.take(images=-1)


def test_a_front_with_more_than_its_share_leaves_the_last_place_to_the_others():
    places = Places(2)
    one, other = (Admission(6, 10**6, Metrics(CollectorRegistry()), places.seen_by(index)) for index in (0, 1))
    with one.admit(3), other.admit(2), one.admit(1), pytest.raises(QueueFull), other.admit(1):
        pass  # one had its share, and took the last place
    with one.admit(4), other.admit(1):
        with pytest.raises(QueueFull, match=r"5 of 6 .*, one is kept for others, and this needs 1 more"), one.admit(1):
            pass
        with pytest.raises(QueueFull, match=r"5 of 6 .*, one is kept for others, and this needs 1 more"):
            one.expect_place()
        other.expect_place()
        with other.admit(1):
            pass
    with one.admit(4), one.admit(1):  # as long as another place is free
        pass
    with one.admit(4), one.admit(1) as held:  # a list is not cut short
        held.grow(1)
        with pytest.raises(QueueFull, match=r"6 of 6 places for images are taken, and this needs 1 more"):
            held.grow(1)
    assert places.images == 0


def test_a_place_is_free_again_after_a_failure():
    metrics = Metrics(CollectorRegistry())
    door = Admission(1, 10**6, metrics)
    with pytest.raises(ZeroDivisionError), door.admit(1):
        assert metrics.registry.get_sample_value("tessera_images_in_flight") == 1
        raise ZeroDivisionError
    assert metrics.registry.get_sample_value("tessera_images_in_flight") == 0
    with door.admit(1):
        pass


def test_the_door_counts_pixels_too_and_lets_one_in_that_has_more_than_all():
    door = Admission(9, 100, Metrics(CollectorRegistry()))
    with door.weigh(70):
        with pytest.raises(QueueFull, match="70 of 100 pixels are taken, and this needs 31 more;"), door.weigh(31):
            pass
        with door.weigh(30):
            pass
    with door.weigh(1000), pytest.raises(QueueFull, match="100 of 100 pixels"), door.weigh(1):
        pass
    with door.weigh(100):
        pass


def test_the_pixels_of_this_front_alone_are_shown():
    metrics, places = Metrics(CollectorRegistry()), Places(2)
    one = Admission(9, 100, metrics, places.seen_by(0))
    other = Admission(9, 100, Metrics(CollectorRegistry()), places.seen_by(1))
    with one.weigh(30), other.weigh(50):
        assert metrics.registry.get_sample_value("tessera_pixels_in_flight") == 30
    assert metrics.registry.get_sample_value("tessera_pixels_in_flight") == 0


def test_what_a_killed_front_had_inside_is_forgotten_with_it():
    places = Places(fronts=2, groups=2)
    here, gone = places.seen_by(1, group=0), places.seen_by(0, group=1)
    here.take(images=2, pixels=20)
    gone.take(images=5, pixels=50)
    assert (places.images, places.pixels) == (7, 70)
    places.clear(1)
    assert places.free_group({0}) == 1
    assert (places.images, places.pixels, here.own_images) == (2, 20, 2)


def test_retry_after_follows_the_rate_of_late(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("app.segmentation.admission.time.monotonic", lambda: now[0])
    door = Admission(2, 10**6, Metrics(CollectorRegistry()))
    for _ in range(11):  # an image every 3 s, and nothing to do in between
        now[0] += 1000
        with door.admit(1):
            now[0] += 3
    now[0] += 3600
    with door.admit(2), pytest.raises(QueueFull) as refused, door.admit(2):
        pass
    assert refused.value.retry_after_seconds == 6


def test_retry_after_does_not_count_what_was_done_before_the_time_that_it_counts(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("app.segmentation.admission.time.monotonic", lambda: now[0])
    door = Admission(2, 16_000_000, Metrics(CollectorRegistry()))
    with door.admit(1):
        with door.weigh(16_000_000):
            now[0] += 5
        for _ in range(10):
            with door.weigh(50_000):
                now[0] += 1
        with door.weigh(16_000_000), pytest.raises(QueueFull) as refused, door.weigh(1_000_000):
            pass
    assert refused.value.retry_after_seconds == 20


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that doors go by."""
    now = [100.0]
    monkeypatch.setattr("app.segmentation.admission.time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def seconds_until_another(door: Admission, images: int) -> int:
    """Return when one more image should come back to a door of so many places."""
    with pytest.raises(QueueFull) as refused, door.admit(images):
        door.expect_place()
    return refused.value.retry_after_seconds


def test_images_of_a_list_that_found_no_place_do_not_count_as_work_done(now):
    door = Admission(4, 10**6, Metrics(CollectorRegistry()))
    with door.admit(1):
        now[0] += 10
    with door.admit(1) as held:
        held.grow(3)
        held.undone += 3
        now[0] += 10
    assert seconds_until_another(door, 4) == 10  # one image took ten seconds
    with door.admit(1) as held:
        held.grow(3)
        held.undone += 4
        now[0] += 10
    assert seconds_until_another(door, 4) == 20
    with door.admit(2):
        pass
    assert seconds_until_another(door, 4) == 7  # of three in twenty seconds


def test_each_request_counts_what_it_left_undone_itself(now):
    door = Admission(5, 10**6, Metrics(CollectorRegistry()))
    with door.admit(1):
        now[0] += 10
    with ExitStack() as served:
        served.enter_context(door.admit(1))
        with door.admit(1) as held:
            held.grow(3)
            held.undone += 4
            now[0] += 10
            served.close()  # while the other is still inside
            assert seconds_until_another(door, 1) == 10
    assert seconds_until_another(door, 5) == 10


def test_a_list_that_found_no_place_does_not_count_as_work_done(now):
    door = Admission(1, 10**6, Metrics(CollectorRegistry()))
    for _ in range(2):
        with door.admit(1):
            now[0] += 10
    for _ in range(3):
        with pytest.raises(QueueFull), door.admit(1) as held:
            held.grow(1)
    assert seconds_until_another(door, 1) == 10
