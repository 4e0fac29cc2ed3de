"""Attention maps of a few images, to look at (plots.py draws them). NeuTRENO (arXiv 2312.00751), Fig. 4."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from .heads import Call
from .layers import find_attention, find_blocks
from .measure import evaluating, prepare


def attention_maps(model: nn.Module, images: Tensor) -> list[Tensor]:
    """The attention map of every layer, exactly, whatever path the model runs on.

    Args:
        model: A timm ViT, patched or not.
        images: (B, 3, height, width); keep B small, as all maps are returned.

    Returns:
        One float32 tensor on the CPU per layer, (B, H, N, N): row i is what token i attends to, and sums to 1 where the
        class has plain softmax attention.

    Raises:
        ValueError: If `images` is no batch of images.
        UnsupportedModelError: If the model's attention is of an unknown class.
    """
    maps: list[Tensor] = []
    batch = prepare(model, images)
    handles = []
    try:
        for layer, block in enumerate(find_blocks(model).blocks):
            attention = find_attention(block, layer)
            handles.append(attention.register_forward_pre_hook(partial(_keep_map, maps), with_kwargs=True))
        with evaluating(model):
            model(batch)
    finally:
        for handle in handles:
            handle.remove()
    return maps


def _keep_map(maps: list[Tensor], module: nn.Module, args: tuple, kwargs: dict) -> None:
    maps.append(Call(module, args, kwargs).weights.float().cpu())
