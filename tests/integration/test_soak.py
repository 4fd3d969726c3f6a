"""Three minutes of the soak that `python -m tests.soak` makes half an hour of."""

from tests.soak.__main__ import soak

_ROUNDS = 4
_MINUTES_AT_REST = _ROUNDS * 12 / 60


def test_three_minutes_of_mixed_load_leave_no_fault_and_no_growth():
    findings = soak((3 - _MINUTES_AT_REST) * 60, clients=2, rounds=_ROUNDS, seed=2)
    assert not findings.faults
    statuses = {outcome.status for outcome in findings.outcomes}
    assert {200, 404, 415, 422, 504} <= statuses
