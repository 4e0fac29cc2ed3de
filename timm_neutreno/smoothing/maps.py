"""Attention maps of a few images, to look at. NeuTRENO (arXiv 2312.00751), Fig. 4."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from torch import Tensor, nn

from .heads import Call
from .layers import find_attention, find_blocks
from .measure import evaluating, prepare
from .plots import check_path, save_figure


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


def plot_attention_maps(
    maps: Sequence[Tensor],
    path: str | Path,
    *,
    layers: Sequence[int] | None = None,
    image: int = 0,
    heads: int = 3,
    title: str | None = None,
) -> None:
    """Plot maps as N x N pictures, a row per layer and a column per head; darker is less attention, each on its scale.

    Args:
        maps: What `attention_maps` returns.
        path: Where to write; the ending (.png, .svg, .pdf) is the format.
        layers: Indices from 0; None for the first, middle and last, as in Fig. 4.
        image: Index in the batch.
        heads: How many, from the first.
        title: Above the plot.

    Raises:
        ValueError: If a layer or image is not there, or the format is unknown.
    """
    from matplotlib.figure import Figure

    path = check_path(path)
    rows = [0, (len(maps) - 1) // 2, len(maps) - 1] if layers is None else list(layers)
    if not maps or any(not 0 <= row < len(maps) for row in rows) or not 0 <= image < len(maps[0]):
        raise ValueError(
            f"cannot plot layers {rows} of image {image}: there are {len(maps)} layers of maps; see attention_maps."
        )
    heads = min(heads, min(maps[row].shape[1] for row in rows))
    figure = Figure(figsize=(2.2 * heads, 2.3 * len(rows)), layout="constrained")
    for index, axes in enumerate(figure.subplots(len(rows), heads, squeeze=False).flat):
        row, head = rows[index // heads], index % heads
        axes.imshow(maps[row][image, head].numpy(), cmap="cividis", interpolation="nearest")
        axes.set_title(f"layer {row + 1}, head {head + 1}", fontsize=9)
        axes.set_xticks([])
        axes.set_yticks([])
    if title:
        figure.suptitle(title, fontsize=10)
    figure.supxlabel("attended token", fontsize=9)
    figure.supylabel("attending token", fontsize=9)
    save_figure(figure, path)
