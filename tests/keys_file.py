"""Files of API keys."""

from collections.abc import Mapping
from pathlib import Path

from app.access.callers import Caller
from app.access.keys import line_of


def write_keys(path: Path, known: Mapping[str, Caller]) -> Path:
    """Write a file that lets callers in, each with the key that it is filed under; one of before is replaced whole."""
    coming = path.with_name(f"{path.name}.new")
    coming.write_text("".join(f"{line_of(key, caller)}\n" for key, caller in known.items()))
    coming.chmod(0o600)
    return coming.replace(path)
