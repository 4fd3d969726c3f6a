"""Getting a trained network: the project's own from its checkpoint, or anyone's from a factory and a checkpoint."""

import importlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from app.pathology.classes import TissueClass, label_indices
from model_export.checkpoint import Checkpoint
from model_export.errors import InvalidCheckpoint, InvalidData, first_fault, first_line
from model_export.network import TissueNetwork

_WRAPPERS = ("model", "state_dict", "model_state_dict", "averaged")
"""Keys under which training programs commonly store the weights; the last is of the project's own `last.pth`."""

_PREFIXES = ("_orig_mod.", "module.", "_orig_mod.")
"""What wrappers put before each name, the outermost first; either may be around the other."""

_ATTRIBUTES = ("model.", "net.", "network.")
"""What a program's own module, as of Lightning, commonly calls the network inside it."""

_OWN_PACKAGES = ("app", "model_export")


def load_network(checkpoint: Checkpoint, classes: Sequence[TissueClass], factory: str | None = None) -> nn.Module:
    """Return the network with the checkpoint's weights in float32, on the CPU and in evaluation mode.

    Args:
        checkpoint: A state dictionary, or a dictionary with one under `model`, `state_dict` or `model_state_dict`; or
            a run's `last.pth`, of which the averaged weights are taken.
        classes: The classes of the class map.
        factory: `package.module:callable` that returns an untrained network; None for the project's own.

    Raises:
        InvalidCheckpoint: The factory does not import or run, or the checkpoint's weights do not fit its network.
    """
    path = checkpoint.path
    weights = _weights(path, checkpoint.state)
    for name, value in weights.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise InvalidCheckpoint(f"{path}: {name} holds values that are no numbers, or infinite")
    if factory is None:
        label_count = sum(tissue.label for tissue in classes)
        detail = any(".detail." in f".{name}" for name in weights)
        network: nn.Module = TissueNetwork(len(classes), label_count, pretrained=False, detail=detail)
    else:
        network = _call(factory)
    for name, value in (*network.named_parameters(), *network.named_buffers()):
        if is_lazy(value):
            raise InvalidCheckpoint(
                f"factory {factory}: {name} is of a lazy layer, without a size until it sees an image; state its sizes"
            )
        if value.is_meta:
            raise InvalidCheckpoint(f"factory {factory}: {name} is on torch's meta device; build it on the CPU")
    network = network.cpu().float()  # as it is tried out and exported, whatever it was trained in
    weights = _unwrapped(weights, network.state_dict())
    wanted = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    for name, shape in wanted.items():
        if name not in found:
            other = next((other for other in found if other not in wanted), "")
            raise InvalidCheckpoint(
                f"{path}: does not fit the network: {name} is missing" + (f"; it holds {other}" if other else "")
            )
        if shape != found[name]:
            raise InvalidCheckpoint(f"{path}: does not fit the network: {name} is {found[name]}, not {shape}")
    unknown = sorted(found.keys() - wanted.keys())
    if unknown:
        raise InvalidCheckpoint(f"{path}: does not fit the network: {unknown[0]} is not one of its weights")
    network.load_state_dict(dict(weights))
    return network.eval()


def load_classes(path: Path) -> tuple[TissueClass, ...]:
    """Read a class list: a JSON array of objects with `name`, `letter`, `color` and, optionally, `label`.

    Raises:
        InvalidData: The file is missing, not such an array, or none of its classes is a label.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        classes = TypeAdapter(tuple[TissueClass, ...]).validate_python(values)
    except FileNotFoundError:
        raise InvalidData(f"{path}: no such class list") from None
    except ValidationError as error:
        raise InvalidData(f"{path}: {first_fault(error)}") from error
    except (OSError, ValueError) as error:
        raise InvalidData(f"{path}: not a class list in JSON: {error}") from error
    if not label_indices(classes):
        raise InvalidData(f"{path}: at least one class must be a label")
    return classes


def _weights(path: Path, state: dict[str, Any]) -> Mapping[str, Tensor]:
    for key in _WRAPPERS:
        if isinstance(state.get(key), dict):
            state = state[key]
            break
    if not state or not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()):
        raise InvalidCheckpoint(f"{path}: holds no dictionary of weights, at its top or under {', '.join(_WRAPPERS)}")
    for name, value in state.items():
        if value.is_meta:
            raise InvalidCheckpoint(f"{path}: {name} is on torch's meta device, without values; save the real weights")
        if value.layout is not torch.strided:
            raise InvalidCheckpoint(f"{path}: {name} is a sparse tensor; save it as to_dense() gives it")
    return {name: value for name, value in state.items() if name != "n_averaged"}  # AveragedModel's own, no weight


def _unwrapped(weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return the weights under the network's names: DataParallel and `torch.compile` put their own before each."""
    for prefix in _PREFIXES:
        if weights.keys() != wanted.keys() and all(name.startswith(prefix) for name in weights):
            weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    for attribute in _ATTRIBUTES:
        bare = {name.removeprefix(attribute): value for name, value in weights.items()}
        if bare.keys() == wanted.keys():
            return bare
    return weights


def _call(factory: str) -> nn.Module:
    module_name, colon, attribute = factory.partition(":")
    if not (colon and module_name and attribute):
        raise InvalidCheckpoint(f"factory {factory!r}: write package.module:callable")
    if "" not in sys.path:
        sys.path.insert(0, "")  # a researcher's module usually lies in the current folder
    try:
        network = getattr(importlib.import_module(module_name), attribute)()
    except SystemExit as error:
        raise InvalidCheckpoint(
            f"factory {factory}: it ends the program, as what reads its arguments does; a module for --factory only"
            " defines things when it is imported"
        ) from error
    except Exception as error:  # whatever a user's own module raises is that module's fault, said in one line
        kind, reason = type(error).__name__, first_line(error)
        said = kind if reason == kind else f"{kind}: {reason}"
        package = module_name.partition(".")[0]
        if package in _OWN_PACKAGES and isinstance(error, ImportError | AttributeError):
            said = f"{said}; {package} is this project's own package here: rename yours"
        raise InvalidCheckpoint(f"factory {factory}: {said}") from error
    if not isinstance(network, nn.Module):
        raise InvalidCheckpoint(f"factory {factory}: returned a {type(network).__name__}, not a torch.nn.Module")
    return network
