"""A run so small that it can be killed, resumed and repeated many times: images, weights and the command line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import timm
import torch
from PIL import Image

ARCH = "vit_tiny_patch16_224"
SHAPE = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2}


def make(root: Path, train: int = 12, val: int = 7) -> tuple[Path, Path]:
    """Two classes that differ in colour, and untrained weights."""
    for part, count in (("train", train), ("val", val)):
        for channel, label in enumerate(("blue", "red")):
            (root / "images" / part / label).mkdir(parents=True)
            for index in range(count):
                generator = torch.Generator().manual_seed(1000 * channel + index + len(part))
                pixels = torch.randint(0, 200, (16, 16, 3), dtype=torch.uint8, generator=generator)
                pixels[..., 2 * (1 - channel)] += 40
                Image.fromarray(pixels.numpy()).save(root / "images" / part / label / f"{index}.jpg")
    torch.manual_seed(0)
    torch.save(timm.create_model(ARCH, num_classes=2, **SHAPE).state_dict(), root / "weights.pth")
    return root / "images", root / "weights.pth"


def command(images: Path, weights: Path, *options: object) -> list[str]:
    """`neutreno-adapt` on them, for two epochs of three steps."""
    shape = [part for key, value in SHAPE.items() for part in ("--model-kwargs", f"{key}={value}")]
    argv = ["neutreno-adapt", "--checkpoint", weights, "--arch", ARCH, *shape, "--data", images, "--epochs", 2,
            "--batch-size", 8, "--workers", 0, "--device", "cpu", "--lr", 1e-3, *options]  # fmt: skip
    return list(map(str, argv))


def in_a_process(argv: list[str], **environment: str) -> subprocess.Popen:
    """Start it as a user would, with one thread."""
    return subprocess.Popen(
        [sys.executable, "-m", "timm_neutreno_cli.main", *argv], text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )  # fmt: skip


def finish(process: subprocess.Popen, code: int = 0, timeout: float = 240) -> tuple[str, str]:
    """Its stdout and stderr, once it has ended with `code`."""
    out, err = process.communicate(timeout=timeout)
    assert process.returncode == code, f"exit code {process.returncode}, not {code}:\n{out}\n{err}"
    assert "Traceback" not in err, err
    return out, err


def make_masks(root: Path, train: int = 8, val: int = 5) -> tuple[Path, Path]:
    """Images with masks of three labels, which are columns of a colour, with a void seam; and untrained weights."""
    for part, count in (("train", train), ("val", val)):
        for kind in ("images", "annotations"):
            (root / "data" / kind / part).mkdir(parents=True)
        for index in range(count):
            generator = torch.Generator().manual_seed(index + 100 * len(part))
            mask = torch.arange(32).div(11, rounding_mode="floor").roll(5 * index).expand(24, 32).clone()
            pixels = torch.randint(0, 90, (24, 32, 3), dtype=torch.uint8, generator=generator)
            pixels += (mask * 70)[..., None].to(torch.uint8)
            mask[:, index % 7] = 255
            Image.fromarray(pixels.numpy()).save(root / "data" / "images" / part / f"{index}.png")
            Image.fromarray(mask.to(torch.uint8).numpy()).save(root / "data" / "annotations" / part / f"{index}.png")
    torch.manual_seed(0)
    torch.save(timm.create_model(ARCH, num_classes=2, **SHAPE).state_dict(), root / "weights.pth")
    return root / "data", root / "weights.pth"


def segmentation(data: Path, weights: Path, *options: object) -> list[str]:
    """`neutreno-adapt --task segmentation` on them, for two epochs of two steps."""
    return command(data, weights, "--task", "segmentation", "--ignore-label", 255, "--batch-size", 4, *options)
