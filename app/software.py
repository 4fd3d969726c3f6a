"""Which release of this program runs, for all that says what made it: answers, files, orders, the command line."""

from functools import cache
from importlib.metadata import version


@cache
def software_version() -> str:
    """Return the version of tessera that is installed."""
    return version("tessera")
