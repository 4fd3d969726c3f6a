"""What the soak takes for growth, and what for chance; the soak itself has one outcome, which is that nothing grew."""

from dataclasses import replace

import pytest

from tests.soak.__main__ import AtRest, growth

USUAL = AtRest(megabytes=500, supervisor=40, threads=30, files=60, processes=3)


def rests(name: str, values: list[float]) -> list[AtRest]:
    return [replace(USUAL, **{name: value}) for value in values]


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("megabytes", [500] * 6),
        ("megabytes", [512, 498, 505, 530, 507, 519]),
        ("megabytes", [500, 500, 500, 900, 500, 500]),
        ("megabytes", [500, 900, 500, 510, 500, 510]),
        ("megabytes", [500, 500, 500, 574, 574, 574]),
        ("megabytes", [500, 600, 700]),
        ("supervisor", [40, 41, 42, 43, 44, 48]),
        ("threads", [30, 36, 30, 36, 30, 36]),
        ("files", [60, 60, 61, 60, 60, 61]),
        ("processes", [3, 3, 4, 3, 3, 3]),
    ],
    ids=[
        *("level", "wavering", "a spike", "a spike in one generation", "within the bound", "too few to tell"),
        *("a supervisor that takes little", "late threads", "a file now and then", "a process that was late to leave"),
    ],
)
def test_what_is_level_or_came_once_is_no_growth(name, values):
    assert growth(rests(name, values)) == []


@pytest.mark.parametrize(
    ("name", "values", "found"),
    [
        ("megabytes", [500, 530, 560, 590, 620, 650], "megabytes grew from 500 to 590"),
        ("megabytes", [500, 500, 500, 576, 576, 576], "megabytes grew from 500 to 576"),
        ("megabytes", [500, 530, 560, 900, 590, 620], "megabytes grew from 500 to 590"),
        ("megabytes", [500, 549, 500, 560, 500, 549], "megabytes grew by 49 or more in each generation of fronts"),
        ("megabytes", [500, 549, 500, 560, 500], "megabytes grew by 49 or more in each generation of fronts"),
        ("supervisor", [40, 43, 46, 49, 52, 55], "supervisor grew from 40 to 49"),
        ("threads", [30, 33, 36, 39, 42, 45], "threads grew from 30 to 39"),
        ("threads", [30, 37, 30, 37, 30, 37], "threads grew by 7 or more in each generation of fronts"),
        ("files", [60, 60, 60, 61, 61, 61], "files grew from 60 to 61"),
        ("files", [60, 61, 60, 61, 60, 61], "files grew by 1 or more in each generation of fronts"),
        ("processes", [3, 3, 4, 4, 4, 4], "processes grew from 3 to 4"),
    ],
)
def test_what_leaks_is_named(name, values, found):
    assert growth(rests(name, values)) == [found]
