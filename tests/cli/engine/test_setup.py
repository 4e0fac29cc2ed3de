"""Which device a run takes when none is named."""

from __future__ import annotations

import pytest
import torch
from timm_neutreno_cli.engine.setup import choose_device
from timm_neutreno_cli.errors import UsageError
from timm_neutreno_cli.runtime.processes import World


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA GPU comes before Apple's")
def test_without_a_name_a_gpu_is_taken_and_apples_for_one_process_only(monkeypatch):
    assert choose_device(None, World()).type == ("mps" if torch.backends.mps.is_available() else "cpu")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch, "empty", lambda *_, **options: options["device"])  # there is none here to put it on
    assert choose_device(None, World()) == torch.device("mps")
    assert choose_device(None, World(rank=1, local_rank=1, size=2)) == torch.device("cpu")


def test_a_device_that_is_not_there_is_named():
    with pytest.raises(UsageError, match=r"--device nowhere cannot be used here.*Try --device cpu"):
        choose_device("nowhere", World())
    with pytest.raises(UsageError, match="would be shared by 2 processes"):
        choose_device("cuda:0", World(rank=0, local_rank=0, size=2))
