"""Which image comes when, and with what randomness: a function of seed, epoch and position, and of nothing else.

No generator carries state from one step to the next, so the order and the augmentation of an image are the same for any
number of processes and loader workers, and a run that is resumed at any step goes on exactly as if it had not stopped.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

Key = tuple[int, int]  # index of an image, and the seed of its augmentation


def derive_seed(*parts: int | str) -> int:
    """A seed in [0, 2**63) that differs for every combination of parts."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def seed_everything(seed: int) -> None:
    """Seed Python's, numpy's and torch's generators; torch's on every device."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


class ResumableSampler(Sampler):
    """The batches of one process, as lists of keys.

    Step s of an epoch is a slice of the epoch's permutation, the same for any number of processes; it is dealt out to
    accumulation steps and processes one image after the other. The rest of an epoch that fills no step is dropped.

    Args:
        length: Number of images.
        batch_size: Images of a step, over all processes and accumulation steps; divisible by their number.
        seed: Of permutation and augmentation.
        rank: This process.
        processes: How many there are.
        accumulate: EvalSampler of a step, one after another.
        repeats: Repeated augmentation (Hoffer et al. 2020, as in DeiT): every image comes so many times in a row, and
            the epoch ends after `length` of them.
        limit: At most so many steps per epoch.
    """

    def __init__(
        self, length: int, batch_size: int, seed: int, rank: int = 0, processes: int = 1, accumulate: int = 1,
        repeats: int = 1, limit: int | None = None,
    ):  # fmt: skip
        self.length, self.batch_size, self.seed, self.repeats = length, batch_size, seed, repeats
        self.rank, self.processes, self.accumulate = rank, processes, accumulate
        self.steps = length // batch_size if limit is None else min(limit, length // batch_size)
        self.set_position(0, 0)

    def set_position(self, epoch: int, step: int) -> None:
        """What the next iteration yields: the given epoch, from the given step on."""
        self.epoch, self.start = epoch, step

    def __len__(self) -> int:
        return (self.steps - self.start) * self.accumulate

    def __iter__(self) -> Iterator[list[Key]]:
        epoch = self.epoch
        generator = torch.Generator().manual_seed(derive_seed("order", self.seed, epoch))
        order = torch.randperm(self.length, generator=generator)
        if self.repeats > 1:
            order = order.repeat_interleave(self.repeats)[: self.length]
        for step in range(self.start, self.steps):
            for part in range(self.accumulate):
                first = step * self.batch_size + part * self.processes + self.rank
                places = range(first, (step + 1) * self.batch_size, self.processes * self.accumulate)
                yield [(int(order[place]), derive_seed("image", self.seed, epoch, place)) for place in places]


class SeededDataset(Dataset):
    """A dataset that is asked with keys: seeds the generators, then reads and augments the image."""

    def __init__(self, dataset: Any):
        self.dataset = dataset

    def __getitem__(self, key: Key) -> Any:
        index, seed = key
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.default_generator.manual_seed(seed)
        return self.dataset[index]


class EvalSampler(Sampler):
    """The val batches of one process: every `processes`-th of batches that do not depend on the number of processes."""

    def __init__(self, length: int, batch_size: int, rank: int = 0, processes: int = 1, limit: int | None = None):
        starts = range(0, length, batch_size)[:limit]
        self.batches = [range(start, min(start + batch_size, length)) for start in starts][rank::processes]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return (list(batch) for batch in self.batches)
