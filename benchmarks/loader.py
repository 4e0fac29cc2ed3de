"""What the data loader costs: training on 60,000 real JPEGs against the same model stepping on synthetic tensors.

    python benchmarks/loader.py --data CIFAR10_FOLDER --output loader.json

In one process, in blocks of a few steps that take turns (a b c a b c ...), so that all three meet the same machine:
(a) the loader alone, (b) the model on one synthetic batch, (c) the model on the loader's batches. The figures are
medians over the blocks of an epoch of all 60,000 files. The loader's loss is 1 - c/b. Untimed steps come before every
block: as many as the loader's processes have prepared ahead, so that no block lives on what another one left.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cifar10
import machine
import timm
import torch

import timm_neutreno  # noqa: F401 - imported to register the neutreno_* names

PREFETCH = 2  # batches that a loader process prepares ahead: torch's default
KINDS = {"a": "loader alone", "b": "model on synthetic tensors", "c": "model on the loader's batches"}
Batch = tuple[torch.Tensor, torch.Tensor]


def main() -> None:
    options = arguments()
    folder = cifar10.prepare(options.data, options.cifar_archive)
    device = torch.device(options.device)
    if device.type == "cpu":  # computing threads get the cores that the loader leaves, as in neutreno-adapt
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) - options.workers))
    batches, images = loader(folder, device, options)
    step = training_step(device, options)
    rates = measure(batches, step, device, options)
    result = {
        "what": "images/s of training; medians over interleaved blocks",
        **machine.described(options.device),
        "model": options.model,
        "img_size": options.img_size,
        "patch_size": options.patch_size,
        "batch_size": options.batch_size,
        "workers": options.workers,
        "files": images,
        "epochs": options.epochs,
        "block_steps": options.block,
        "rounds": len(rates["c"]),
        "images_per_second": {kind: round(statistics.median(values), 1) for kind, values in rates.items()},
        "images_per_second_of_blocks": {kind: [round(value, 1) for value in rates[kind]] for kind in rates},
    }
    a, b, c = result["images_per_second"].values()
    result["loader_loss"] = round(1 - c / b, 4)
    result["loader_loss_of_rounds"] = [round(1 - y / x, 4) for x, y in zip(rates["b"], rates["c"], strict=True)]
    print(table(result, a, b))
    options.output.write_text(json.dumps(result, indent=1) + "\n")


def arguments() -> argparse.Namespace:
    cores = len(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train/ and val/; made if missing")
    parser.add_argument("--cifar-archive", type=Path, help="tar of {train,val}/<class>/*.jpg to make it from")
    parser.add_argument("--model", default="neutreno_vit_tiny_patch16_224")
    parser.add_argument("--img-size", type=int, default=32)
    parser.add_argument("--patch-size", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--workers", type=int, default=min(8, max(0, cores - 1)))
    parser.add_argument("--epochs", type=int, default=1, help="passes over the files")
    parser.add_argument("--block", type=int, default=10, help="timed steps of a block")
    parser.add_argument("--rounds", type=int, help="stop after so many, to try the script")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    return parser.parse_args()


def loader(folder: Path, device: torch.device, options: argparse.Namespace) -> tuple[Any, int]:
    """The train loader of `neutreno-adapt`, over train and val together; and how many files these are."""
    from timm_neutreno_cli.config import Config
    from timm_neutreno_cli.data import loaders, sources
    from timm_neutreno_cli.runtime.processes import World

    config = Config(data=str(folder), workers=options.workers, batch_size=options.batch_size)
    images = sources.open_datasets(config)
    images.train.reader.samples += images.val.reader.samples
    size = {"input_size": (3, options.img_size, options.img_size)}
    data_config = {**size, "interpolation": "bicubic", "mean": (0.5,) * 3, "std": (0.5,) * 3, "crop_pct": 1.0}
    found = loaders.train_loader(images, data_config, config, device, World())
    return found.batches, len(images.train)


def training_step(device: torch.device, options: argparse.Namespace) -> Callable[[Batch], None]:
    """Forward, backward and optimizer, in bfloat16 where CUDA is."""
    size: dict[str, Any] = {"img_size": options.img_size, "patch_size": options.patch_size}
    model = timm.create_model(options.model, num_classes=10, **size).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    criterion = torch.nn.CrossEntropyLoss(label_smoothing=0.1)

    def step(batch: Batch) -> None:
        images, targets = batch
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
            loss = criterion(model(images), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def measure(
    batches: Any, step: Callable[[Batch], None], device: torch.device, options: argparse.Namespace
) -> dict[str, list[float]]:
    """Images/s of every block, by kind, until the epochs are through."""
    shape = (options.batch_size, 3, options.img_size, options.img_size)
    synthetic = torch.randn(shape, device=device), torch.randint(10, shape[:1], device=device)
    real = (batch for _ in range(options.epochs) for batch in batches)
    sources: dict[str, Callable[[Iterator[Batch]], object]] = {
        "a": lambda real: next(real),
        "b": lambda real: step(synthetic),
        "c": lambda real: step(next(real)),
    }
    untimed = PREFETCH * options.workers + 1
    rates: dict[str, list[float]] = {kind: [] for kind in sources}
    try:
        while options.rounds is None or len(rates["c"]) < options.rounds:
            taken = {}
            for kind, once in sources.items():
                for _ in range(untimed):
                    once(real)
                synchronize(device)
                start = time.perf_counter()
                for _ in range(options.block):
                    once(real)
                synchronize(device)
                taken[kind] = options.block * options.batch_size / (time.perf_counter() - start)
            for kind, rate in taken.items():  # whole rounds only: the last one may have met the end of the data
                rates[kind].append(rate)
            print(f"round {len(rates['c'])}: " + "  ".join(f"{k} {v:.0f}" for k, v in taken.items()), file=sys.stderr)
    except StopIteration:
        pass
    if not rates["c"]:
        sys.exit("no whole round in the data: raise --epochs, or lower --block, --workers or --batch-size.")
    return rates


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def table(result: dict[str, Any], a: float, b: float) -> str:
    low, high = min(result["loader_loss_of_rounds"]), max(result["loader_loss_of_rounds"])
    slower = "slower than the model: it sets the pace" if a < b else "faster than the model"
    return "\n".join(
        [
            f"{result['hardware']}, {result['date']}; {result['model']}, {result['img_size']} pixels, batch "
            f"{result['batch_size']}, {result['workers']} loader processes, {result['files']} files, "
            f"{result['rounds']} rounds",
            "",
            "|   | | images/s |",
            "|---|---|---|",
            *(f"| {kind} | {KINDS[kind]} | {rate:.0f} |" for kind, rate in result["images_per_second"].items()),
            "",
            f"The loader's loss, 1 - c/b: {result['loader_loss']:.1%} (rounds: {low:.1%} to {high:.1%}).",
            f"The loader alone is {slower}.",
        ]
    )


if __name__ == "__main__":
    main()
