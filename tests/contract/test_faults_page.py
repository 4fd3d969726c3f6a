"""The pages of faults and threats name tests that exist."""

import re

import pytest

from tests.conftest import ROOT
from tests.tables import rows_of

FAULTS, THREATS = (ROOT / "docs" / name for name in ("faults.md", "threat-model.md"))
TEST = re.compile(r"`(tests/[\w/]+\.py)(?:::(test_\w+))?`")


def is_there(path: str, name: str | None) -> bool:
    if not (ROOT / path).is_file():
        return False
    text = (ROOT / path).read_text(encoding="utf-8")
    return name is None or re.search(rf"^(async )?def {name}\(", text, re.MULTILINE) is not None


@pytest.mark.parametrize(
    ("page", "columns", "at", "least"),
    [
        (FAULTS, "fault | expected | seen | test", 3, 75),
        (THREATS, "threat | what stops it | where tested | left to the operator", 2, 25),
    ],
    ids=["faults", "threats"],
)
def test_each_row_names_tests_that_exist(page, columns, at, least):
    rows = rows_of(page, columns)
    assert len(rows) >= least
    for cells in rows:
        assert len(cells) == columns.count("|") + 1, cells
        assert all(cells[: at + 1]), cells
        named = TEST.findall(cells[at])
        assert cells[at] == ", ".join(f"`{path}::{name}`" if name else f"`{path}`" for path, name in named)
        assert [one for one in named if not is_there(one[0], one[1] or None)] == []
