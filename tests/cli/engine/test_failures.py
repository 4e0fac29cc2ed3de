"""What torch raises, in a user's words."""

from __future__ import annotations

import pytest
import torch
from timm_neutreno_cli.engine.failures import PeerFailure, translate_error
from timm_neutreno_cli.errors import DataError, TrainingError


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), TrainingError, "--accumulate 2"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), TrainingError, "--accumulate 2"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), DataError, "fewer --workers"),
        (RuntimeError("[gloo/transport/tcp/pair.cc] Connection closed by peer"), PeerFailure, "was killed"),
    ],
)
def test_errors_of_torch(error, kind, words):
    found = translate_error(error)
    assert type(found) is kind
    assert words in str(found)


def test_any_other_error_is_left_as_it_is():
    error = ValueError("mine")
    assert translate_error(error) is error
