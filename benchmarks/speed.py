"""What NeuTRENO costs: timm's model, a second copy of it, its NeuTRENO twin, and the paper's formula written out.

    python benchmarks/speed.py                      # the table, speed.json, speed.svg, docs/performance.md
    python benchmarks/speed.py --quick              # minutes less, written nowhere
    python benchmarks/speed.py --document           # only renew docs/performance.md and the plot from speed.json
    python benchmarks/speed.py --models vit_so400m_patch14_siglip_224 --modes inference --rounds 10    # only printed
    python benchmarks/speed.py --device cuda --models deit_tiny_patch16_224 vit_base_patch16_224 --batches 1 64 256 \
        --output speed_cuda.json

Every round runs each arm once, in changing order, in this process; the ratio to timm's model is taken per round; the
table shows its median and quartiles. The `control` arm is a copy of timm's model: its ratio would be 1
without noise. The `reference` arm has an explicit softmax matrix, as the authors' code, instead of fused attention.
Weights and images are random (seed 0). Peak memory is weights plus the most bytes that tensors of one pass hold at one
time (on CUDA: torch.cuda.max_memory_allocated); a training step has no optimizer.
Every cell runs in a process of its own. There glibc is told not to return freed memory to the system (--malloc keep):
otherwise page faults, which depend on where the heap happens to end, move times by 10 % in timm's model and in ours
(allocator.py). The cells of ALSO_DEFAULT are measured a second time with glibc's default.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import MethodType
from typing import Any, NamedTuple

import machine
import timm
import torch
from torch import Tensor, nn

import timm_neutreno
from timm_neutreno.cost import Counter, count

HERE = Path(__file__).parent
JSON, PLOT, DOCUMENT = HERE / "speed.json", HERE / "speed.svg", HERE.parent / "docs" / "performance.md"
BEGIN, END = "<!-- speed: made by benchmarks/speed.py --document -->", "<!-- end of speed -->"
FIDELITY = 0.6
ARMS = ("timm", "control", "neutreno", "reference")
TINY, SMALL, BASE = "deit_tiny_patch16_224", "deit_small_patch16_224", "vit_base_patch16_224"
LARGE = ("vit_so400m_patch14_siglip_224", "vit_giant_patch14_dinov2")  # not in the default table: name them


class Cell(NamedTuple):
    """One line of the table."""

    model: str
    mode: str = "inference"  # or "training": forward and backward
    batch: int = 1
    image: int = 224  # pixels: 224, 384, 512, 1024 are 196, 576, 1024, 4096 patches of 16
    dtype: str = "float32"  # or "bfloat16", by autocast
    compiled: bool = False


CELLS = [
    *(Cell(TINY, batch=batch) for batch in (1, 2, 8)),
    *(Cell(SMALL, batch=batch) for batch in (1, 4)),
    Cell(BASE),
    *(Cell(TINY, "training", batch) for batch in (2, 8)),
    Cell(SMALL, "training", 1),
    Cell(TINY, image=384),
    Cell(TINY, compiled=True),
    Cell(TINY, dtype="bfloat16"),
    Cell(TINY, "training", 2, compiled=True),
]
LONG = [Cell(TINY, image=1024)]  # seconds per pass on a CPU: few rounds
QUICK = [Cell(TINY), Cell(TINY, "training", 1)]
ALSO_DEFAULT = {Cell(TINY), Cell(TINY, batch=2), Cell(TINY, batch=8), Cell(TINY, "training", 8)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two cells, ten rounds, nothing written")
    parser.add_argument(
        "--document",
        action="store_true",
        help="measure nothing; renew docs/performance.md and the plot from speed.json",
    )
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--models", nargs="+", help=f"own grid of cells; large ones: {', '.join(LARGE)}")
    parser.add_argument("--modes", nargs="+", default=["inference", "training"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1])
    parser.add_argument("--images", nargs="+", type=int, default=[224])
    parser.add_argument("--dtypes", nargs="+", default=["float32"])
    parser.add_argument("--compiled", action="store_true", help="with --models: compile every arm")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, help="with --models: keep the figures in this JSON file")
    parser.add_argument("--malloc", choices=["keep", "default"], default="keep")
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)  # a cell, measured in this process
    args = parser.parse_args()
    if args.document:
        document = json.loads(JSON.read_text())
        plot(document["cells"])
        write_document(document)
        return
    torch.set_num_threads(args.threads)
    if args.one:
        if args.malloc == "keep":
            keep_freed_memory()
        print(json.dumps(measure(Cell(*args.one), args.device, args.rounds)))
        return
    rounds = 10 if args.quick else args.rounds
    cells = [(cell, rounds) for cell in QUICK if args.quick] or [(cell, rounds) for cell in own_grid(args)]
    cells = cells or [(cell, rounds) for cell in CELLS] + [(cell, 3) for cell in LONG]
    result = startup(5 if args.quick else 15)
    print(startup_line(result), HEADER, sep="\n\n", flush=True)
    document = {"setting": setting(args), "startup": result, "cells": []}
    whole = not (args.quick or args.models)  # only the whole table replaces the one in docs
    output = JSON if whole else args.output
    for cell, repeats in cells:
        row = in_new_process(cell, repeats, args, args.malloc)
        if whole and cell in ALSO_DEFAULT:
            row["default_allocator"] = in_new_process(cell, repeats, args, "default")["ratio"]
        document["cells"].append(row)
        print(line(row), flush=True)
        if output:
            output.write_text(json.dumps(document, indent=1) + "\n")
    if whole:
        plot(document["cells"])
        write_document(document)


def in_new_process(cell: Cell, rounds: int, args: argparse.Namespace, malloc: str) -> dict[str, Any]:
    own = ["--one", json.dumps(cell), "--rounds", str(rounds), "--malloc", malloc]
    command = [sys.executable, __file__, *own, "--device", args.device, "--threads", str(args.threads)]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def own_grid(args: argparse.Namespace) -> list[Cell]:
    grid = itertools.product(args.models or (), args.modes, args.batches, args.images, args.dtypes, [args.compiled])
    return [Cell(*values) for values in grid]


def keep_freed_memory() -> None:
    """glibc: M_TRIM_THRESHOLD and M_MMAP_THRESHOLD as large as they get. Elsewhere nothing."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(-1, 2**31 - 1)
        libc.mallopt(-3, 2**31 - 1)


def setting(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "hardware": torch.cuda.get_device_name()
        if args.device == "cuda"
        else f"{machine.cpu_name()} CPU, {os.cpu_count()} cores",
        "device": args.device,
        "threads": args.threads,
        "malloc": args.malloc,
        "seed": 0,
        "fidelity": FIDELITY,
        "versions": {"torch": torch.__version__, "timm": timm.__version__, "timm_neutreno": timm_neutreno.__version__},
        "date": time.strftime("%Y-%m-%d"),
    }


# --- the arms -------------------------------------------------------------------------------------------------------


def arms(cell: Cell, device: str) -> dict[str, nn.Module]:
    """The four models of a cell, with the same weights."""
    torch.manual_seed(0)
    model = timm.create_model(cell.model, img_size=cell.image).train(cell.mode == "training").to(device)
    return {
        "timm": model,
        "control": copy.deepcopy(model),
        "neutreno": timm_neutreno.patch(copy.deepcopy(model), fidelity=FIDELITY),
        "reference": written_out(copy.deepcopy(model)),
    }


def written_out(model: Any) -> nn.Module:
    """The formula as in the authors' DeiT/neutreno.py, for plain attention: no SDPA, every step an operation."""
    first: list[Tensor] = []

    def forward(attn, x: Tensor, layer: int, **_: Any) -> Tensor:
        B, N, C = x.shape
        qkv = attn.qkv(x).reshape(B, N, 3, attn.num_heads, C // attn.num_heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        weights = attn.attn_drop(((q @ k.transpose(-2, -1)) * attn.scale).softmax(dim=-1))
        if layer == 0:
            first[:] = [v]
            res = 0
        else:
            res = FIDELITY * (first[0] - v)
        return attn.proj_drop(attn.proj((weights @ v + res).transpose(1, 2).reshape(B, N, C)))

    for layer, block in enumerate(model.blocks):
        block.attn.forward = MethodType(lambda attn, x, layer=layer, **kwargs: forward(attn, x, layer), block.attn)
    return model


def step(model: nn.Module, cell: Cell, images: Tensor) -> Callable[[], None]:
    """One forward pass, or one forward and backward pass with fresh gradients."""

    def inference() -> None:
        with torch.no_grad(), torch.autocast(images.device.type, torch.bfloat16, enabled=cell.dtype == "bfloat16"):
            model(images)

    def training() -> None:
        model.zero_grad(set_to_none=True)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=cell.dtype == "bfloat16"):
            loss = model(images).float().square().mean()
        loss.backward()

    return inference if cell.mode == "inference" else training


# --- the measurements -----------------------------------------------------------------------------------------------


def measure(cell: Cell, device: str, rounds: int) -> dict[str, Any]:
    models = arms(cell, device)
    images = torch.randn(cell.batch, 3, cell.image, cell.image, device=device)
    tokens = models["timm"].patch_embed.num_patches
    memory = {name: peak_bytes(model, cell, images) for name, model in models.items()}
    flops = count(models["timm"], images).matmul_flops
    if cell.compiled:
        models = {name: torch.compile(model) for name, model in models.items() if name != "reference"}
    seconds = interleaved({name: step(model, cell, images) for name, model in models.items()}, device, rounds)
    if cell.compiled:
        torch._dynamo.reset()
    return {
        **cell._asdict(),
        "tokens": tokens,
        "rounds": rounds,
        "flops_timm": flops,
        "seconds_timm": statistics.median(seconds["timm"]),
        "ratio": {name: quartiles(values, seconds["timm"]) for name, values in seconds.items() if name != "timm"},
        "peak_bytes": memory,
    }


def interleaved(
    steps: dict[str, Callable[[], None]], device: str, rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of every round of each, taken in turns and in changing order."""
    for run in (*steps.values(), *steps.values()):  # warm-up; compiles
        run()
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    for index in range(rounds):
        first = index % len(names)
        order = names[first:] + names[:first]
        for name in order if (index // len(names)) % 2 else order[::-1]:
            seconds[name].append(timed(steps[name], device, clock))
    return seconds


def timed(run: Callable[[], None], device: str, clock: Callable[[], float]) -> float:
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    wait()
    start = clock()
    run()
    wait()
    return clock() - start


def quartiles(values: list[float], base: list[float]) -> list[float]:
    """Lower quartile, median, upper quartile of the ratios."""
    return [round(q, 4) for q in statistics.quantiles([a / b for a, b in zip(values, base, strict=True)], n=4)]


def peak_bytes(model: nn.Module, cell: Cell, images: Tensor) -> int:
    """Of the eager model: weights and buffers, and what the pass adds at its peak."""
    run = step(model, cell, images)
    weights = sum(t.nbytes for t in itertools.chain(model.parameters(), model.buffers()))
    if images.device.type == "cuda":
        run()
        model.zero_grad(set_to_none=True)
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return weights + torch.cuda.max_memory_allocated() - before
    with Counter() as counter:
        run()
    model.zero_grad(set_to_none=True)
    return weights + counter.peak


def startup(processes: int) -> dict[str, float]:
    """Medians: the import in fresh processes, beyond timm's own; creating a twin, over creating the base model."""
    code = "import time, timm; a = time.perf_counter(); import timm_neutreno; print(1e3 * (time.perf_counter() - a))"
    run = [sys.executable, "-c", code]
    times = [float(subprocess.run(run, capture_output=True, text=True, check=True).stdout) for _ in range(processes)]
    create = {name: (lambda name=name: timm.create_model(name)) for name in (TINY, f"neutreno_{TINY}")}
    seconds = interleaved({**create, "control": lambda: timm.create_model(TINY)}, "cpu", 2 * processes)
    return {
        "import_milliseconds": round(statistics.median(times), 1),
        "processes": processes,
        "create_model_ratio": quartiles(seconds[f"neutreno_{TINY}"], seconds[TINY])[1],
        "create_model_ratio_control": quartiles(seconds["control"], seconds[TINY])[1],
    }


# --- the output -----------------------------------------------------------------------------------------------------

HEADER = (
    "| model | pass | batch | tokens | timm, ms | control | NeuTRENO | written out | peak memory "
    "| default allocator: control | NeuTRENO |\n|" + "---|" * 11
)


def line(row: dict[str, Any]) -> str:
    def show(name: str, ratios: str = "ratio") -> str:
        low, middle, high = row.get(ratios, {}).get(name, (0, 0, 0))
        return f"{middle:.3f} ({low:.3f} to {high:.3f})" if middle else "-"

    extras = [text for text, on in (("compiled", row["compiled"]), ("bf16", row["dtype"] == "bfloat16")) if on]
    few = f", {row['rounds']} rounds" if row["rounds"] < 30 else ""
    memory = row["peak_bytes"]["neutreno"] / row["peak_bytes"]["timm"]
    cells = [row["model"], ", ".join([row["mode"], *extras]) + few, row["batch"], row["tokens"]]
    cells += [f"{1e3 * row['seconds_timm']:.0f}", show("control"), show("neutreno"), show("reference")]
    cells += ["-" if row["compiled"] else f"{memory:.3f}"]
    cells += [show("control", "default_allocator"), show("neutreno", "default_allocator")]
    return "| " + " | ".join(map(str, cells)) + " |"


def startup_line(result: dict[str, float]) -> str:
    return (
        f"`import timm_neutreno` takes {result['import_milliseconds']} ms beyond timm's own (median of "
        f"{result['processes']} new processes); creating a twin takes {result['create_model_ratio']:.3f} times as long "
        f"as timm's model (a second creation of timm's: {result['create_model_ratio_control']:.3f})."
    )


def section(document: dict[str, Any]) -> str:
    """The lines between the marks in docs/performance.md."""
    s = document["setting"]
    where = f"{s['hardware']}, {s['threads']} thread{'s'[: s['threads'] > 1]}, torch {s['versions']['torch']}"
    where += f", timm {s['versions']['timm']}, {s['date']}, seed {s['seed']}"
    return "\n".join(
        [
            f"Measured by `python benchmarks/speed.py` on {where}. Ratios to timm's model, median over",
            f"rounds (quartiles), at least {min(r['rounds'] for r in document['cells'] if r['rounds'] >= 10)} rounds "
            "unless said; `control` is timm against itself: what differs from 1 there is noise.",
            "`written out` is the formula without fused attention. Peak memory is NeuTRENO's over timm's. Freed memory "
            f"stays in the process (`--malloc {s['malloc']}`), but in the last two columns.",
            "",
            HEADER,
            *map(line, document["cells"]),
            "",
            startup_line(document["startup"]),
        ]
    )


def write_document(document: dict[str, Any]) -> None:
    before, rest = DOCUMENT.read_text().split(BEGIN)
    DOCUMENT.write_text(f"{before}{BEGIN}\n{section(document)}\n{END}{rest.split(END)[1]}")


def plot(rows: list[dict[str, Any]]) -> None:
    """NeuTRENO's cost against batch and against tokens, with the control's."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "speed"  # the same figures, the same file
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.5), sharey=True)
    plain = [r for r in rows if r["mode"] == "inference" and not r["compiled"] and r["dtype"] == "float32"]
    lines = {"batch": [r for r in plain if r["image"] == 224], "tokens": [r for r in plain if r["batch"] == 1]}
    for axis, (key, points) in zip(axes, lines.items(), strict=True):
        points = sorted((r for r in points if r["model"] == plain[0]["model"]), key=lambda r: r[key])
        for name, color in (("neutreno", "C1"), ("control", "0.5")):
            low, middle, high = zip(*(r["ratio"][name] for r in points), strict=True)
            axis.plot([r[key] for r in points], middle, "o-", color=color, label=name)
            axis.fill_between([r[key] for r in points], low, high, color=color, alpha=0.2, linewidth=0)
        axis.set_xscale("log", base=2)
        axis.set_xlabel(key)
    axes[0].set_ylabel("time, over timm's model")
    axes[0].set_title(f"{plain[0]['model']}, inference", fontsize="medium")
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(PLOT, metadata={"Date": None})


if __name__ == "__main__":
    main()
