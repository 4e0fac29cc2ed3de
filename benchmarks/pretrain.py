"""A plain softmax ViT, trained from nothing on a folder of images by timm alone: what the fair table adapts."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import ImageDataset, create_loader
from timm.models import save_for_hf
from timm.utils import random_seed

from timm_neutreno.demo.pretrain import top1
from timm_neutreno.demo.pretrain import train as fit

INPUT: dict[str, Any] = {
    "input_size": (3, 32, 32),
    "interpolation": "bicubic",
    "mean": (0.4914, 0.4822, 0.4465),
    "std": (0.2470, 0.2435, 0.2616),
    "crop_pct": 1.0,
}  # CIFAR-10's
RECIPE: dict[str, Any] = {
    "lr": 1e-3,  # for a batch of 512, scaled to the batch
    "weight_decay": 0.05,
    "warmup_epochs": 5,
    "drop_path_rate": 0.1,
    "label_smoothing": 0.1,
    "scale": (0.35, 1.0),
    "color_jitter": 0.4,
    "auto_augment": "rand-m9-mstd0.5-inc1",
    "seed": 0,
}


def pretrain(
    data: Path, output: Path, shape: dict[str, Any], *, epochs: int, batch_size: int, workers: int, device: str,
    **recipe: Any,
) -> dict[str, Any]:  # fmt: skip
    """Train, save as timm saves models, and say how it went; a finished one is read.

    Args:
        data: With train/ and val/, each with a folder per class; val/ is measured at the end and decides nothing.
        output: Folder of the model: config.json, model.safetensors, and record.json, which this returns.
        shape: Arguments of timm's VisionTransformer.
        epochs: Passes over train/.
        batch_size: Images in a step.
        workers: Processes that load images.
        device: Such as "cpu"; on CUDA in bfloat16.
        recipe: Values that replace RECIPE's.
    """
    known = output / "record.json"
    asked = json.loads(json.dumps({**RECIPE, **recipe, "shape": shape, "epochs": epochs, "batch_size": batch_size}))
    if known.exists():
        record = json.loads(known.read_text())
        if any(record[name] != value for name, value in asked.items()):
            sys.exit(f"{output} was pretrained with other options. Give the same ones, or another --output.")
        return record
    random_seed(asked["seed"])
    common: dict[str, Any] = {
        "batch_size": batch_size, "num_workers": workers, "persistent_workers": workers > 0,
        "pin_memory": device.startswith("cuda"), "device": torch.device(device), **INPUT,
    }  # fmt: skip
    augmentation = {key: asked[key] for key in ("scale", "color_jitter", "auto_augment")}
    train = create_loader(ImageDataset(str(data / "train")), is_training=True, **augmentation, **common)
    val = create_loader(ImageDataset(str(data / "val")), **common)
    model = timm.create_model("vit_tiny_patch16_224", drop_path_rate=asked["drop_path_rate"], **shape).to(device)
    scaled = {"lr": asked["lr"] * batch_size / 512, "warmup_epochs": min(asked["warmup_epochs"], epochs // 4)}
    start = time.perf_counter()
    with torch.autocast(device.partition(":")[0], torch.bfloat16, enabled=device.startswith("cuda")):
        fit(model, train, {**asked, **scaled})
    record = {**asked, "top1": round(top1(model, val), 2), "seconds": round(time.perf_counter() - start)}
    base: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    model.pretrained_cfg = {**base, **INPUT, "num_classes": shape["num_classes"], "fixed_input_size": True}  # type: ignore[assignment]
    labels = sorted(path.name for path in (data / "train").iterdir())
    save_for_hf(
        model, str(output), model_args=shape, safe_serialization=True, model_config={"label_names": labels}
    )  # fmt: skip
    known.write_text(json.dumps(record, indent=1) + "\n")  # last: it says that the rest is whole
    return record
