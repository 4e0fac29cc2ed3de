"""Why times differ from process to process: page faults under glibc's default allocator, in timm's model and its twin.

    python benchmarks/allocator.py            # the table, about 5 minutes

Each arm runs in fresh processes of its own, one thread, deit_tiny_patch16_224, batch 8, inference. With the default
allocator freed memory at the end of the heap goes back to the system, and the next pass takes it again, page by page,
or it does not, depending on where the heap happens to end. With `keep` (as in speed.py) it stays in the process.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

import machine
import timm
import torch
from speed import TINY, keep_freed_memory

import timm_neutreno

ARMS = ("timm", "neutreno")
PASSES = 12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=12, help="of each arm and allocator")
    parser.add_argument("--one", nargs=2, metavar=("ARM", "MALLOC"), help="measure in this process, print JSON")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(one(*args.one)))
        return
    print(
        json.dumps(machine.described("cpu")), "| allocator | model | ms, processes | page faults per pass |", sep="\n\n"
    )
    print("|---|---|---|---|")
    for malloc in ("default", "keep"):
        seen: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
        for _ in range(args.processes):
            for arm in ARMS:
                command = [sys.executable, __file__, "--one", arm, malloc]
                run = subprocess.run(command, capture_output=True, text=True, check=True)
                seen[arm].append(json.loads(run.stdout))
        for arm, found in seen.items():
            print(f"| {malloc} | {arm} | {spread(found, 'milliseconds')} | {spread(found, 'faults')} |", flush=True)


def one(arm: str, malloc: str) -> dict[str, float]:
    """Medians over passes: page faults, and milliseconds of this thread."""
    torch.set_num_threads(1)
    if malloc == "keep":
        keep_freed_memory()
    torch.manual_seed(0)
    model = timm.create_model(TINY).eval()
    if arm == "neutreno":
        timm_neutreno.patch(model)
    images, faults, seconds = torch.randn(8, 3, 224, 224), [], []
    with torch.no_grad():
        for index in range(PASSES + 5):
            before, start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.thread_time()
            model(images)
            if index >= 5:
                seconds.append(time.thread_time() - start)
                faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return {"milliseconds": 1e3 * statistics.median(seconds), "faults": statistics.median(faults)}


def spread(found: list[dict[str, float]], key: str) -> str:
    values = sorted(each[key] for each in found)
    return f"{statistics.median(values):,.0f} ({values[0]:,.0f} to {values[-1]:,.0f})"


if __name__ == "__main__":
    main()
