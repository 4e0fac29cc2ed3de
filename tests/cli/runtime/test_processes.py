"""Who a process is among those of the run, from the launcher's environment."""

from __future__ import annotations

import socket

import pytest
from timm_neutreno_cli.errors import UsageError
from timm_neutreno_cli.runtime import processes

TORCHRUN = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "a", "MASTER_PORT": "1", "HOME": "/"}


def test_torchruns_variables_are_taken_as_they_are():
    assert processes.environment(TORCHRUN) == {key: value for key, value in TORCHRUN.items() if key != "HOME"}
    assert processes.environment({}) == {}


@pytest.mark.parametrize(
    ("nodelist", "host"),
    [("gpu07", "gpu07"), ("gpu[07-09,12],login1", "gpu07"), ("a-1,b-2", "a-1"), ("n[1,3]-ib", "n1-ib")],
)
def test_first_host_of_slurms_notation(nodelist, host):
    assert processes.first_host(nodelist) == host
    step = {
        "SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NODELIST": nodelist,
        "SLURM_JOB_ID": "20001",
    }  # fmt: skip
    found = processes.environment(step)
    assert (found["RANK"], found["WORLD_SIZE"], found["MASTER_ADDR"]) == ("5", "8", host)
    assert found["MASTER_PORT"] == "20001"


def test_a_batch_script_outside_srun_is_one_process():
    assert processes.environment({"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_LOCALID": "0"}) == {}


def test_alone_there_is_nobody_to_agree_with(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    assert processes.init(None) == processes.World()
    assert processes.broadcast({"a": 1}) == {"a": 1}
    assert processes.all_gather(3) == [3]
    assert processes.World().first
    assert not processes.World(rank=1, size=2).first


def test_an_environment_that_is_incomplete_is_named(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UsageError, match="not LOCAL_RANK, MASTER_ADDR, MASTER_PORT"):
        processes.init("cpu")


def test_gpus_is_a_number_or_all():
    assert processes.count_gpus("3", "cpu") == 3
    assert processes.count_gpus("all", "cpu") >= 1
    for wrong in ("0", "-1", "many", "1.5"):
        with pytest.raises(UsageError, match="--gpus takes a number of at least 1, or all"):
            processes.count_gpus(wrong, "cpu")


def test_another_process_s_end_is_known_from_an_error_of_ours():
    assert processes.is_peer_failure(RuntimeError("[gloo/transport/tcp] Connection closed by peer"))
    assert not processes.is_peer_failure(RuntimeError("shape mismatch"))
    assert not processes.is_peer_failure(ValueError("Connection reset"))


SLURM = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "1", "SLURM_STEP_NODELIST": "gpu[1-2]"}


@pytest.mark.parametrize("name", SLURM)
@pytest.mark.parametrize("value", ["", "many", "-1", None])
def test_wrong_variables_of_slurm_are_named(monkeypatch, name, value):
    variables = {**SLURM, name: value}
    variables = {key: word for key, word in variables.items() if word is not None}
    if (name == "SLURM_STEP_NUM_TASKS" and value is None) or (
        name == "SLURM_STEP_NODELIST" and value in ("many", "-1")
    ):
        processes.environment(variables)  # not a step; names of machines
        return
    with pytest.raises(UsageError, match=name):
        processes.environment(variables)
    for key, word in variables.items():
        monkeypatch.setenv(key, word)
    assert (processes.rank(), processes.in_worker()) == (0, False)  # asked while the error is said


@pytest.mark.parametrize(
    ("changed", "words"),
    [({"RANK": "2"}, "RANK 2 of WORLD_SIZE 2"), ({"RANK": "x"}, "RANK is x"), ({"MASTER_PORT": "http"}, "MASTER_PORT")],
)
def test_wrong_variables_of_torchrun_are_named(monkeypatch, changed, words):
    good = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for key, word in {**good, **changed}.items():
        monkeypatch.setenv(key, word)
    with pytest.raises(UsageError, match=words):
        processes.init("cpu")


def test_a_port_that_another_program_has(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        words = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        for key, word in words.items():
            monkeypatch.setenv(key, word)
        with pytest.raises(UsageError, match=f"cannot meet at 127.0.0.1:{port}: another program has it: set another"):
            processes.init("cpu")
