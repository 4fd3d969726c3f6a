"""Which tensors of a checkpoint are a network's weights, whatever its training called them and kept beside them."""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model_export.checkpoint import Checkpoint
from model_export.errors import InvalidCheckpoint

_KEYS = ("model", "state_dict", "model_state_dict", "averaged")
"""Under which training programs commonly store the weights; the last is of the project's own `last.pth`."""

_AVERAGED = "averaged"
"""What was chosen for being an average needs no note that there are other weights."""

_NAMED = 3
"""How many names of what is left out are told."""


def weights_of(checkpoint: Checkpoint, key: str | None = None) -> tuple[dict[str, Tensor], str]:
    """Return a checkpoint's weights as it names them, and the key they lie under, empty at its top.

    Args:
        checkpoint: A state dictionary, or a dictionary that holds some.
        key: Which of them to take; None for the first of `model`, `state_dict`, `model_state_dict` and `averaged`.

    Raises:
        InvalidCheckpoint: There are none, none under `key`, or they have no plain values.
    """
    path, state = checkpoint.path, checkpoint.state
    holding = [name for name, value in state.items() if _are_weights(value)]
    if key is None:
        key = next((known for known in _KEYS if isinstance(state.get(known), dict)), "")
    elif key not in holding:
        held = ", ".join(map(str, holding)) or "none"
        raise InvalidCheckpoint(f"{path}: holds no weights under {key}; keys that --weights can take: {held}")
    weights = state[key] if key else state
    if not _are_weights(weights):
        others = f"; --weights takes those under another key: {', '.join(map(str, holding))}" if holding else ""
        raise InvalidCheckpoint(
            f"{path}: holds no dictionary of weights, at its top or under {', '.join(_KEYS)}{others}"
        )
    for name, value in weights.items():
        if value.is_meta:
            raise InvalidCheckpoint(f"{path}: {name} is on torch's meta device, without values; save the real weights")
        if value.layout is not torch.strided:
            raise InvalidCheckpoint(f"{path}: {name} is a sparse tensor; save it as to_dense() gives it")
    return {name: value for name, value in weights.items() if name != "n_averaged"}, key  # AveragedModel's own


def others_that_fit(checkpoint: Checkpoint, taken: str, wanted: Mapping[str, Tensor]) -> list[str]:
    """Return the keys beside `taken` with weights of the names that are wanted, as averaged ones are."""
    if taken == _AVERAGED:
        return []
    state = checkpoint.state
    return [key for key in state if key != taken and _are_weights(state[key]) and _prefixes(state[key], wanted)[0]]


def fitted(
    path: Path, weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], list[str]]:
    """Return the weights by the network's own names, and the names of what the checkpoint holds beside them.

    A training's module, DataParallel and `torch.compile` put something before each name. What does not begin with it
    is no part of the network: a loss's weights, say. What does has to be one of the network's weights.

    Args:
        path: The checkpoint, for messages.
        weights: By the checkpoint's names.
        wanted: The network's own, for names and shapes.

    Raises:
        InvalidCheckpoint: The network's weights are not all there, are there twice, or are another network's.
    """
    fitting, nearest = _prefixes(weights, wanted)
    does_not_fit = f"{path}: does not fit the network"
    if len(fitting) > 1:
        places = " and ".join(f"under {prefix}" if prefix else "at the top" for prefix in fitting)
        raise InvalidCheckpoint(f"{does_not_fit}: all of its weights are there {places}; save those that count alone")
    inside = {name.removeprefix(nearest): value for name, value in weights.items() if name.startswith(nearest)}
    for name, value in wanted.items():
        if name not in inside:
            other = next((held for held in weights if held.removeprefix(nearest) not in wanted), "")
            raise InvalidCheckpoint(
                f"{does_not_fit}: {nearest}{name} is missing" + (f"; it holds {other}" if other else "")
            )
        if value.shape != inside[name].shape:
            raise InvalidCheckpoint(
                f"{does_not_fit}: {nearest}{name} is {tuple(inside[name].shape)}, not {tuple(value.shape)}"
            )
    if unknown := sorted(inside.keys() - wanted.keys()):
        raise InvalidCheckpoint(f"{does_not_fit}: {nearest}{unknown[0]} is not one of its weights")
    return inside, [name for name in weights if not name.startswith(nearest)]


def listed(names: list[str]) -> str:
    """Return a few of the names, and how many more there are."""
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _are_weights(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and bool(value)
        and all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in value.items())
    )


def _prefixes(weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> tuple[list[str], str]:
    """Return what may stand before all wanted names so that the weights have them, and what comes nearest to that."""
    met = Counter(begun for name in weights for begun in _beginnings(name) if name.removeprefix(begun) in wanted)
    [(nearest, _)] = met.most_common(1) or [("", 0)]
    return [prefix for prefix, count in met.items() if count == len(wanted)], nearest


def _beginnings(name: str) -> Iterator[str]:
    """Return what may be a prefix of `name`: nothing, or what ends with one of its dots."""
    yield ""
    for index, letter in enumerate(name):
        if letter == ".":
            yield name[: index + 1]
