"""patch and unpatch for models of transformers: attributes and hooks, no class and no code of theirs is changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from ..methods import METHODS, canonical, resolve, split
from ..names import CONFIG_KEY
from ..projections import query_parameters
from ..support import UnsupportedModelError, class_path
from ..surgery import check_layers, has_methods, is_patched
from . import attention as hooks
from .layers import Layers, drops_keywords, find_layers, refuse

REFUSED = {"featscale": "acts after the output projection, and transformers' attention interface ends before it"}


def patch(
    model: PreTrainedModel, method: str = "neutreno", *, layers: Sequence[int] | None = None, **options: Any
) -> PreTrainedModel:
    """Give a model of transformers the attention of a method, in place. Weights and state_dict keys stay.

        hf.patch(model, fidelity=0.4)
        hf.patch(model, "neutreno+gfsa", fidelity=0.4, learnable_fidelity="head", layers=[-2, -1])

    The model's attention becomes SDPA with the methods around it, whatever it was. `model.save_pretrained(folder)`
    keeps the method and its strengths, and `hf.load(folder)` gives the model back.

    Args:
        model: A model of transformers; each of its lists of layers (a decoder, two towers) gets a v0 of its own.
        method: Names from METHODS joined by "+", without featscale.
        layers: Indices of the layers with attention where the methods act, negative ones from the end; None for all.
        **options: As `timm_neutreno.patch` takes them: `fidelity=0.4`, `learnable_fidelity="head"`, ...

    Returns:
        The model.

    Raises:
        UnsupportedModelError: If the model or the method cannot be used; the model is left as it was.
        ValueError: If an option is unknown or has no allowed value, no layer is left, or the model is patched already.
    """
    method, resolved = canonical(method), resolve(method, options)
    if not isinstance(model, PreTrainedModel):
        raise UnsupportedModelError(
            f"timm_neutreno.hf.patch takes a model of transformers, got {class_path(model)}. Give the model itself, "
            "before torch.compile or another wrapper; timm_neutreno.patch takes models of timm."
        )
    if is_patched(model):
        raise ValueError("The model is patched already. Use timm_neutreno.set_strengths(), or hf.unpatch() first.")
    refuse(model, [f"(the model)  never with {name}: {REFUSED[name]}" for name in split(method) if name in REFUSED])
    groups = find_layers(model)
    needs_v0 = any(METHODS[name].needs_v0 for name in split(method))
    refuse(model, _problems(model, groups, needs_v0))
    depths = [sum(attention is not None for attention in group.attentions) for group in groups]
    chosen = [check_layers(layers, depth, method) for depth in depths]
    starts = [_starts(group, resolved) for group in groups]
    _set_implementation(model, groups)
    for group, indices, parameters in zip(groups, chosen, starts, strict=True):
        _patch_layers(group, split(method), indices, parameters)
    arguments = {"method": method, **({} if layers is None else {"layers": list(layers)}), **resolved}
    for config in _configs(model):
        config.attn_implementation = hooks.NAME  # into config.json: where nobody registered it, loading fails
        setattr(config, CONFIG_KEY, dict(arguments))
    return model


def _problems(model: PreTrainedModel, groups: list[Layers], needs_v0: bool) -> list[str]:
    """Why this model cannot be patched, a line each."""
    names = {module: name for name, module in model.named_modules()}
    lines = [
        f"{names[m] or '(the model)'}  {class_path(m)}  never: says that it cannot run with SDPA, which the methods use"
        for m in model.modules()
        if isinstance(m, PreTrainedModel) and not m._supports_sdpa and any(g.owner in set(m.modules()) for g in groups)
    ]
    for group in groups if needs_v0 else ():
        lines += drops_keywords(group, names)
    return lines


def _set_implementation(model: PreTrainedModel, groups: list[Layers]) -> None:
    """Let transformers call our function, and see that it will: where it cannot, it only warns."""
    before = _implementations(model.config)
    model.set_attn_implementation(hooks.NAME)
    attentions: list[Any] = [attention for group in groups for attention in group.attentions if attention is not None]
    if any(attention.config._attn_implementation != hooks.NAME for attention in attentions):
        model.set_attn_implementation(before)
        refuse(model, ["(the model)  not yet: transformers' set_attn_implementation does not reach its attentions"])
    model.implementation_before = before  # type: ignore[assignment]


def _implementations(config: PreTrainedConfig) -> dict[str, str]:
    """The attention implementation of a config and those inside it, as `set_attn_implementation` takes it."""
    inner = {key: getattr(config, key, None) for key in config.sub_configs}
    found = {"": config, **{key: value for key, value in inner.items() if value is not None}}
    return {key: c._attn_implementation if c._attn_implementation != hooks.NAME else "sdpa" for key, c in found.items()}


def _configs(model: PreTrainedModel) -> list[PreTrainedConfig]:
    """The configs that may be saved with a patched attention: the model's, and those of models inside it."""
    models = [m for m in model.modules() if isinstance(m, PreTrainedModel) and is_patched(m)]
    return list({id(m.config): m.config for m in models}.values())


def _starts(group: Layers, options: dict[str, Any]) -> dict[nn.Module, dict[str, float | nn.Parameter]]:
    """By attention, the strengths that `options` asks for: numbers, or parameters on its device and in its dtype."""
    starts: dict[nn.Module, dict[str, float | nn.Parameter]] = {}
    for attention in filter(None, group.attentions):
        weight = next(p for p in attention.parameters() if p.is_floating_point())
        starts[attention] = {}
        for name, value in options.items():
            if name.startswith("learnable_"):
                continue
            if learnable := options[f"learnable_{name}"]:
                size = _num_heads(attention, name) if learnable == "head" else 1
                value = nn.Parameter(torch.full((size,), value, device=weight.device, dtype=weight.dtype))
            starts[attention][name] = value
    return starts


def _num_heads(attention: Any, strength: str) -> int:
    if strength == "value_residual" and getattr(attention, "num_key_value_groups", 1) > 1:
        raise ValueError(
            "learnable_value_residual='head' has no meaning here: several heads of queries share a head of values. Use "
            "learnable_value_residual='layer'."
        )
    own = getattr(attention, "num_heads", None) or getattr(attention, "num_attention_heads", None)
    return own or attention.config.num_attention_heads


def _patch_layers(group: Layers, names: tuple[str, ...], indices: set[int], starts: dict[nn.Module, Any]) -> None:
    needs_v0 = any(METHODS[name].needs_v0 for name in names)
    handles, index = [], 0
    attention: Any
    for layer, attention in zip(group.layers, group.attentions, strict=True):
        hook = hooks.leave
        if attention is not None:
            here = tuple(n for n in names if index in indices and (index or not METHODS[n].needs_v0))
            takes = any(METHODS[name].needs_v0 for name in here)
            _patch_attention(attention, here, starts[attention])
            attention.gives_v0, attention.takes_v0 = needs_v0 and index == 0, takes
            hook = hooks.give if attention.gives_v0 else hooks.take if takes else hooks.leave
            if attention.gives_v0:
                handles.append(layer.register_forward_hook(hooks.given, with_kwargs=True))
            if attention.gives_v0 or takes:
                handles.append(attention.register_forward_pre_hook(hooks.enter, with_kwargs=True))
                handles.append(attention.register_forward_hook(hooks.finish, always_call=True))
            index += 1
        if needs_v0:
            handles.append(layer.register_forward_pre_hook(hook, with_kwargs=True))
    if needs_v0:
        handles.append(group.owner.register_forward_pre_hook(hooks.begin, with_kwargs=True))
    group.owner.neutreno_hooks = handles  # type: ignore[assignment]


def _patch_attention(attention: Any, names: tuple[str, ...], strengths: dict[str, Any]) -> None:
    attention.methods = names
    for name in names:
        for strength in METHODS[name].strengths:
            setattr(attention, strength, strengths[strength])
    if "symmetric" in names:  # unused from here on: DistributedDataParallel asks for a gradient of what can have one
        attention.frozen = tuple(name for name, p in query_parameters(attention).items() if p.requires_grad)
        for name in attention.frozen:
            attention.get_parameter(name).requires_grad_(False)


def unpatch(model: PreTrainedModel) -> PreTrainedModel:
    """Undo `patch`: the model computes as before, with the attention implementation that it had. Learned strengths are
    dropped.

    Raises:
        ValueError: If the model is not patched.
    """
    if not isinstance(model, PreTrainedModel) or not is_patched(model):
        raise ValueError("The model is not patched: call timm_neutreno.hf.patch(model).")
    for config in _configs(model):
        delattr(config, CONFIG_KEY)
        del config.attn_implementation
    for module in model.modules():
        for handle in module.__dict__.pop("neutreno_hooks", ()):
            handle.remove()
        if has_methods(module):
            _unpatch_attention(module)
    model.set_attn_implementation(model.__dict__.pop("implementation_before", "sdpa"))
    return model


def _unpatch_attention(attention: Any) -> None:
    for name in attention.methods:
        for strength in METHODS[name].strengths:
            delattr(attention, strength)
    for name in attention.__dict__.pop("frozen", ()):
        attention.get_parameter(name).requires_grad_(True)
    del attention.methods, attention.gives_v0, attention.takes_v0
