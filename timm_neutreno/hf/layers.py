"""Where a model of transformers has its attentions: lists of layers whose attention goes through the interface."""

from __future__ import annotations

import inspect
from typing import NamedTuple

from torch import nn

from ..support import UnsupportedModelError, class_path


class Layers(NamedTuple):
    """One list of layers, such as a decoder, or the encoder of one of two towers."""

    owner: nn.Module  # its forward calls the layers, one after another
    layers: list[nn.Module]  # all of them, in order
    attentions: list[nn.Module | None]  # of each; None in a layer without one


def uses_interface(module: nn.Module) -> bool:
    """Whether the forward of a module itself calls the function that transformers' attention interface names."""
    forward = inspect.unwrap(type(module).forward)
    return "ALL_ATTENTION_FUNCTIONS" in getattr(getattr(forward, "__code__", None), "co_names", ())


def find_layers(model: nn.Module) -> list[Layers]:
    """The lists of layers with attention, outermost ones only.

    Raises:
        UnsupportedModelError: If there are none, or an attention is in none of them, or a layer has several. The
            message lists them.
    """
    names = {module: name for name, module in model.named_modules()}
    attentions = [module for module in model.modules() if uses_interface(module)]
    if not attentions:
        raise _refused(model, ["(the model)  never: no attention of its layers goes through the attention interface"])
    found: list[Layers] = []
    inside: set[nn.Module] = set()
    problems: list[str] = []
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or module in inside or not _of(module, attentions):
            continue
        inside.update(module.modules())
        each = [_of(layer, attentions) for layer in module]
        problems += [_several(layer, own, names) for layer, own in zip(module, each, strict=True) if len(own) > 1]
        owner = model.get_submodule(name.rpartition(".")[0])
        found.append(Layers(owner, list(module), [own[0] if own else None for own in each]))
    outside = [attention for attention in attentions if attention not in inside]
    problems += [f"{names[m] or '(the model)'}  {class_path(m)}  not yet: in no list of layers" for m in outside]
    problems += [
        f"{names[m]}  {class_path(m)}  never: cross-attention, whose values belong to other tokens than its queries"
        for m in attentions
        if getattr(m, "is_cross_attention", False)
    ]
    if problems:
        raise _refused(model, problems)
    return found


def drops_keywords(group: Layers, names: dict[nn.Module, str]) -> list[str]:
    """The modules between a list's owner and its attentions whose forward takes no further keyword arguments."""
    on_the_way = [group.owner]
    for layer, attention in zip(group.layers, group.attentions, strict=True):
        on_the_way += [m for m in layer.modules() if attention is not m and attention in set(m.modules())]
    return [
        f"{names[m] or '(the model)'}  {class_path(m)}  not yet: hands no keyword arguments on to its attention, so "
        "that the first layer's values cannot come along"
        for m in on_the_way
        if not isinstance(m, nn.ModuleList | nn.Sequential | nn.ModuleDict)
        and not any(p.kind is p.VAR_KEYWORD for p in inspect.signature(m.forward).parameters.values())
    ]


def refuse(model: nn.Module, problems: list[str]) -> None:
    """Raise UnsupportedModelError if there are problems, a line each."""
    if problems:
        raise _refused(model, problems)


def _of(module: nn.Module, attentions: list[nn.Module]) -> list[nn.Module]:
    inside = set(module.modules())
    return [attention for attention in attentions if attention in inside]


def _several(layer: nn.Module, own: list[nn.Module], names: dict[nn.Module, str]) -> str:
    inner = ", ".join(names[m].removeprefix(names[layer] + ".") for m in own)
    return (
        f"{names[layer]}  {class_path(layer)}  never: {len(own)} attentions in one layer ({inner}): in cross-attention "
        "the values belong to other tokens than the queries"
    )


def _refused(model: nn.Module, problems: list[str]) -> UnsupportedModelError:
    shown = problems if len(problems) < 4 else [*problems[:2], f"({len(problems) - 2} more like this)"]
    return UnsupportedModelError(
        f"timm_neutreno.hf cannot work on {class_path(model)}:\n" + "\n".join(f"  {line}" for line in shown)
    )
