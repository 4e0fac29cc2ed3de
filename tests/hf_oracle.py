"""Slow, obvious methods on a separate, unpatched model of transformers: what timm_neutreno.hf is compared with.

- `projection_oracle` knows no attention: it sees what makes v and what takes the merged heads, token by token;
- `map_oracle` has every method's attention map as an explicit matrix.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from hf_models import MODELS
from reference import explicit_map
from torch import Tensor, nn


@contextmanager
def projection_oracle(model: nn.Module, name: str, fidelity: float) -> Iterator[None]:
    """Inside, every attention adds fidelity * (v0 - v) to the input of its output projection."""
    row = MODELS[name]
    attentions = [m for m in model.modules() if hasattr(m, row.values) and hasattr(m, row.output)]
    first: list[Tensor] = []
    handles = []
    for layer, attention in enumerate(attentions):
        groups = getattr(attention, "num_key_value_groups", 1)

        def on_values(module, args, v, layer=layer, attention=attention, groups=groups):
            if row.values == "c_attn":
                v = v[..., 2 * v.shape[-1] // 3 :]
            heads = v.unflatten(-1, (-1, attention.head_dim))
            attention.seen = torch.stack([heads] * groups, dim=-2).flatten(-3)  # each head of v, once per head of q
            if layer == 0:
                first[:] = [attention.seen]

        def on_output(module, args, layer=layer, attention=attention):
            return (args[0] + fidelity * (first[0] - attention.seen),) if layer else None

        handles.append(getattr(attention, row.values).register_forward_hook(on_values))
        handles.append(getattr(attention, row.output).register_forward_pre_hook(on_output))
    assert len(attentions) == 4
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def map_oracle(method: str, w: dict[str, float], depth: int = 4) -> Iterator[None]:
    """Inside, transformers' SDPA computes a method's formulas with strengths w in each of `depth` layers."""
    names, original, calls = tuple(method.split("+")), F.scaled_dot_product_attention, 0
    first: list[Tensor] = []

    def sdpa(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
        nonlocal calls
        layer, calls = calls, calls + 1
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
        if layer == 0:
            first[:] = [v]
        if is_causal:
            attn_mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril()
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            attn_mask = torch.zeros_like(attn_mask, dtype=q.dtype).masked_fill(~attn_mask, -torch.inf)
        A = explicit_map(names, w, q, k, q.shape[-1] ** -0.5 if scale is None else scale, attn_mask)
        if layer and "value_residual" in names:
            v = (1 - w["value_residual"]) * v + w["value_residual"] * first[0]
        u = A @ v
        if "xsa" in names:
            e = v / v.norm(dim=-1, keepdim=True)
            u = u - w["xsa"] * (u * e).sum(dim=-1, keepdim=True) * e
        if layer and "neutreno" in names:
            u = u + w["fidelity"] * (first[0] - v)
        return u

    F.scaled_dot_product_attention = sdpa
    try:
        yield
    finally:
        F.scaled_dot_product_attention = original
    assert calls == depth, f"the model called SDPA {calls} times"
