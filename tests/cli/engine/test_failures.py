"""What torch raises, in a user's words."""

from __future__ import annotations

import pytest
import torch
from timm_neutreno_cli.engine.failures import PeerFailure, _whatever_dies, translate_error
from timm_neutreno_cli.errors import DataError, OutputError, TrainingError


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


def dead(pid):
    return RuntimeError(f"DataLoader worker (pid {pid}) is killed by signal: Killed.")


def test_a_second_dead_loader_process_does_not_replace_the_sentence_about_the_first():
    told = DataError("a data loader process died. neutreno-adapt --resume RUN goes on.")
    second = dead(8)  # torch's signal handler raises it while the first one's sentence is on its way
    second.__context__ = told
    assert translate_error(second) is told


def test_what_must_be_done_is_done_whatever_dies_meanwhile():
    deaths = [dead(7), dead(8)]

    def act():
        if deaths:
            raise deaths.pop()
        return "done"

    assert _whatever_dies(act) == "done"
    with pytest.raises(OutputError, match="one after another"):
        _whatever_dies(lambda: exec("raise error", {"error": dead(9)}))
    with pytest.raises(RuntimeError, match="another"):
        _whatever_dies(lambda: exec("raise error", {"error": RuntimeError("another")}))
