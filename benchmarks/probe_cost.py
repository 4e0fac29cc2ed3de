"""What probing costs beyond the forward passes: time (paired) and peak memory as images grow in number.

    python benchmarks/probe_cost.py --data PHOTOS --output benchmarks/probe_cost.json

DeiT-tiny with random weights on photos of any folder, three fifths of them train, a fifth val, a fifth test. Labels are
made up (number of the photo modulo 10; for segmentation the brightness of each pixel in 11 steps, at 360 x 480 as in
CamVid), because only the cost is measured. Time is CPU time of one thread, with the photos in memory, so that reading
them is in neither; each round takes the forward passes and the probe in turn (segmentation: on a fifth of the photos).
Memory is the peak of a new process that reads photos from disk; batches of 16.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import machine
import timm
import torch
from timm_neutreno_cli.data.photos import find_photos, photo_batches
from torch import Tensor, nn
from torch.nn.functional import interpolate

from timm_neutreno.probing import REFERENCE, Splits, measure

MODEL, CLASSES, MASK = "deit_tiny_patch16_224", {"classification": 10, "segmentation": 11}, (360, 480)


class Photos:
    """Batches of photos with made-up targets, read anew each time."""

    def __init__(self, paths: list[Path], model: nn.Module, task: str):
        self.paths, self.model, self.task = paths, model, task

    def __iter__(self) -> Iterator[tuple[Tensor, Any]]:
        start = 0
        for images in photo_batches(self.paths, self.model, 16):
            if self.task == "classification":
                yield images, torch.arange(start, start + len(images)) % CLASSES[self.task]
            else:
                grey = interpolate(images, MASK, mode="bilinear").mean(1)
                yield images, (grey * 2.5 + 5).long().clamp(0, CLASSES[self.task] - 1)
            start += len(images)


def splits(paths: list[Path], model: nn.Module, task: str, in_memory: bool) -> Splits:
    groups = [[p for i, p in enumerate(paths) if i % 5 in kept] for kept in ((0, 1, 2), (3,), (4,))]
    parts: list[Any] = [Photos(group, model, task) for group in groups]
    return Splits(task, CLASSES[task], *(list(part) if in_memory else part for part in parts))


def times(paths: list[Path], task: str, rounds: int) -> dict[str, Any]:
    """CPU seconds of the forward passes and of the probe, and their ratio round by round."""
    model = timm.create_model(MODEL).eval()
    parts = splits(paths, model, task, True)
    forward, probe = [], []
    for _ in range(rounds):
        start = time.process_time()
        with torch.no_grad():
            for part in parts[2:]:
                for images, _ in part:
                    model.forward_features(images)
        middle = time.process_time()
        measure(model, REFERENCE, parts)
        forward.append(middle - start)
        probe.append(time.process_time() - middle)
    ratios = [b / a for a, b in zip(forward, probe, strict=True)]
    return {
        "images": len(paths),
        "forward_seconds": [round(value, 2) for value in forward],
        "probe_seconds": [round(value, 2) for value in probe],
        "ratios": [round(value, 4) for value in ratios],
        "median_ratio": round(statistics.median(ratios), 4),
    }


def peak(paths: list[Path], task: str) -> int:
    """Peak memory of this process in MiB after probing."""
    model = timm.create_model(MODEL).eval()
    measure(model, REFERENCE, splits(paths, model, task, False))
    status = Path("/proc/self/status").read_text()  # not ru_maxrss, which starts from what the parent process had
    return int(status.partition("VmHWM:")[2].split()[0]) // 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peak", choices=list(CLASSES), help="only print the peak memory of this process")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    paths = find_photos(options.data, options.images)
    if options.peak:
        print(peak(paths, options.peak))
        return
    document: dict[str, Any] = {"model": MODEL, **machine.described("cpu"), "threads": 1, "seed": 0}
    for task in CLASSES:
        document[task] = times(paths if task == "classification" else paths[::5], task, options.rounds)
        found = {}
        for number in (options.images // 10, options.images):
            command = [sys.executable, __file__, "--data", str(options.data), "--images", str(number), "--peak", task]
            found[number] = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        document[task]["peak_mib"] = found
        print(f"{task}: {document[task]['median_ratio']} times the forward passes, peak MiB by images {found}")
    document["load"] = round(os.getloadavg()[2], 1)
    if options.output:
        options.output.write_text(json.dumps(document, indent=1) + "\n")
    print(markdown(document))


def markdown(document: dict[str, Any]) -> str:
    """The table, and what it needs beside it."""
    versions = ", ".join(f"{name} {document['versions'][name]}" for name in ("torch", "timm"))
    about = [
        document["model"],
        "random weights",
        document["hardware"],
        "one thread",
        versions,
        f"seed {document['seed']}",
    ]
    about += [f"load of the machine {document['load']}"] if "load" in document else []
    lines = [
        f"{', '.join(about)}, {document['date']}: `{document['command']}`",
        "",
        "| probe | photos | CPU time, as a multiple of the bare forward passes: median (rounds) | peak memory, MiB |",
        "|---|---|---|---|",
    ]
    for task in CLASSES:
        found = document[task]
        ratios = ", ".join(f"{ratio:.2f}" for ratio in found["ratios"])
        peaks = ", ".join(f"{mib:,} at {int(number):,} photos" for number, mib in found["peak_mib"].items())
        lines.append(f"| {task} | {found['images']:,} | {found['median_ratio']:.2f} ({ratios}) | {peaks} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
