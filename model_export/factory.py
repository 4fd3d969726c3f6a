"""Getting a trained network: the project's own from its checkpoint, or anyone's from a factory and a checkpoint."""

import importlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic import TypeAdapter, ValidationError
from torch import nn
from torch.nn.parameter import is_lazy

from app.pathology.classes import TissueClass, label_indices
from model_export.checkpoint import Checkpoint
from model_export.encoders import encoder_in
from model_export.errors import InvalidCheckpoint, InvalidData, first_fault, first_line
from model_export.network import network_for
from model_export.weights import fitted, listed, others_that_fit, weights_of

_OWN_PACKAGES = ("app", "model_export")


def load_network(
    checkpoint: Checkpoint,
    classes: Sequence[TissueClass],
    factory: str | None = None,
    key: str | None = None,
    note: Callable[[str], None] = lambda _line: None,
) -> nn.Module:
    """Return the network with the checkpoint's weights in float32, on the CPU and in evaluation mode.

    Args:
        checkpoint: A state dictionary, or a dictionary with one under `model`, `state_dict` or `model_state_dict`; or
            a run's `last.pth`, of which the averaged weights are taken.
        classes: The classes of the class map.
        factory: `package.module:callable` that returns an untrained network; None for the project's own.
        key: What the weights lie under, where that is none of these, or not the first of them.
        note: Told a line for each thing that was not taken and might have been meant.

    Raises:
        InvalidCheckpoint: The factory does not import or run, the checkpoint's weights do not fit its network, or it
            notes other classes.
        InvalidData: The classes are none for the project's own network.
    """
    path = checkpoint.path
    weights, taken = weights_of(checkpoint, key)
    if factory is None:
        _require_noted(checkpoint, classes)
        detail = any(".detail." in f".{name}" for name in weights)
        network: nn.Module = network_for(classes, encoder=encoder_in(weights), pretrained=False, detail=detail)
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
    wanted = network.state_dict()
    fitting, before, beside = fitted(path, weights, wanted)
    for name, value in fitting.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise InvalidCheckpoint(f"{path}: {name} holds values that are no numbers, or infinite")
    if key is None:
        also = f"note: {path}: the weights under {taken} are taken; it also holds"
        whole, parts = others_that_fit(checkpoint, taken, network)
        if whole:
            note(f"{also} {listed(whole)}: `export --weights KEY` takes those")
        if parts:
            which = "which is not a whole state_dict" if len(parts) == 1 else "none of them a whole state_dict"
            note(f"{also} {listed(parts)}, {which}: save it as one if you mean it")
    if beside:
        whose = "its name does" if len(beside) == 1 else "their names do"
        note(f"note: {path}: ignored: {listed(beside)} ({whose} not start with `{before}`)")
    network.load_state_dict(fitting)
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


def _require_noted(checkpoint: Checkpoint, classes: Sequence[TissueClass]) -> None:
    """Refuse other classes than those that a checkpoint of the project's own training notes, if it notes any."""
    noted = checkpoint.state.get("classes")
    wanted = [tissue.name for tissue in classes]
    if isinstance(noted, list) and noted != wanted:
        raise InvalidCheckpoint(
            f"{checkpoint.path}: was trained with the classes {', '.join(map(str, noted))}, in this order, and not"
            f" {', '.join(wanted)}"
        )


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
