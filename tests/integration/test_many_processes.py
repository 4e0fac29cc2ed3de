"""Runs over several processes, on gloo: equal to one process, one voice, and an end when one of them ends."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from integration import small_run
from timm.utils.misc import natural_key
from timm_neutreno_cli.data.order import ResumableSampler

EXACT = ["--drop-path", 0]  # the noise of dropped paths is drawn by each process for its own images


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> tuple[Path, Path]:
    return small_run.make(tmp_path_factory.mktemp("small"))


def run(small, folder: Path, *options: object, code: int = 0, **environment: str) -> tuple[dict, str]:
    argv = small_run.command(*small, "--output", folder, "--json", *options)
    out, err = small_run.finish(small_run.in_a_process(argv, **environment), code)
    return json.loads(out) if not code else {}, err


@pytest.fixture(scope="module")
def alone(small, tmp_path_factory) -> tuple[dict, Path]:
    folder = tmp_path_factory.mktemp("alone") / "run"
    return run(small, folder, *EXACT)[0], folder


def losses(folder: Path) -> list[float]:
    return [
        json.loads(line)["train_loss"] for line in (folder / "arms/neutreno/metrics.jsonl").read_text().splitlines()
    ]


def assert_equal_up_to_rounding(small, alone, document: dict, folder: Path) -> None:
    expected, lonely = alone
    for name, model in document["models"].items():
        for key in ("images", "top1", "top5"):
            assert model[key] == expected["models"][name][key]
        assert model["loss"] == pytest.approx(expected["models"][name]["loss"], rel=1e-5)
    assert losses(folder) == pytest.approx(losses(lonely), rel=1e-5)
    weights, others = (torch.load(path / "arms/neutreno/last.pth.tar")["state_dict"] for path in (folder, lonely))
    for name, value in weights.items():
        # Adam divides by the size of a gradient: one that is zero up to rounding (a key bias) moves by noise
        if "qkv.bias" not in name:
            torch.testing.assert_close(value, others[name], rtol=1e-3, atol=2e-5, msg=name)


def test_two_processes_are_one_with_the_same_batch(small, alone, tmp_path):
    document, err = run(small, tmp_path / "run", "--gpus", 2, *EXACT)
    assert_equal_up_to_rounding(small, alone, document, tmp_path / "run")
    assert document["processes"] == 2
    assert err.count("2 processes, cpu") == 1  # one voice
    # evaluation without training between is the same to the last bit: 14 images are not padded to 16
    for name in ("checkpoint", "neutreno/start"):
        assert document["models"][name] == alone[0]["models"][name]


def test_accumulation_is_one_step(small, alone, tmp_path):
    document, _ = run(small, tmp_path / "run", "--accumulate", 4, *EXACT)
    assert_equal_up_to_rounding(small, alone, document, tmp_path / "run")


def test_sharded_and_accumulated_over_two_processes(small, alone, tmp_path):
    document, _ = run(small, tmp_path / "run", "--gpus", 2, "--fsdp", "--accumulate", 2, *EXACT)
    assert_equal_up_to_rounding(small, alone, document, tmp_path / "run")
    import timm

    from timm_neutreno import is_patched

    model = timm.create_model(f"local-dir:{tmp_path / 'run'}", pretrained=True)  # one consolidated file
    assert is_patched(model)


def test_under_torchrun(small, alone, tmp_path):
    argv = small_run.command(*small, "--output", tmp_path / "run", "--json", *EXACT)
    script = Path(sys.executable).with_name("neutreno-adapt")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"]
    done = subprocess.run(
        [*torchrun, str(script), *argv[1:]], capture_output=True, text=True, timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert_equal_up_to_rounding(small, alone, json.loads(done.stdout), tmp_path / "run")


def test_under_slurms_environment(small, alone, tmp_path):
    """Two tasks of a step, as srun starts them; 127.0.0.1 stands for the step's first machine."""
    tasks = []
    for task in ("0", "1"):
        environment = {
            "SLURM_PROCID": task, "SLURM_LOCALID": task, "SLURM_STEP_NUM_TASKS": "2", "SLURM_JOB_ID": str(os.getpid()),
            "SLURM_STEP_NODELIST": "127.0.0.1",
        }  # fmt: skip
        argv = small_run.command(*small, "--output", tmp_path / "run", "--json", *EXACT)
        tasks.append(small_run.in_a_process(argv, **environment))
    (out, _), (nothing, _) = (small_run.finish(task) for task in tasks)
    assert nothing == ""
    assert_equal_up_to_rounding(small, alone, json.loads(out), tmp_path / "run")


def test_a_batch_that_cannot_be_dealt_out(small, tmp_path):
    _, err = run(small, tmp_path / "run", "--gpus", 2, "--batch-size", 7, code=2)
    (line,) = [line for line in err.splitlines() if line.startswith("error")]
    assert "Use 6 or 8" in line


def test_one_device_for_all_processes(small, tmp_path):
    _, err = run(small, tmp_path / "run", "--gpus", 2, "--device", "cpu:0", code=2)
    assert "would be shared by 2 processes" in err


def test_more_gpus_than_there_are(small, tmp_path):
    _, err = run(small, tmp_path / "run", "--device", "cuda", "--gpus", 64, code=2)
    assert "--gpus 64, but this machine has" in err


def workers_of(launcher: subprocess.Popen) -> list[int]:
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    return [int(child) for child in children if b"adapt" in Path(f"/proc/{child}/cmdline").read_bytes()]


def begin(small, folder: Path, *options: object) -> subprocess.Popen:
    """Two processes that train for long, stepping already."""
    argv = small_run.command(*small, "--output", folder, "--gpus", 2, "--epochs", 2000, "--no-control", *options)
    process = small_run.in_a_process(argv)
    end = time.monotonic() + 120
    while not (folder / "arms/neutreno/last.pth.tar").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.01)
    return process


def test_an_error_of_one_process_ends_all_and_is_the_only_one_shown(tmp_path):
    """A bad image that process 1 alone comes to, in the first step."""
    images, weights = small_run.make(tmp_path)
    (keys, *_) = ResumableSampler(24, 8, seed=0, rank=1, processes=2)
    samples = sorted((images / "train").rglob("*.jpg"), key=lambda path: natural_key(str(path)))
    samples[keys[0][0]].write_bytes(b"no image")
    argv = small_run.command(images, weights, "--output", tmp_path / "run", "--gpus", 2, "--no-control")
    _, err = small_run.finish(small_run.in_a_process(argv), 3, timeout=90)
    (line,) = [line for line in err.splitlines() if line.startswith("error") or "exitcode" in line]
    assert line.startswith("error: [process 1] cannot read the image")


def test_a_killed_process_ends_all(small, tmp_path):
    process = begin(small, tmp_path / "run")
    first, second = sorted(workers_of(process))
    os.kill(second, signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode not in (0, None)
    errors = [line for line in err.splitlines() if line.startswith("error")]
    assert len(errors) == 1, err
    assert "killed" in errors[0]
    for pid in (first, second):
        assert not Path(f"/proc/{pid}").exists()


def test_workers_end_and_save_when_their_launcher_is_killed(small, tmp_path):
    process = begin(small, tmp_path / "run")
    workers = workers_of(process)
    assert len(workers) == 2
    process.kill()
    process.communicate(timeout=60)
    end = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < end, workers
        time.sleep(0.1)
    assert torch.load(tmp_path / "run/arms/neutreno/last.pth.tar")["train_state"]["epoch"] >= 0


def test_other_data_on_one_machine_is_refused(small, tmp_path):
    """Two processes as torchrun starts them on two machines, where a file of one has another name."""
    images, weights = small
    shutil.copytree(images, tmp_path / "images")
    (tmp_path / "images/train/red/0.jpg").rename(tmp_path / "images/train/red/other.jpg")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    tasks = []
    for rank, folder in (("0", images), ("1", tmp_path / "images")):
        environment = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        argv = small_run.command(folder, weights, "--output", tmp_path / "run")
        tasks.append(small_run.in_a_process(argv, **environment))
    said = [task.communicate(timeout=240)[1] for task in tasks]
    (line,) = [line for err in said for line in err.splitlines() if line.startswith("error")]
    assert "process 1 has other data than process 0: train names are" in line
    assert {task.returncode for task in tasks} == {3}
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("sharded", [False, True])
def test_sigterm_to_the_launcher_saves_and_ends_with_130(small, tmp_path, sharded):
    folder = tmp_path / "run"
    process = begin(small, folder, *(["--fsdp"] if sharded else []))
    process.send_signal(signal.SIGTERM)
    _, err = small_run.finish(process, 130, timeout=90)
    (line,) = [line for line in err.splitlines() if line.startswith("error")]
    assert "interrupted by SIGTERM" in line
    assert line.endswith(f"--resume {folder}")
    assert "Everything up to then is saved" in line
    assert torch.load(folder / "arms/neutreno/last.pth.tar")["train_state"]["epoch"] >= 0


@pytest.mark.parametrize("options", [[], ["--fsdp"]], ids=["ddp", "fsdp"])
def test_two_processes_resume_where_they_were(small, tmp_path, options):
    """Stopped in the first epoch by the time limit, and equal to the run that was not."""
    whole, _ = run(small, tmp_path / "whole", "--gpus", 2, "--no-control", "--epochs", 3, *options)
    folder = tmp_path / "run"
    argv = small_run.command(*small, "--output", folder, "--gpus", 2, "--no-control", "--epochs", 3, *options)
    _, err = small_run.finish(small_run.in_a_process([*argv, "--time-limit", "1e-5"]), 130)
    assert torch.load(folder / "arms/neutreno/last.pth.tar")["train_state"]["step"] == 1, err
    out, _ = small_run.finish(small_run.in_a_process(["neutreno-adapt", "--resume", str(folder), "--json"]))
    resumed = json.loads(out)
    assert resumed["processes"] == 2
    assert resumed["models"] == whole["models"]
