"""Batches on the device: the same images whatever the workers and the start, augmented or as the checkpoint wants."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from integration import small_run
from timm_neutreno_cli.config import Config
from timm_neutreno_cli.data import loaders
from timm_neutreno_cli.data.sources import open_datasets
from timm_neutreno_cli.runtime.processes import World

DATA_CONFIG = {
    "input_size": (3, 16, 16), "interpolation": "bicubic", "mean": (0.5,) * 3, "std": (0.5,) * 3, "crop_pct": 1.0,
}  # fmt: skip
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Config:
    images, _ = small_run.make(tmp_path_factory.mktemp("small"), train=6, val=5)
    return Config(data=str(images), batch_size=4, workers=0)


def train(config: Config, epoch: int = 0, step: int = 0, world: World = World()):  # noqa: B008 - World is frozen, one for all calls is safe
    loader = loaders.train_loader(open_datasets(config), DATA_CONFIG, config, CPU, world)
    loader.sampler.set_position(epoch, step)
    return list(loader.batches)


def assert_equal(ours, theirs) -> None:
    assert len(ours) == len(theirs)
    for (images, target), (others, labels) in zip(ours, theirs, strict=True):
        assert torch.equal(images, others)
        assert torch.equal(target, labels)


@pytest.mark.parametrize("change", [{"workers": 2}, {"mixup": 0.5, "workers": 1}])
def test_workers_change_no_pixel(config, change):
    changed = replace(config, **change)
    if "mixup" in change:  # its noise is drawn in the process that puts the batch together
        assert train(changed)[0][1].shape == (4, 2)
        return
    assert_equal(train(changed), train(config))


def test_a_later_start_gives_the_rest_of_the_same_epoch(config):
    assert_equal(train(config, 1, 1), train(config, 1)[1:])
    assert not torch.equal(train(config, 0)[0][0], train(config, 1)[0][0])


def test_val_images_come_once_and_as_the_checkpoint_wants_them(config):
    loader = loaders.val_loader(open_datasets(config), 4, DATA_CONFIG, config, CPU, World())
    batches = list(loader.batches)
    assert [len(images) for images, _ in batches] == [4, 4, 2]
    assert loader.steps == 3
    assert torch.cat([target for _, target in batches]).tolist() == [0] * 5 + [1] * 5
    assert_equal(batches, list(loader.batches))  # no augmentation
    shares = [
        loaders.val_loader(open_datasets(config), 4, DATA_CONFIG, config, CPU, World(rank, rank, 2)) for rank in (0, 1)
    ]
    assert [share.steps for share in shares] == [2, 2]  # a process with fewer batches knows of the others' more
    assert [len(list(share.batches)) for share in shares] == [2, 1]


def test_names_of_a_step_s_files(config):
    loader = loaders.train_loader(open_datasets(config), DATA_CONFIG, replace(config, accumulate=2), CPU, World())
    names = loader.names(0, 1)
    assert len(names) == len(set(names)) == 4
    assert all(Path(name).is_file() for name in names)


def test_default_workers_are_shared_by_the_processes_of_the_machine(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 16)
    assert loaders.default_workers() == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert loaders.default_workers() == 3
