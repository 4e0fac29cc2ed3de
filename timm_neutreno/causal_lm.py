"""A causal language model of timm's blocks, made so that `patch` can give it the attention of a method.

The language model of the NeuTRENO paper's Table 3, and nothing beyond it: no cache of keys and values, no generation.
For those take a model of transformers.

    lm = CausalLM(267_735, post_norm=True, act_layer="relu", drop_rate=0.1, cutoffs=(20_000, 40_000, 200_000))
    timm_neutreno.patch(lm, fidelity=0.4)
    lm(tokens, targets).mean().backward()

Shapes: B texts, N tokens, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import get_act_layer
from timm.models import checkpoint
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from .blocks import PostNormBlock
from .smoothing.measure import evaluating


class CausalLM(nn.Module):
    """Token and position embeddings, timm's blocks called causally, and a head with the embedding's own weights.

    The default sizes are the paper's. Its layers are the post-norm ones (`post_norm=True`); embeddings are scaled by
    sqrt(C) and positions are sinusoids, as in Vaswani et al., "Attention Is All You Need", 2017,
    https://arxiv.org/abs/1706.03762. Unlike the authors' code, attention's output projection has a bias.

    Args:
        vocabulary: Number of tokens that there are.
        dim: Channels, C; even.
        depth: Number of blocks.
        num_heads: Heads of each block; must divide `dim`.
        context: Most tokens of one text in a call.
        mlp_ratio: Width of the feed-forward layers over `dim`.
        post_norm: The norm comes after each sum, and there is none at the end; False for timm's pre-norm blocks.
        act_layer: timm's name of the activation.
        drop_rate: Dropout of embeddings, of every block's two branches, and of what the head gets.
        attn_drop_rate: Dropout of attention weights.
        cutoffs: Token ids, in rising order, at which torch's adaptive softmax starts a new cluster; ids must then be in
            the order of how frequent the tokens are. Empty for one softmax over all.

    Raises:
        ValueError: If `dim` is odd or not a multiple of `num_heads`.
    """

    positions: Tensor
    is_causal = True  # read by support.py: methods that average over all tokens are refused

    def __init__(
        self,
        vocabulary: int,
        dim: int = 128,
        depth: int = 16,
        num_heads: int = 8,
        context: int = 256,
        *,
        mlp_ratio: float = 16.0,
        post_norm: bool = False,
        act_layer: str = "gelu",
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        cutoffs: Sequence[int] = (),
    ):
        super().__init__()
        if dim % num_heads or dim % 2:
            raise ValueError(f"dim must be even and a multiple of num_heads={num_heads}, got {dim}.")
        self.vocabulary, self.dim, self.context = vocabulary, dim, context
        self.grad_checkpointing = False
        self.embed = None if cutoffs else nn.Embedding(vocabulary, dim)
        self.softmax = nn.AdaptiveLogSoftmaxWithLoss(dim, vocabulary, cutoffs, div_value=1.0) if cutoffs else None
        self.register_buffer("positions", sinusoids(context, dim), persistent=False)
        self.drop = nn.Dropout(drop_rate)
        block = PostNormBlock if post_norm else Block
        self.blocks = nn.ModuleList(
            block(
                dim, num_heads, mlp_ratio, proj_drop=drop_rate, attn_drop=attn_drop_rate,
                act_layer=get_act_layer(act_layer), norm_layer=nn.LayerNorm,
            )
            for _ in range(depth)
        )  # fmt: skip
        self.norm = nn.Identity() if post_norm else nn.LayerNorm(dim)
        self.init_weights()

    def init_weights(self) -> None:
        """Linear layers N(0, 0.02^2) with zero biases, as in the authors' code; what stands for tokens N(0, 1 / C).

        There the authors have 0.02 too, which times sqrt(C) is small beside the positions: learning starts late.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for module in self._rows():
            nn.init.normal_(module.weight, std=self.dim**-0.5)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Whether blocks recompute their activations in the backward pass."""
        self.grad_checkpointing = enable

    def _rows(self) -> list[Any]:
        """The layers whose rows stand for tokens; the last rows of the head of `softmax` stand for its clusters."""
        if self.softmax is None:
            return [self.embed]
        tail: Any = self.softmax.tail
        return [self.softmax.head, *(rows for _, rows in tail)]

    def embedding(self) -> Tensor:
        """What stands for each token at the input and at the output, (vocabulary, C)."""
        first, *tail = (module.weight for module in self._rows())
        return first if self.softmax is None else torch.cat([first[: self.softmax.shortlist_size], *tail])

    def forward_features(self, tokens: Tensor) -> Tensor:
        """(B, N) token ids -> what the head gets, (B, N, C). Errors as of `forward`."""
        if tokens.ndim != 2 or tokens.is_floating_point() or tokens.shape[1] > self.context:
            raise ValueError(
                f"tokens must be ids (B, N) with N at most context={self.context}, got {tuple(tokens.shape)} of "
                f"{tokens.dtype}. sliding_window_losses() takes a longer text."
            )
        x = F.embedding(tokens, self.embedding()) * self.dim**0.5
        x = self.drop(x + self.positions[: tokens.shape[1]])
        for block in self.blocks:  # by position: reentrant checkpoints take no keywords
            x = checkpoint(block, x, None, True) if self.grad_checkpointing else block(x, None, True)
        return self.drop(self.norm(x))

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> Tensor:
        """Scores of every next token, or how surprising given ones are.

        Args:
            tokens: Ids, (B, N) of an integer dtype.
            targets: (B, K): what follows each of the last K tokens.

        Returns:
            Without targets (B, N, vocabulary): logits; with `cutoffs` log-probabilities, which are logits too. With
            targets (B, K): -log p of each, in nats.

        Raises:
            ValueError: If `tokens` are no ids, or more than `context`, or `targets` are more than `tokens`.
        """
        x = self.forward_features(tokens)
        if targets is None:
            return self._logits(x.flatten(0, 1)).unflatten(0, tokens.shape)
        if targets.ndim != 2 or len(targets) != len(tokens) or targets.shape[1] > tokens.shape[1]:
            raise ValueError(
                f"targets must be (B, K), K at most N, for tokens {tuple(tokens.shape)}; got {tuple(targets.shape)}."
            )
        x = x[:, tokens.shape[1] - targets.shape[1] :].flatten(0, 1)
        return self._losses(x, targets.flatten()).unflatten(0, targets.shape)

    def _logits(self, x: Tensor) -> Tensor:
        """(M, C) -> (M, vocabulary)."""
        return F.linear(x, self.embedding()) if self.softmax is None else self._exactly(self.softmax.log_prob, x)

    def _losses(self, x: Tensor, targets: Tensor) -> Tensor:
        """(M, C), (M,) -> (M,)."""
        if self.softmax is None:
            return F.cross_entropy(self._logits(x), targets, reduction="none")
        return -self._exactly(self.softmax, x, targets).output

    def _exactly(self, call, x: Tensor, *args: Tensor):
        """torch's adaptive softmax writes into tensors of its input's dtype, which autocast makes another one."""
        with torch.autocast(x.device.type, enabled=False):
            return call(x.to(self.embedding().dtype), *args)


def sinusoids(length: int, dim: int) -> Tensor:
    """Positions 0 to length - 1, (length, dim): sines, then cosines, of wavelengths from 2 pi to 10,000 * 2 pi."""
    rates = 10_000 ** -(torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    angles = torch.arange(length, dtype=torch.float64)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1).float()


def sliding_window_losses(model: CausalLM, tokens: Tensor, *, stride: int = 1, batch_size: int = 32) -> Tensor:
    """How surprising each token of a text is, given the `context` tokens before it: exp of the mean is the perplexity.

    A window of `context` tokens moves on by `stride` and scores what follows its last `stride` tokens; the first window
    scores all of its own. At stride 1 every token but the first ones has a whole window before it: the paper's
    evaluation. A larger stride is as many times faster and gives some tokens less to go by, context - stride + 1 at
    least.

    Args:
        model: Patched or not; put into eval mode meanwhile.
        tokens: Ids of one text, (T,), T at least 2.
        stride: From 1 to `context`.
        batch_size: Windows at once.

    Returns:
        -log p of tokens 1 to T - 1, (T - 1,) float32 on the CPU, in nats.

    Raises:
        ValueError: If the text is too short, or the stride not in its range.
    """
    window = model.context
    if tokens.ndim != 1 or len(tokens) < 2 or not 1 <= stride <= window:
        raise ValueError(
            f"a text must be (T,) ids with T at least 2 and stride from 1 to context={window}, got "
            f"{tuple(tokens.shape)} and stride {stride}."
        )
    tokens = tokens.to(model.positions.device)
    before, after = tokens[:-1], tokens[1:]
    found = []
    with evaluating(model):
        found.append(model(before[None, :window], after[None, :window]).flatten())
        if len(before) >= window + stride:
            windows = before.unfold(0, window, stride)[1:]  # views
            scored = after[window:].unfold(0, stride, stride)
            pairs = zip(windows.split(batch_size), scored.split(batch_size), strict=True)
            found += [model(x, y).flatten() for x, y in pairs]
        if rest := max(len(before) - window, 0) % stride:
            found.append(model(before[None, -window:], after[None, -rest:]).flatten())
    return torch.cat(found).float().cpu()
