"""What is compared: a model as it is, and the same model under a method at some strength in some of its blocks."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from torch import nn

from ..methods import METHODS, split
from ..surgery import is_patched, patch, unpatch


@dataclass(frozen=True)
class Setting:
    """One thing to probe.

    Attributes:
        method: Name of a method, such as "neutreno"; empty for the model as it is.
        strengths: Name -> value of each of its strengths, as `timm_neutreno.patch` takes them.
        layers: Indices of the blocks that get it, negative ones counted from the end; None for all.
    """

    method: str = ""
    strengths: Mapping[str, float] = field(default_factory=dict)
    layers: tuple[int, ...] | None = None

    @property
    def is_reference(self) -> bool:
        """Whether it leaves the model as it is."""
        return not self.method

    @property
    def family(self) -> str:
        """What is varied by its strengths: the method and where it acts."""
        return f"{self.method}, {describe_layers(self.layers)}" if self.method else "as it is"

    @property
    def values(self) -> str:
        """Its strengths in print."""
        return ", ".join(f"{name} {value:.3g}" for name, value in self.strengths.items())

    @property
    def label(self) -> str:
        """The whole setting in print."""
        where = describe_layers(self.layers)
        if not self.method:
            return "as it is"
        named = self.values if list(self.strengths) == [self.method] else f"{self.method} {self.values}".strip()
        return f"{named}, {where}"


REFERENCE = Setting()


def strength_names(method: str) -> list[str]:
    """Names of the strengths of a method, or of methods joined by "+".

    Raises:
        ValueError: If there is no such method.
    """
    return [strength for name in split(method) for strength in METHODS[name].strengths]


def describe_layers(layers: Sequence[int] | None) -> str:
    """Words for `Setting.layers`."""
    if layers is None:
        return "all blocks"
    if list(layers) == list(range(-len(layers), 0)):
        return "last block" if len(layers) == 1 else f"last {len(layers)} blocks"
    return f"block{'s' if len(layers) > 1 else ''} {' '.join(map(str, layers))}"


def grid(method: str, strengths: Mapping[str, Sequence[float]], layers: Sequence[int] | None = None) -> list[Setting]:
    """A setting for every combination of strengths.

    Without those at which all are 0: there a method is the model as it is, to the last bit, which is probed anyway.
    """
    where = None if layers is None else tuple(layers)
    combinations = [dict(zip(strengths, values, strict=True)) for values in product(*strengths.values())]
    return [Setting(method, each, where) for each in combinations if not each or any(each.values())]


@contextmanager
def applied(model: nn.Module, setting: Setting) -> Iterator[nn.Module]:
    """The model under the setting; afterwards it is as it was.

    A model that is patched already is measured as it is, and other settings on an unpatched copy.

    Raises:
        UnsupportedModelError: If the method cannot be applied to the model.
        ValueError: If the method, a strength or a block is unknown.
    """
    if setting.is_reference:
        yield model
        return
    if is_patched(model):
        model = unpatch(copy.deepcopy(model))
    strengths: Any = setting.strengths
    patch(model, setting.method, layers=setting.layers, **strengths)
    try:
        yield model
    finally:
        unpatch(model)


def check_settings(model: nn.Module, settings: Sequence[Setting]) -> None:
    """Apply every setting once, so that a wrong one is found before hours of measuring. Errors as of `applied`."""
    for setting in settings:
        with applied(model, setting):
            pass
