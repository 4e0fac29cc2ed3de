"""NeuTRENO adaptation against its control on CIFAR-10: fidelity 0.6, ramped 0.6 and learnable, several seeds.

    python benchmarks/cifar_adaptation.py --data CIFAR10_FOLDER --output DIR

Pretrains a plain softmax ViT of DeiT-tiny's shape (width 192, depth 12, 3 heads, patch 4) on 32x32 pixels, then
adapts it for a third of those epochs with `neutreno-adapt`, as a user would. The control does not depend on the
fidelity: it is trained once per seed and shared. Writes DIR/results.json and DIR/README.md after every seed; a second
call goes on where the first one was interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

import cifar10
import machine
import timm
import torch
from timm.data import ImageDataset, create_loader
from timm.models import save_for_hf
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import random_seed
from timm_neutreno_cli.data.sources import subsample
from timm_neutreno_cli.reports import seeds

SHAPE: dict[str, Any] = {
    "img_size": 32,
    "patch_size": 4,
    "embed_dim": 192,
    "depth": 12,
    "num_heads": 3,
    "num_classes": 10,
}
INPUT: dict[str, Any] = {
    "input_size": (3, 32, 32),
    "interpolation": "bicubic",
    "mean": (0.4914, 0.4822, 0.4465),
    "std": (0.2470, 0.2435, 0.2616),
    "crop_pct": 1.0,
}
PRETRAINING: dict[str, Any] = {
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


def variants(epochs: int) -> dict[str, list[str]]:
    """What is compared with the control, as options of `neutreno-adapt`. The first one trains the control too."""
    return {
        "fidelity 0.6": ["--fidelity", "0.6"],
        "ramped to 0.6": ["--fidelity", "0.6", "--fidelity-warmup", f"{epochs / 4:g}", "--no-control"],
        "learnable from 0.6": ["--fidelity", "0.6", "--learnable-fidelity", "layer", "--no-control"],
    }


def main() -> None:
    options = arguments()
    data = cifar10.prepare(options.data, options.cifar_archive)
    options.output.mkdir(parents=True, exist_ok=True)
    pretrained = options.output / "pretrained"
    if not (pretrained / "record.json").exists():
        pretrain(data, pretrained, options)
    record = json.loads((pretrained / "record.json").read_text())
    if any(record[name] != getattr(options, name) for name in ("epochs", "batch_size", "limit_batches")):
        sys.exit(f"{options.output} was begun with other options. Give the same ones, or another --output.")
    epochs = max(1, options.epochs // 3)
    result: dict[str, Any] = {
        "what": "CIFAR-10, ViT of DeiT-tiny's shape with patch 4, pretrained and adapted for a third of its epochs",
        **machine.described(options.device),
        "pretraining": record,
        "adaptation": {"epochs": epochs, "batch_size": options.batch_size, "recipe": "finetune"},
        "variants": {},
    }
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in variants(epochs)}
    for seed in range(options.seeds):
        for name, fidelity in variants(epochs).items():
            runs[name].append(adapt(data, pretrained, name, fidelity, seed, epochs, options))
        write(result, runs, options.output)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train/ and val/; made if missing")
    parser.add_argument("--cifar-archive", type=Path, help="tar of {train,val}/<class>/*.jpg to make it from")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=60, help="of the pretraining; the adaptation takes a third")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--workers", type=int, default=max(0, (os.cpu_count() or 1) - 1))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--limit-batches", type=int, help="per epoch, to try the script: its figures say nothing")
    return parser.parse_args()


def pretrain(data: Path, output: Path, options: argparse.Namespace) -> None:
    """Plain timm: a softmax ViT trained from nothing, saved as timm saves models."""
    device = torch.device(options.device)
    random_seed(PRETRAINING["seed"])
    common: dict[str, Any] = {
        "batch_size": options.batch_size, "num_workers": options.workers, "persistent_workers": options.workers > 0,
        "pin_memory": device.type == "cuda", "device": device, **INPUT,
    }  # fmt: skip
    augmentation = {key: PRETRAINING[key] for key in ("scale", "color_jitter", "auto_augment")}
    train = create_loader(ImageDataset(str(data / "train")), is_training=True, **augmentation, **common)
    val_images = ImageDataset(str(data / "val"))
    if options.limit_batches:
        subsample(val_images, options.limit_batches * options.batch_size)
    val = create_loader(val_images, **common)
    steps = min(len(train), options.limit_batches or len(train))

    model = timm.create_model("vit_tiny_patch16_224", drop_path_rate=PRETRAINING["drop_path_rate"], **SHAPE).to(device)
    lr = PRETRAINING["lr"] * options.batch_size / 512
    optimizer = create_optimizer_v2(model, opt="adamw", lr=lr, weight_decay=PRETRAINING["weight_decay"])
    scheduler, _ = create_scheduler_v2(
        optimizer, "cosine", num_epochs=options.epochs, warmup_lr=1e-6, min_lr=1e-6, warmup_prefix=True,
        warmup_epochs=min(PRETRAINING["warmup_epochs"], options.epochs // 4), step_on_epochs=False,
        updates_per_epoch=steps,
    )  # fmt: skip
    criterion = torch.nn.CrossEntropyLoss(label_smoothing=PRETRAINING["label_smoothing"])
    autocast = torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda")
    step, start = 0, time.perf_counter()
    for epoch in range(options.epochs):
        model.train()
        for images, targets in islice(train, steps):
            with autocast:
                loss = criterion(model(images), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            scheduler.step_update(step)
        print(f"pretraining {epoch + 1}/{options.epochs}  loss {loss.item():.3f}", file=sys.stderr, flush=True)
    record = {
        **PRETRAINING,
        "epochs": options.epochs,
        "batch_size": options.batch_size,
        "limit_batches": options.limit_batches,
        "top1": top1(model, val),
        "seconds": round(time.perf_counter() - start),
    }
    base: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    model.pretrained_cfg = {**base, **INPUT, "num_classes": 10, "fixed_input_size": True}  # type: ignore[assignment]
    labels = sorted(path.name for path in (data / "train").iterdir())
    save_for_hf(
        model, str(output), model_args=SHAPE, safe_serialization=True, model_config={"label_names": labels}
    )  # fmt: skip
    (output / "record.json").write_text(json.dumps(record, indent=1) + "\n")  # last: it says that the rest is whole


@torch.inference_mode()
def top1(model: torch.nn.Module, batches: Any) -> float:
    """Per cent."""
    model.eval()
    hits = torch.cat([(model(images).argmax(1) == targets).float() for images, targets in batches])
    return round(100 * hits.mean().item(), 2)


def adapt(
    data: Path, pretrained: Path, name: str, fidelity: list[str], seed: int, epochs: int, options: argparse.Namespace
) -> dict[str, Any]:
    """One call of `neutreno-adapt`; its results.json, which is read again if it is there already."""
    output = options.output / "runs" / f"{name.replace(' ', '-')}-seed{seed}"
    if not (output / "results.json").exists():
        shutil.rmtree(output, ignore_errors=True)  # interrupted
        search = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        command = [
            shutil.which("neutreno-adapt", path=search) or "neutreno-adapt", "--checkpoint", f"local-dir:{pretrained}",
            "--data", str(data), "--recipe", "finetune", "--epochs", str(epochs), "--seed", str(seed), *fidelity,
            "--batch-size", str(options.batch_size), "--workers", str(options.workers), "--device", options.device,
            "--output", str(output),
        ]  # fmt: skip
        if options.limit_batches:
            command += ["--limit-batches", str(options.limit_batches)]
        print(f"\n$ {' '.join(command)}", file=sys.stderr, flush=True)
        subprocess.run(command, check=True, stdout=sys.stderr)
    return json.loads((output / "results.json").read_text())


def write(result: dict[str, Any], runs: dict[str, list[dict[str, Any]]], output: Path) -> None:
    """results.json, and README.md with a table and the verdict of every variant."""
    first, *_ = runs
    for name, documents in runs.items():
        with_control = []
        for document, shared in zip(documents, runs[first], strict=True):
            rows = {**document["models"], "control": shared["models"]["control"]}
            order = ("checkpoint", "neutreno/start", "control", "neutreno")
            with_control.append({**document, "models": {row: rows[row] for row in order if row in rows}})
        several = len(documents) > 1
        result["variants"][name] = {
            "options": variants(result["adaptation"]["epochs"])[name],
            "seconds": [document["seconds"] for document in documents],
            "runs": with_control,
            "summary": seeds.summarise(with_control) if several else None,
        }
    (output / "results.json").write_text(json.dumps(result, indent=1) + "\n")
    (output / "README.md").write_text(report(result))


def report(result: dict[str, Any]) -> str:
    """The Markdown page."""
    pretraining, adaptation = result["pretraining"], result["adaptation"]
    lines = [
        "# NeuTRENO adaptation on CIFAR-10",
        "",
        f"{result['what']}: {pretraining['epochs']} epochs of pretraining ({pretraining['top1']:.2f} top-1), "
        f"{adaptation['epochs']} of adaptation, batch {adaptation['batch_size']}. {result['hardware']}, "
        f"{', '.join(f'{name} {number}' for name, number in result['versions'].items())}, {result['date']}.",
        "",
        f"    {result['command']}",
        "",
    ]
    if pretraining["limit_batches"]:
        lines += [f"**A trial with {pretraining['limit_batches']} batches per epoch: the figures say nothing.**", ""]
    summaries = {name: variant["summary"] for name, variant in result["variants"].items()}
    if None in summaries.values():
        return "\n".join([*lines, "One seed so far: no mean, no interval.", ""])
    lines += [
        "| minus the control, mean of the seeds and 95 % interval | top-1 | loss | similarity |",
        "|---|---|---|---|",
        *(f"| {name} | {' | '.join(overview(summary))} |" for name, summary in summaries.items()),
        "",
    ]
    for name, summary in summaries.items():
        lines += [seeds.readme(summary, name).replace("# ", "## ", 1), ""]
    return "\n".join(lines)


def overview(summary: dict[str, Any]) -> list[str]:
    differences = (summary["differences"]["neutreno"][metric] for metric in ("top1", "loss", "similarity"))
    return [f"{value['mean']:+.3f} ({value['low']:+.3f} to {value['high']:+.3f})" for value in differences]


if __name__ == "__main__":
    main()
