"""What measuring costs: DeiT-tiny with the four similarity metrics watched, over the plain forward pass.

    python benchmarks/similarity_cost.py --data FOLDER_OF_PHOTOS

Every batch runs both ways, one right after the other in changing order, in this process; the ratio is taken per batch.
Prints one JSON document and writes it to similarity_cost.json. Loading the photos is outside the timing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from pathlib import Path

import timm
import torch
from timm_neutreno_cli.data.photos import find_photos, photo_batches

from timm_neutreno.smoothing import watch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of photos, searched with its subfolders")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=25)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = timm.create_model("deit_tiny_patch16_224").eval()
    photos = find_photos(args.data, args.images)
    plain, watched = [], []
    for index, batch in enumerate(photo_batches(photos, model, args.batch_size)):
        if not index:
            seconds(model, batch, measured=True)  # warm-up
        for measured in (True, False) if index % 2 else (False, True):
            (watched if measured else plain).append(seconds(model, batch, measured))
    low, middle, high = statistics.quantiles([b / a for a, b in zip(plain, watched, strict=True)], n=4)
    result = {
        "ratio_median": round(middle, 4),
        "ratio_quartiles": [round(low, 4), round(high, 4)],
        "ratio_of_totals": round(sum(watched) / sum(plain), 4),
        "pairs": len(plain),
        "images": len(photos),
        "seconds_plain": round(sum(plain), 2),
        "threads": args.threads,
        "hardware": f"{platform.machine()} CPU, {os.cpu_count()} cores",
        "date": time.strftime("%Y-%m-%d"),
    }
    print(json.dumps(result))
    Path(__file__).with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")


@torch.no_grad()
def seconds(model: torch.nn.Module, batch: torch.Tensor, measured: bool) -> float:
    start = time.perf_counter()
    if measured:
        with watch(model):
            model(batch)
    else:
        model(batch)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
