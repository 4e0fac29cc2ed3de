"""What ADE20K with a Segmenter around DeiT-tiny costs: operations of single passes counted, nothing trained.

    python benchmarks/ade20k_cost.py

Prints the table of docs/segmentation.md, for the recipe `segmenter`. Tensors are on the device "meta", so that nothing
computes. timm_neutreno.cost.count counts a forward pass, elementwise operations included, a multiplication and an
addition as two. Forward and backward are in the ratio of their matrix products, which torch's FlopCounterMode counts.
"""

from __future__ import annotations

import torch
from timm_neutreno_cli.config import RECIPES
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from timm_neutreno import Segmenter, patch
from timm_neutreno.cost import count
from timm_neutreno.segmenter import MULTI_SCALE
from timm_neutreno.segmenter.inference import starts

TRAIN, VAL, CLASSES = 20_210, 2_000, 150
IMAGE = (512, 683)  # height and width of a val image, say: 3 to 4, its short side that of the window
FLOPS_PER_SECOND = (30e12, 10e12)  # assumptions: what a fast and a slow GPU reach with this model


def main() -> None:
    recipe = RECIPES["segmentation"]["segmenter"]
    side, batch, epochs = recipe["img_size"], recipe["batch_size"], recipe["epochs"]
    plain = segmenter(side)
    forward = count(plain, torch.empty(1, 3, side, side)).flops
    added = count(patch(segmenter(side)), torch.empty(1, 3, side, side)).flops - forward
    both = forward * backward_ratio(plain, side)
    steps = TRAIN // batch * epochs
    training = steps * batch * both
    single, several = (VAL * passes(plain, scales, side) for scales in ((1.0,), 2 * MULTI_SCALE))  # 2: mirrored too
    hours = " / ".join(f"{(training + epochs * single) / speed / 3600:.1f}" for speed in FLOPS_PER_SECOND)
    speeds = " / ".join(f"{speed / 1e12:.0f}" for speed in FLOPS_PER_SECOND)
    height, width = IMAGE
    windows = len(starts(height, side, side)) * len(starts(width, side, side))
    rows = {
        "parameters": f"{sum(p.numel() for p in plain.parameters()) / 1e6:.2f} M",
        f"FLOPs of a forward pass at {side} x {side}, {CLASSES} classes (1 MAC = 2 FLOPs)": f"{forward / 1e9:.1f} G",
        f"forward and backward, {both / forward:.2f} times that": f"{both / 1e9:.1f} G",
        f"steps: {TRAIN:,} / {batch} = {TRAIN // batch:,} an epoch, {epochs} epochs": f"{steps:,}",
        f"FLOPs of one arm: {steps:,} x {batch} x {both / 1e9:.1f} G": power(training),
        f"evaluation after every epoch: {VAL:,} images of {windows} windows ({width} x {height} pixels, say), "
        f"{epochs} times": power(epochs * single),
        f"GPU hours of one arm at {speeds} TFLOP/s (assumptions)": hours,
        f"multi scale at the end: {len(MULTI_SCALE)} scales, each mirrored too": power(several),
        "operations that NeuTRENO's term adds": f"{100 * added / forward:.3f} %",
    }
    print("| | |\n|---|---|\n" + "\n".join(f"| {what} | {value} |" for what, value in rows.items()))


def power(number: float) -> str:
    return f"{number:.1e}".replace("e+", "e")


def segmenter(side: int) -> Segmenter:
    return Segmenter("deit_tiny", CLASSES, encoder_args={"img_size": side}).to("meta")


def backward_ratio(model: Segmenter, side: int) -> float:
    """Matrix products of forward and backward over those of forward."""
    products = []
    for trained in (False, True):
        with torch.set_grad_enabled(trained), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            scores = model(torch.empty(1, 3, side, side, device="meta"))
            if trained:
                scores.sum().backward()
        products.append(counter.get_total_flops())
    return products[1] / products[0]


def passes(model: Segmenter, scales: tuple[float, ...], side: int) -> float:
    """FLOPs of the windows of one image at all scales; a window is as large as the image where that is smaller."""
    total = 0
    for scale in scales:
        height, width = (round(length * scale) for length in IMAGE)
        tall, wide = min(side, height), min(side, width)
        windows = len(starts(height, tall, side)) * len(starts(width, wide, side))
        total += windows * count(model, torch.empty(1, 3, tall, wide)).flops
    return total


if __name__ == "__main__":
    main()
