"""Corrupted images: blur, noise, contrast, JPEG and pixelation at stated strengths.

Formulas and strengths are those of ImageNet-C, severities 1, 3 and 5 (Hendrycks and Dietterich, ICLR 2019, arXiv
1903.12261, https://github.com/hendrycks/robustness). They were made for 224 pixels: the blur's width goes with the
root of the side, which at 32 pixels gives 0.4, 1.1 and 2.3, as CIFAR-10-C begins. All take and give (B, 3, H, W) in
[0, 1], float32.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.functional import gaussian_blur

from .order import derive_seed


def blur(x: Tensor, sigma: float, first: int) -> Tensor:
    """Gaussian blur of width sigma * sqrt(side / 224) pixels."""
    side = min(x.shape[-2:])
    sigma = sigma * math.sqrt(side / 224)
    reach = min(math.ceil(4 * sigma), side - 1)
    return gaussian_blur(x, [2 * reach + 1] * 2, [sigma] * 2)


def noise(x: Tensor, sigma: float, first: int) -> Tensor:
    """Gaussian noise of standard deviation sigma; that of an image depends on its place among the val images alone."""
    generators = (torch.Generator().manual_seed(derive_seed("noise", first + index)) for index in range(len(x)))
    return x + sigma * torch.stack([torch.randn(x.shape[1:], generator=each) for each in generators]).to(x)


def contrast(x: Tensor, factor: float, first: int) -> Tensor:
    """Every channel drawn to its mean: factor 1 is the image itself, 0 is grey."""
    mean = x.mean((2, 3), keepdim=True)
    return (x - mean) * factor + mean


def jpeg(x: Tensor, quality: float, first: int) -> Tensor:
    """Saved as JPEG of this quality, and read again."""
    return torch.stack([_through_jpeg(image, int(quality)) for image in x.cpu()]).to(x)


def _through_jpeg(image: Tensor, quality: int) -> Tensor:
    pixels, file = (image * 255).round().byte().permute(1, 2, 0).numpy(), io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1) / 255


def pixelate(x: Tensor, scale: float, first: int) -> Tensor:
    """Shrunk to this part of its width and height by means over areas, and enlarged again without interpolation."""
    small = [max(1, int(side * scale)) for side in x.shape[-2:]]
    return F.interpolate(F.interpolate(x, small, mode="area"), x.shape[-2:], mode="nearest-exact")


class Corruption(NamedTuple):
    change: Callable[[Tensor, float, int], Tensor]  # (images, strength, place of the first one among the val images)
    unit: str
    strengths: tuple[float, ...]


CORRUPTIONS = {
    "blur": Corruption(blur, "sigma in pixels, at 224", (1, 3, 6)),
    "noise": Corruption(noise, "standard deviation", (0.08, 0.18, 0.38)),
    "contrast": Corruption(contrast, "factor", (0.4, 0.2, 0.05)),
    "jpeg": Corruption(jpeg, "quality", (25, 15, 7)),
    "pixelate": Corruption(pixelate, "scale", (0.6, 0.4, 0.25)),
}


def corrupt(x: Tensor, name: str, strength: float, first: int) -> Tensor:
    """Apply one of `CORRUPTIONS`; the result is cut to [0, 1] and rounded to 8 bits, as in a file.

    Args:
        x: (B, 3, H, W) in [0, 1].
        name: Of `CORRUPTIONS`.
        strength: In its unit.
        first: Place of the first image among the val images.
    """
    return (CORRUPTIONS[name].change(x, strength, first).clamp(0, 1) * 255).round() / 255
