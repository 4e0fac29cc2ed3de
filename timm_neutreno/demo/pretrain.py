"""Makes the embedded checkpoint from scratch: a plain softmax ViT on the digits' train split, in two minutes.

python -m timm_neutreno.demo.pretrain --output DIR     # compare with the one that is embedded
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import create_dataset, create_loader
from timm.models import save_for_hf
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import random_seed

from timm_neutreno.demo import digits
from timm_neutreno.smoothing import token_similarity

ARCHITECTURE = "vit_tiny_patch16_224"
MODEL_ARGS: dict[str, Any] = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 56,
    "depth": 12,
    "num_heads": 2,
    "num_classes": 10,
}
INPUT: dict[str, Any] = {
    "input_size": (3, 32, 32),
    "interpolation": "bicubic",
    "mean": (0.5,) * 3,
    "std": (0.5,) * 3,
    "crop_pct": 1.0,
}
RECIPE: dict[str, Any] = {
    "seed": 0,
    "epochs": 48,  # adapt takes a third of them
    "batch_size": 64,
    "optimizer": "adamw",
    "lr": 1e-3,
    "weight_decay": 0.05,
    "warmup_epochs": 5,
    "drop_path_rate": 0.1,
    "label_smoothing": 0.1,
    "scale": (0.7, 1.0),
    "ratio": (0.9, 1.1),
}


def loaders(root: Path, recipe: dict[str, Any] = RECIPE):
    """(train, val) loaders of normalised (B, 3, 32, 32) images and their classes."""
    device = torch.device("cpu")
    common: dict[str, Any] = {
        "batch_size": recipe["batch_size"],
        "num_workers": 0,
        "persistent_workers": False,
        "device": device,
    }
    train = create_loader(
        create_dataset("", str(root), split="train"), is_training=True, hflip=0.0, color_jitter=0.0,
        scale=recipe["scale"], ratio=recipe["ratio"], **INPUT, **common,
    )  # fmt: skip
    return train, create_loader(create_dataset("", str(root), split="val"), **INPUT, **common)


def train(model: torch.nn.Module, loader, recipe: dict[str, Any] = RECIPE) -> None:
    """The recipe, in place."""
    optimizer = create_optimizer_v2(model, opt="adamw", lr=recipe["lr"], weight_decay=recipe["weight_decay"])
    scheduler, _ = create_scheduler_v2(
        optimizer, "cosine", num_epochs=recipe["epochs"], warmup_epochs=recipe["warmup_epochs"], warmup_lr=1e-6,
        warmup_prefix=True, min_lr=1e-6, step_on_epochs=False, updates_per_epoch=len(loader),
    )  # fmt: skip
    criterion = torch.nn.CrossEntropyLoss(label_smoothing=recipe["label_smoothing"])
    step = 0
    for epoch in range(recipe["epochs"]):
        model.train()
        for images, targets in loader:
            loss = criterion(model(images), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            scheduler.step_update(step)
        print(f"epoch {epoch + 1}/{recipe['epochs']}  loss {loss.item():.3f}", file=sys.stderr, flush=True)


@torch.inference_mode()
def top1(model: torch.nn.Module, loader) -> float:
    """Per cent of the loader's images."""
    model.eval()
    hits = [(model(images).argmax(1) == targets).float() for images, targets in loader]
    return 100 * torch.cat(hits).mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the embedded checkpoint from scratch.")
    parser.add_argument("--output", type=Path, required=True, help="a new folder for model.safetensors, config.json")
    parser.add_argument("--epochs", type=int, default=RECIPE["epochs"])
    parser.add_argument("--seed", type=int, default=RECIPE["seed"])
    options = parser.parse_args()
    output = options.output
    if output.exists():
        parser.error(f"{output} exists; give a new folder")
    recipe = {**RECIPE, "epochs": options.epochs, "seed": options.seed}
    recipe["warmup_epochs"] = min(recipe["warmup_epochs"], recipe["epochs"] // 4)
    torch.set_num_threads(1)  # sums in one order: the same seed gives the same weights, whatever the machine's cores
    data = digits.write_digits()  # before seeding: writing them draws random numbers, and happens once only
    random_seed(recipe["seed"])
    train_loader, val_loader = loaders(data, recipe)
    model = timm.create_model(ARCHITECTURE, drop_path_rate=recipe["drop_path_rate"], **MODEL_ARGS)
    train(model, train_loader, recipe)
    accuracy, similarity = top1(model, val_loader), token_similarity(model, val_loader)

    cfg = {**INPUT, "num_classes": 10, "fixed_input_size": True, "tag": "digits", "license": "apache-2.0"}
    base: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    model.pretrained_cfg = {**base, **cfg}  # type: ignore[assignment]
    record = {
        "recipe": recipe,
        "data": "scikit-learn's digits, 1,400 train and 397 val images, see digits.py",
        "top1": accuracy,
        "similarity": similarity,
        "versions": {"torch": torch.__version__.partition("+")[0], "timm": timm.__version__},
    }
    save_for_hf(
        model, str(output), model_args=MODEL_ARGS, safe_serialization=True,
        model_config={"label_names": [str(i) for i in range(10)], "pretraining": record},
    )  # fmt: skip
    print(json.dumps({"top1": round(accuracy, 2), "similarity": [round(s, 3) for s in similarity]}))


if __name__ == "__main__":
    main()
