"""How one block of timm runs with the first layer's values: where its attentions are and how a `Carry` reaches them.

timm's own block forward runs, on a `BlockView` of the block whose `.attn` also passes the carry along. Nothing that was
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

from .attention import Carry, run_attention
from .projections import ATTENTIONS


class PostNormBlock(vision_transformer.Block):
    """timm's block with the norm after each sum (Vaswani et al., 2017), for `CausalLM`: as in NeuTRENO's Table 3."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        x = self.norm1(x + self.drop_path1(self.ls1(self.attn(x, attn_mask=attn_mask, is_causal=is_causal))))
        return self.norm2(x + self.drop_path2(self.ls2(self.mlp(x))))


class BlockView:
    """A block as timm's forward sees it: like the block, but calling `.attn` passes the carry along."""

    def __init__(self, block: Any, carry: Carry):
        if not torch.compiler.is_compiling():  # found without a detour over __getattr__, which costs as much as an op
            self.__dict__.update(block._modules)
        self.block = block
        self.attn = partial(block.attn, carry=carry)

    def __getattr__(self, name: str):
        return getattr(self.block, name)


class BlockSpec(NamedTuple):
    """A row of BLOCKS.

    Attributes:
        attentions: The attention modules of a block, in order; the block itself where attention is inline.
        run: timm's forward with a carry for each attention, (block, timm_class, carries, x, *args, **kwargs) -> x.
    """

    attentions: Callable[[Any], list[Any]]
    run: Callable[..., Tensor]


def run_single(block, timm_class, carries: Sequence[Carry], x: Tensor, *args, **kwargs) -> Tensor:
    return timm_class.forward(BlockView(block, carries[0]), x, *args, **kwargs)


def run_inline(block, timm_class, carries: Sequence[Carry], x: Tensor, *args, **kwargs) -> Tensor:
    return run_attention(block, ATTENTIONS[timm_class], carries[0], x, *args, **kwargs)


def run_branches(
    block, timm_class, carries: Sequence[Carry], x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
) -> Tensor:
    """ParallelThingsBlock: each parallel attention gets the values of the same branch of the first block."""
    branches = []
    for branch, carry in zip(block.attns, carries, strict=True):
        y = branch.attn(branch.norm(x), attn_mask=attn_mask, is_causal=is_causal, carry=carry)
        branches.append(branch.drop_path(branch.ls(y)))
    x = x + torch.stack(branches).sum(dim=0)
    return x + torch.stack([ffn(x) for ffn in block.ffns]).sum(dim=0)


class WindowedCarry(Carry):
    """SAM: values travel as an image, (B, height, width, C), and every block cuts its own windows out of it.

    A padded position of a window has no first-layer value; it gets zeros. What it computes is cropped by timm.

    Args:
        carry: What the block was given.
        window_size: Side of the block's windows, in tokens; 0 where the block attends to the whole image.
        size: Height and width of the image, in tokens.
    """

    def __init__(self, carry: Carry, window_size: int, size: tuple[int, int]):
        super().__init__(carry.v0, carry.checkpoint)
        self.outer = carry
        self.window_size = window_size
        self.size = size

    def record(self, v: Tensor) -> None:
        self.outer.record(self._to_image(v))

    def first_values(self, v: Tensor) -> Tensor:
        image: Any = self.v0
        windows = sam.window_partition(image, self.window_size)[0] if self.window_size else image
        return Carry(windows.flatten(1, 2).unflatten(2, (v.shape[1], -1)).transpose(1, 2)).first_values(v)

    def _to_image(self, v: Tensor) -> Tensor:
        tokens = v.transpose(1, 2).flatten(2)
        if not self.window_size:
            return tokens.unflatten(1, self.size)
        height, width = (side + -side % self.window_size for side in self.size)
        windows = tokens.unflatten(1, (self.window_size, self.window_size))
        return sam.window_unpartition(windows, self.window_size, self.size, (height, width))


def run_windowed(block, timm_class, carries: Sequence[Carry], x: Tensor) -> Tensor:
    carry = WindowedCarry(carries[0], block.window_size, (x.shape[1], x.shape[2]))
    return timm_class.forward(BlockView(block, carry), x)


SINGLE = BlockSpec(lambda block: [block.attn], run_single)
INLINE = BlockSpec(lambda block: [block], run_inline)
BRANCHES = BlockSpec(lambda block: [branch.attn for branch in block.attns], run_branches)
WINDOWED = BlockSpec(lambda block: [block.attn], run_windowed)

BLOCKS: dict[type[nn.Module], BlockSpec] = {
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
    PostNormBlock: SINGLE,
}
