"""Slow, obvious NeuTRENO on a separate, unpatched timm model: the oracle that our surgery is compared with.

Two independent ways to put fidelity * (v0 - v) after attention and before the heads are merged:
- `sdpa_oracle` wraps torch's scaled_dot_product_attention: it sees q, k, v of every layer, whatever class made them;
- `projection_oracle` hooks `qkv` and `proj` of attentions that call no SDPA (talking heads) or see windows (SAM).

`method_oracle` does the first for every method, with the attention map as an explicit matrix.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from timm_neutreno.support import find_vits


@contextmanager
def sdpa_oracle(fidelity: float, calls_per_layer: int, depth: int, parallel: bool = False, detach: bool = False):
    """Inside, SDPA adds the fidelity term. `parallel`: the calls of a layer are branches, each with a v0 of its own;
    otherwise they are parts of one output, and the term is added once, to the first. Later calls (pooling) are left."""
    original = F.scaled_dot_product_attention
    calls = 0
    first: dict[int, Tensor] = {}

    def sdpa(q, k, v, *args, **kwargs):
        nonlocal calls
        layer, part = divmod(calls, calls_per_layer)
        calls += 1
        u = original(q, k, v, *args, **kwargs)
        if layer == 0:
            first[part] = v.detach() if detach else v
        if layer == 0 or layer >= depth or (part and not parallel):
            return u
        return u + fidelity * (first[part] - v)

    F.scaled_dot_product_attention = sdpa
    try:
        yield
    finally:
        F.scaled_dot_product_attention = original
    assert calls >= depth * calls_per_layer, f"the model called SDPA {calls} times: the oracle saw nothing"


def window_rows(height: int, width: int, window: int) -> list[list[int]]:
    """SAM's windows, spelled out: for each window its token indices in the image, row by row; -1 where padded."""
    rows = []
    for top in range(0, height, window):
        for left in range(0, width, window):
            cells = [(y, x) for y in range(top, top + window) for x in range(left, left + window)]
            rows.append([y * width + x if y < height and x < width else -1 for y, x in cells])
    return rows


def _values_as_image(attn: nn.Module, qkv: Tensor, window: int, grid: tuple[int, int]) -> Tensor:
    """v of the first layer as (B, N, C) in image order."""
    C = qkv.shape[-1] // 3
    v = qkv[..., 2 * C :].reshape(qkv.shape[0], -1, C)
    if not window:
        return v
    rows = window_rows(*grid, window)
    image = torch.zeros(v.shape[0] // len(rows), grid[0] * grid[1], C, dtype=v.dtype)
    windows = v.reshape(-1, len(rows), window * window, C)
    for i, row in enumerate(rows):
        for j, token in enumerate(row):
            if token >= 0:
                image[:, token] = windows[:, i, j]
    return image


def _image_as_windows(image: Tensor, window: int, grid: tuple[int, int]) -> Tensor:
    if not window:
        return image
    padded = torch.cat([image, torch.zeros_like(image[:, :1])], dim=1)  # index -1 finds the zero row
    rows = torch.tensor(window_rows(*grid, window))
    return padded[:, rows].flatten(0, 1)


@contextmanager
def projection_oracle(model: nn.Module, fidelity: float, grid: tuple[int, int]) -> Iterator[None]:
    """Inside, every attention of the model's blocks adds the fidelity term to the input of its `proj`."""
    first: list[Tensor] = []
    handles = []
    for layer, block in enumerate(find_vits(model)[0].blocks):
        window = getattr(block, "window_size", 0)
        seen: list[Tensor] = []

        def on_qkv(attn, inputs, qkv, layer=layer, window=window, seen=seen):
            seen[:] = [qkv]
            if layer == 0:
                first[:] = [_values_as_image(attn, qkv, window, grid)]

        def on_proj(proj, inputs, layer=layer, window=window, seen=seen):
            (u,) = inputs
            if layer == 0:
                return None
            C = u.shape[-1]
            v = seen[0][..., 2 * C :].reshape(u.shape)
            return (u + fidelity * (_image_as_windows(first[0], window, grid).reshape(u.shape) - v),)

        handles.append(block.attn.qkv.register_forward_hook(on_qkv))
        handles.append(block.attn.proj.register_forward_pre_hook(on_proj))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def oracle(model: nn.Module, fidelity: float, calls_per_layer: int, detach: bool = False):
    """The oracle that fits the row of `hosts.HOSTS`."""
    owner = find_vits(model)[0]
    if calls_per_layer == 0:
        return projection_oracle(model, fidelity, tuple(owner.patch_embed.grid_size))
    parallel = hasattr(owner.blocks[0], "attns")
    return sdpa_oracle(fidelity, calls_per_layer, len(owner.blocks), parallel, detach)


def explicit_map(names: tuple[str, ...], w: dict[str, Tensor], q: Tensor, k: Tensor, scale: float, mask) -> Tensor:
    """The matrix that v is multiplied with, (B, H, N, N): the papers' maps, spelled out."""
    q = k if "symmetric" in names else q
    scores = scale * q @ k.transpose(-2, -1)
    if "kernel" in names:
        scores = -scale / 2 * torch.cdist(q, k, compute_mode="donot_use_mm_for_euclid_dist").square()
    A = (scores if mask is None else scores + mask).softmax(dim=-1)
    N = A.shape[-1]
    uniform, identity = torch.full((N, N), 1 / N, dtype=A.dtype), torch.eye(N, dtype=A.dtype)
    if "attnscale" in names:
        A = uniform + (1 + w["attnscale"]) * (A - uniform)
    if "gfsa" in names:
        A = A + w["gfsa"] * (A + 3 * (A @ A - A))
    if "twicing" in names:  # 2 A - A^2 at strength 1
        A = (1 - w["twicing"]) * A + w["twicing"] * (2 * A - A @ A)
    if "laplacian" in names:
        first = round(w["laplacian"] * A.shape[1])
        A = torch.cat([identity - A[:, :first], A[:, first:]], dim=1)
    return A


@contextmanager
def method_oracle(
    model: nn.Module, method: str, w: list[dict[str, Tensor]], calls_per_layer: int = 1, layers: set[int] | None = None
) -> Iterator[None]:
    """Inside, a plain model computes a method's formulas, one layer with the strengths w[layer].

    Args:
        model: A timm model whose attentions call SDPA.
        method: Names joined by "+".
        w: Per layer and strength a number or a tensor, (H, 1, 1) or (C,).
        calls_per_layer: Calls of SDPA in a layer: parallel branches, each with its own v0.
        layers: Where the methods act; None for everywhere.
    """
    names, original, depth = tuple(method.split("+")), F.scaled_dot_product_attention, len(w)
    calls, first = 0, {}

    def sdpa(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None):
        nonlocal calls
        layer, part = divmod(calls, calls_per_layer)
        calls += 1
        if layer == 0:
            first[part] = v
        if layer >= depth or (layers is not None and layer not in layers):
            return original(q, k, v, attn_mask=attn_mask, is_causal=is_causal, scale=scale)
        if is_causal:
            attn_mask = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).tril()
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            attn_mask = torch.zeros_like(attn_mask, dtype=q.dtype).masked_fill(~attn_mask, -torch.inf)
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        A = explicit_map(names, w[layer], q, k, scale, attn_mask)
        if layer and "value_residual" in names:
            share = w[layer]["value_residual"]
            v = (1 - share) * v + share * first[part]
        u = A @ v
        if "xsa" in names:
            e = v / v.norm(dim=-1, keepdim=True)
            u = u - w[layer]["xsa"] * (u * e).sum(dim=-1, keepdim=True) * e
        if layer and "neutreno" in names:
            u = u + w[layer]["fidelity"] * (first[part] - v)
        return u

    def scale_bands(module, inputs, y, layer):
        low = torch.ones(y.shape[1], y.shape[1], dtype=y.dtype) / y.shape[1] @ y  # the constant part: its DFT at 0
        return (1 + w[layer]["featscale_low"]) * low + (1 + w[layer]["featscale_high"]) * (y - low)

    handles = []
    for layer, block in enumerate(find_vits(model)[0].blocks):
        if "featscale" in names and (layers is None or layer in layers):
            for attn in [branch.attn for branch in block.attns] if hasattr(block, "attns") else [block.attn]:
                handles.append(attn.register_forward_hook(partial(scale_bands, layer=layer)))
    F.scaled_dot_product_attention = sdpa
    try:
        yield
    finally:
        F.scaled_dot_product_attention = original
        for handle in handles:
            handle.remove()
    assert calls >= depth * calls_per_layer, f"the model called SDPA {calls} times: the oracle saw nothing"


def set_fused(model: nn.Module, fused: bool) -> None:
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = fused
