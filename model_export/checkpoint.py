"""Checkpoints: files of tensors and plain values, read with `weights_only=True` and replaced in one step."""

import errno
import pickle
from pathlib import Path
from typing import Any

import torch

from model_export.atomic import replacing
from model_export.errors import InvalidCheckpoint


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write `state` to `path` in one step, so that an interrupt leaves the old one whole.

    Raises:
        OSError: It cannot be written; it names the file.
    """
    try:
        with replacing(path) as file:
            torch.save(state, file)
    except RuntimeError as error:  # what torch makes of a full disk
        raise OSError(errno.EIO, f"could not be written ({str(error).splitlines()[0]})", str(path)) from error


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint without running any code that it may carry.

    Raises:
        InvalidCheckpoint: The file is missing, damaged, holds more than tensors and plain values, or no dictionary.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InvalidCheckpoint(f"{path}: no such checkpoint") from None
    except Exception as error:  # torch raises pickle, zip, runtime and OS errors here, all of them the file's fault
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if isinstance(error, pickle.UnpicklingError) and "Unsupported" in str(error):
            # torch's own text is of ways to run it all the same
            reason = "it holds more than tensors and plain values, such as a whole model; save its state_dict()"
        raise InvalidCheckpoint(f"{path}: not a checkpoint of tensors: {reason}") from error
    if not isinstance(state, dict):
        raise InvalidCheckpoint(f"{path}: holds a {type(state).__name__}, a dictionary of weights is needed")
    return state
