"""Every method at one budget: a pretrained ViT is fine-tuned with each, and without, on CIFAR-10, several seeds.

    python benchmarks/fair_table.py --data CIFAR10_FOLDER --output DIR          # about two hours of one CPU core
    python benchmarks/fair_table.py --data CIFAR10_FOLDER --output DIR --quick  # the same path in minutes, says nothing
    python benchmarks/fair_table.py --data CIFAR10_FOLDER --output DIR --full   # DeiT-tiny's width, all images: a GPU

CIFAR10_FOLDER is what cifar10.py makes. A plain softmax ViT is trained on the train images first (pretrain.py); then
`timm_neutreno.adapt` fine-tunes it further on them: every variant from the same weights, for the same epochs, with the
same images in the same order. The learning rate is the control's: the best of three for it on val, seed 0. Settings
are chosen on val, which is a part of CIFAR-10's train images that no training saw, and reported on CIFAR-10's test
images. A second call goes on where the first was interrupted. Writes fair_table.json, .md and .svg into DIR.
"""

from __future__ import annotations

import argparse
import copy
import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import cifar10
import fair_table_report
import machine
import timm
import torch
from fair_table_report import CONTROL, FIDELITIES, METHODS, PAPER
from pretrain import pretrain
from speed import interleaved, quartiles
from timm_neutreno_cli.reports.intervals import paired

import timm_neutreno
from timm_neutreno.cost import Counter

PAPERS = {PAPER: {"fidelity": 0.6}, "neutreno+featscale": {"fidelity": 0.6}}  # other methods have one way only
RATES = (1e-4, 3e-4, 1e-3)  # for the control, on val

SIZES: dict[str, dict[str, Any]] = {
    "small": {
        "shape": {"patch_size": 4, "embed_dim": 48, "num_heads": 3}, "train": 5000, "val": 2000, "test": 5000,
        "pretrain_epochs": 30, "epochs": 2, "batch_size": 50, "seeds": 5,
        "augmentation": {"auto_augment": None},
    },
    "quick": {
        "shape": {"patch_size": 8, "embed_dim": 24, "num_heads": 2}, "train": 100, "val": 100, "test": 100,
        "pretrain_epochs": 1, "epochs": 1, "batch_size": 50, "seeds": 2,
        "augmentation": {"auto_augment": None},
    },
    "full": {
        "shape": {"patch_size": 4, "embed_dim": 192, "num_heads": 3}, "train": 45000, "val": 5000, "test": 10000,
        "pretrain_epochs": 60, "epochs": 20, "batch_size": 256, "seeds": 5,
        "augmentation": {},
    },
}  # fmt: skip
markdown, readme = fair_table_report.markdown, fair_table_report.readme  # evidence.py looks for them here
METRICS = ("top1", "loss", "similarity")


def variants(epochs: int) -> dict[str, dict[str, Any]]:
    """What is compared with the control, as options of `adapt`: methods as in their papers, NeuTRENO in other ways."""
    ramp = epochs / 2
    ways: dict[str, dict[str, Any]] = {
        "neutreno, from 0 to 0.6": {"fidelity": 0.6, "fidelity_warmup": ramp},
        "neutreno, from 0 to 0.2": {"fidelity": 0.2, "fidelity_warmup": ramp},
        "neutreno, learned per layer from 0": {"fidelity": 0.0, "learnable_fidelity": "layer"},
        "neutreno, learned per head from 0": {"fidelity": 0.0, "learnable_fidelity": "head"},
        "neutreno, learned per layer from 0.6": {"fidelity": 0.6, "learnable_fidelity": "layer"},
    }
    constant = {f"neutreno at {fidelity:g}": {"fidelity": fidelity} for fidelity in FIDELITIES}
    papers = {method: {"method": [method], **PAPERS.get(method, {})} for method in METHODS}
    return {**papers, **constant, **ways}


def main() -> None:
    options = arguments()
    options.methods = [name for name in METHODS if name in (PAPER, *options.methods)]
    torch.set_num_threads(options.threads)
    size = SIZES[options.size] | ({"seeds": options.seeds} if options.seeds else {})
    options.output.mkdir(parents=True, exist_ok=True)
    data, test = folders(options, size)
    shape = {"img_size": 32, "depth": 12, "num_classes": 10, **size["shape"]}
    pretrained = options.output / "pretrained"
    common = {"batch_size": size["batch_size"], "workers": options.workers, "device": options.device}
    record = pretrain(data, pretrained, shape, epochs=size["pretrain_epochs"], **common, **size["augmentation"])
    common |= {
        "checkpoint": f"local-dir:{pretrained}",
        "data": str(data),
        "epochs": size["epochs"],
        "recipe": "finetune",
    }
    both = {"method": [PAPER], **PAPERS[PAPER], "control": True}  # NeuTRENO's own call trains the control too
    tried = {lr: measured(options, test, f"rate-{lr:g}", 0, common | both | {"lr": lr}) for lr in RATES}
    lr = max(RATES, key=lambda lr: tried[lr][CONTROL]["val"]["top1"])
    rows: dict[str, list[dict[str, Any]]] = {}
    for seed in range(size["seeds"]):
        for name, given in variants(size["epochs"]).items():
            if name in METHODS and name not in options.methods:
                continue
            if name not in METHODS and len(options.methods) < len(METHODS):
                continue
            found = measured(options, test, name, seed, common | {"lr": lr} | (both if name == PAPER else given))
            for arm, row in found.items():
                rows.setdefault(CONTROL if arm == CONTROL else name, []).append(row)
    document = {
        "what": "CIFAR-10, fine-tuning of a small pretrained ViT with every method",
        **machine.described(options.device),
        "size": options.size, "parameters": parameters(shape), "pretraining": record, **size, "lr": lr,
        "rates": {f"{rate:g}": {arm: row["val"]["top1"] for arm, row in tried[rate].items()} for rate in RATES},
        "cost": kept(options.output / "cost.json", lambda: costs(shape, options)),
        "checkpoint": kept(options.output / "checkpoint.json", lambda: untouched(common, test)),
        "variants": summary(rows, size["epochs"]),
    }  # fmt: skip
    fair_table_report.write(document, options.output)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train/ and val/; made if missing")
    parser.add_argument("--cifar-archive", type=Path, help="tar of {train,val}/<class>/*.jpg to make it from")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, help="instead of the size's")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS, help="some; then no other ways")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    sizes = parser.add_mutually_exclusive_group()
    for size in ("quick", "full"):
        sizes.add_argument(f"--{size}", dest="size", action="store_const", const=size, default="small")
    return parser.parse_args()


def folders(options: argparse.Namespace, size: dict[str, Any]) -> tuple[Path, Path]:
    """Train and val images; and the same with the test images as val."""
    source = cifar10.prepare(options.data, options.cifar_archive)
    counts = {"train": ("train", size["train"]), "val": ("train", size["val"]), "test": ("val", size["test"])}
    images = cifar10.choose(source, options.output / "images", counts)
    made = []
    for part in ("val", "test"):
        folder = options.output / f"cifar10-{part}"
        folder.mkdir(exist_ok=True)
        for name, origin in (("train", "train"), ("val", part)):
            if not (folder / name).exists():
                (folder / name).symlink_to((images / origin).resolve(), target_is_directory=True)
        made.append(folder)
    return made[0], made[1]


def kept(path: Path, make: Callable[[], Any]) -> Any:
    """What `make` gave once."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(".part")
        beside.write_text(json.dumps(make(), indent=1) + "\n")
        beside.rename(path)
    return json.loads(path.read_text())


def measured(options: argparse.Namespace, test: Path, name: str, seed: int, given: dict[str, Any]) -> dict[str, Any]:
    """One variant and seed: adapted, and evaluated on test; DIR/measured keeps the figures, not the run."""
    slug = f"{name.replace(', ', '-').replace(' ', '-')}-seed{seed}"

    def adapt() -> dict[str, Any]:
        print(slug, file=sys.stderr, flush=True)
        run = options.output / "runs" / slug
        shutil.rmtree(run, ignore_errors=True)  # interrupted
        start = time.perf_counter()
        result = timm_neutreno.adapt(**{"control": False, **given}, seed=seed, output=str(run))
        found = {
            arm: {
                "val": figures(row),
                "test": figures(timm_neutreno.evaluate(run / "arms" / arm, data=str(test)).document),
                "untrained": figures(result.rows.get(f"{arm}/start", result.rows["checkpoint"])),
                "strengths": {key: value["mean_abs"] for key, value in row["strengths"].items()},
                "seconds": round(time.perf_counter() - start, 1),
            }
            for arm, row in result.rows.items()
            if arm != "checkpoint" and "/" not in arm
        }
        shutil.rmtree(run)
        return found

    return kept(options.output / "measured" / f"{slug}.json", adapt)


def untouched(common: dict[str, Any], test: Path) -> dict[str, Any]:
    """The pretrained model's own figures."""
    model = common["checkpoint"]
    return {
        part: figures(timm_neutreno.evaluate(model, data=data).document)
        for part, data in (("val", common["data"]), ("test", str(test)))
    }


def figures(row: dict[str, Any]) -> dict[str, float]:
    """The similarity is the last block's."""
    return {key: row[key][-1] if isinstance(row[key], list) else row[key] for key in METRICS}


def costs(shape: dict[str, Any], options: argparse.Namespace, rounds: int = 15) -> dict[str, Any]:
    """A training step with each method over one without, in turns: time (quartiles of ratios) and peak memory."""
    base = timm.create_model("vit_tiny_patch16_224", **shape)
    models = {CONTROL: copy.deepcopy(base), "control again": copy.deepcopy(base)}
    models |= {method: timm_neutreno.patch(copy.deepcopy(base), method) for method in options.methods}
    images = torch.randn(50, 3, 32, 32, generator=torch.Generator().manual_seed(0)).to(options.device)
    steps = {name: step(model.to(options.device).train(), images) for name, model in models.items()}
    peaks = {}
    for name, run in steps.items():
        run()
        with Counter() as counter:
            run()
        peaks[name] = counter.peak
    # on the CPU the seconds that this process computed, which others on the machine do not lengthen much
    clock = time.perf_counter if options.device.startswith("cuda") else time.process_time
    times = interleaved(steps, options.device, rounds, clock)
    return {
        name: {
            "time": quartiles(times[name], times[CONTROL]),
            "memory": peaks[name] / peaks[CONTROL],
        }
        for name in steps
        if name != CONTROL
    }


def step(model: torch.nn.Module, images: torch.Tensor) -> Callable[[], None]:
    def run() -> None:
        model(images).sum().backward()
        model.zero_grad(set_to_none=True)

    return run


def parameters(shape: dict[str, Any]) -> int:
    return sum(parameter.numel() for parameter in timm.create_model("vit_tiny_patch16_224", **shape).parameters())


def summary(rows: dict[str, list[dict[str, Any]]], epochs: int) -> dict[str, Any]:
    """Every figure of every seed, and the differences to the control's of the same seed."""
    methods = sum(name in METHODS for name in rows)
    ways = len(rows) - 1 - methods
    found: dict[str, Any] = {}
    for name, runs in rows.items():
        entry: dict[str, Any] = {
            part: {key: [run[part][key] for run in runs] for key in METRICS} for part in ("val", "test", "untrained")
        }
        entry["strengths"] = {key: fmean(run["strengths"][key] for run in runs) for key in runs[0]["strengths"]}
        if name != CONTROL:
            entry["options"] = variants(epochs)[name]
            entry["differences"] = {
                part: {
                    key: paired(
                        [a - b for a, b in zip(entry[part][key], found[CONTROL][part][key], strict=False)],
                        methods if name in METHODS else ways,
                    )
                    for key in METRICS
                }
                for part in ("val", "test")
            }
        found[name] = entry
    return found


if __name__ == "__main__":
    main()
