"""What can be patched, layer by layer, and why the rest cannot.

Look-up is by exact class: a subclass may have another forward, and is refused rather than guessed at.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from torch import nn

from .blocks import BLOCKS
from .methods import METHODS, canonical, split
from .projections import ATTENTIONS, AttentionSpec

HIERARCHICAL = "never: its feature maps change size between stages, so that the first layer's values fit no later layer"
NO_ATTENTION = "never: has no self-attention over tokens"
CAUSAL = "the model is causal, and a mean over all tokens would show each token the later ones"

# module of the model's class in timm -> why its models are refused, where no rule says it
FAMILIES = {
    "timm.models.xcit": "never: attends over channels, so that there is no attention over tokens to act on",
    "timm.models.crossvit": "not yet: two token sequences of different width take turns",
    "timm.models.tnt": "not yet: attention inside patches and attention over patches take turns",
    "timm.models.convit": "not yet: gated positional attention mixes two attention maps in its first layers",
}


class UnsupportedModelError(ValueError):
    """The model cannot be patched. The message lists every layer in question, with the reason."""


@dataclass(frozen=True)
class LayerSupport:
    """One layer's answer.

    Attributes:
        name: Dotted name in the model, "" for the model itself.
        class_path: Full path of the layer's class.
        supported: Whether the layer can be patched.
        reason: Why not; starts with "never" or "not yet". "" if supported.
    """

    name: str
    class_path: str
    supported: bool
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.name or '(the model)'}  {self.class_path}  {self.reason or 'supported'}"


def class_path(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def check_module(model: object) -> None:
    """Raise TypeError, with what to give instead, if it is no module."""
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"expected a model (torch.nn.Module), got {str(model)[:60]!r} of type {type(model).__name__}. A name goes "
            'to timm.create_model("neutreno_<name>"), or its result here.'
        )


def find_vits(model: nn.Module) -> list[Any]:
    """The outermost modules in `model` (itself included) that own a list of blocks."""
    check_module(model)
    vits: list[Any] = []
    inside: set[nn.Module] = set()
    for module in model.modules():
        # its own, or its class's: PEFT's wrappers answer getattr for the model inside
        blocks = module.blocks if hasattr(type(module), "blocks") else module._modules.get("blocks")
        if module not in inside and isinstance(blocks, nn.Sequential | nn.ModuleList) and len(blocks):
            vits.append(module)
            inside.update(module.modules())
    return vits


def check_support(model: nn.Module, method: str = "neutreno") -> list[LayerSupport]:
    """Say of every layer whether `patch(model, method)` can be applied. Touches nothing.

    Args:
        model: Any module.
        method: Names from METHODS joined by "+".

    Returns:
        One entry per attention layer or, for a model without layers of a known kind, one for the model.

    Raises:
        ValueError: If the method is unknown.
    """
    check_module(model)
    methods = split(method)
    wrapped = [(name, m, reason) for name, m in model.named_modules() if (reason := _known_wrapper(m))]
    if wrapped:
        return [LayerSupport(name, class_path(module), False, reason) for name, module, reason in wrapped]
    vits = find_vits(model)
    if not vits:
        return [LayerSupport("", class_path(model), False, _reason(model))]
    names = {module: name for name, module in model.named_modules()}
    entries = []
    for vit in vits:
        family = _family_around(vit, model)
        for block in vit.blocks:
            refused = [LayerSupport(names[block], class_path(block), False, family)]
            entries += refused if family else _check_block(block, vit, names, methods)
    return entries


def _family_around(vit: nn.Module, model: nn.Module) -> str:
    """Why the timm family that `vit` is a part of is refused: PiT's stages are made of plain ViT blocks."""
    for module in model.modules():
        reason = _family(module)
        if reason and any(inner is vit for inner in module.modules()):
            return reason
    return ""


def _family(module: nn.Module) -> str:
    """Why a model of timm is refused as a whole; "" if it is none, or not."""
    if reason := FAMILIES.get(type(module).__module__):
        return reason
    info = getattr(module, "feature_info", None)  # a list of dicts, or timm's FeatureInfo around one
    stages = getattr(info, "info", info)
    sizes = {stage.get("reduction") for stage in stages} if isinstance(stages, list) else set()
    return HIERARCHICAL if len(sizes) > 1 else ""


def _check_block(
    block: nn.Module, vit: nn.Module, names: dict[nn.Module, str], methods: tuple[str, ...]
) -> list[LayerSupport]:
    kind = BLOCKS.get(getattr(type(block), "timm_class", type(block)))
    if kind is None:
        return [LayerSupport(names[block], class_path(block), False, _reason(vit, block))]
    entries = []
    for attn in kind.attentions(block):
        spec = ATTENTIONS.get(getattr(type(attn), "timm_class", type(attn)))
        reason = _reason(vit, attn) if spec is None else _refusal(spec, methods, getattr(vit, "is_causal", False))
        entries.append(LayerSupport(names[attn], class_path(attn), not reason, reason))
    return entries


def _refusal(spec: AttentionSpec, methods: tuple[str, ...], is_causal: bool) -> str:
    """Why one of the methods cannot act on a known class; "" if all can."""
    for name in methods:
        row = METHODS[name]
        if is_causal and row.averages:
            return f"never with {name}: {CAUSAL}"
        for key in (name, row.acts_on, "averages" if row.averages else ""):
            if key in spec.refuses:
                return f"never with {name}: {spec.refuses[key]}"
    return ""


def _reason(vit: nn.Module, layer: nn.Module | None = None) -> str:
    """The family's reason, or what is unknown about the layer."""
    if layer is None and type(vit).__module__.startswith("transformers."):
        return "never here: a model of transformers; timm_neutreno.hf.patch(model) takes those"
    if layer is None:
        inside_timm = type(vit).__module__.startswith("timm.")  # a model of timm, or its wrapper around one
        families = [reason for module in vit.modules() if inside_timm and (reason := _family(module))]
        return families[0] if families else "not yet: has no `blocks` of a known class"
    known = [c for c in (*ATTENTIONS, *BLOCKS) if isinstance(layer, c)]
    if known:
        return f"not yet: a subclass of {known[0].__name__} may compute something else; only the exact class is known"
    return NO_ATTENTION if _has_no_attention(vit) else "not yet: how its values are made is not known"


def _has_no_attention(vit: nn.Module) -> bool:
    return not any("attn" in name.lower() or "attention" in name.lower() for name, _ in vit.named_modules())


def _known_wrapper(model: nn.Module) -> str:
    if hasattr(model, "_orig_mod"):
        return "not yet: is compiled; patch first, then torch.compile"
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return "not yet: is wrapped for several devices; patch first, then wrap (model.module is the model)"
    fsdp = sys.modules.get("torch.distributed.fsdp")  # torch may be built without; imported if anything is sharded
    if fsdp and isinstance(model, fsdp.FSDPModule):
        return "not yet: is sharded; patch first, then fully_shard"
    return ""


def check_patchable(model: nn.Module, method: str) -> None:
    """Raise `UnsupportedModelError`, naming every layer in question, if `patch(model, method)` cannot be applied."""
    entries = check_support(model, method)
    refused = [entry for entry in entries if not entry.supported]
    lines = [str(entry) for entry in refused]
    if len(entries) == 1 and not refused and all(METHODS[name].needs_v0 for name in split(method)):
        lines = ["(the model)  has a single attention layer, and the first is unchanged"]
    if not lines:
        return
    reasons = {entry.reason for entry in refused}
    if len(reasons) == 1 and len(lines) > 3:  # one cause: the first layers stand for all
        lines = [*lines[:2], f"({len(lines) - 2} more like this)"]
    raise UnsupportedModelError(
        f"cannot apply {canonical(method)} to {_model_name(model)}:\n"
        + "".join(f"  {line}\n" for line in lines)
        + "timm_neutreno.supported_models() lists the timm models that work; check_support(model) answers by layer."
    )


def _model_name(model: nn.Module) -> str:
    cfg = getattr(model, "pretrained_cfg", None)
    name = cfg.get("architecture") if isinstance(cfg, dict) else None
    return f"{name} ({class_path(model)})" if name else class_path(model)
