"""The mask transformer of Segmenter (Strudel et al. 2021, Sec. 3.2): classes and patches attend to each other.

Parameters have the official code's names, so that its checkpoints load (official.py).
"""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import trunc_normal_
from timm.models import checkpoint
from timm.models.vision_transformer import Block
from torch import Tensor, nn


class MaskTransformer(nn.Module):
    """From an encoder's patch tokens to a score of every class at every patch.

    Args:
        num_classes: K.
        encoder_dim: Channels of the encoder's tokens.
        dim: Channels of the decoder's own.
        depth: Blocks.
        num_heads: Of each block.
        dropout: Of attention maps, projections and MLPs.
        drop_path: Stochastic depth rate of the last block.
    """

    def __init__(
        self,
        num_classes: int,
        encoder_dim: int,
        dim: int,
        depth: int = 2,
        num_heads: int = 3,
        dropout: float = 0.1,
        drop_path: float = 0.0,
    ):
        super().__init__()
        self.num_classes = num_classes
        self.grad_checkpointing = False
        self.pretrained_cfg: dict[str, Any] = {}  # a module with one is where patch records its arguments
        self.proj_dec = nn.Linear(encoder_dim, dim)
        self.cls_emb = nn.Parameter(torch.zeros(1, num_classes, dim))
        self.blocks = nn.ModuleList(
            Block(
                dim, num_heads, qkv_bias=True, proj_drop=dropout, attn_drop=dropout, norm_layer=nn.LayerNorm,
                drop_path=drop_path * index / max(depth - 1, 1),
            )
            for index in range(depth)
        )  # fmt: skip
        self.decoder_norm = nn.LayerNorm(dim)
        self.proj_patch = nn.Parameter(dim**-0.5 * torch.randn(dim, dim))
        self.proj_classes = nn.Parameter(dim**-0.5 * torch.randn(dim, dim))
        self.mask_norm = nn.LayerNorm(num_classes)
        self.apply(_initialise)
        trunc_normal_(self.cls_emb, std=0.02)

    def forward_features(self, x: Tensor) -> Tensor:
        """Tokens (B, N, encoder_dim) -> normed tokens of patches, then of classes, (B, N + K, dim)."""
        x = torch.cat([self.proj_dec(x), self.cls_emb.expand(len(x), -1, -1)], dim=1)
        for block in self.blocks:
            x = checkpoint(block, x) if self.grad_checkpointing else block(x)
        return self.decoder_norm(x)

    def forward(self, x: Tensor) -> Tensor:
        """Feature map (B, encoder_dim, h, w) -> class scores (B, K, h, w).

        Scores are LayerNorm over classes of the cosine between a patch and a class (Eq. 3 of the paper; the norms are
        in the official code).
        """
        h, w = x.shape[-2:]
        tokens = self.forward_features(x.flatten(2).transpose(1, 2))
        patches, classes = tokens[:, : h * w] @ self.proj_patch, tokens[:, h * w :] @ self.proj_classes
        patches = patches / patches.norm(dim=-1, keepdim=True)
        classes = classes / classes.norm(dim=-1, keepdim=True)
        masks = self.mask_norm(patches @ classes.transpose(1, 2))
        return masks.transpose(1, 2).unflatten(2, (h, w))


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
