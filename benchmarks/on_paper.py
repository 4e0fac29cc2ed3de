"""What the paper's trainings would cost, worked out and not measured: hours, GPUs, storage, data rates, and the limits.

    python benchmarks/on_paper.py --output DIR

Operations are counted on our models (nothing is computed: tensors on the device "meta"); everything else is one of the
assumptions below, each with its source. A step takes as long as the slowest of four things that run side by side:
computing, starting kernels, adding up gradients, loading. Writes on_paper.json and on_paper.md into DIR, in seconds.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

import ade20k_cost
import language_model_flops
import machine
import timm
import torch
from on_paper_table import markdown
from timm_neutreno_cli.config import RECIPES
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

from timm_neutreno import patch
from timm_neutreno.cost import FREE, Counted, count


class Assumption(NamedTuple):
    value: Any
    source: str


PEAK = Assumption({"A100": 312e12, "H100": 989e12}, "FLOP/s, dense bf16, SXM: NVIDIA's data sheets")
UTILISATION = Assumption(
    (0.05, 0.10, 0.25),
    "share of the peak that matrix products reach: low, middle, high. DeiT's paper: DeiT-B, 300 epochs, 53 hours on 8 "
    "V100 is 0.21 of their 125 TFLOP/s; DeiT-S in less than 3 days on 4 is more than 0.08. Smaller models and newer "
    "GPUs reach less of it, compiled kernels more: the range is a judgement",
)
TRAINING = Assumption(3, "matrix products of forward and backward over forward; counted 2.9 to 3.0, see the tests")
OPERATION_SECONDS = Assumption(8e-6, "the host starts one operation in 5 to 10 microseconds in eager PyTorch")
MACHINE_GPUS = Assumption(8, "GPUs of one machine: DGX A100 and DGX H100")
INSIDE = Assumption(
    {"A100": 300e9, "H100": 450e9}, "bytes/s each way between GPUs of a machine: NVLink 3 and 4, data sheets"
)
BETWEEN = Assumption(
    {"A100": 8 * 25e9, "H100": 8 * 50e9},
    "bytes/s of a machine to others: 8 adapters of 200 and 400 Gb/s, DGX data sheets. NCCL's rings use all of them, so "
    "that a machine's sum stands where one link does",
)
SLOW = Assumption(25e9 / 8, "bytes/s of a machine with one 25 Gb/s Ethernet: a cheap cluster")
LINK_SHARE = Assumption(0.5, "of the links' bytes/s that an all-reduce of small buckets reaches; a guess")
GRADIENT_BYTES = Assumption(4, "of a parameter in DistributedDataParallel: fp32, also under autocast")
CORES = Assumption({"A100": 16, "H100": 14}, "per GPU: 2 x 64 and 2 x 56 cores for 8, DGX data sheets")
DECODED = Assumption(
    {"shrunk": 315, "whole": 160},
    "photos/s of one core, decoded and augmented as DeiT does. shrunk to 256 pixels: measured on 2026-11-21, see "
    "docs/cluster.md; whole: half, as ImageNet's files have twice the pixels, a guess. Hours are of ImageNet "
    "shrunk and ADE20K whole",
)
RUN_BYTES = Assumption(40, "of a parameter in the folder of one arm: docs/cluster.md")
BF16 = Assumption(2, "bytes of a number that is kept for the backward pass under autocast")
IMAGENET = Assumption((1_281_167, 50_000, 147.9e9 + 6.7e9), "train and val images; bytes of ILSVRC2012's two archives")
ADE20K = Assumption(
    (ade20k_cost.TRAIN, ade20k_cost.VAL, 0.97e9), "train and val images; bytes of ADEChallengeData2016.zip"
)
ADE20K_WINDOWS = Assumption(2, "windows of 512 pixels in a val image of 683 x 512")
WIKITEXT = Assumption(0.54e9, "bytes of WikiText-103's training text")
SCRATCH_EPOCHS = Assumption(300, "DeiT's and the paper's training from scratch; the adaptation has a third")
GPUS = (1, 8, 64)


class Task(NamedTuple):
    name: str
    parameters: int
    forward_flops: float  # matrix products for one sample
    training_flops: float  # likewise, with the backward pass
    added: float  # what NeuTRENO's term adds, as a share of all operations of a forward pass
    operations: int  # of a forward pass, each a kernel to start
    kept_bytes: float  # for the backward pass, of one sample
    batch: int
    steps: int
    evaluated: float  # samples of all evaluations
    sample_bytes: float  # to be read
    data_bytes: float
    photos: str  # which of DECODED they are; none if they are text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("."))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    document = describe([*imagenet(), ade20k(), wikitext()])
    (options.output / "on_paper.json").write_text(json.dumps(document, indent=1) + "\n")
    (options.output / "on_paper.md").write_text(markdown(document))


def imagenet() -> list[Task]:
    train, val, size = IMAGENET.value
    recipe = RECIPES["classification"]["deit"]
    tasks = []
    for name, epochs in (("adaptation", recipe["epochs"]), ("from scratch", SCRATCH_EPOCHS.value)):
        for arch in ("tiny", "small"):
            counted = counts(lambda arch=arch: timm.create_model(f"deit_{arch}_patch16_224"), 224)
            tasks.append(
                Task(f"ImageNet, {name}, DeiT-{arch}", **counted, batch=recipe["batch_size"],
                     steps=train // recipe["batch_size"] * epochs, evaluated=val * epochs,
                     sample_bytes=size / (train + val), data_bytes=size, photos="shrunk")
            )  # fmt: skip
    return tasks


def ade20k() -> Task:
    (train, val, size), recipe = ADE20K.value, RECIPES["segmentation"]["segmenter"]
    side, batch, epochs = recipe["img_size"], recipe["batch_size"], recipe["epochs"]
    counted = counts(lambda: ade20k_cost.segmenter(side), side)
    return Task("ADE20K, Segmenter of DeiT-tiny", **counted, batch=batch, steps=train // batch * epochs,
                evaluated=val * ADE20K_WINDOWS.value * epochs, sample_bytes=size / (train + val), data_bytes=size,
                photos="whole")  # fmt: skip


def wikitext() -> Task:
    """A sample is a text of 256 tokens. Adaptive softmax depends on the words: counted by language_model_flops.py."""
    from language_model import arguments, build

    options = arguments(["--train", "-", "--test", "-", "--output", "-", "--device", "cpu", "--paper"])
    found = language_model_flops.cost("--paper")
    lm = build("plain", 0, language_model_flops.VOCABULARY["--paper"], options)
    parameters, context = sum(p.numel() for p in lm.parameters()), lm.context
    words = torch.randint(lm.vocabulary, (1, context + 1), generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), Operations() as operations:
        lm.eval()(words[:, :-1], words[:, 1:])
    training = found["training_flops_per_token"] * context
    forward = training / TRAINING.value
    return Task("WikiText-103, 16 layers", parameters, forward, training, 0.0, operations.number, 0.0,
                options.batch_size, options.steps, found["test_flops"] / forward, WIKITEXT.value / 103e6 * context,
                WIKITEXT.value, photos="")  # fmt: skip


def counts(create: Any, side: int) -> dict[str, Any]:
    """What can be counted on a model for images, without computing."""
    image = torch.empty(1, 3, side, side, device="meta")
    plain, patched = create().to("meta").eval(), patch(create()).to("meta").eval()
    forward: Counted = count(plain, image)
    with torch.no_grad(), Operations() as operations:
        plain(image)
    return {
        "parameters": sum(p.numel() for p in plain.parameters()), "forward_flops": forward.matmul_flops,
        "training_flops": TRAINING.value * forward.matmul_flops,
        "added": count(patched, image).flops / forward.flops - 1, "operations": operations.number,
        "kept_bytes": kept(patched, image) * BF16.value,
    }  # fmt: skip


class Operations(TorchDispatchMode):
    """Counts the operations that compute: about one kernel each."""

    number = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._overloadpacket._qualified_op_name.split("::")[1].removesuffix("_")
        self.number += name not in FREE
        return func(*args, **(kwargs or {}))


def kept(model: nn.Module, image: torch.Tensor) -> int:
    """Numbers that autograd keeps from the forward pass, each tensor once, without weights."""
    weights = {p.untyped_storage()._cdata for p in model.parameters()}
    found: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        found[storage._cdata] = storage  # held, so that no other one gets its address
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(image)
    del output
    return sum(storage.nbytes() for key, storage in found.items() if key not in weights) // 4  # of fp32


def all_reduce_bytes(parameters: int, gpus: int) -> float:
    """What every GPU sends in a ring: 2 (n - 1) / n of all gradients."""
    return 2 * (gpus - 1) / gpus * parameters * GRADIENT_BYTES.value


def step_seconds(task: Task, gpu: str, gpus: int, utilisation: float, slow: bool = False) -> dict[str, float]:
    """Seconds that one step needs for each of the things that run side by side."""
    share = task.batch / gpus
    between = SLOW.value if slow else BETWEEN.value[gpu]
    link = INSIDE.value[gpu] if gpus <= MACHINE_GPUS.value else min(between, INSIDE.value[gpu])
    return {
        "computing": share * task.training_flops / (PEAK.value[gpu] * utilisation),
        "starting kernels": TRAINING.value * task.operations * OPERATION_SECONDS.value,
        "adding up gradients": all_reduce_bytes(task.parameters, gpus) / (link * LINK_SHARE.value),
        "loading": share / (CORES.value[gpu] * DECODED.value[task.photos]) if task.photos else 0.0,
    }


def plan(task: Task, gpu: str, gpus: int) -> dict[str, Any]:
    """Hours, GPU hours, rates and what limits them, at every utilisation; None where a GPU has less than a sample."""
    if gpus > task.batch:
        return {"gpus": gpus, "hours": None}
    every = [step_seconds(task, gpu, gpus, utilisation) for utilisation in UTILISATION.value]
    hours = []
    for seconds, utilisation in zip(every, UTILISATION.value, strict=True):
        evaluation = task.evaluated * task.forward_flops / (PEAK.value[gpu] * utilisation * gpus)
        hours.append((task.steps * max(seconds.values()) + evaluation) / 3600)
    middle = every[1]
    step = max(middle.values())
    return {
        "gpus": gpus, "hours": hours, "gpu_hours": hours[1] * gpus, "step_seconds": middle,
        "limits": [max(seconds, key=lambda name: seconds[name]) for seconds in every],
        "samples_per_second": task.batch / step, "read_bytes_per_second": task.batch / step * task.sample_bytes,
        "batch_per_gpu": task.batch / gpus, "kept_gb": task.batch / gpus * task.kept_bytes / 1e9,
        "all_reduce_share": middle["adding up gradients"] / middle["computing"],
        "slow_all_reduce_share": step_seconds(task, gpu, gpus, UTILISATION.value[1], True)["adding up gradients"]
        / middle["computing"],
    }  # fmt: skip


def loading(task: Task, gpu: str) -> dict[str, Any]:
    """What one GPU that computes without waiting asks of the loader, at every utilisation."""
    rates = [PEAK.value[gpu] * utilisation / task.training_flops for utilisation in UTILISATION.value]
    return {
        "samples_per_second": rates,
        "cores": {kind: [rate / each for rate in rates] for kind, each in DECODED.value.items()},
        "bytes_per_second": [rate * task.sample_bytes for rate in rates],
        "has_cores": CORES.value[gpu],
    }


def stops(task: Task, gpu: str) -> list[dict[str, Any]]:
    """For every other limit: the first number of GPUs (1, 2, 4, ...) at which it takes longer than computing."""
    numbers = [2**i for i in range(task.batch.bit_length()) if 2**i <= task.batch]
    found: dict[str, int] = {}
    for slow in (False, True):
        for gpus in numbers:
            seconds = step_seconds(task, gpu, gpus, UTILISATION.value[1], slow)
            late = {name for name, value in seconds.items() if value > seconds["computing"]}
            if slow:
                late = {"adding up gradients, slow network"} & {f"{name}, slow network" for name in late}
            for name in late:
                found.setdefault(name, gpus)
    return [{"limit": name, "gpus": gpus} for name, gpus in found.items()]


def describe(tasks: list[Task]) -> dict[str, Any]:
    return {
        "what": "cost worked out from counted operations and assumptions; nothing here was measured on a GPU",
        **machine.described("cpu"),
        "loader_small_files": json.loads((Path(__file__).parent / "loader.json").read_text())["images_per_second"]["a"],
        "assumptions": {n: v._asdict() for n, v in globals().items() if isinstance(v, Assumption)},
        "tasks": [
            {
                **task._asdict(),
                "run_bytes": RUN_BYTES.value * task.parameters,
                "flops": task.steps * task.batch * task.training_flops + task.evaluated * task.forward_flops,
                "on": {
                    gpu: {
                        "plans": [plan(task, gpu, gpus) for gpus in GPUS],
                        "loading": loading(task, gpu) if task.photos else None,
                        "stops": stops(task, gpu),
                    }
                    for gpu in PEAK.value
                },
            }
            for task in tasks
        ],
    }


if __name__ == "__main__":
    main()
