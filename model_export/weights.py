"""Which tensors of a checkpoint are a network's weights, whatever its training called them and kept beside them."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model_export.checkpoint import Checkpoint
from model_export.errors import InvalidCheckpoint

_KEYS = ("model", "state_dict", "model_state_dict", "averaged")
"""Keys under which training programs commonly store the weights; the last is that of the project's own `last.pth`."""

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
    holding = {str(name): value for name, value in state.items() if _are_weights(value)}
    if key is None:
        key = next((known for known in _KEYS if known in holding), "")
    elif key not in holding:
        can_take = f"keys that --weights can take: {', '.join(holding) or 'none'}"
        rest = "this file has its weights at the top: leave --weights out" if _are_weights(state) else can_take
        raise InvalidCheckpoint(f"{path}: holds no weights under {key}; {rest}")
    weights = holding[key] if key else state
    if not _are_weights(weights):
        others = f"; `export --weights KEY` takes those under another key: {', '.join(holding)}" if holding else ""
        raise InvalidCheckpoint(
            f"{path}: holds no dictionary of weights, at its top or under {', '.join(_KEYS)}{others}"
        )
    for name, value in weights.items():
        if value.is_meta:
            raise InvalidCheckpoint(f"{path}: {name} is on torch's meta device, without values; save the real weights")
        if value.layout is not torch.strided:
            raise InvalidCheckpoint(f"{path}: {name} is a sparse tensor; save it as to_dense() gives it")
        if value.is_nested:
            raise InvalidCheckpoint(f"{path}: {name} is a nested tensor; save a plain one")
    return {name: value for name, value in weights.items() if name != "n_averaged"}, key  # AveragedModel's own


def others_that_fit(checkpoint: Checkpoint, taken: str, network: nn.Module) -> tuple[list[str], list[str]]:
    """Return the keys beside `taken` with weights of the network's, and those that hold no more than its parameters.

    Averaged weights are often stored without the buffers, beside other values, or one dictionary further in: these are
    among the second, as `weights_of` takes none of them.
    """
    whole: list[str] = []
    parts: list[str] = []
    wanted, parameters = network.state_dict(), dict(network.named_parameters())
    for name, value in checkpoint.state.items():
        if taken in (_AVERAGED, name) or not isinstance(value, dict):
            continue
        if _are_weights(value) and _prefixes(value, wanted)[0]:
            whole.append(str(name))
        elif any(_prefixes(tensors, parameters)[0] for tensors in _tensors_in(value)):
            parts.append(str(name))
    return whole, parts


def fitted(
    path: Path, weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], str, list[str]]:
    """Return the weights by the network's own names, what is before these, and the names of what is beside them.

    A training's module, DataParallel and `torch.compile` put something before each name. What does not begin with it
    is no part of the network: a loss's weights, say. What does has to be one of the network's weights. Where the same
    tensors are there twice, as of a network and what `torch.compile` made of it, either will do.

    Args:
        path: The checkpoint, for messages.
        weights: By the checkpoint's names.
        wanted: The network's own, for names and shapes.

    Raises:
        InvalidCheckpoint: The weights are not all there, are there twice and differ, or are another network's.
    """
    fitting, nearest = _prefixes(weights, wanted)
    does_not_fit = f"{path}: does not fit the network"
    if len(fitting) > 1 and not _same(weights, wanted, fitting):
        places = " and ".join(f"under {prefix}" if prefix else "at the top" for prefix in fitting)
        raise InvalidCheckpoint(
            f"{does_not_fit}: the network's weights are there twice, {places}; save the ones to export in a file of"
            " their own"
        )
    nearest = min(fitting, key=len, default=nearest)
    copies = tuple(prefix for prefix in fitting if prefix != nearest)
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
    beyond = inside.keys() - wanted.keys()
    if unknown := sorted(name for name in beyond if not (nearest + name).startswith(copies)):
        raise InvalidCheckpoint(f"{does_not_fit}: {nearest}{unknown[0]} is not one of its weights")
    beside = [name for name in weights if not name.startswith((nearest, *copies))]
    return {name: inside[name] for name in wanted}, nearest, beside


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
    """Return what is before all wanted names where the weights have them in their shapes, and what is nearest to that.

    Nearest is what is before most of the names, in whatever shape.
    """
    met: Counter[str] = Counter()
    fits: Counter[str] = Counter()
    for name, value in weights.items():
        for begun in _beginnings(name):
            if (own := wanted.get(name.removeprefix(begun))) is not None:
                met[begun] += 1
                fits[begun] += not value.is_nested and own.shape == value.shape  # a nested one has no shape
    [(nearest, _)] = met.most_common(1) or [("", 0)]
    return [prefix for prefix, count in fits.items() if count == len(wanted)], nearest


def _same(weights: Mapping[str, Tensor], names: Iterable[str], prefixes: Sequence[str]) -> bool:
    """Return whether each name has the same tensor after all of the prefixes."""
    first, *others = prefixes
    return all(
        weights[first + name].dtype == weights[other + name].dtype
        and torch.equal(weights[first + name], weights[other + name])
        for name in names
        for other in others
    )


def _tensors_in(value: dict[Any, Any]) -> Iterator[dict[str, Tensor]]:
    """Yield the named tensors of a dictionary, then those of each dictionary directly in it."""
    for held in (value, *(inner for inner in value.values() if isinstance(inner, dict))):
        yield {name: one for name, one in held.items() if isinstance(name, str) and isinstance(one, Tensor)}


def _beginnings(name: str) -> Iterator[str]:
    """Return what may be a prefix of `name`: nothing, or what ends with one of its dots."""
    yield ""
    for index, letter in enumerate(name):
        if letter == ".":
            yield name[: index + 1]
