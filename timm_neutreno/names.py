"""Names: a timm model and its `neutreno_*` twin, and what a patched model tells timm about itself."""

from __future__ import annotations

from typing import Any

from .methods import STRENGTHS

PREFIX = "neutreno_"
CONFIG_KEY = "timm_neutreno"  # in the config of a model of transformers: the arguments of timm_neutreno.hf.patch
METHOD_ARGUMENTS = ("method", "layers", *STRENGTHS, *(f"learnable_{strength}" for strength in STRENGTHS))


def neutreno_name(name: str) -> str:
    """The NeuTRENO twin of a timm name, with or without tag: "vit_x.tag" -> "neutreno_vit_x.tag"."""
    return name if name.startswith(PREFIX) else PREFIX + name


def base_name(name: str) -> str:
    """The timm name of a NeuTRENO twin: "neutreno_vit_x.tag" -> "vit_x.tag"."""
    return name.removeprefix(PREFIX)


def record_model_args(model: Any, arguments: dict[str, Any] | None) -> None:
    """Write the twin's name and arguments where timm's save_for_hf reads them; None takes them back.

    Without this, a patched model would be saved under its plain name and load without its methods, silently.

    Args:
        model: A timm model, or a module around one; one without a pretrained_cfg is left alone.
        arguments: `method`, `layers` and the options of the method, as `create_model` takes them.
    """
    cfg = getattr(model, "pretrained_cfg", None)
    if not isinstance(cfg, dict):
        return
    name = cfg.get("architecture")
    kept = {key: value for key, value in getattr(model, "_model_args", {}).items() if key not in METHOD_ARGUMENTS}
    rename = base_name if arguments is None else neutreno_name
    model.pretrained_cfg = model.default_cfg = {**cfg, "architecture": rename(name)} if name else cfg
    model._model_args = {**kept, **(arguments or {})}


def record_strengths(module: Any, values: dict[str, float]) -> None:
    """Keep the recorded arguments true after a strength was set."""
    for holder, key in ((module, "_model_args"), (getattr(module, "config", None), CONFIG_KEY)):
        arguments = getattr(holder, key, {})
        if known := {name: value for name, value in values.items() if name in arguments}:
            setattr(holder, key, {**arguments, **known})
