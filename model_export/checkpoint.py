"""Checkpoints: files of tensors and plain values, read with `weights_only=True` and replaced in one step."""

from pathlib import Path
from typing import Any

import torch

from model_export.atomic import replacing
from model_export.errors import InvalidCheckpoint


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write `state` to `path` in one step, so that an interrupt leaves the old one whole."""
    with replacing(path) as file:
        torch.save(state, file)


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
        raise InvalidCheckpoint(f"{path}: not a checkpoint of tensors: {reason}") from error
    if not isinstance(state, dict):
        raise InvalidCheckpoint(f"{path}: holds a {type(state).__name__}, a dictionary of weights is needed")
    return state
