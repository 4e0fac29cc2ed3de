"""Saving a NeuTRENO model so that `timm.create_model("local-dir:...")` or `"hf-hub:..."` gives it back."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import save_for_hf
from torch import nn

from .support import find_layers
from .surgery import fidelity_holders, is_patched


def save_pretrained(
    model: nn.Module,
    directory: str | os.PathLike[str],
    *,
    data_config: dict[str, Any] | None = None,
    label_names: Sequence[str] | None = None,
    tag: str | None = None,
) -> Path:
    """Write model.safetensors and config.json.

    `import timm, timm_neutreno; timm.create_model(f"local-dir:{directory}", pretrained=True)` reads them.

    Args:
        model: A `neutreno_*` model, or a registered timm model after `patch`.
        directory: Made if missing; files of these two names in it are replaced.
        data_config: Preprocessing that the model was trained with (mean, std, crop_pct, interpolation, ...), if it is
            not the base model's.
        label_names: Class names by index, for inference widgets.
        tag: Pretrained tag of the result, instead of the base model's.

    Returns:
        The directory.

    Raises:
        ValueError: If the model is not patched, is not one that `timm.create_model` can build, or its layers have
            different constant fidelities.
    """
    directory = Path(directory)
    arguments = _model_arguments(model)
    cfg = {"tag": tag} if tag else {}
    save_for_hf(
        model,
        str(directory),
        model_config={"pretrained_cfg": cfg, **({"label_names": list(label_names)} if label_names else {})},
        model_args=arguments,
        safe_serialization=True,
        data_config=data_config,
    )
    return directory


def _model_arguments(model: Any) -> dict[str, Any]:
    """The arguments that the registry's twin needs beside those that timm records."""
    if not is_patched(model):
        raise ValueError("The model is not patched: call timm_neutreno.patch(model) first, or save it with timm.")
    name = (getattr(model, "pretrained_cfg", None) or {}).get("architecture")
    if not name or not timm.is_model(name):
        raise ValueError(
            f"Cannot save {type(model).__name__}: its architecture {name!r} is not a registered NeuTRENO model, so "
            "timm.create_model could not build it again. Save its state_dict() instead."
        )
    if not hasattr(model, "num_classes"):
        raise ValueError(
            f"Cannot save {type(model).__name__}: it wraps a model (features_only); timm saves only the model itself."
        )
    holders = [holder for owner in find_layers(model) for holder in fidelity_holders(owner)]
    learnable = model._model_args["learnable_fidelity"]
    if learnable:
        return {"learnable_fidelity": learnable, "fidelity": model._model_args["fidelity"]}
    values = {float(holder.fidelity) for holder in holders if not isinstance(holder.fidelity, torch.Tensor)}
    if len(values) != 1:
        raise ValueError(
            f"The layers have different fidelities ({sorted(values)}), which config.json cannot say. Use "
            "set_fidelity(model, value), or learnable_fidelity='layer' to have one per layer in the weights."
        )
    return {"learnable_fidelity": None, "fidelity": values.pop()}
