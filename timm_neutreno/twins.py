"""Names: a timm model and its `neutreno_*` twin, and what a patched model tells timm about itself."""

from __future__ import annotations

from typing import Any

PREFIX = "neutreno_"


def twin_name(name: str) -> str:
    """The NeuTRENO twin of a timm name, with or without tag: "vit_x.tag" -> "neutreno_vit_x.tag"."""
    return name if name.startswith(PREFIX) else PREFIX + name


def base_name(name: str) -> str:
    """The timm name of a NeuTRENO twin: "neutreno_vit_x.tag" -> "vit_x.tag"."""
    return name.removeprefix(PREFIX)


def record_surgery(model: Any, fidelity: float | None, learnable_fidelity: str | None) -> None:
    """Write the twin's name and arguments where timm's save_for_hf reads them; with fidelity None, take them back.

    Without this, a patched model would be saved under its plain name and load without NeuTRENO, silently.
    """
    cfg = getattr(model, "pretrained_cfg", None)
    if not isinstance(cfg, dict):
        return
    name = cfg.get("architecture")
    arguments = dict(getattr(model, "_model_args", {}))
    if fidelity is None:
        arguments.pop("fidelity", None)
        arguments.pop("learnable_fidelity", None)
        rename = base_name
    else:
        arguments.update(fidelity=fidelity, learnable_fidelity=learnable_fidelity)
        rename = twin_name
    model.pretrained_cfg = model.default_cfg = {**cfg, "architecture": rename(name)} if name else cfg
    model._model_args = arguments


def record_fidelity(module: Any, fidelity: float) -> None:
    """Keep the recorded arguments true after set_fidelity."""
    arguments = getattr(module, "_model_args", {})
    if "fidelity" in arguments:
        module._model_args = {**arguments, "fidelity": fidelity}
