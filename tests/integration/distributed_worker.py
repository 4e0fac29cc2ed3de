"""Run by test_distributed.py in two processes: every wrapping, each against one process with the whole batch.

    torchrun --nproc-per-node 2 distributed_worker.py RESULT.json

Writes {configuration: {"error": relative gradient error} or {"exception": text}}.
"""

import json
import sys
import traceback
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, str(Path(__file__).parents[1]))
from hosts import build, images, learned, spread
from timm.layers import set_reentrant_ckpt

import timm_neutreno

# in float64: the gradient of one number (a layer's fidelity) is a sum that cancels, and fp32 leaves 1e-5 of it
BATCHES = [images(4, seed=1).double(), images(4, seed=2).double()]


def make(key, checkpointing=False, learnable=None, method="neutreno"):
    options = dict(fidelity=0.6, learnable_fidelity=learnable) if method == "neutreno" else learned(method)
    model = timm_neutreno.patch(build(key, depth=3).double(), method, **options).train()
    if method != "neutreno":
        spread(model)
    model.set_grad_checkpointing(checkpointing)
    return model


def loss(model, batch):
    return model(batch).square().sum(1).mean()


def backward(model, share, forwards):
    """`forwards` forwards, then one backward through their sum; the loss is a mean, as DDP averages gradients."""
    sum(loss(model, share(batch)) for batch in BATCHES[:forwards]).backward()


def reference(key, forwards, learnable, method):
    model = make(key, learnable=learnable, method=method)
    backward(model, lambda batch: batch, forwards)
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def relative_error(got, want):
    """The largest error of a gradient, relative to it; one that is zero up to rounding (a key bias), to the largest."""
    if set(got) != set(want):
        return f"gradients missing or too many: {sorted(set(got) ^ set(want))}"
    largest = max(g.abs().max().item() for g in want.values())
    return max(((got[n] - want[n]).abs().max() / max(want[n].abs().max().item(), 1e-3 * largest)).item() for n in want)


def own_half(batch):
    return batch.chunk(dist.get_world_size())[dist.get_rank()]


def run_ddp(key="vit", checkpointing=False, learnable=None, method="neutreno", forwards=1, reentrant=False, **ddp):
    set_reentrant_ckpt(reentrant)
    try:
        model = DistributedDataParallel(make(key, checkpointing, learnable, method), **ddp)
        for _ in range(2):  # a static graph is learnt in the first step and used from the second on
            model.zero_grad()
            backward(model, own_half, forwards)
    finally:
        set_reentrant_ckpt(False)
    return {name: p.grad for name, p in model.module.named_parameters() if p.grad is not None}


def run_fsdp(key="vit", checkpointing=False, learnable=None, method="neutreno", forwards=1, shard_attention=False):
    model, mesh = make(key, checkpointing, learnable, method), init_device_mesh("cpu", (dist.get_world_size(),))
    for block in model.blocks:
        if shard_attention:
            fully_shard(block.attn, mesh=mesh)
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    for _ in range(2):
        model.zero_grad()
        backward(model, own_half, forwards)
    return {name: p.grad.full_tensor() for name, p in model.named_parameters() if p.grad is not None}


CONFIGURATIONS = {
    "ddp": (run_ddp, {}),
    "ddp_two_forwards": (run_ddp, dict(forwards=2, find_unused_parameters=False, broadcast_buffers=False)),
    "ddp_static": (run_ddp, dict(static_graph=True)),
    "ddp_find_unused": (run_ddp, dict(find_unused_parameters=True)),
    "ddp_learnable": (run_ddp, dict(learnable="head")),
    "ddp_checkpoint": (run_ddp, dict(checkpointing=True, learnable="layer")),
    "ddp_checkpoint_find_unused": (run_ddp, dict(checkpointing=True, find_unused_parameters=True)),
    "ddp_checkpoint_static": (run_ddp, dict(checkpointing=True, static_graph=True)),
    "ddp_reentrant_static": (run_ddp, dict(checkpointing=True, reentrant=True, static_graph=True)),
    "ddp_branches_checkpoint": (run_ddp, dict(key="parallel_things", checkpointing=True)),
    "ddp_rope_checkpoint": (run_ddp, dict(key="eva02", checkpointing=True)),
    "fsdp_block": (run_fsdp, {}),
    "fsdp_attention": (run_fsdp, dict(shard_attention=True)),
    "fsdp_checkpoint": (run_fsdp, dict(checkpointing=True)),
    "fsdp_checkpoint_two_forwards": (run_fsdp, dict(checkpointing=True, forwards=2)),
    "fsdp_attention_checkpoint_two_forwards": (
        run_fsdp,
        dict(shard_attention=True, checkpointing=True, forwards=2),
    ),
    "fsdp_learnable_layer": (run_fsdp, dict(learnable="layer")),
    "fsdp_learnable_head_checkpoint": (run_fsdp, dict(learnable="head", checkpointing=True)),
    "fsdp_attention_learnable_head": (run_fsdp, dict(learnable="head", shard_attention=True)),
    "fsdp_attention_learnable_layer_checkpoint": (
        run_fsdp,
        dict(learnable="layer", shard_attention=True, checkpointing=True),
    ),
    "fsdp_inline_learnable_head": (run_fsdp, dict(key="parallel_scaling", learnable="head", checkpointing=True)),
    "fsdp_windows_learnable_layer": (run_fsdp, dict(key="sam", learnable="layer", shard_attention=True)),
}
METHODS = ("value_residual", "gfsa", "symmetric", "neutreno+featscale", "gfsa+neutreno")
CONFIGURATIONS |= {f"ddp_checkpoint_{method}": (run_ddp, dict(method=method, checkpointing=True)) for method in METHODS}
CONFIGURATIONS |= {
    f"fsdp_attention_checkpoint_{method}": (run_fsdp, dict(method=method, shard_attention=True, checkpointing=True))
    for method in METHODS
}


def measure(name):
    run, kwargs = CONFIGURATIONS[name]
    learnable, method = kwargs.get("learnable"), kwargs.get("method", "neutreno")
    want = reference(kwargs.get("key", "vit"), kwargs.get("forwards", 1), learnable, method)
    return {"error": relative_error(run(**kwargs), want)}


def main():
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    results = {}
    for name in CONFIGURATIONS:
        try:
            results[name] = measure(name)
            assert isinstance(results[name]["error"], float), results[name]["error"]
        except Exception:
            results[name] = {"exception": traceback.format_exc(limit=-6)}
        dist.barrier()
    if dist.get_rank() == 0:
        Path(sys.argv[1]).write_text(json.dumps(results))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
