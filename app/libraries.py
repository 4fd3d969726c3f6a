"""Libraries of others: whether those of an extra are installed, and that none logs what may name a patient."""

from collections.abc import Iterable
from importlib.util import find_spec
from logging import CRITICAL, getLogger

from app.errors import ExtraMissing

_TALKATIVE = (
    "PIL",  # at its debug level
    "dicomweb_client",
    "highdicom",
    "pydicom",
    "retrying",
    "urllib3",
    "wsidicom",
)
"""Loggers that write values of tags and attributes, and URLs with the ids of studies and slides."""
_SILENT = CRITICAL + 1


def require(what: str, packages: Iterable[str], *extras: str) -> None:
    """Make sure that the packages of extras are installed, before they are imported.

    To catch ModuleNotFoundError around the import would also hide a module of the project's own that is missing.

    Args:
        what: What needs them, as in "DICOM".
        packages: By the names that they are imported by.
        extras: Their names in `pyproject.toml`.

    Raises:
        ExtraMissing: One of them is not installed.
    """
    if any(find_spec(package) is None for package in packages):
        raise ExtraMissing(what, *extras)


def silence_libraries(*others: str) -> None:
    """Let no library log what may name a patient; `others` are further loggers to silence.

    Whoever uses such a library calls this first, though after an import that sets the level of its own logger.
    """
    for name in (*_TALKATIVE, *others):
        logger = getLogger(name)
        if logger.level != _SILENT:  # to set it costs every logger of the process what it knows of its level
            logger.setLevel(_SILENT)
