"""What can be wrong with a user's input, as one tree. Each message is one line that names the file.

ModelExportError
├── InvalidData               an image, a mask or a folder of them
├── InvalidCheckpoint         a checkpoint or a model factory that does not fit
├── InvalidRecipe             a recipe file or one of its values
├── Unavailable               a package or a device that was asked for and is not there
├── JobFailed                 one of several commands side by side
├── VerificationFailed        the exported graph does not reproduce the PyTorch model
└── TooMuchLost               a graph of lower precision answers too differently
"""


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
