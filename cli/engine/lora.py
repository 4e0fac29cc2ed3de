"""`--trainable lora`: adapters of low rank (Hu et al., arXiv 2106.09685) by PEFT, in place, until they are merged.

An adapted layer computes W x + B A x with W frozen; B starts at 0, so that the model starts as it was.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.models import get_model_input_config
from torch import nn

from ..config import Config
from ..errors import UsageError, one_line

TARGETS = ("attn.qkv", "attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.proj")  # ends of names, as PEFT takes them


def add(model: nn.Module, config: Config) -> None:
    """Give the layers of --lora-targets an adapter of --lora-rank; what else is trained stays as it was.

    The scale of B A is 1 (PEFT's alpha is the rank), and A is drawn from torch's seed.

    Raises:
        UsageError: If PEFT is not installed, no layer has such a name, or one cannot have an adapter.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ModuleNotFoundError as error:
        raise UsageError('--trainable lora needs PEFT: pip install "timm-neutreno[peft]".') from error
    trained = {id(parameter): parameter.requires_grad for parameter in model.parameters()}
    assert config.lora_rank is not None  # resolved
    rank, targets = config.lora_rank, [*(config.lora_targets or TARGETS)]
    try:
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=targets), model)
    except ValueError as error:  # no such layer, or one of a kind that PEFT does not know
        raise UsageError(f"--lora-targets {', '.join(targets)}: {one_line(error)[:200]}") from error
    for parameter in model.parameters():  # PEFT froze all but its own, learned strengths too
        parameter.requires_grad_(trained.get(id(parameter), True))
    for layer in adapted(model).values():
        if not trained[id(layer.base_layer.weight)]:  # unused, as the query of symmetric attention is
            layer.requires_grad_(False)
    _check_called(model)


def adapted(model: nn.Module) -> dict[str, Any]:
    """PEFT's layers by dotted name."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {name: layer for name, layer in model.named_modules() if isinstance(layer, BaseTunerLayer)}


@torch.no_grad()
def _check_called(model: Any) -> None:
    """Refuse adapters that would do nothing: where timm adds a bias by itself it reads the weight past the layer."""
    called, hooks = set(), []
    for name, layer in adapted(model).items():
        hooks.append(layer.register_forward_pre_hook(lambda *_, name=name: called.add(name)))
    training = model.training
    weight = next(model.parameters())
    try:
        model.eval()(
            torch.zeros(1, *get_model_input_config(model)["input_size"], device=weight.device, dtype=weight.dtype)
        )
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    if passed_over := [name for name in adapted(model) if name not in called]:
        raise UsageError(
            f"--trainable lora: timm reads the weight of {passed_over[0]} without calling the layer, so an adapter "
            "there would do nothing. Name other layers, such as --lora-targets attn.proj --lora-targets mlp.fc1."
        )


def merge(model: Any) -> None:
    """W + B A in place of the adapted layers: the model is an ordinary one again, in its own classes and names."""
    for name, layer in adapted(model).items():
        layer.merge()
        model.set_submodule(name, layer.get_base_layer())
    model.__dict__.pop("peft_config", None)
