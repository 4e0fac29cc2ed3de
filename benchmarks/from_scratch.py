"""Small ViTs trained from nothing, with each method and without: the shape of the papers' tables, small and paired.

    python benchmarks/from_scratch.py --data CIFAR10_FOLDER --output DIR            # half an hour of one free CPU core
    python benchmarks/from_scratch.py --data CIFAR10_FOLDER --output DIR --quick    # the same path in a minute
    python benchmarks/from_scratch.py --data CIFAR10_FOLDER --output DIR --full     # DeiT-tiny's width, for a GPU

Experiments on CIFAR-10: `methods` (NeuTRENO's Tables 1, 5 and 7), `kernel` (its Table 8), `eigen` (sharpening and
smoothing weights of arXiv 2401.04301), `depth` (12 to 48 layers).

All variants of a seed begin with the same weights (as far as they have the same ones) and see the same images in the
same order, for the same number of steps; a run that two experiments have in common is made once. Nothing is chosen: the
figures are those of the last step, on images that nothing else looks at. A second call goes on where the first was
interrupted; more seeds can be asked for later. Writes from_scratch_<experiment>.json, .md and .svg into DIR.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import from_scratch_report
import image_tensors
import timm
import torch
import torch.nn.functional as F
from image_tensors import Images
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm_neutreno_cli.runtime.files import write_text
from torch import nn
from torch.nn.utils import parametrize

import timm_neutreno
from timm_neutreno.smoothing import spectrum, watch

# --- the experiments --------------------------------------------------------------------------------------------------


class Variant(NamedTuple):
    """Depth in layers; names of METHODS joined by "+"; "sharpen" or "smooth" for eigen-reparameterised weights."""

    depth: int = 12
    method: str | None = None
    eigen: str | None = None


class Experiment(NamedTuple):
    """What is trained, and which variant is compared with which."""

    what: str
    variants: dict[str, Variant]
    pairs: list[tuple[str, str]]
    curves: tuple[str, ...]  # measures that are plotted
    limits: str  # what it cannot tell


DEPTHS, DEEP_METHODS = (12, 24, 48), ("plain", "neutreno", "featscale", "value_residual")
METHODS = ("neutreno", "featscale", "neutreno+featscale", "value_residual", "symmetric", "neutreno+symmetric")


def named(*methods: str, depth: int = 12, suffix: str = "") -> dict[str, Variant]:
    return {name + suffix: Variant(depth, None if name == "plain" else name) for name in methods}


EXPERIMENTS = {
    "methods": Experiment(
        "CIFAR-10 from scratch with each method: the shape of NeuTRENO's Tables 1, 5 and 7",
        named("plain", *METHODS),
        [
            *((name, "plain") for name in METHODS),
            ("neutreno+featscale", "featscale"),
            ("neutreno+symmetric", "symmetric"),
        ],
        ("block_similarity", "attention_similarity"),
        "The training is short, and top-1 shows how far from a trained model it ends: learning faster and learning "
        "more cannot be told apart, and strengths that are learned from 0 are still small. The paper's gains, 0.7 to "
        "1.1 points, are after 300 epochs of ImageNet.",
    ),
    "depth": Experiment(
        "CIFAR-10 from scratch with 12, 24 and 48 layers: whether over-smoothing bites with depth, and who survives",
        {k: v for depth in DEPTHS for k, v in named(*DEEP_METHODS, depth=depth, suffix=f", {depth} layers").items()},
        [
            *((f"{name}, {d} layers", f"plain, {d} layers") for d in DEPTHS for name in DEEP_METHODS[1:]),
            *((f"plain, {depth} layers", "plain, 12 layers") for depth in DEPTHS[1:]),
        ],
        ("block_similarity",),
        "After so few steps a deep model that is not better may only be slower to learn. timm's models have norms "
        "before each layer and a residual stream, which the simple theory of over-smoothing leaves out.",
    ),
    "kernel": Experiment(
        "CIFAR-10 from scratch with kernel attention, with and without NeuTRENO: the paper's Table 8, 12 layers",
        named("plain", "kernel", "neutreno+kernel"),
        [("neutreno+kernel", "kernel"), ("kernel", "plain")],
        ("block_similarity", "attention_similarity"),
        "The paper does not name its kernel, width or recipe (75.89 and 76.75 top-1, one seed each); ours is Gaussian, "
        "and the training much shorter.",
    ),
    "eigen": Experiment(
        "CIFAR-10 from scratch with weights that can only sharpen, or only smooth (arXiv 2401.04301)",
        {"plain": Variant(), "sharpen": Variant(eigen="sharpen"), "smooth": Variant(eigen="smooth")},
        [("smooth", "sharpen"), ("sharpen", "plain"), ("smooth", "plain")],
        ("block_similarity", "block_hfc_lfc"),
        "Sharpen and smooth have fewer parameters than plain (W_proj is made from the eigenvalues and W_V), so that "
        "only their comparison with each other is of equals. The paper trains on CIFAR-100 and ImageNet for longer.",
    ),
}

# --- sizes ------------------------------------------------------------------------------------------------------------

SIZES: dict[str, dict[str, Any]] = {
    "small": {
        "train": 9600, "test": 5000, "patch": 8, "width": 32, "heads": 2, "epochs": 1, "batch_size": 32, "lr": 2e-3,
    },
    "quick": {
        "train": 64, "test": 64, "patch": 8, "width": 12, "heads": 3, "epochs": 1, "batch_size": 32, "lr": 1e-3,
    },
    "full": {
        "train": 50000, "test": 10000, "patch": 4, "width": 192, "heads": 3, "epochs": 100, "batch_size": 256,
        "lr": 1e-3,
    },
}  # fmt: skip
FIXED: dict[str, Any] = {
    "weight_decay": 0.05, "warmup": 0.1, "shift": 4, "flip": True, "weights": "jax", "measured": 500,
}  # fmt: skip
OVERRIDES = {
    "train": "images to train on", "test": "images to test on", "patch": "pixels", "width": "channels",
    "heads": "of attention", "epochs": "of training", "batch_size": "images in a step",
    "lr": "largest learning rate, of AdamW",
}  # fmt: skip
markdown, readme = from_scratch_report.markdown, from_scratch_report.readme  # evidence.py looks for them here
MEASURES = ("block_similarity", "attention_similarity", "block_hfc_lfc", "attention_hfc_lfc")


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder of CIFAR-10 with train/ and val/; downloaded if missing")
    add("--output", type=Path, required=True)
    add("--experiments", nargs="+", choices=list(EXPERIMENTS), default=list(EXPERIMENTS))
    add("--methods", nargs="+", help="train only these of each experiment's, such as plain neutreno")
    add("--seeds", type=int, default=5, help="at least 2; more can be asked for later")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="on CUDA in bfloat16")
    add("--threads", type=int, default=1, help="of the CPU")
    for size in ("quick", "full"):
        add(f"--{size}", dest="size", action="store_const", const=size, default="small")
    for name, meaning in OVERRIDES.items():
        kind = float if name == "lr" else int
        add(f"--{name.replace('_', '-')}", type=kind, help=f"{meaning}, instead of the size's")
    options = parser.parse_args(words)
    if options.seeds < 2:
        parser.error("--seeds must be at least 2: one has no interval.")
    return options


def recipe_of(options: argparse.Namespace) -> dict[str, Any]:
    """Everything that a run depends on beside its variant and seed."""
    sized = SIZES[options.size]
    given = {name: value for name in sized if (value := getattr(options, name)) is not None}
    cuda = options.device.startswith("cuda")
    return {**sized, **given, **FIXED, "precision": "bfloat16" if cuda else "float32"}


# --- one run ----------------------------------------------------------------------------------------------------------


def build(variant: Variant, seed: int, recipe: dict[str, Any]) -> nn.Module:
    """timm's ViT; the same weights for every method of a seed and depth.

    They are drawn as Xavier has it (timm's "jax"): with a deviation of 0.02, timm's default, layers as narrow as the
    small size's add next to nothing for hundreds of steps.
    """
    torch.manual_seed(seed)
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=recipe["patch"], num_classes=10, embed_dim=recipe["width"],
        num_heads=recipe["heads"], depth=variant.depth, weight_init=recipe["weights"],
    )  # fmt: skip
    if variant.eigen:
        timm_neutreno.reparametrize(model, variant.eigen)
    return timm_neutreno.patch(model, variant.method) if variant.method else model


def train(model: nn.Module, images: Images, seed: int, recipe: dict[str, Any]) -> float:
    """Seconds per step: on the CPU those that this process computed, so that others on the machine matter less."""
    size, device = recipe["batch_size"], images.pixels.device
    steps = recipe["epochs"] * (len(images.labels) // size)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=recipe["lr"], weight_decay=recipe["weight_decay"])
    warmup = int(recipe["warmup"] * steps)
    schedule = CosineLRScheduler(optimizer, steps, warmup_t=warmup, warmup_lr_init=0.0, t_in_epochs=False)
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    model.train()
    start = clock()
    for step in range(steps):
        schedule.step_update(step + 1)
        pixels, labels = image_tensors.batch(images, size, seed, step, shift=recipe["shift"], flip=recipe["flip"])
        with autocast(recipe, device), parametrize.cached():
            loss = F.cross_entropy(model(pixels), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    if not loss.isfinite():  # also waits for the device
        raise SystemExit(f"the loss is {loss.item()} after {steps} steps: give a smaller --lr.")
    return (clock() - start) / steps


def autocast(recipe: dict[str, Any], device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=recipe["precision"] == "bfloat16")


@torch.no_grad()
def measure(model: nn.Module, images: Images, recipe: dict[str, Any]) -> dict[str, Any]:
    """Hits of every test image, loss, the measures of every layer, eigenvalues and learned strengths."""
    model.eval()
    logits, measured = [], recipe["measured"]
    with autocast(recipe, images.pixels.device), parametrize.cached():
        for pixels in images.pixels.split(500):
            logits.append(model(image_tensors.normalized(pixels)).float())
        with watch(model, MEASURES) as seen:
            model(image_tensors.normalized(images.pixels[:measured]))
    scores = torch.cat(logits)
    hits = scores.argmax(1) == images.labels
    layers = spectrum(model, fold_norm=True)
    learned: dict[str, list[float]] = {}
    for name, value in timm_neutreno.strengths(model).items():
        if isinstance(value, nn.Parameter):
            learned.setdefault(name.rpartition(".")[2], []).append(value.abs().mean().item())
    return {
        "top1": 100 * hits.double().mean().item(),
        "loss": F.cross_entropy(scores, images.labels).item(),
        "hits": "".join("01"[hit] for hit in hits.tolist()),
        "curves": seen.result().values,
        "negative_eigenvalues": sum((layer.layer.real < 0).double().mean().item() for layer in layers) / len(layers),
        "negative_gains": sum(layer.negative_gains for layer in layers) / len(layers),
        "strengths": {name: sum(values) / len(values) for name, values in learned.items()},
        "parameters": sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
    }


def run(
    variant: Variant, seed: int, recipe: dict[str, Any], images: tuple[Images, ...], folder: Path
) -> dict[str, Any]:  # fmt: skip
    """Train and measure; what was done before, by another experiment too, is read again."""
    name = f"{variant.method or variant.eigen or 'plain'}-{variant.depth}-layers-seed{seed}"
    path = folder / f"{name}.json"
    if not path.exists():
        model = build(variant, seed, recipe).to(images[0].pixels.device)
        seconds = train(model, images[0], seed, recipe)
        found = {"recipe": recipe, "seconds_per_step": seconds, **measure(model, images[1], recipe)}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(found) + "\n")
        similarity = found["curves"]["block_similarity"][-1]
        print(
            f"{name}: {found['top1']:.2f} top-1, loss {found['loss']:.4f}, similarity {similarity:.3f}, "
            f"{1000 * seconds:.0f} ms a step",
            file=sys.stderr, flush=True,
        )  # fmt: skip
    found = json.loads(path.read_text())
    if changed := [key for key, value in recipe.items() if found["recipe"].get(key) != value]:
        sys.exit(f"{path} was trained with other options ({', '.join(changed)}): choose another --output.")
    return found


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    options.output.mkdir(parents=True, exist_ok=True)
    recipe = recipe_of(options)
    images = tuple(part.to(options.device) for part in image_tensors.cifar10(options.data, recipe, options.output))
    for name in options.experiments:
        experiment = only(EXPERIMENTS[name], options.methods)
        found: dict[str, list[dict[str, Any]]] = {variant: [] for variant in experiment.variants}
        for seed in range(options.seeds):  # every seed whole before the next one, so that there is something to say
            for variant, spec in experiment.variants.items():
                found[variant].append(run(spec, seed, recipe, images, options.output / "runs"))
            if seed:
                from_scratch_report.write(name, experiment, recipe, found, options)
        print((options.output / f"from_scratch_{name}.md").read_text())


def only(experiment: Experiment, methods: list[str] | None) -> Experiment:
    """The experiment with some of its variants, and the comparisons that are left."""
    if methods is None:
        return experiment
    variants = {name: v for name, v in experiment.variants.items() if (v.method or v.eigen or "plain") in methods}
    pairs = [(a, b) for a, b in experiment.pairs if a in variants and b in variants]
    if not pairs:
        sys.exit(
            f"--methods {' '.join(methods)} leaves nothing to compare. There are: {', '.join(experiment.variants)}."
        )
    return experiment._replace(variants=variants, pairs=pairs)


if __name__ == "__main__":
    main()
