"""Processes with lanes of their own share the cores."""

import multiprocessing
import sys

import pytest

from app.inference.cores import Cores


def processes(cores: int, count: int) -> list[Cores]:
    shared = Cores(cores, count)
    return [shared.seen_by(index) for index in range(count)]


def test_one_process_has_all_of_them():
    cores = Cores(3)
    assert [cores.count, cores.free] == [3, 3]
    cores.begin()
    cores.begin()
    assert cores.free == 1
    cores.end()
    assert cores.free == 2


def test_what_others_leave_is_free():
    one, other = processes(4, 2)
    for left in (4, 3, 2, 1):
        assert one.free == left
        one.begin()
    assert one.free == 0
    assert other.free == 2


def test_a_share_is_free_whatever_the_others_run():
    """And while more run than there are cores, nobody begins beyond a share."""
    one, other = processes(2, 2)
    one.begin()
    one.begin()
    assert other.free == 1
    other.begin()
    assert (one.free, other.free) == (0, 0)
    one.end()
    assert (one.free, other.free) == (0, 0)
    one.end()
    assert (one.free, other.free) == (1, 1)


@pytest.mark.parametrize(("cores", "count", "shares"), [(5, 2, [3, 2]), (16, 2, [8, 8]), (2, 4, [1, 1, 1, 1])])
def test_shares_are_even_and_never_nothing(cores, count, shares):
    every = processes(cores, count)
    for busy in every:
        for _ in range(cores):
            busy.begin()
    for index, share in enumerate(shares):
        for _ in range(cores):
            every[index].end()
        assert every[index].free == share
        for _ in range(cores):
            every[index].begin()


def test_a_process_of_many_has_not_as_many_lanes_as_there_are_cores():
    one, *_ = processes(64, 8)
    assert (one.lanes, one.free) == (16, 16)
    for _ in range(16):
        one.begin()
    assert one.free == 0
    assert [of[0].lanes for of in (processes(64, 2), processes(8, 8), processes(2, 2))] == [32, 8, 2]


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
def test_a_forked_process_is_seen():
    here, there = processes(2, 2)
    fork = multiprocessing.get_context("fork")
    child = fork.Process(target=there.begin)
    child.start()
    child.join(20)
    assert child.exitcode == 0
    assert here.free == 1
