"""Slow, obvious NeuTRENO on a separate, unpatched timm model: the oracle that our surgery is compared with.

Two independent ways to put fidelity * (v0 - v) after attention and before the heads are merged:
- `sdpa_oracle` wraps torch's scaled_dot_product_attention: it sees q, k, v of every layer, whatever class made them;
- `projection_oracle` hooks `qkv` and `proj` of attentions that call no SDPA (talking heads) or see windows (SAM).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

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


def set_fused(model: nn.Module, fused: bool) -> None:
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = fused
