"""Checkpoints: files of tensors and plain values, read with `weights_only=True` and replaced in one step."""

import argparse
import errno
import pickle
import re
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from model_export.atomic import replacing
from model_export.errors import InvalidCheckpoint, first_line


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint that was read, for all that is asked of it.

    Attributes:
        path: Its file, for messages.
        state: What it holds.
    """

    path: Path
    state: dict[str, Any]


_LFS_POINTER, _ZIP = b"version https://git-lfs", b"PK\x03\x04"

_REFUSED = re.compile(r"GLOBAL ([\w.]+) was not an allowed global")
"""How torch names what a file holds beside tensors and plain values."""


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write `state` to `path` in one step, so that an interrupt leaves the old one whole.

    Raises:
        OSError: It cannot be written; it names the file.
    """
    try:
        with replacing(path) as file:
            torch.save(state, file)
    except RuntimeError as error:  # what torch makes of a full disk
        if isinstance(error.__context__, OSError):
            raise OSError(error.__context__.errno, error.__context__.strerror, str(path)) from error
        raise OSError(errno.EIO, f"could not be written ({first_line(error)})", str(path)) from error


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint without running any code that it may carry.

    Raises:
        InvalidCheckpoint: The file is missing, damaged, holds more than tensors and plain values, or no dictionary.
    """
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):  # timm's plain `args`
            warnings.simplefilter("ignore")  # of kinds of files that are refused below
            state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InvalidCheckpoint(f"{path}: no such checkpoint") from None
    except Exception as error:  # torch raises pickle, zip, runtime and OS errors here, all of them the file's fault
        raise InvalidCheckpoint(f"{path}: not a checkpoint of tensors: {_reason(path, error)}") from error
    if not isinstance(state, dict):
        raise InvalidCheckpoint(f"{path}: holds a {type(state).__name__}, a dictionary of weights is needed")
    return Checkpoint(path, state)


def _reason(path: Path, error: Exception) -> str:
    """Say why torch does not read the file; its own text is of its insides, or of ways to run code all the same."""
    head = b""
    if path.is_file():
        with path.open("rb") as file:
            head = file.read(len(_LFS_POINTER))
        if not head:
            return "it is empty"
    if head == _LFS_POINTER:
        return "it is a pointer of Git LFS, not the weights; `git lfs pull` fetches them"
    if head.startswith(_ZIP) and not zipfile.is_zipfile(path):
        return "it is cut off or damaged; copy it anew"
    if "TorchScript" in str(error):
        return "it is a TorchScript program; save the network's state_dict()"
    if isinstance(error, pickle.UnpicklingError) and "Unsupported" in str(error):
        named = _REFUSED.search(str(error))
        what = f": {named[1]}" if named else ", such as a whole model"
        return (
            f"it holds more than tensors and plain values{what}; save the weights alone, as in"
            ' torch.save(checkpoint["state_dict"], "weights.pth"), of a whole model its state_dict()'
        )
    return first_line(error)
