"""Whether a model that a config.json describes has the size of its weights: asked before memory is taken for it.

A wrong number in a config.json, such as an embed_dim of 2**31, would have a process take all of the machine's memory
and be killed, long before the weights could turn out not to fit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

# a model may be larger than its weights, with a new head or more positions, but not by more than this
TIMES, BESIDES = 4, 2**25  # numbers; 128 MiB for small models
LAYERS = 50  # beyond one for every tensor

Shapes = Mapping[str, tuple[int, ...]]


class SizeError(ValueError):
    """A description of a model of another size than the weights."""


def shapes_in(path: Path) -> Shapes:
    """The shapes of all tensors in a .safetensors file, or one of torch.save, by name; data is not read.

    Raises:
        safetensors.SafetensorError, OSError, pickle.UnpicklingError, RuntimeError: If the file is damaged.
    """
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            names = file.keys()
            return {name: tuple(file.get_slice(name).get_shape()) for name in names}
    return dict(_tensors(torch.load(path, map_location="meta", weights_only=True)))


def _tensors(saved: Any, name: str = "") -> Iterator[tuple[str, tuple[int, ...]]]:
    if isinstance(saved, torch.Tensor):
        yield name, tuple(saved.shape)
    elif isinstance(saved, dict):
        for key, value in saved.items():
            yield from _tensors(value, key if isinstance(value, torch.Tensor) and isinstance(key, str) else name)


def check_size(build: Callable[[], nn.Module], described: Mapping[str, Any], shapes: Shapes, where: str) -> None:
    """Refuse to build a model that is far larger than the weights it is to have.

    Args:
        build: Makes the model; called on the meta device, where tensors have shapes and no data.
        described: The numbers that it is made from, by name, as config.json has them.
        shapes: Of the weights, by name, as of `shapes_in`.
        where: The file with the weights, for messages.

    Raises:
        SizeError: With the parameter, its shape, and its shape or the largest one in the file.
    """
    held = sum(map(math.prod, shapes.values()))
    most, depth = TIMES * held + BESIDES, 0
    for name, number in _whole_numbers(described):
        counts_layers = "depth" in name or "layers" in name
        depth += max(number, 0) if counts_layers else 0
        if number > most or depth > len(shapes) + LAYERS:
            there = f"{len(shapes):,} tensors" if counts_layers else f"{len(shapes):,} tensors of {held:,} numbers"
            raise SizeError(f"{name} is said to be {_short(number)}, but {where} holds {there} in all")
    with torch.device("meta"):
        model = build()
    made = dict(model.named_parameters()) | dict(model.named_buffers())
    if sum(tensor.numel() for tensor in made.values()) <= most:
        return
    name, largest = max(made.items(), key=lambda item: item[1].numel() - math.prod(shapes.get(item[0], (0,))))
    there = f"{where} has it with shape {_by(shapes[name])}" if name in shapes else f"{where} has none of this name"
    raise SizeError(f"{name} would have shape {_by(largest.shape)}, but {there}, and {held:,} numbers in all")


def _whole_numbers(described: Any, name: str = "") -> Iterator[tuple[str, int]]:
    if isinstance(described, int) and not isinstance(described, bool):
        yield name, described
    elif isinstance(described, Mapping):
        for key, value in described.items():
            yield from _whole_numbers(value, str(key))
    elif isinstance(described, list | tuple):
        for value in described:
            yield from _whole_numbers(value, name)


def _short(number: int) -> str:
    return str(number) if number.bit_length() < 64 else "a number of more than 64 bits"


def _by(shape: Iterable[int]) -> str:
    return " x ".join(map(str, shape))
