"""Which image comes when: a function of seed, epoch and step, whatever the processes, the pass and the start."""

from __future__ import annotations

import random

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm_neutreno_cli.data.order import EvalSampler, ResumableSampler, SeededDataset, derive_seed, seed_everything

SIZES = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 30))


def epoch(sampler: ResumableSampler, number: int = 0, step: int = 0) -> list[list[tuple[int, int]]]:
    sampler.set_position(number, step)
    return list(sampler)


@given(SIZES, st.integers(0, 2))
def test_processes_and_passes_share_the_steps_of_one(sizes, number):
    """Step by step the same images with the same augmentations."""
    processes, accumulate, each, more = sizes
    batch = processes * accumulate * each
    length = batch + more
    alone = epoch(ResumableSampler(length, batch, seed=1), number)
    shared = [
        epoch(ResumableSampler(length, batch, 1, rank, processes, accumulate), number) for rank in range(processes)
    ]
    for step, keys in enumerate(alone):
        parts = [part for own in shared for part in own[step * accumulate : (step + 1) * accumulate]]
        assert all(len(part) == each for part in parts)
        assert sorted(key for part in parts for key in part) == sorted(keys)


@given(st.integers(1, 5), st.integers(0, 3))
def test_entered_at_any_step_it_goes_on_as_if_it_had_come_there(batch, step):
    sampler = ResumableSampler(20, batch, seed=3, accumulate=1)
    step = min(step, sampler.steps)
    assert epoch(sampler, 2, step) == epoch(sampler, 2)[step:]
    sampler.set_position(2, step)
    assert len(sampler) == sampler.steps - step


def test_every_image_once_an_epoch_in_another_order_each_time():
    sampler = ResumableSampler(12, 4, seed=0)
    orders = [[index for batch in epoch(sampler, number) for index, _ in batch] for number in (0, 1)]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(12))
    assert orders[0] != orders[1]
    assert epoch(ResumableSampler(12, 4, seed=1)) != epoch(sampler)


def test_the_rest_that_fills_no_step_is_dropped_and_a_limit_holds():
    assert ResumableSampler(11, 4, seed=0).steps == 2
    assert ResumableSampler(11, 4, seed=0, limit=1).steps == 1
    assert ResumableSampler(3, 4, seed=0).steps == 0


def test_repeats_are_of_the_same_image_with_other_augmentations():
    keys = [key for batch in epoch(ResumableSampler(30, 6, seed=0, repeats=3)) for key in batch]
    indices = [index for index, _ in keys]
    assert len(keys) == 30
    assert all(indices.count(index) == 3 for index in set(indices))
    assert len({seed for _, seed in keys}) == 30


@given(st.integers(1, 40), st.integers(1, 8), st.integers(1, 4))
def test_val_batches_are_dealt_out_and_do_not_depend_on_the_processes(length, size, processes):
    alone = list(EvalSampler(length, size))
    shared = [list(EvalSampler(length, size, rank, processes)) for rank in range(processes)]
    assert [index for batch in alone for index in batch] == list(range(length))
    assert [shared[i % processes][i // processes] for i in range(len(alone))] == alone


def test_an_image_s_augmentation_is_that_of_its_key_alone():
    class Noise:
        def __getitem__(self, index: int) -> tuple:
            return index, random.random(), np.random.rand(), torch.rand(1).item()

    seeded = SeededDataset(Noise())
    assert seeded[3, 7] == seeded[3, 7]
    assert seeded[3, 7][1:] == seeded[4, 7][1:]
    assert all(a != b for a, b in zip(seeded[3, 7][1:], seeded[3, 8][1:], strict=True))


def test_seeds_differ_and_seed_every_generator():
    assert derive_seed("step", 1, 2) == derive_seed("step", 1, 2) < 2**63
    assert len({derive_seed("step", a, b) for a in range(30) for b in range(30)}) == 900
    draws = []
    for _ in range(2):
        seed_everything(2**40 + 1)
        draws.append((random.random(), np.random.rand(), torch.rand(1).item()))
    assert draws[0] == draws[1]
