"""Saving a patched model so that `timm.create_model("local-dir:...")` or `"hf-hub:..."` gives it back.

What config.json must keep, or repositories that exist stop loading: `architecture` (a registered `neutreno_*` name),
`num_classes`, `model_args` with the arguments of `patch` (without `method`: NeuTRENO), and timm's `pretrained_cfg`.
What it must not have, or transformers' TimmWrapper refuses it: a second `num_classes`, in `model_args`.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
from timm.models import save_for_hf
from torch import nn

from ..eigen import is_reparametrized
from ..methods import STRENGTHS
from ..names import METHOD_ARGUMENTS
from ..surgery import is_patched, strengths


def save_pretrained(
    model: nn.Module,
    directory: str | os.PathLike[str],
    *,
    data_config: dict[str, Any] | None = None,
    label_names: Sequence[str] | None = None,
    label_descriptions: Mapping[str, str] | None = None,
    tag: str | None = None,
) -> Path:
    """Write model.safetensors and config.json.

    `import timm, timm_neutreno; timm.create_model(f"local-dir:{directory}", pretrained=True)` reads them, and so does
    `transformers.AutoModelForImageClassification.from_pretrained(directory)` where timm_neutreno is imported.

    Args:
        model: A `neutreno_*` model, or a registered timm model after `patch`.
        directory: Made if missing; files of these two names in it are replaced.
        data_config: Preprocessing that the model was trained with (mean, std, crop_pct, interpolation, ...), if it is
            not the base model's.
        label_names: Class names by index, for inference widgets.
        label_descriptions: A longer text for each of these names.
        tag: Pretrained tag of the result, instead of the base model's.

    Returns:
        The directory.

    Raises:
        ValueError: If the model is not patched, is not one that `timm.create_model` can build, has adapters of PEFT,
            or its layers have different constant strengths.
    """
    directory = Path(directory)
    arguments = _model_arguments(model)
    model_config: dict[str, Any] = {"pretrained_cfg": {"tag": tag} if tag else {}}
    if label_names:
        model_config["label_names"] = list(label_names)
    if label_descriptions:
        model_config["label_descriptions"] = dict(label_descriptions)
    made_dense = model.register_state_dict_post_hook(_dense)
    try:
        save_for_hf(
            model,
            str(directory),
            model_config=model_config,
            model_args=arguments,
            safe_serialization=True,
            data_config=data_config,
        )
    finally:
        made_dense.remove()
    say_classes_once(directory / "config.json")
    # safetensors writes for its owner alone, but people share run directories
    shutil.copymode(directory / "config.json", directory / "model.safetensors")
    return directory


def say_classes_once(config: Path) -> None:
    """Leave `num_classes` at the root of a config.json alone, where timm looks first.

    timm writes it into `model_args` too. transformers' TimmWrapper hands `model_args` on beside a `num_classes` of its
    own, so that both would be a TypeError.
    """
    content = json.loads(config.read_text(encoding="utf-8"))
    if content.get("model_args", {}).pop("num_classes", None) is not None:
        config.write_text(json.dumps(content, indent=2), encoding="utf-8")


def _dense(module: nn.Module, state_dict: dict[str, Any], prefix: str, metadata: object) -> None:
    """safetensors refuses weights in another memory format, such as channels_last."""
    for name, value in state_dict.items():
        state_dict[name] = value.contiguous()


def _model_arguments(model: Any) -> dict[str, Any]:
    """The arguments that the registry's twin needs beside those that timm records."""
    if not is_patched(model):
        raise ValueError("The model is not patched: call timm_neutreno.patch(model) first, or save it with timm.")
    if any(layer.rpartition(".")[2] == "base_layer" for layer, _ in model.named_modules()):
        raise ValueError(
            "The model has adapters of PEFT, so that its weights have names that timm does not know. Save what "
            "peft_model.merge_and_unload() returns; save adapters alone with PEFT."
        )
    name = (getattr(model, "pretrained_cfg", None) or {}).get("architecture")
    if not name or not timm.is_model(name):
        raise ValueError(
            f"Cannot save {type(model).__name__}: its architecture {name!r} is not a registered NeuTRENO model, so "
            "timm.create_model could not build it again. Save its state_dict() instead."
        )
    if is_reparametrized(model):
        raise ValueError("The model's weights are reparametrized: fold(model), or a copy of it, before it is saved.")
    if not hasattr(model, "num_classes"):
        raise ValueError(
            f"Cannot save {type(model).__name__}: it wraps a model (features_only); timm saves only the model itself."
        )
    return patch_arguments(model)


def patch_arguments(model: Any) -> dict[str, Any]:
    """The arguments of `patch` that give a patched module its methods again, with the strengths that it has now.

    Raises:
        ValueError: If its layers have different constant strengths.
    """
    recorded = model._model_args
    arguments = {key: recorded[key] for key in METHOD_ARGUMENTS if key in recorded}
    for name in STRENGTHS:
        if name in recorded and not recorded[f"learnable_{name}"]:
            values = {float(value) for key, value in strengths(model).items() if key.rpartition(".")[2] == name}
            if len(values) > 1:
                raise ValueError(
                    f"The layers have different values of {name} ({sorted(values)}), which config.json cannot say. Use "
                    f"set_strengths(model, {name}=...), or learnable_{name}='layer' to have one per layer in the "
                    "weights."
                )
            arguments[name] = values.pop()
    return arguments
