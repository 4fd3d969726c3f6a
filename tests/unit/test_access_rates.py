import multiprocessing
import os
import signal

import pytest

from app.access import rates as module
from app.access.callers import Caller
from app.access.rates import Allowance, Rates
from app.errors import RateExceeded
from tests.fakes import Clock

SECOND = 10**9
ONE, OTHER, QUICK = Caller("one", frozenset()), Caller("other", frozenset()), Caller("quick", frozenset(), 120)


@pytest.fixture
def clock():
    return Clock(1000 * SECOND)


@pytest.fixture
def rates(clock):
    return Rates(60, clock)


def refusal(rates, caller, images, already=0):
    with pytest.raises(RateExceeded) as caught:
        rates.take(caller, images, already)
    return caught.value.retry_after_seconds


def test_a_minutes_images_may_come_at_once_and_then_at_an_even_pace(rates, clock):
    rates.take(ONE, 60)
    assert refusal(rates, ONE, 1) == 1
    assert refusal(rates, ONE, 7) == 7
    clock.now += 7 * SECOND - 1
    assert refusal(rates, ONE, 7) == 1
    clock.now += 1
    rates.take(ONE, 7)
    assert refusal(rates, ONE, 60) == 60


def test_each_caller_has_a_limit_and_some_their_own(rates):
    rates.take(ONE, 60)
    rates.take(OTHER, 60)
    rates.take(QUICK, 120)
    assert [rates.limit_of(caller) for caller in (ONE, QUICK)] == [60, 120]
    assert refusal(rates, QUICK, 3) == 2


def test_a_pause_is_worth_no_more_than_a_minute(rates, clock):
    rates.take(ONE, 1)
    clock.now += 3600 * SECOND
    rates.take(ONE, 60)
    refusal(rates, ONE, 1)


def test_where_the_rest_of_a_request_is_too_much_its_first_is_given_back_and_the_wait_is_for_all(rates, clock):
    rates.take(ONE, 58)
    allowance = Allowance(rates, ONE)
    allowance.take(1)
    with pytest.raises(RateExceeded) as caught:
        allowance.take(4)
    assert caught.value.retry_after_seconds == 3
    assert str(caught.value) == "60 images a minute are this caller's limit; in 3 s there is room for 5"
    rates.take(ONE, 2)
    clock.now += 5 * SECOND
    rates.take(ONE, 5)


def test_what_was_not_done_is_given_back_once(rates):
    allowance = Allowance(rates, ONE)
    allowance.take(1)
    allowance.take(59)
    allowance.give_back()
    allowance.give_back()
    rates.take(ONE, 60)
    refusal(rates, ONE, 1)


def test_without_limits_nothing_is_counted():
    for allowance in (Allowance(None, ONE), Allowance(Rates(None), ONE)):
        allowance.take(10**6)
        allowance.give_back()
        assert allowance.most is None
    assert Allowance(Rates(None), QUICK).most == 120


def test_a_place_is_anothers_once_its_callers_images_are_past_and_not_before(rates, clock, monkeypatch):
    monkeypatch.setattr(module, "_SETS", 1)
    crowd = [Caller(f"caller {number}", frozenset()) for number in range(16)]
    for number, caller in enumerate(crowd):
        rates.take(caller, 10 + number)
    assert refusal(rates, ONE, 1) == 10
    clock.now += 10 * SECOND
    rates.take(ONE, 60)
    assert refusal(rates, ONE, 1) == 1
    assert refusal(rates, crowd[15], 46) == 1


def test_whose_place_is_anothers_meanwhile_gives_back_without_a_word(rates, clock, monkeypatch):
    monkeypatch.setattr(module, "_SETS", 1)
    allowance = Allowance(rates, ONE)
    allowance.take(1)
    clock.now += 2 * SECOND
    crowd = [Caller(f"caller {number}", frozenset()) for number in range(16)]
    for caller in crowd:
        rates.take(caller, 60)
    allowance.give_back()
    for caller in crowd:
        assert refusal(rates, caller, 1) == 1


def test_processes_share_the_limits():
    rates = Rates(60)
    rates.take(ONE, 30)

    def send() -> None:
        rates.take(ONE, 10)

    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=send) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert sorted(process.exitcode for process in processes) == [0, 0, 0, 1]
    refusal(rates, ONE, 2)


def test_a_process_that_was_killed_in_the_middle_keeps_nobody_out():
    rates = Rates(60)

    def be_killed() -> None:
        rates._lock.acquire()
        os.kill(os.getpid(), signal.SIGKILL)

    process = multiprocessing.get_context("fork").Process(target=be_killed)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL

    rates.take(ONE, 40)

    assert rates._lock.acquire(block=False)  # it was given back for the killed one
    rates._lock.release()
    rates.take(ONE, 20)
    refusal(rates, ONE, 1)


def test_of_two_that_waited_for_a_killed_one_both_go_on():
    rates = Rates(60)
    with rates._alone(), rates._alone():  # would have waited for ever
        pass
    rates.take(ONE, 60)
    refusal(rates, ONE, 1)
