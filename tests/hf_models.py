"""Small models of transformers with random weights, built from configs: the table that tests/hf runs over."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import (
    Dinov2Config,
    Dinov2Model,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTForImageClassification,
)

SIZE = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 48}
IMAGE = {"image_size": 24, "patch_size": 8}
TEXT = {"vocab_size": 40, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "max_position_embeddings": 64}


class Model(NamedTuple):
    build: Callable[..., nn.Module]
    text: bool
    values: str  # the module of an attention that makes v, or q, k and v
    output: str  # the one after the heads are merged


def gpt2(**options):
    return GPT2LMHeadModel(GPT2Config(**{"n_embd": 32, "n_layer": 4, "n_head": 4, **TEXT, **options}))


def llama(**options):
    return LlamaForCausalLM(LlamaConfig(num_key_value_heads=2, **{**SIZE, **TEXT, **options}))


def vit(**options):
    return ViTForImageClassification(ViTConfig(**{**SIZE, **IMAGE, **options}))


def dinov2(**options):
    return Dinov2Model(Dinov2Config(**{**SIZE, **IMAGE, **options}))


def siglip(**options):
    return SiglipVisionModel(SiglipVisionConfig(**{**SIZE, **IMAGE, **options}))


MODELS = {
    "gpt2": Model(gpt2, True, "c_attn", "c_proj"),
    "llama": Model(llama, True, "v_proj", "o_proj"),  # 4 heads of queries on 2 of values
    "vit": Model(vit, False, "v_proj", "o_proj"),
    "dinov2": Model(dinov2, False, "v_proj", "o_proj"),
    "siglip": Model(siglip, False, "v_proj", "out_proj"),
}
TEXT_MODELS = [name for name, row in MODELS.items() if row.text]


def build(name: str, **options) -> nn.Module:
    """A model in eval mode and float64 with the same weights for the same options, larger than transformers' own, so
    that attention is not nearly uniform."""
    torch.manual_seed(0)
    model = MODELS[name].build(**options).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model


def inputs(name: str, batch: int = 2, tokens: int = 7) -> Tensor:
    """Token ids (B, N), or images (B, 3, 24, 24)."""
    generator = torch.Generator().manual_seed(1)
    if MODELS[name].text:
        return torch.randint(3, TEXT["vocab_size"], (batch, tokens), generator=generator)
    return torch.randn(batch, 3, 24, 24, generator=generator, dtype=torch.float64)


def output(model: nn.Module, x: Tensor, **kwargs) -> Tensor:
    """Logits, or the tokens of the last layer."""
    return model(x, **kwargs)[0]


def gradients(model: nn.Module, *xs: Tensor) -> dict[str, Tensor]:
    """By name, of the sum of squares of the outputs, one backward for all passes."""
    model.zero_grad()
    sum(output(model, x).square().sum() for x in xs).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
