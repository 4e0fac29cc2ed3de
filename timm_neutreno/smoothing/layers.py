"""Where a model's layers are, and what comes out of them as tokens."""

from __future__ import annotations

import sys
from typing import NamedTuple

from torch import Tensor, nn

from ..blocks import BLOCKS
from ..support import UnsupportedModelError, class_path, find_vits


class Layers(NamedTuple):
    blocks: list[nn.Module]
    num_prefix_tokens: int  # class, distillation and register tokens: the first ones of every block's output
    only_blocks: bool = False  # whether nothing but the blocks' outputs, with all their tokens, can be measured


def of_transformers(model: nn.Module) -> bool:
    """Whether it is a model of transformers, which is not imported to find out."""
    transformers = sys.modules.get("transformers")
    return transformers is not None and isinstance(model, transformers.PreTrainedModel)


def find_blocks(model: nn.Module) -> Layers:
    """The transformer blocks of a ViT-like model, patched or not.

    Raises:
        UnsupportedModelError: If the model has no `blocks`, or several lists of them (a hierarchical model).
    """
    vits = find_vits(model)
    if not vits:
        raise UnsupportedModelError(
            f"cannot measure {class_path(model)}: it has no list of `blocks`, so there are no layers of tokens to "
            "compare. Give a timm ViT-like model; timm_neutreno.supported_models() lists them."
        )
    if len(vits) > 1:
        raise UnsupportedModelError(
            f"cannot measure {class_path(model)}: it has {len(vits)} groups of blocks, whose numbers of tokens "
            "differ, so its layers cannot be compared. Give an isotropic model, or measure one group of blocks alone."
        )
    vit = vits[0]
    enters_late = hasattr(vit, "blocks_token_only")  # CaiT's class token joins after these blocks
    blocks = list(vit.blocks)
    return Layers(blocks, 0 if enters_late else int(getattr(vit, "num_prefix_tokens", 0) or 0))


def find_outputs(model: nn.Module) -> Layers:
    """`find_blocks`, or the layers of a model of transformers. Errors as of `find_blocks`."""
    if find_vits(model) or not of_transformers(model):
        return find_blocks(model)
    from ..hf.layers import find_layers

    groups = find_layers(model)
    if len(groups) > 1:
        raise UnsupportedModelError(
            f"cannot measure {class_path(model)}: it has {len(groups)} lists of layers, whose tokens cannot be "
            "compared. Measure one of the models inside it alone, such as model.vision_model."
        )
    return Layers(groups[0].layers, 0, only_blocks=True)


def timm_class(module: nn.Module) -> type[nn.Module]:
    """The timm class of a module, which of a patched one is a parent."""
    return getattr(type(module), "timm_class", type(module))


def find_attention(block: nn.Module, layer: int) -> nn.Module:
    """The one attention module of a block; the block itself where attention is written inline.

    Raises:
        UnsupportedModelError: If the block has none, or several side by side.
    """
    kind = BLOCKS.get(timm_class(block))
    attentions = kind.attentions(block) if kind else [m for m in (getattr(block, "attn", None),) if m is not None]
    if len(attentions) != 1:
        what = "no attention module `attn`" if not attentions else f"{len(attentions)} attentions side by side"
        raise UnsupportedModelError(
            f"cannot measure the attention of blocks.{layer} ({class_path(block)}): it has {what}. "
            "Measure block outputs."
        )
    return attentions[0]


def find_attention_output(block: nn.Module, layer: int) -> nn.Module:
    """The attention module whose output is a tensor of its own.

    Raises:
        UnsupportedModelError: If the block has none, several, or computes attention and MLP in one sum.
    """
    attention = find_attention(block, layer)
    if attention is block:
        raise UnsupportedModelError(
            f"cannot measure the attention output of blocks.{layer} ({class_path(block)}): attention and MLP run side "
            "by side and come out as one sum. Measure block outputs."
        )
    return attention


def to_tokens(output: object, module: nn.Module, layer: int, num_prefix_tokens: int = 0) -> Tensor:
    """A block's or attention's output as tokens, (B, N, C), without its first `num_prefix_tokens`.

    Raises:
        UnsupportedModelError: If it is no tensor of tokens.
        ValueError: If fewer than two tokens are left.
    """
    if isinstance(output, tuple) and type(module).__module__.startswith("transformers."):
        output = output[0]
    # only SAM's blocks give (B, height, width, C); elsewhere four dimensions are a convolution's (B, C, height, width)
    is_image = isinstance(output, Tensor) and output.ndim == 4 and "sam" in timm_class(module).__module__
    if is_image:
        output = output.flatten(1, 2)  # type: ignore[attr-defined]
    if not isinstance(output, Tensor) or output.ndim != 3:
        shape = f"of shape {tuple(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
        raise UnsupportedModelError(
            f"cannot measure blocks.{layer} ({class_path(module)}): its output is {shape}, not tokens (B, N, C)."
        )
    tokens = output.detach()[:, num_prefix_tokens:]
    if tokens.shape[1] < 2:
        raise ValueError(
            f"blocks.{layer} has {tokens.shape[1]} token(s) to compare, and a similarity needs at least two. Use "
            'larger images or smaller patches, or tokens="all" to count the prefix tokens.'
        )
    return tokens
