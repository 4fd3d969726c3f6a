"""What can be wrong with a user's input, as one tree. Each message is one line that names the file.

ModelExportError
├── InvalidData               an image, a mask or a folder of them
├── InvalidCheckpoint         a checkpoint or a model factory that does not fit
├── InvalidRecipe             a recipe file or one of its values
├── Unavailable               a package or a device that was asked for and is not there
├── JobFailed                 one of several commands side by side
├── VerificationFailed        the exported graph does not reproduce the PyTorch model
└── TooMuchLost               a graph of lower precision answers too differently

Also how such a line says what an exception of a library does.
"""

from pydantic import ValidationError


class ModelExportError(Exception):
    """Base of the tree; the command line prints its message and exits with code 2."""


class InvalidData(ModelExportError):
    """A training image, mask or folder cannot be used."""


class InvalidCheckpoint(ModelExportError):
    """A checkpoint or a model factory cannot be used."""


class InvalidRecipe(ModelExportError):
    """A recipe cannot be used."""


class Unavailable(ModelExportError):
    """An optional package or a device that was asked for is not there."""


class JobFailed(ModelExportError):
    """One of several commands side by side ended before its work was done."""


class VerificationFailed(ModelExportError):
    """The exported graph does not reproduce the PyTorch model."""


class TooMuchLost(ModelExportError):
    """A graph of lower precision answers too differently from the float32 one."""


def first_line(error: BaseException) -> str:
    """Return the first line of what `error` says, or the name of its type if it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def first_fault(error: ValidationError, *within: str) -> str:
    """Return the first thing that pydantic found wrong as `where: what`, or as what alone if it is wrong as a whole.

    Args:
        error: What pydantic raised.
        within: Names that lead to what was validated; they come before the place in it.
    """
    fault = error.errors()[0]
    where = ".".join(map(str, (*within, *fault["loc"])))
    what = "no such field" if fault["type"] == "extra_forbidden" else fault["msg"]
    return f"{where}: {what}" if where else what
