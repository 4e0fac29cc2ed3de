"""What the weights alone say about smoothing: the eigenvalues of H = W_V W_proj, layer by layer and head by head.

Source: Dovonon, Bronstein, Kusner, "Setting the Record Straight on Transformer Oversmoothing" (arXiv 2401.04301). In
its simplified layer, X <- X + A X H with fixed A and H, vec(X) is multiplied by a matrix with eigenvalues
1 + lambda_H lambda_A. If the largest of them has lambda_A = 1 (the eigenvector of constant tokens), repeating the layer
leaves the token mean alone: it smooths. Otherwise it does not.

Row vectors, x W; a torch weight is the transpose. LayerScale, which the paper's models do not have, scales the columns
of W_proj and belongs to it: trained ones turn many signs around. Biases, gates and norms in the attention are left out.
Shapes: C channels, H heads, D channels per head, N tokens.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..support import UnsupportedModelError, class_path
from .layers import find_attention_output, find_blocks, timm_class

IS_ONE = 1e-6  # how near to 1 an eigenvalue of A counts as the eigenvalue of constant tokens


class Spectrum(NamedTuple):
    """Of one layer.

    Attributes:
        layer: Eigenvalues of H, complex (C,), by falling real part.
        heads: Of each head's H_h, its D eigenvalues that are not always zero, complex (H, D); C - D more are zero.
        negative_gains: Share of negative weights in the norm before the attention; nan if it has no weights. In a
            pre-norm layer diag(gain) H takes the place of H, so a negative gain swaps smoothing and sharpening.
    """

    layer: Tensor
    heads: Tensor
    negative_gains: float


def value_and_output_weights(attention: nn.Module) -> tuple[Tensor, Tensor]:
    """W_V by head, (H, C, D), and W_proj by head, (H, D, C), in float64, for row vectors.

    Raises:
        UnsupportedModelError: If the module has no such weights.
    """
    qkv, v_proj = getattr(attention, "qkv", None), getattr(attention, "v_proj", None)
    output = getattr(attention, "proj", None) or getattr(attention, "o_proj", None)
    if output is None or (qkv is None and v_proj is None):
        raise UnsupportedModelError(
            f"cannot read W_V and W_proj of {class_path(attention)}: it has no qkv or v_proj, or no proj. Leave the "
            "spectra out for this model."
        )
    H = int(attention.num_heads)  # type: ignore[arg-type]
    v, output = _weight(v_proj) if qkv is None else _weight(qkv).chunk(3)[2], _weight(output).t()
    v = v.unflatten(0, (-1, len(output) // H))
    v = v.repeat_interleave(H // len(v), dim=0)  # grouped queries share their values
    return v.transpose(1, 2), output.unflatten(0, (H, -1))


def _weight(linear: Any) -> Tensor:
    """In float64. Gemma's linear layers hold another one, whose inputs they clip."""
    return getattr(linear, "linear", linear).weight.detach().double()


def update_matrices(block: nn.Module, layer: int = 0, *, fold_norm: bool = False) -> Tensor:
    """H_h = W_V,h W_proj,h of every head, (H, C, C) float64; their sum is the layer's H.

    Args:
        block: A block of a timm ViT, patched or not.
        layer: Its index, for messages.
        fold_norm: diag(g) H_h with g the weights of the norm before the attention, instead of H_h.

    Raises:
        UnsupportedModelError: If the weights are not to be found, or, with `fold_norm`, no norm with weights is before
            the attention.
    """
    value, output = value_and_output_weights(find_attention_output(block, layer))
    output = scaled(output, block)
    if fold_norm:
        gains = norm_gains(block)
        if gains is None:
            raise UnsupportedModelError(
                f"cannot fold the norm of blocks.{layer} ({class_path(block)}): it has no norm with weights before its "
                "attention. Use fold_norm=False."
            )
        value = gains.double()[:, None] * value
    return value @ output


def scaled(output: Tensor, block: nn.Module) -> Tensor:
    """W_proj by head, (H, D, C), with the block's LayerScale in its columns; as it is where there is none."""
    scale = getattr(block, "ls1", getattr(block, "ls", None))
    gamma = getattr(scale, "gamma", getattr(block, "gamma_1", None))
    return output if not isinstance(gamma, Tensor) else output * gamma.detach().to(output)


def norm_gains(block: nn.Module) -> Tensor | None:
    """The weights of the norm before the attention, (C,); None where there are none or the norm comes after."""
    is_post_norm = "Post" in timm_class(block).__name__
    weight = getattr(getattr(block, "norm1", None), "weight", None)
    return None if is_post_norm or not isinstance(weight, Tensor) else weight.detach()


def spectrum(model: nn.Module, *, fold_norm: bool = False) -> list[Spectrum]:
    """Eigenvalues of H = W_V W_proj of every layer and head, and the signs of the norms.

    Args:
        model: A timm ViT, patched or not.
        fold_norm: Take diag(g) H instead, with g the weights of the norm before the attention.

    Raises:
        ValueError: If a weight is not finite.
        UnsupportedModelError: As `update_matrices`.
    """
    spectra = []
    for layer, block in enumerate(find_blocks(model).blocks):
        matrices = update_matrices(block, layer, fold_norm=fold_norm)
        if not matrices.isfinite().all():
            raise ValueError(f"the attention weights of blocks.{layer} contain NaN or infinity; load other weights.")
        eigenvalues = torch.linalg.eigvals(matrices.sum(dim=0))
        gains = norm_gains(block)
        spectra.append(
            Spectrum(
                eigenvalues[eigenvalues.real.argsort(descending=True)].cpu(),
                _head_eigenvalues(block, layer, fold_norm).cpu(),
                float("nan") if gains is None else float((gains < 0).double().mean()),
            )
        )
    return spectra


def _head_eigenvalues(block: nn.Module, layer: int, fold_norm: bool) -> Tensor:
    """Those of the D x D matrix W_proj,h W_V,h: W_V,h W_proj,h, C x C, has the same ones and zeros."""
    value, output = value_and_output_weights(find_attention_output(block, layer))
    gains = norm_gains(block)
    if fold_norm and gains is not None:
        value = gains.double()[:, None] * value
    return torch.linalg.eigvals(scaled(output, block) @ value)


class Dominating(NamedTuple):
    """Where |1 + lambda_H lambda_A| is largest; tensors of the leading shape of the two spectra.

    Attributes:
        value: That 1 + lambda_H lambda_A.
        lambda_h: Its eigenvalue of H.
        lambda_a: Its eigenvalue of A.
        smooths: Whether lambda_A is 1 and the value grows: repeating the layer leaves the token mean alone.
    """

    value: Tensor
    lambda_h: Tensor
    lambda_a: Tensor
    smooths: Tensor


def dominating(eigenvalues_h: Tensor, eigenvalues_a: Tensor) -> Dominating:
    """The dominating eigenvalue of X <- X + A X H, of every pair of spectra in a batch.

    Args:
        eigenvalues_h: (..., n), real or complex. Of one head, add a zero if D < C: those directions stay as they are.
        eigenvalues_a: (..., m), likewise, of a matrix whose rows sum to 1.
    """
    h, a = eigenvalues_h.to(torch.complex128), eigenvalues_a.to(torch.complex128)
    update = (1 + h.unsqueeze(-1) * a.unsqueeze(-2)).flatten(-2)  # (..., n * m)
    index = update.abs().argmax(dim=-1, keepdim=True)
    value, m = update.gather(-1, index).squeeze(-1), a.shape[-1]
    lambda_h = h.expand(*update.shape[:-1], -1).gather(-1, index // m).squeeze(-1)
    lambda_a = a.expand(*update.shape[:-1], -1).gather(-1, index % m).squeeze(-1)
    constant = (lambda_a - 1).abs() < IS_ONE
    return Dominating(value, lambda_h, lambda_a, constant & (lambda_h.abs() > 0))


def dominating_eigenvalues(model: nn.Module, images: Tensor, *, fold_norm: bool = False) -> list[Dominating]:
    """The dominating eigenvalue of every layer, image and head, (B, H), with the model's own attention maps as A.

    Every head is looked at as a layer of its own (the papers' layer has one head): X <- X + A_h X H_h. Costs an
    eigenvalue problem of size N per image, layer and head: give few images.

    Raises:
        ValueError: As `attention_maps` and `spectrum`.
    """
    from .maps import attention_maps

    spectra = spectrum(model, fold_norm=fold_norm)
    result = []
    for layer, maps in zip(spectra, attention_maps(model, images), strict=True):
        zero = layer.heads.new_zeros(len(layer.heads), int(layer.heads.shape[1] < len(layer.layer)))
        heads = torch.cat([layer.heads, zero], dim=1)
        result.append(dominating(heads, torch.linalg.eigvals(maps.double())))
    return result
