"""The table of small models, one row per supported attention or block class, that the cross-cutting tests run over."""

from __future__ import annotations

from typing import Any, NamedTuple

import timm
import torch
from torch import nn

import timm_neutreno
from timm_neutreno import METHODS

SMALL = dict(img_size=32, patch_size=8, embed_dim=48, num_heads=3, depth=4, num_classes=5)
ROPE = dict(SMALL, embed_dim=48)


class Host(NamedTuple):
    name: str  # in timm
    kwargs: dict[str, Any]
    calls_per_layer: int = 1  # of scaled_dot_product_attention; 0: the class calls none, or not on whole images
    drops: tuple[str, ...] = ("proj_drop_rate", "attn_drop_rate", "drop_path_rate")


HOSTS = {
    "vit": Host("vit_tiny_patch16_224", SMALL),
    "vit_norms": Host(
        "vit_tiny_patch16_224",
        dict(SMALL, qk_norm=True, scale_attn_norm=True, init_values=0.5, reg_tokens=2, global_pool="avg"),
    ),
    "vit_siglip": Host("vit_base_patch16_siglip_224", SMALL),
    "deit_distilled": Host("deit_tiny_distilled_patch16_224", SMALL),
    "res_post": Host("vit_base_patch16_rpn_224", SMALL),
    "parallel_scaling": Host("vit_base_patch16_xp_224", SMALL),
    "parallel_things": Host("vit_small_patch16_18x2_224", SMALL, calls_per_layer=2),
    "diff": Host("vit_dwee_patch16_reg1_gap_256", dict(SMALL, embed_dim=48), calls_per_layer=2),
    "diff_parallel": Host("vit_dpwee_patch16_reg1_gap_256", dict(SMALL, embed_dim=48), calls_per_layer=2),
    "eva02": Host("eva02_tiny_patch14_224", ROPE),
    "eva_clip_post_norm": Host("eva02_enormous_patch14_clip_224", ROPE),
    "dinov3": Host("vit_small_patch16_dinov3", ROPE),
    "rope": Host("vit_base_patch16_rope_224", ROPE),
    "rope_mixed": Host("vit_base_patch16_rope_mixed_224", ROPE),
    "sapiens2_gqa": Host(
        "vit_huge_patch16_sapiens2", dict(ROPE, num_heads=4, depth=6, num_kv_heads=(4, 2, 2, 1, 2, 4))
    ),
    "pe": Host("vit_pe_core_base_patch16_224", ROPE),
    "beit": Host("beit_base_patch16_224", SMALL),
    "rel_pos": Host("vit_relpos_small_patch16_224", SMALL),
    "rel_pos_res_post": Host("vit_relpos_base_patch16_rpn_224", SMALL),
    "cait": Host("cait_xxs24_224", SMALL, calls_per_layer=0),
    "deepseek": Host("deepseek_vit_412m", dict(SMALL), drops=()),
    "qwen3": Host("qwen3_vit_88m", dict(SMALL), drops=()),
    "gemma4": Host("gemma4_vit_167m", dict(SMALL), drops=()),
    "naflex": Host("naflexvit_base_patch16_gap", dict(SMALL)),
    "sam": Host("samvit_base_patch16_224", dict(SMALL, global_attn_indexes=(2,), window_size=3), calls_per_layer=0),
}

PLAIN = ("vit", "vit_norms", "deit_distilled")


def build(key: str, **overrides: Any) -> nn.Module:
    """The plain timm model of a row, in eval mode, with weights that make errors show."""
    host = HOSTS[key]
    model = timm.create_model(host.name, **{**host.kwargs, **overrides}).eval()
    return randomize(model)


def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Weights of order one everywhere: zero-initialised heads, biases and tiny layer scales would hide errors."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator, dtype=torch.float32).to(p.dtype)
            if p.ndim >= 2 and "embed" not in name and "token" not in name:
                p.copy_(noise * 1.4 / p[0].numel() ** 0.5)
            elif p.ndim >= 2:
                p.copy_(noise * 0.5)
            else:
                p.copy_(noise * 0.2 + (1.0 if name.endswith("weight") or "gamma" in name else 0.0))
    return model


def images(batch: int = 2, size: int = 32, seed: int = 1) -> torch.Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))


# --- methods --------------------------------------------------------------------------------------------------------

SINGLE = tuple(METHODS)
COMPOSED = (
    "neutreno+featscale",
    "gfsa+neutreno",
    "attnscale+neutreno",
    "twicing+value_residual",
    "neutreno+value_residual",
    "neutreno+symmetric",
    "gfsa+neutreno+kernel+symmetric+featscale",
)
NEED_V0 = tuple(spec for spec in (*SINGLE, *COMPOSED) if {"neutreno", "value_residual"} & set(spec.split("+")))

# what patch refuses, and nothing else: key of HOSTS -> methods
REFUSED = {
    "parallel_scaling": {"featscale"},
    "diff": {"kernel"},
    "diff_parallel": {"kernel", "featscale"},
    "cait": {"kernel"},
    "sam": {"attnscale", "featscale"},
}


def is_refused(key: str, spec: str) -> bool:
    return bool(REFUSED.get(key, set()) & set(spec.split("+")))


def patched(key: str, spec: str, learnable: bool = True, **overrides: Any) -> nn.Module:
    """A row of HOSTS with a method, whose strengths differ in every layer, head and channel."""
    return spread(timm_neutreno.patch(build(key, **overrides), spec, **learned(spec) if learnable else {}))


def learned(spec: str) -> dict[str, str]:
    """Options that make every strength learnable at its finest."""
    rows = [METHODS[name] for name in spec.split("+")]
    return {f"learnable_{strength}": row.learnable[-1] for row in rows for strength in row.strengths if row.learnable}


def spread(model: nn.Module) -> nn.Module:
    """Fill learnable strengths with numbers of order 0.3, all different; positive, so that sums do not cancel."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for value in timm_neutreno.strengths(model).values():
            if isinstance(value, nn.Parameter):
                value.copy_(torch.rand(value.shape, generator=generator) * 0.4 + 0.1)
    return model
