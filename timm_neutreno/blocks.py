"""How one block of timm runs with the first layer's values: where its attentions are and how the mixes reach them.

timm's own block forward runs, on a `BlockView` of the block whose `.attn` also passes the mix along. Nothing that was
made outside the call is changed, which is what checkpointing and torch.compile ask for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from timm.models import beit, cait, deepseek_vit, eva, gemma4_vit, vision_transformer, vision_transformer_relpos
from timm.models import vision_transformer_sam as sam
from torch import Tensor, nn

from .attention import FidelityMix, Mix, neutreno_attention
from .mlp import forward_in_place, is_unwatched
from .projections import RECIPES


class BlockView:
    """A block as timm's forward sees it: like the block, but calling `.attn` passes the mix along."""

    def __init__(self, block: Any, mix: Mix):
        if not torch.compiler.is_compiling():  # found without a detour over __getattr__, which costs as much as an op
            self.__dict__.update(block._modules)
            if is_unwatched(block._modules.get("mlp")):
                self.mlp = partial(forward_in_place, block.mlp)
        self.block = block
        self.attn = partial(block.attn, mix=mix)

    def __getattr__(self, name: str):
        return getattr(self.block, name)


class BlockKind(NamedTuple):
    attentions: Callable[[Any], list[Any]]
    run: Callable[..., Tensor]  # (block, timm_class, mixes, x, *args, **kwargs) -> output


def run_single(block, timm_class, mixes: Sequence[FidelityMix], x: Tensor, *args, **kwargs) -> Tensor:
    return timm_class.forward(BlockView(block, mixes[0]), x, *args, **kwargs)


def run_inline(block, timm_class, mixes: Sequence[FidelityMix], x: Tensor, *args, **kwargs) -> Tensor:
    return neutreno_attention(block, RECIPES[timm_class], mixes[0], x, *args, **kwargs)


def run_branches(
    block, timm_class, mixes: Sequence[FidelityMix], x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
) -> Tensor:
    """ParallelThingsBlock: each parallel attention stays close to the same branch of the first block."""
    branches = []
    for branch, mix in zip(block.attns, mixes, strict=True):
        y = branch.attn(branch.norm(x), attn_mask=attn_mask, is_causal=is_causal, mix=mix)
        branches.append(branch.drop_path(branch.ls(y)))
    x = x + torch.stack(branches).sum(dim=0)
    return x + torch.stack([ffn(x) for ffn in block.ffns]).sum(dim=0)


class WindowMix:
    """SAM: values travel as an image, (B, height, width, C), and every block cuts its own windows out of it.

    A padded position of a window has no first-layer value; it gets zeros. What it computes is cropped by timm.
    """

    def __init__(self, mix: FidelityMix, window_size: int, size: tuple[int, int]):
        self.mix = mix
        self.window_size = window_size
        self.size = size

    def __call__(self, u: Tensor, v: Tensor) -> Tensor:
        if self.mix.v0 is None:
            self.mix.record(self._to_image(v))
            return u
        return FidelityMix(self._to_windows(self.mix.v0, v.shape[1]), self.mix.holder)(u, v)

    def _to_image(self, v: Tensor) -> Tensor:
        tokens = v.transpose(1, 2).flatten(2)
        if not self.window_size:
            return tokens.unflatten(1, self.size)
        height, width = (side + -side % self.window_size for side in self.size)
        windows = tokens.unflatten(1, (self.window_size, self.window_size))
        return sam.window_unpartition(windows, self.window_size, self.size, (height, width))

    def _to_windows(self, image: Tensor, num_heads: int) -> Tensor:
        windows = sam.window_partition(image, self.window_size)[0] if self.window_size else image
        return windows.flatten(1, 2).unflatten(2, (num_heads, -1)).transpose(1, 2)


def run_windowed(block, timm_class, mixes: Sequence[FidelityMix], x: Tensor) -> Tensor:
    mix = WindowMix(mixes[0], block.window_size, (x.shape[1], x.shape[2]))
    return timm_class.forward(BlockView(block, mix), x)


SINGLE = BlockKind(lambda block: [block.attn], run_single)
INLINE = BlockKind(lambda block: [block], run_inline)
BRANCHES = BlockKind(lambda block: [branch.attn for branch in block.attns], run_branches)
WINDOWED = BlockKind(lambda block: [block.attn], run_windowed)

BLOCK_KINDS: dict[type[nn.Module], BlockKind] = {
    vision_transformer.Block: SINGLE,
    vision_transformer.ResPostBlock: SINGLE,
    vision_transformer.ParallelScalingBlock: INLINE,
    vision_transformer.DiffParallelScalingBlock: INLINE,
    vision_transformer.ParallelThingsBlock: BRANCHES,
    vision_transformer_relpos.RelPosBlock: SINGLE,
    vision_transformer_relpos.ResPostRelPosBlock: SINGLE,
    eva.EvaBlock: SINGLE,
    eva.EvaBlockPostNorm: SINGLE,
    beit.Block: SINGLE,
    cait.LayerScaleBlock: SINGLE,
    deepseek_vit.DeepseekVitBlock: SINGLE,
    gemma4_vit.Gemma4Block: SINGLE,
    sam.Block: WINDOWED,
}
