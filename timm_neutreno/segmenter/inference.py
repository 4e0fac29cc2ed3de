"""Images of any size: sliding windows, whose scores are averaged where they overlap, and several scales, mirrored.

After the official code of Segmenter (segm/model/utils.py): scores are averaged over windows, probabilities over scales.
It differs in one thing: an image smaller than the window is taken as it is, where the official code enlarges it, so
that its scales below 1 do nothing to images whose short side is the window's.

Shapes: B images, K classes, (H, W) an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

MULTI_SCALE = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)  # the paper's, each also mirrored
Size = tuple[int, int]


class OfWindows(Protocol):
    """What a Segmenter must tell: classes, the one size that it takes (or None), and its windows in pixels."""

    num_classes: int
    window: Size
    stride: Size

    @property
    def fixed_size(self) -> Size | None: ...

    def __call__(self, images: Tensor) -> Tensor: ...


def starts(length: int, window: int, stride: int) -> list[int]:
    """Where windows begin along one axis: every `stride` pixels, the last one at the end of the image."""
    return [*range(0, length - window, stride), length - window]


def slide(model: OfWindows, images: Tensor, window: Size, stride: Size, batch_size: int = 8) -> Tensor:
    """Class scores of windows, averaged where they overlap.

    Holds one map of all classes for the images, and the scores of `batch_size` windows.

    Args:
        model: Its forward gives scores for one window.
        images: (B, 3, H, W).
        window: Height and width in pixels; what an image has not is left out, or padded where the encoder takes one
            size only.
        stride: From one window to the next, down and to the right, in pixels; at most the window.
        batch_size: Windows in one forward pass.

    Returns:
        (B, K, H, W) float32.
    """
    if model.fixed_size:
        height, width = images.shape[-2:]
        below, right = max(window[0] - height, 0), max(window[1] - width, 0)
        if below or right:
            return slide(model, pad(images, (0, right, 0, below)), window, stride, batch_size)[..., :height, :width]
    (height, width), count = images.shape[-2:], len(images)
    tall, wide = min(window[0], height), min(window[1], width)
    tops, lefts = starts(height, tall, stride[0]), starts(width, wide, stride[1])
    places = [(top, left) for top in tops for left in lefts]
    if len(places) == 1:
        return model(images).float()
    at_once = max(1, batch_size // count)
    total = images.new_zeros((count, model.num_classes, height, width), dtype=torch.float32)
    for first in range(0, len(places), at_once):
        some = places[first : first + at_once]
        scores = model(torch.cat([images[..., y : y + tall, x : x + wide] for y, x in some]))
        for (top, left), own in zip(some, scores.split(count), strict=True):
            total[..., top : top + tall, left : left + wide] += own
    rows, columns = _cover(tops, tall, height), _cover(lefts, wide, width)
    return total.div_((rows[:, None] * columns).to(total.device))


def _cover(begins: Sequence[int], window: int, length: int) -> Tensor:
    """(length,): how many windows lie over each pixel of an axis."""
    counts = torch.zeros(length)
    for begin in begins:
        counts[begin : begin + window] += 1
    return counts


def logits(
    model: OfWindows,
    images: Tensor,
    *,
    size: Size | None = None,
    window: Size | None = None,
    stride: Size | None = None,
    batch_size: int = 8,
) -> Tensor:
    """Class scores at one scale, (B, K, *size).

    Args:
        model: In eval mode.
        images: (B, 3, H, W), normalised.
        size: Height and width of the result; None for the images' own.
        window: Height and width; None for the model's.
        stride: Step between windows; None for the model's.
        batch_size: Windows in one forward pass.

    Raises:
        ValueError: If the stride is larger than the window, so that pixels would be left out.
    """
    window, stride = window or model.window, stride or model.stride
    if not all(0 < step <= side for step, side in zip(stride, window, strict=True)):
        raise ValueError(f"a stride of {stride} pixels leaves gaps between windows of {window}: make it smaller.")
    scores = slide(model, images, window, stride, batch_size)
    return scores if size in (None, tuple(scores.shape[-2:])) else _resize(scores, size)


@torch.no_grad()
def predict(
    model: OfWindows,
    images: Tensor,
    *,
    size: Size | None = None,
    window: Size | None = None,
    stride: Size | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    batch_size: int = 8,
) -> Tensor:
    """Class probabilities, (B, K, *size), averaged over scales and, with `flip`, over mirror images.

    Args and errors as of `logits`; `scales` multiply height and width of the images, and MULTI_SCALE is the paper's.
    """
    size = size or (images.shape[-2], images.shape[-1])
    total: Tensor | None = None
    for scale in scales:
        height, width = (max(1, round(side * scale)) for side in images.shape[-2:])
        scaled = images if scale == 1 else _resize(images, (height, width))
        for mirrored in (False, True) if flip else (False,):
            seen = scaled.flip(-1) if mirrored else scaled
            scores = logits(model, seen, window=window, stride=stride, batch_size=batch_size)
            scores = scores.flip(-1) if mirrored else scores
            scores = scores if tuple(scores.shape[-2:]) == tuple(size) else _resize(scores, size)
            # softmax in place: a map of all classes is the largest thing here
            scores.sub_(scores.amax(1, keepdim=True)).exp_()
            scores.div_(scores.sum(1, keepdim=True))
            total = scores if total is None else total.add_(scores)
    assert total is not None, "scales is empty"
    return total.div_(len(scales) * (2 if flip else 1))


def _resize(images: Tensor, size: Size | None) -> Tensor:
    return interpolate(images, size=size, mode="bilinear", align_corners=False)
