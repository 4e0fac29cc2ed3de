"""The frozen features of a batch: class token and patch tokens of some blocks, under the model's final norm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..support import find_vits
from .errors import FeatureError


class Tokens(NamedTuple):
    """The tokens of one block.

    Attributes:
        class_token: (B, C), or None in a model without one.
        patches: (B, height, width, C), the patch grid.
    """

    class_token: Tensor | None
    patches: Tensor


def find_vit(model: nn.Module) -> Any:
    """The timm ViT that a model is, or that is inside it.

    Raises:
        FeatureError: If there is none.
    """
    vits = find_vits(model)
    if not vits or not hasattr(vits[0], "forward_intermediates"):
        raise FeatureError(
            f"{type(model).__name__} has no blocks with forward_intermediates(), so it is no Vision Transformer of "
            "timm: give one."
        )
    return vits[0]


def check_image_size(model: nn.Module, height: int, width: int) -> None:
    """Raises FeatureError if the patches do not cover an image of this size, in pixels."""
    embed = getattr(find_vit(model), "patch_embed", None)
    patch = getattr(embed, "patch_size", None)
    if patch is None or getattr(embed, "dynamic_img_pad", False):
        return
    rows, columns = patch if isinstance(patch, tuple) else (patch, patch)
    if height % rows or width % columns:
        near = f"{max(rows, round(height / rows) * rows)} x {max(columns, round(width / columns) * columns)}"
        raise FeatureError(
            f"an image of {height} x {width} pixels cannot be cut into patches of {rows} x {columns}; "
            f"take a multiple, such as {near}."
        )


def extract(model: nn.Module, images: Tensor, blocks: Sequence[int]) -> dict[int, Tokens]:
    """Run the model once and take the tokens of several blocks.

    Args:
        model: A timm ViT in eval mode.
        images: (B, 3, height, width), on the model's device.
        blocks: Indices of blocks, each at least 0.

    Returns:
        Index of the block -> its tokens, float32 on the CPU, after the model's final norm (timm's own for intermediate
        features).

    Raises:
        FeatureError: If a feature is not finite.
    """
    vit = find_vit(model)
    kwargs: dict[str, Any] = {"indices": list(blocks), "norm": True, "intermediates_only": True}
    prefix = bool(getattr(vit, "num_prefix_tokens", 0)) and getattr(vit, "cls_token", None) is not None
    try:
        found = vit.forward_intermediates(images, **kwargs, **({"return_prefix_tokens": True} if prefix else {}))
    except TypeError as error:
        if "return_prefix_tokens" not in str(error):
            raise
        prefix = False  # CaiT's class token joins after the blocks
        found = vit.forward_intermediates(images, **kwargs)
    tokens = {}
    for block, item in zip(blocks, found, strict=True):
        grid, first = item if prefix else (item, None)
        patches = grid.permute(0, 2, 3, 1).float().cpu()
        class_token = None if first is None else first[:, 0].float().cpu()
        if not patches.isfinite().all() or (class_token is not None and not class_token.isfinite().all()):
            raise FeatureError(
                f"the features of blocks.{block} are not finite: the weights are damaged, or the strength too large."
            )
        tokens[block] = Tokens(class_token, patches)
    return tokens


@torch.no_grad()
def patch_similarity(tokens: Tokens) -> Tensor:
    """Mean cosine similarity of different patch tokens of each image, (B,) float64; see `smoothing.tokens`."""
    from ..smoothing.tokens import cosine_similarity

    return cosine_similarity(tokens.patches.flatten(1, 2))
