"""Numbers that processes share."""

import multiprocessing

import pytest

from app.shared_numbers import shared_numbers


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no process can be forked here")
def test_what_a_forked_process_writes_is_seen_here():
    numbers = shared_numbers(3)
    assert list(numbers) == [0, 0, 0]

    def write() -> None:
        numbers[0], numbers[2] = -1, 2**63 - 1

    other = multiprocessing.get_context("fork").Process(target=write)
    other.start()
    other.join()
    assert list(numbers) == [-1, 0, 2**63 - 1]
