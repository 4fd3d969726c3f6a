"""Waiting for what another process or thread does, whose end no handle tells."""

import time
from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")


def until(is_so: Callable[[], _T], seconds: float = 30, tell: Callable[[], object] = lambda: "") -> _T:
    """Ask `is_so` until its answer is true, and return that.

    Raises:
        AssertionError: It is not so after `seconds`; with what `tell` says then.
    """
    ends_at = time.monotonic() + seconds
    while not (answer := is_so()):
        assert time.monotonic() < ends_at, f"not so within {seconds:g} s: {tell()}"
        time.sleep(0.02)
    return answer
