"""What a run asks the library about methods and their strengths."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

import timm_neutreno
from timm_neutreno.fidelity import DEFAULT_FIDELITY
from timm_neutreno.support import find_layers
from timm_neutreno.surgery import fidelity_holders

STRENGTHS = {"neutreno": {"fidelity": DEFAULT_FIDELITY}}  # of each method, with the values they start at


def canonical(method: str) -> str:
    """The one name of a method or composition.

    Raises:
        ValueError: If it is unknown.
    """
    if method not in STRENGTHS:
        raise ValueError(f"unknown method {method!r}. Choose from: {', '.join(STRENGTHS)}.")
    return method


def method_strengths(method: str) -> dict[str, float]:
    """Names of the strengths of a method or composition, and the values they start at."""
    return {name: value for part in method.split("+") for name, value in STRENGTHS[part].items()}


def patch(model: nn.Module, method: str, **options: Any) -> nn.Module:
    """Apply a method, in place."""
    return timm_neutreno.patch(model, **options)


def strengths(model: nn.Module) -> dict[str, Any]:
    """Every strength of a model, by dotted name: numbers, parameters or tensors; none of a plain one."""
    if not timm_neutreno.is_patched(model):
        return {}
    names = {module: name for name, module in model.named_modules()}
    return {
        f"{names[holder]}.fidelity": holder.fidelity for vit in find_layers(model) for holder in fidelity_holders(vit)
    }


def set_strengths(model: Any, *, as_tensors: bool | None = None, **values: float) -> None:
    """Set strengths of every layer. `as_tensors` turns constants into tensors, which compiled code can read anew."""
    import torch

    device = next(model.parameters()).device
    for vit in find_layers(model):
        for holder in fidelity_holders(vit):
            if not isinstance(holder.fidelity, nn.Parameter) and as_tensors is not None:
                value = values["fidelity"]
                holder.fidelity = torch.full((1,), value, device=device) if as_tensors else value
    timm_neutreno.set_fidelity(model, values["fidelity"])


def learned(model: nn.Module) -> dict[str, Tensor]:
    """The strengths that are parameters, by their keys in the state_dict."""
    return {name: value for name, value in strengths(model).items() if isinstance(value, nn.Parameter)}


def summary(model: nn.Module) -> dict[str, dict[str, float]]:
    """Of each strength: mean of its absolute values over layers and heads, smallest and largest value."""
    values: dict[str, list[float]] = {}
    for name, value in strengths(model).items():
        if isinstance(value, Tensor):
            full: Any = value.full_tensor() if hasattr(value, "full_tensor") else value  # of a sharded model
            value = full.detach().flatten().tolist()
        numbers = value if isinstance(value, list) else [value]
        values.setdefault(name.rpartition(".")[2], []).extend(numbers)
    return {
        name: {"mean_abs": sum(map(abs, all_)) / len(all_), "min": min(all_), "max": max(all_)}
        for name, all_ in values.items()
    }
