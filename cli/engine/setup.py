"""On what and how models run: device, cores, precision, checkpointing, sharding, averaging, compiling, DDP."""

from __future__ import annotations

import os
import re
import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import timm
import torch
from timm.models._manipulate import group_with_matcher
from timm.task import TrainingTask
from torch import nn

from timm_neutreno.methods import STRENGTHS
from timm_neutreno.support import find_vits

from ..config import Config
from ..data.loaders import default_workers
from ..errors import CheckpointError, UsageError, one_line
from ..runtime.console import Console
from ..runtime.processes import World
from ..runtime.signals import StopSignal
from .load_errors import offline_if_silent


@dataclass(frozen=True)
class RunContext:
    """What all arms of a run share; `folder` is the one to name for resuming."""

    config: Config
    device: torch.device
    world: World
    console: Console
    stop: StopSignal
    folder: str

    @property
    def resume_line(self) -> str:
        return f"Go on with: neutreno-adapt --resume {self.folder}"


def choose_device(name: str | None, world: World) -> torch.device:
    """The device of this process: the named one, or a GPU if there is one; Apple's (mps) for a single process only.

    Raises:
        UsageError: If it is not there, or would be shared by several processes.
    """
    if not name:
        mps = world.size == 1 and torch.backends.mps.is_available()
        name = "cuda" if torch.cuda.is_available() else "mps" if mps else "cpu"
    if world.size > 1 and ":" in name:
        raise UsageError(f"--device {name} would be shared by {world.size} processes: pass --device cuda or cpu.")
    try:
        device = torch.device(f"cuda:{world.local_rank}" if name == "cuda" else name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        why = "torch knows no such device" if "Expected one of" in str(error) else one_line(error).partition(". ")[0]
        others = " or cuda" if torch.cuda.is_available() else ""
        raise UsageError(f"--device {name} cannot be used here: {why}. Try --device cpu{others}.") from error
    return device


def set_up_device(config: Config, world: World) -> torch.device:
    """Choose the device, and set the precision of its matrix products and the threads that compute on it.

    On the CPU, computing threads get the cores that the loader processes leave: more of both than cores slow each
    other down.
    """
    device = choose_device(config.device, world)
    torch.set_float32_matmul_precision("high" if config.tf32 else "highest")
    if device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        workers = default_workers() if config.workers is None else config.workers
        torch.set_num_threads(max(1, (os.cpu_count() or 1) - workers))
    return device


def autocast(config: Config, device: torch.device) -> AbstractContextManager:
    """bfloat16 where the device has it; on the CPU only if asked for, where it is mostly slower."""
    wanted = config.amp if config.amp is not None else device.type == "cuda" and torch.cuda.is_bf16_supported()
    return torch.autocast(device.type, dtype=getattr(torch, config.amp_dtype)) if wanted else nullcontext()


def grad_scaler(config: Config, device: torch.device) -> torch.amp.GradScaler:
    """Scales the loss under float16, whose small gradients would vanish."""
    running = isinstance(autocast(config, device), torch.autocast) and config.amp_dtype == "float16"
    return torch.amp.GradScaler(device.type, enabled=running)


def load_teacher(config: Config, num_classes: int, device: torch.device) -> nn.Module | None:
    """The model of --teacher: a timm name, hf-hub:... or local-dir:...

    Raises:
        CheckpointError: If it cannot be had, or its classes are not the data's.
    """
    if not config.teacher:
        return None
    try:
        with offline_if_silent() if not config.teacher.startswith("local-dir:") else nullcontext():
            teacher = timm.create_model(config.teacher, pretrained=True)
    except Exception as error:  # unknown name, no network, a damaged file: each library has its own
        raise CheckpointError(f"cannot load the --teacher {config.teacher}: {one_line(error)[:300]}") from error
    if teacher.num_classes != num_classes:
        raise CheckpointError(
            f"the --teacher {config.teacher} has {teacher.num_classes} classes, the data {num_classes}: a teacher must "
            "know the same classes. Fine-tune one on this data first."
        )
    return teacher.eval().requires_grad_(False).to(device)


def prepare(
    task: TrainingTask, model: nn.Module, config: Config, device: torch.device, world: World
) -> None:  # fmt: skip
    """Put what was asked for around the task's model, in the order in which it works; `model` stays the raw module."""
    if config.grad_checkpointing:
        model.set_grad_checkpointing(True)  # type: ignore[operator]
    if config.channels_last:
        model.to(memory_format=torch.channels_last)
    if config.fsdp:
        shard(model, config, device)
        return
    if config.ema_decay:
        task.setup_ema(decay=config.ema_decay, use_warmup=True)
    if config.compile:
        torch.compiler.reset()  # what earlier arms compiled counts towards torch's limit of recompilations
        task.compile()
    if world.size > 1:
        task.prepare_distributed(device_ids=[device.index] if device.type == "cuda" else None)


def shard(model: Any, config: Config, device: torch.device) -> None:
    """FSDP2: every block by itself, then the rest."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    if not dist.is_initialized():
        raise UsageError("--fsdp shards over several processes: start with --gpus, torchrun or srun.")
    running = isinstance(autocast(config, device), torch.autocast)
    policy = MixedPrecisionPolicy(param_dtype=getattr(torch, config.amp_dtype)) if running else MixedPrecisionPolicy()
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for block in model.blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)


def state_dicts(
    model: nn.Module, optimizer: torch.optim.Optimizer, fsdp: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The complete state_dicts of model and optimizer; of a sharded model they are complete on rank 0 only."""
    if not fsdp:
        return model.state_dict(), optimizer.state_dict()
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

    return get_state_dict(model, optimizer, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def load_state_dicts(model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any], fsdp: bool) -> None:
    """Put back what `state_dicts` gave."""
    if not fsdp:
        model.load_state_dict(state["state_dict"])
        optimizer.load_state_dict(state["optimizer"])
        return
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_state_dict

    set_state_dict(
        model, optimizer, model_state_dict=state["state_dict"], optim_state_dict=state["optimizer"],
        options=StateDictOptions(full_state_dict=True),
    )  # fmt: skip


def gather_weights(model: nn.Module) -> dict[str, Any]:
    """The complete state_dict of a sharded model on rank 0, an empty one elsewhere."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def freeze_except(model: nn.Module, trainable: str) -> None:
    """Freeze all but a part of a model; the head is trained with each part but "fidelity".

    Args:
        model: A ViT of timm, patched or not.
        trainable: "all", "attention" (the layers with their strengths), "lora" (the adapters, which are there, and the
            strengths), "strengths" (the learnable ones of methods), "fidelity" (NeuTRENO's alone) or "head".
    """
    if trainable == "all":
        return
    names = ["fidelity"] if trainable == "fidelity" else [] if trainable == "head" else STRENGTHS
    with_head = trainable in ("attention", "lora", "head")
    head = {id(p) for p in model.get_classifier().parameters()} if with_head else set()  # type: ignore[operator]
    for name, parameter in model.named_parameters():
        attention = trainable == "attention" and (".attn." in name or ".attn_" in name)
        adapter = trainable == "lora" and ".lora_" in name
        chosen = attention or adapter or id(parameter) in head or name.rpartition(".")[2] in names
        parameter.requires_grad_(parameter.requires_grad and chosen)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UsageError(f"--trainable {trainable} leaves a model without learnable strengths nothing to train.")


def freeze_blocks(model: Any, count: int) -> None:
    """Freeze what lies before the blocks, and the first `count` blocks; 0 freezes nothing.

    Raises:
        UsageError: If there are not so many blocks, or nothing is left to train.
    """
    if not count:
        return
    depth = len(find_vits(model)[0].blocks)
    if count > depth:
        raise UsageError(f"--freeze-blocks {count}: the model has {depth} blocks.")
    layers = group_with_matcher(model.named_parameters(), model.group_matcher(coarse=False), reverse=True)
    for name, parameter in model.named_parameters():
        block = re.search(r"(?:^|\.)blocks\.(\d+)\.", name)
        if layers[name] == 0 or (block and int(block[1]) < count):  # timm's layer 0 is what lies before the blocks
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UsageError(f"--freeze-blocks {count} leaves nothing to train that --trainable names.")


def peak_memory(device: torch.device) -> float | None:
    """The most that was in use so far, in MiB: of the GPU's memory, or of this process's."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return None
    unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes on macOS, KiB elsewhere
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1)
