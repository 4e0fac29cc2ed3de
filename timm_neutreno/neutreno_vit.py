"""The registry: a `neutreno_*` twin for every timm ViT that `patch` supports. Importing this module registers them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
from timm.models import load_state_dict, model_entrypoint, register_model
from timm.models._builder import resolve_pretrained_cfg
from timm.models._hub import load_state_dict_from_hf, load_state_dict_from_path
from timm.models._pretrained import DefaultCfg
from torch import Tensor, nn

from .methods import STRENGTHS, resolve
from .names import METHOD_ARGUMENTS, neutreno_name
from .surgery import patch

# timm modules whose models are isotropic ViTs made of supported classes
MODULES = (
    "vision_transformer", "deit", "vision_transformer_hybrid", "vitamin", "eva", "beit", "naflexvit",
    "vision_transformer_relpos", "vision_transformer_sam", "cait", "deepseek_vit", "qwen3_vit", "gemma4_vit",
)  # fmt: skip

ALIASES = {f"deit_{size}": f"deit_{size}_patch16_224" for size in ("tiny", "small", "base")}

__all__ = ["supported_models"]
default_cfgs: dict[str, DefaultCfg] = {}


def supported_models() -> list[str]:
    """The timm model names, without tags, that have a `neutreno_*` twin."""
    return timm.list_models(module=list(MODULES))


def _default_cfg(base: str) -> DefaultCfg:
    """The base model's pretrained cfgs, by tag: same weights, same preprocessing, same licence.

    They are read where timm's modules declare them, and shared: get_arch_pretrained_cfgs copies each one deeply, which
    for all twins takes longer than the rest of the import.
    """
    theirs = sys.modules[model_entrypoint(base).__module__].default_cfgs.get(base, DefaultCfg())
    cfgs = {}
    for tag, cfg in theirs.cfgs.items():
        if cfg.hf_hub_id == "timm/":  # timm completes it with the model's name: the base's, not the twin's
            cfg = replace(cfg, hf_hub_id=f"timm/{base}.{tag}" if tag else f"timm/{base}")
        cfgs[tag] = cfg
    return replace(theirs, cfgs=cfgs)


def _entrypoint(name: str, base: str) -> Callable[..., nn.Module]:
    def create(
        pretrained: bool = False, method: str = "neutreno", layers: Sequence[int] | None = None, **kwargs: Any
    ) -> nn.Module:
        options = {key: kwargs.pop(key) for key in METHOD_ARGUMENTS if key in kwargs}
        resolved = resolve(method, options)
        learned: dict[str, Tensor] = {}
        if pretrained and any(resolved[key] for key in resolved if key.startswith("learnable_")):
            learned = _take_learned_strengths(base, kwargs)
        model = model_entrypoint(base)(pretrained=pretrained, **kwargs)
        patch(model, method, layers=layers, **options)
        if learned:
            _load_learned_strengths(model, learned)
        return model

    create.__name__ = create.__qualname__ = name
    create.__doc__ = (
        f"NeuTRENO twin of timm's {base}: its parameters and weights, with `patch(model, method, layers, ...)` applied."
    )
    create.__module__ = __name__
    return create


def _is_strength(key: str) -> bool:
    return key.rpartition(".")[2] in STRENGTHS


def _take_learned_strengths(base: str, kwargs: dict[str, Any]) -> dict[str, Tensor]:
    """Split learned strengths off weights that we saved; timm's loader gets the rest, which fits the plain model."""
    cfg = resolve_pretrained_cfg(base, kwargs.get("pretrained_cfg"), kwargs.get("pretrained_cfg_overlay")).to_dict()
    cache_dir = kwargs.get("cache_dir")
    if cfg.get("source") == "hf-hub":
        weights = load_state_dict_from_hf(cfg["hf_hub_id"], weights_only=True, cache_dir=cache_dir)
    elif cfg.get("source") == "local-dir":
        weights = load_state_dict_from_path(Path(cfg["file"]))
    elif cfg.get("file"):
        weights = load_state_dict(cfg["file"])
    else:
        return {}  # the base model's own weights, which have none
    learned = {key: weights.pop(key) for key in list(weights) if _is_strength(key)}
    overlay = dict(kwargs.get("pretrained_cfg_overlay") or {}, source="", file=None, state_dict=weights)
    kwargs["pretrained_cfg_overlay"] = overlay
    return learned


def _load_learned_strengths(model: nn.Module, learned: dict[str, Tensor]) -> None:
    """Fill the model's strengths; features_only wraps the model and drops last blocks, so match from `blocks.` on."""
    saved = {key[key.index("blocks.") :]: value for key, value in learned.items()}
    own = {key[key.index("blocks.") :]: key for key in model.state_dict() if _is_strength(key)}
    if missing := sorted(set(own) - set(saved)):
        raise RuntimeError(
            f"The weights have no learned strength for {', '.join(missing)}. Create the model with the method, layers "
            "and learnable_<strength> that it was saved with."
        )
    model.load_state_dict({key: saved[suffix] for suffix, key in own.items()}, strict=False)


def _register(base: str, name: str) -> None:
    default_cfgs[name] = _default_cfg(base)
    globals()[name] = register_model(_entrypoint(name, base))


for _base in supported_models():
    _register(_base, neutreno_name(_base))
for _alias, _base in ALIASES.items():
    _register(_base, neutreno_name(_alias))
