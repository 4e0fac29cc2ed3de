"""What probing costs beyond the forward passes: time (paired) and peak memory as images grow in number.

    python benchmarks/probe_cost.py --data PHOTOS --output benchmarks/probe_cost.json

Models with random weights on photos of any folder, three fifths of them train, a fifth val, a fifth test. Labels are
made up (number of the photo modulo 10; for segmentation the brightness of each pixel in 11 steps, at 360 x 480 as in
CamVid), because only the cost is measured. Time is CPU time of one thread, with the photos in memory, so that reading
them is in neither; each round takes the forward passes and the probe in turn (segmentation: on a fifth of the photos).
Memory is the peak of a new process that reads photos from disk, DeiT-tiny's; in each round every number of photos once.
There glibc gives blocks of 128 KiB and more back at once, as it does before it adapts to a program: otherwise holes
between the blocks hide what probing holds. Batches of 16.
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

CLASSES, MASK = {"classification": 10, "segmentation": 11}, (360, 480)
TINY, SMALL = "deit_tiny_patch16_224", "deit_small_patch16_224"
TIMED = (("classification", TINY), ("segmentation", TINY), ("segmentation", SMALL))


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


def times(paths: list[Path], task: str, name: str, rounds: int) -> dict[str, Any]:
    """CPU seconds of the forward passes and of the probe, and their ratio round by round."""
    model = timm.create_model(name).eval()
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
        "probe": task,
        "model": name,
        "images": len(paths),
        "forward_seconds": [round(value, 2) for value in forward],
        "probe_seconds": [round(value, 2) for value in probe],
        "ratios": [round(value, 4) for value in ratios],
        "median_ratio": round(statistics.median(ratios), 4),
    }


def peak(paths: list[Path], task: str) -> int:
    """Peak memory of this process in MiB after probing."""
    model = timm.create_model(TINY).eval()
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
    document: dict[str, Any] = {**machine.described("cpu"), "threads": 1, "seed": 0, "times": []}
    for task, name in TIMED:
        some = paths if task == "classification" else paths[::5]
        document["times"].append(times(some, task, name, options.rounds))
        print(f"{task}, {name}: {document['times'][-1]['median_ratio']} times the forward passes", flush=True)
    document["peak_mib"] = {task: peaks(options, task) for task in CLASSES}
    document["load"] = round(os.getloadavg()[2], 1)
    if options.output:
        options.output.write_text(json.dumps(document, indent=1) + "\n")
    print(markdown(document))


def peaks(options: argparse.Namespace, task: str) -> dict[int, list[int]]:
    """Number of photos -> peak memory in MiB, round by round."""
    found: dict[int, list[int]] = {options.images * tenths // 10: [] for tenths in (1, 3, 10)}
    for _ in range(options.rounds):
        for number, every in found.items():
            command = [sys.executable, __file__, "--data", str(options.data), "--images", str(number), "--peak", task]
            environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(128 * 1024)}
            done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
            every.append(int(done.stdout))
    print(f"{task}: peak MiB by photos {found}", flush=True)
    return found


def markdown(document: dict[str, Any]) -> str:
    """The tables, and what they need beside them."""
    versions = ", ".join(f"{name} {document['versions'][name]}" for name in ("torch", "timm"))
    about = f"Random weights, {document['hardware']}, one thread, {versions}, seed {document['seed']}, load of the "
    about += f"machine {document['load']}, {document['date']}: `{document['command']}`"
    lines = [
        about,
        "",
        "| probe | model | photos | CPU time, as a multiple of the bare forward passes: median (rounds) |",
        "|---|---|---|---|",
    ]
    for found in document["times"]:
        ratios = ", ".join(f"{ratio:.2f}" for ratio in found["ratios"])
        lines.append(
            f"| {found['probe']} | {found['model']} | {found['images']:,} | {found['median_ratio']:.2f} ({ratios}) |"
        )
    numbers = [f"{int(number):,}" for number in document["peak_mib"]["classification"]]
    lines += [
        "",
        f"| probe of {TINY} | {' | '.join(f'peak memory at {number} photos, MiB' for number in numbers)} |",
        f"|---|{'---|' * len(numbers)}",
    ]
    for task, found in document["peak_mib"].items():
        cells = [f"{statistics.median(every):,.0f} ({', '.join(map(str, every))})" for every in found.values()]
        lines.append(f"| {task} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
