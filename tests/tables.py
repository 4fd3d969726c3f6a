"""Tables of the pages in docs/."""

from pathlib import Path


def rows_of(page: Path, columns: str) -> list[list[str]]:
    """Return the cells of the rows of those tables that have these columns."""
    tables = page.read_text(encoding="utf-8").split(f"| {columns} |\n")[1:]
    return [_cells(line) for table in tables for line in table.split("\n\n")[0].splitlines()[1:]]


def _cells(line: str) -> list[str]:
    spaced = line.replace("| |", "|  |")  # a cell that is empty
    return [cell.strip() for cell in spaced.strip("|").split(" | ")]
