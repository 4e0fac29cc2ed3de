"""Checkpoint files: the newest complete one is found, and what is damaged is named."""

from __future__ import annotations

import os
import re
from dataclasses import asdict

import pytest
import torch
from timm_neutreno_cli.engine import state
from timm_neutreno_cli.errors import CheckpointError


def content(epoch: int) -> dict:
    weights = {"weight": torch.full((100,), float(epoch))}
    return {
        "epoch": epoch, "epochs": 3, "state_dict": weights, "optimizer": {}, "scaler": {},
        "train_state": asdict(state.TrainState(epoch=epoch + 1)),
    }  # fmt: skip


@pytest.fixture
def arm(tmp_path):
    """A folder with two saves in it."""
    for epoch in (0, 1):
        state.write(tmp_path / state.LAST, content(epoch))
    return tmp_path


def damage(path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_the_one_before_is_kept_and_nothing_else(arm):
    assert sorted(path.name for path in arm.iterdir()) == [state.LAST, state.PREVIOUS]
    assert torch.load(arm / state.PREVIOUS)["epoch"] == 0
    found, warning = state.read_newest(arm)
    assert (found["epoch"], warning) == (1, None)


def test_the_best_has_no_previous(tmp_path):
    for epoch in (0, 1):
        state.write(tmp_path / state.BEST, content(epoch))
    assert [path.name for path in tmp_path.iterdir()] == [state.BEST]


def test_a_damaged_one_is_named_and_the_one_before_is_taken(arm):
    damage(arm / state.LAST)
    found, warning = state.read_newest(arm)
    assert found["epoch"] == 0
    assert warning.startswith(f"{arm / state.LAST} is damaged (wrong checksum of ")
    assert warning.endswith(f"going on from {arm / state.PREVIOUS}, after 1 complete epochs.")


@pytest.mark.parametrize(
    ("last", "words"),
    [
        ({}, "epoch is missing"),
        ([1], "a list, no checkpoint"),
        ({**content(1), "train_state": {"epoch": 1}}, "step is missing"),
        ({**content(1), "epochs": "3"}, "epochs must be of the kind int, got '3'"),
        (None, "Weights only load failed|Unsupported"),
    ],
)
def test_a_whole_file_that_is_no_checkpoint_is_passed_over_too(arm, last, words):
    """Its checksums are right, and what is in it is not what we save: a pickle that would run code is one of them."""
    torch.save(os.system if last is None else last, arm / state.LAST)
    found, warning = state.read_newest(arm)
    assert found["epoch"] == 0
    assert re.search(words, warning), warning


def test_two_damaged_ones(arm):
    for name in (state.LAST, state.PREVIOUS):
        damage(arm / name)
    with pytest.raises(CheckpointError, match="Nothing can be resumed"):
        state.read_newest(arm)


def test_none_yet(tmp_path):
    assert state.read_newest(tmp_path) == (None, None)
