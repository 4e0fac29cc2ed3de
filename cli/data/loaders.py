"""Batches of images on the device: timm's transforms and prefetcher, over the samplers of order.py."""

from __future__ import annotations

import os
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from timm.data import FastCollateMixup, create_transform
from timm.data.loader import PrefetchLoader, fast_collate
from torch.utils.data import DataLoader

from ..config import Config
from ..runtime.processes import World
from ..runtime.signals import init_loader_worker
from .order import EvalSampler, ResumableSampler, SeededDataset
from .sources import Datasets


@dataclass
class BatchLoader:
    """timm's prefetching loader over the images of one part.

    Attributes:
        batches: Iterable of (images, target) on the device.
        input_size: (channels, height, width).
        steps: Number of optimizer steps in an epoch; of val images, of batches in the process that has most of them.
        sampler: Which images come when.
        images: The dataset.
    """

    batches: Any
    input_size: tuple[int, ...]
    steps: int
    sampler: Any
    images: Any

    def names(self, epoch: int, step: int) -> list[str]:
        """Files of this process in a training step, as far as the source tells."""
        if not hasattr(self.images, "filename"):
            return []
        self.sampler.set_position(epoch, step)
        parts = islice(self.sampler, self.sampler.accumulate)
        return [str(self.images.filename(index, absolute=True)) for keys in parts for index, _ in keys]


def train_loader(
    datasets: Datasets, data_config: dict[str, Any], config: Config, device: torch.device, world: World
) -> BatchLoader:
    """Augmented train images, in an order that depends on the seed alone. Random erasing is left to the step."""
    collate = _mixing(config, datasets.num_classes) if config.mixup or config.cutmix else fast_collate
    sampler = ResumableSampler(
        len(datasets.train), config.batch_size, config.seed, world.rank, world.size, config.accumulate,
        config.repeated_aug, config.limit_batches,
    )  # fmt: skip
    datasets.train.transform = create_transform(
        data_config["input_size"], is_training=True, mean=data_config["mean"], std=data_config["std"],
        use_prefetcher=True, scale=(config.crop_scale, 1.0), hflip=config.hflip, color_jitter=config.color_jitter,
        auto_augment=config.auto_augment or None, interpolation=data_config["interpolation"],
    )  # fmt: skip
    batches = _prefetched(SeededDataset(datasets.train), sampler, collate, data_config, config, device)
    return BatchLoader(batches, data_config["input_size"], sampler.steps, sampler, datasets.train)


def val_loader(
    datasets: Datasets, batch_size: int, data_config: dict[str, Any], config: Config, device: torch.device, world: World
) -> BatchLoader:
    """Val images under the checkpoint's own preprocessing."""
    own, most = (
        EvalSampler(len(datasets.val), batch_size, rank, world.size, config.limit_batches) for rank in (world.rank, 0)
    )
    datasets.val.transform = create_transform(
        data_config["input_size"], use_prefetcher=True, interpolation=data_config["interpolation"],
        mean=data_config["mean"], std=data_config["std"], crop_pct=data_config["crop_pct"],
        crop_mode=data_config.get("crop_mode"),
    )  # fmt: skip
    batches = _prefetched(datasets.val, own, fast_collate, data_config, config, device)
    return BatchLoader(batches, data_config["input_size"], len(most), own, datasets.val)


def _prefetched(
    dataset: Any, sampler: Any, collate: Any, data_config: dict[str, Any], config: Config, device: torch.device
) -> PrefetchLoader:
    workers = default_workers() if config.workers is None else config.workers
    loader = DataLoader(
        dataset, batch_sampler=sampler, collate_fn=collate, num_workers=workers, pin_memory=device.type == "cuda",
        persistent_workers=workers > 0, worker_init_fn=init_loader_worker,
    )  # fmt: skip
    mean, std = data_config["mean"], data_config["std"]
    return PrefetchLoader(loader, mean, std, channels=data_config["input_size"][0], device=device)


def _mixing(config: Config, num_classes: int) -> FastCollateMixup:
    return FastCollateMixup(
        mixup_alpha=config.mixup, cutmix_alpha=config.cutmix, label_smoothing=config.label_smoothing,
        num_classes=num_classes,
    )  # fmt: skip


def default_workers() -> int:
    """Leave one core to the model, and do not start more loaders than usually help. All processes share the cores."""
    processes_here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return min(8, max(0, (os.cpu_count() or 1) // processes_here - 1))
