"""How a model is run in training: its task, checkpointing, sharding, averaging, compiling, DDP; and its whole state."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import timm
import torch
from timm.task import ClassificationTask, LogitDistillationTask, TokenDistillationTask, TrainingTask
from torch import nn

from ..config import AdaptConfig, Recipe
from ..errors import CheckpointError, UsageError, one_line
from ..runtime.processes import Processes


def autocast(config: AdaptConfig, device: torch.device) -> AbstractContextManager:
    """bfloat16 where the device has it; on the CPU only if asked for, where it is mostly slower."""
    wanted = config.amp if config.amp is not None else device.type == "cuda" and torch.cuda.is_bf16_supported()
    return torch.autocast(device.type, dtype=getattr(torch, config.amp_dtype)) if wanted else nullcontext()


def scaler(config: AdaptConfig, device: torch.device) -> torch.amp.GradScaler:
    """Scales the loss under float16, whose small gradients would vanish."""
    running = isinstance(autocast(config, device), torch.autocast) and config.amp_dtype == "float16"
    return torch.amp.GradScaler(device.type, enabled=running)


def load_teacher(config: AdaptConfig, num_classes: int, device: torch.device) -> nn.Module | None:
    """The model of --teacher: a timm name, hf-hub:... or local-dir:...

    Raises:
        CheckpointError: If it cannot be had, or its classes are not the data's.
    """
    if not config.teacher:
        return None
    try:
        teacher = timm.create_model(config.teacher, pretrained=True)
    except Exception as error:  # unknown name, no network, a damaged file: each library has its own
        raise CheckpointError(f"cannot load the --teacher {config.teacher}: {one_line(error)[:300]}") from error
    if teacher.num_classes != num_classes:
        raise CheckpointError(
            f"the --teacher {config.teacher} has {teacher.num_classes} classes, the data {num_classes}: a teacher must "
            "know the same classes. Fine-tune one on this data first."
        )
    return teacher.eval().requires_grad_(False).to(device)


def make_task(
    model: nn.Module, teacher: nn.Module | None, recipe: Recipe, config: AdaptConfig, device: torch.device
) -> TrainingTask:
    """timm's task: classification, or distillation to the logits or, where there is one, the distillation token."""
    criterion = {"smoothing": recipe.smoothing, "soft_targets": bool(recipe.mixup or recipe.cutmix)}
    if teacher is None:
        return ClassificationTask(model, criterion_kwargs=criterion, device=device, verbose=False)
    weights: dict[str, Any] = dict(
        task_loss_weight=1 - config.distill_weight, temperature=config.distill_temperature,
        criterion_kwargs=criterion, device=device, verbose=False,
    )  # fmt: skip
    if hasattr(model, "set_distilled_training"):
        return TokenDistillationTask(model, teacher, **weights)
    return LogitDistillationTask(model, teacher, **weights)


def prepare(
    task: TrainingTask, model: nn.Module, recipe: Recipe, config: AdaptConfig, device: torch.device,
    processes: Processes,
) -> None:  # fmt: skip
    """Put what was asked for around the task's model, in the order in which it works; `model` stays the raw module."""
    if config.grad_checkpointing:
        model.set_grad_checkpointing(True)  # type: ignore[operator]
    if config.channels_last:
        model.to(memory_format=torch.channels_last)
    if config.fsdp:
        shard(model, config, device)
        return
    if recipe.ema_decay:
        task.setup_ema(decay=recipe.ema_decay, use_warmup=True)
    if config.compile:
        task.compile()
    if processes.count > 1:
        task.prepare_distributed(device_ids=[device.index] if device.type == "cuda" else None)


def shard(model: Any, config: AdaptConfig, device: torch.device) -> None:
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


def states(model: nn.Module, optimizer: torch.optim.Optimizer, fsdp: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """The whole state_dicts of model and optimizer; of a sharded model they are whole on rank 0 only."""
    if not fsdp:
        return model.state_dict(), optimizer.state_dict()
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

    return get_state_dict(model, optimizer, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def restore(model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any], fsdp: bool) -> None:
    """Put the state_dicts of `states` back."""
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
    """The whole state_dict of a sharded model on rank 0, an empty one elsewhere."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
