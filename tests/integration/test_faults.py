"""Runs that are killed, stopped, starved or damaged: nothing is lost, and they go on as if nothing had happened."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from integration import small_run

HERE = Path(__file__).parent
NEUTRENO = "arms/neutreno"


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> tuple[Path, Path]:
    return small_run.make(tmp_path_factory.mktemp("small"))


def start(small, *options: object, **environment: str) -> subprocess.Popen:
    return small_run.in_a_process(small_run.command(*small, *options), **environment)


def resume(*options: object, code: int = 0) -> tuple[str, str]:
    return small_run.finish(small_run.in_a_process(["neutreno-adapt", *map(str, options)]), code)


def figures(run: Path) -> dict:
    """All that a run has measured, but for times."""
    timed = ("images_per_second", "data_wait_share", "memory_mib")
    logs = {}
    for arm in (run / "arms").iterdir():
        records = [json.loads(line) for line in (arm / "metrics.jsonl").read_text().splitlines()]
        logs[arm.name] = [{k: v for k, v in r.items() if k not in timed} for r in records]
    return {"results": json.loads((run / "results.json").read_text())["models"], "logs": logs}


def assert_same_run(one: Path, other: Path) -> None:
    """Bit-equal: figures, weights, optimizer."""
    assert figures(one) == figures(other)
    for arm in (one / "arms").iterdir():
        first, second = (torch.load(run / "arms" / arm.name / "last.pth.tar") for run in (one, other))
        assert first["train_state"] == second["train_state"]
        for kind in ("state_dict", "state_dict_ema"):
            assert first.get(kind, {}).keys() == second.get(kind, {}).keys()
            for name, value in first.get(kind, {}).items():
                assert torch.equal(value, second[kind][name]), name
        for index, moments in first["optimizer"]["state"].items():
            for name, value in moments.items():
                assert torch.equal(value, second["optimizer"]["state"][index][name]), (index, name)


def names(run: Path) -> set[Path]:
    """Everything in a run's folder, hidden files too."""
    return {path.relative_to(run) for path in run.rglob("*")}


def wait_for(process: subprocess.Popen, path: Path, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, f"{path} did not come"
        time.sleep(0.005)


EVERYTHING = [
    "--method", "neutreno", "--method", "gfsa", "--learnable-fidelity", "head", "--fidelity-warmup", 1.5, "--seeds", 2,
    "--drop-path", 0.3, "--random-erasing", 0.5, "--mixup", 0.5, "--ema-decay", 0.9, "--repeated-aug", 2,
]  # fmt: skip
KILLED = {
    "everything": (20, "instants", ["--drop-path", 0.3, "--random-erasing", 0.5, "--mixup", 0.5, "--ema-decay", 0.9,
                        "--fidelity-warmup", 1.5, "--repeated-aug", 2, "--patience", 3]),
    "three arms, two seeds": (6, "instants", EVERYTHING),
    "adapters": (3, "instants", ["--trainable", "lora", "--learnable-fidelity", "head", "--ema-decay", 0.9]),
    "at operations on files": (24, "operations", [*EVERYTHING, "--epochs", 2]),
}  # fmt: skip


@pytest.mark.parametrize("name", KILLED)
def test_killed_and_resumed(small, tmp_path, name):
    """SIGKILL wherever it falls: in a step, in a save, in an evaluation. KILLS=30 (environment) kills more often."""
    images, weights = small
    kills, aim, options = KILLED[name]
    kills = int(os.environ.get("KILLS", kills))
    options = ["--epochs", 4, "--save-every-steps", 1, *options]
    command = [sys.executable, HERE / "killed_run.py", images, weights, tmp_path, 0, kills, aim, *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    limit = 600 + 60 * kills
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=limit, env=environment, check=True
    )
    report = json.loads(done.stdout)
    print(f"{name}: {len(report['kills'])} kills in {len(report['runs'])} runs: {report['kills']}")
    assert report["whole"] == 0, report["log"]
    assert report["status"] == 0, report["log"]
    assert len(report["kills"]) == kills
    for run in report["runs"]:
        for folder in [*(tmp_path / "whole").glob("seed-*")] or [tmp_path / "whole"]:
            assert_same_run(folder, tmp_path / run / folder.relative_to(tmp_path / "whole"))
        kept, made = (
            {path.relative_to(tmp_path / each) for path in (tmp_path / each).rglob("*")} for each in ("whole", run)
        )
        assert kept == made  # nothing is missing, and nothing half-written is left, also no hidden file


def test_learned_strengths_come_back_as_they_were_learned(small, tmp_path):
    """The ramp of the warm-up, which is over, writes into no parameter any more."""
    run = tmp_path / "run"
    options = ["--learnable-fidelity", "head", "--fidelity", 0.6, "--fidelity-warmup", 1, "--ema-decay", 0.9]
    options += ["--save-every-steps", 1]
    small_run.finish(start(small, "--output", run, "--lr", 1e-2, *options))
    shutil.copytree(run, tmp_path / "whole")
    learned = torch.load(run / NEUTRENO / "last.pth.tar")["state_dict"]["blocks.1.attn.fidelity"]
    assert (learned - 0.6).abs().max() > 1e-3
    for arm in (run / "arms").iterdir():  # as if it had been killed in its last step
        (arm / "previous.pth.tar").rename(arm / "last.pth.tar")
        (arm / "model.safetensors").unlink()
    (run / "results.json").unlink()
    resume("--resume", run)
    assert_same_run(tmp_path / "whole", run)


KILLED_WHILE_SAVING = """
import resource, signal, sys
from timm_neutreno_cli.engine import save as module
from timm_neutreno_cli.main import adapt_main
real = module.save_pretrained
def save(*args, **kwargs):
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
    real(*args, **kwargs)
module.save_pretrained = save
adapt_main()
"""


def test_killed_in_the_middle_of_model_safetensors(small, tmp_path):
    """The kernel kills it after 20,000 bytes of the file; what is left in the folder is in nobody's way."""
    run = tmp_path / "run"
    argv = small_run.command(*small, "--output", run)
    killed = subprocess.run([sys.executable, "-c", KILLED_WHILE_SAVING, *argv[1:]], capture_output=True, timeout=240)
    assert killed.returncode == -signal.SIGXFSZ, killed.stderr
    assert any((run / NEUTRENO / ".saving").iterdir())
    resume("--resume", run)
    assert (run / NEUTRENO / "model.safetensors").exists()
    assert not any(run.rglob(".saving"))


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_a_signal_saves_and_ends_with_130_and_the_way_on(small, tmp_path, name):
    """Ctrl-C, a scheduler's end, and SLURM's pre-emption signal."""
    run = tmp_path / "run"
    process = start(small, "--epochs", 400, "--output", run, "--no-control")
    wait_for(process, run / NEUTRENO / "last.pth.tar")
    process.send_signal(getattr(signal, name))
    _, err = small_run.finish(process, 130)
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert f"interrupted by {name}" in line
    assert line.endswith(f"neutreno-adapt --resume {run}")
    progress = torch.load(run / NEUTRENO / "last.pth.tar")["train_state"]
    assert progress["epoch"] or progress["step"]
    process = small_run.in_a_process(["neutreno-adapt", "--resume", str(run)])
    first = process.stderr.readline()
    while first and "goes on in epoch" not in first:
        first = process.stderr.readline()
    assert f"epoch {progress['epoch'] + 1}, step {progress['step'] + 1}" in first
    process.kill()
    process.communicate()


def test_nohup_goes_on_when_the_terminal_goes(small, tmp_path):
    run = tmp_path / "run"
    command = small_run.command(*small, "--output", run, "--no-control", "--epochs", 30)
    process = subprocess.Popen(
        ["nohup", sys.executable, "-m", "timm_neutreno_cli.main", *command], text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    wait_for(process, run / NEUTRENO / "last.pth.tar")
    process.send_signal(signal.SIGHUP)
    small_run.finish(process)
    assert (run / "results.json").exists()


def test_a_run_that_was_stopped_ends_bit_equal(small, tmp_path):
    small_run.finish(start(small, "--epochs", 6, "--output", tmp_path / "whole"))
    process = start(small, "--epochs", 6, "--output", tmp_path / "stopped")
    wait_for(process, tmp_path / "stopped" / NEUTRENO / "metrics.jsonl")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode in (130, 0)
    resume("--resume", tmp_path / "stopped")
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")
    out, _ = resume("--resume", tmp_path / "stopped")  # a finished run only prints its result again
    assert "neutreno, adapted" in out


def test_several_seeds_resume_with_their_own_settings(small, tmp_path):
    """Stopped in the first of two seeds: the second one, which had not begun, is run with the first one's settings."""
    options = ["--seeds", 2, "--epochs", 3, "--label-smoothing", 0.2, "--seed", 4]
    small_run.finish(start(small, *options, "--output", tmp_path / "whole"))
    process = start(small, *options, "--output", tmp_path / "stopped")
    wait_for(process, tmp_path / "stopped" / "seed-4" / "arms" / "control" / "last.pth.tar")
    process.send_signal(signal.SIGTERM)
    _, err = small_run.finish(process, 130)
    assert err.strip().endswith(f"--resume {tmp_path / 'stopped'}")
    resume("--resume", tmp_path / "stopped")
    for seed in (4, 5):
        assert_same_run(tmp_path / "whole" / f"seed-{seed}", tmp_path / "stopped" / f"seed-{seed}")
    before = {path: path.read_bytes() for path in (tmp_path / "stopped").rglob("*") if path.is_file()}
    written = (tmp_path / "stopped" / "report.html").stat().st_mtime_ns
    out, _ = resume("--resume", tmp_path / "stopped")  # finished: it only says so again
    assert "mean of 2 seeds" in out
    assert (tmp_path / "stopped" / "report.html").stat().st_mtime_ns == written  # not the same again, a minute later
    assert {path: path.read_bytes() for path in (tmp_path / "stopped").rglob("*") if path.is_file()} == before


def test_time_limit(small, tmp_path):
    run = tmp_path / "run"
    _, err = small_run.finish(
        start(small, "--epochs", 4000, "--output", run, "--no-control", "--time-limit", 4 / 3600), 130
    )
    assert "stopped by --time-limit" in err
    assert (run / NEUTRENO / "last.pth.tar").exists()


@pytest.fixture(scope="module")
def finished(small, tmp_path_factory) -> Path:
    """A run that was killed after its control, in the last epoch of the adapted model."""
    run = tmp_path_factory.mktemp("finished") / "run"
    small_run.finish(start(small, "--output", run, "--save-every-steps", 1))
    weights = [f"{folder}{name}" for folder in ("", f"{NEUTRENO}/") for name in ("model.safetensors", "config.json")]
    for name in ("results.json", "README.md", "similarity.png", *weights):
        (run / name).unlink()
    return run


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(finished, tmp_path, damage):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    last = run / NEUTRENO / "last.pth.tar"
    content = bytearray(last.read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 1
    last.write_bytes({"truncated": content[: len(content) // 2], "flipped": content, "empty": b""}[damage])
    _, err = resume("--resume", run)
    (warning,) = [line for line in err.splitlines() if line.startswith("warning: ")]
    assert str(last) in warning
    assert "previous.pth.tar" in warning
    expected = json.loads((finished / "evaluations.json").read_text())
    assert json.loads((run / "results.json").read_text())["models"]["neutreno"] == expected["neutreno"]


def test_when_no_checkpoint_is_whole(finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    for name in ("last.pth.tar", "previous.pth.tar"):
        (run / NEUTRENO / name).write_bytes(b"PK")
    _, err = resume("--resume", run, code=4)
    assert "Nothing can be resumed" in err


def test_changed_settings_and_data_are_refused_or_allowed(small, finished, tmp_path):
    images, _ = small
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    _, err = resume("--resume", run, "--epochs", 3, "--fidelity", 0.5, code=2)
    assert "--epochs 2 in the run, 3 now" in err
    assert "--fidelity 0.2 in the run, 0.5 now" in err
    resume(
        "--resume", run, "--epochs", 2, "--fidelity", 0.2, "--workers", 1, "--dry-run"
    )  # the same again is no change

    args = yaml.safe_load((run / "args.yaml").read_text())
    copy = tmp_path / "images"
    shutil.copytree(images, copy)
    (run / "args.yaml").write_text(yaml.safe_dump({**args, "data": str(copy)}))
    resume("--resume", run, "--dry-run")  # moved, and the same
    (copy / "train" / "blue" / "0.jpg").rename(copy / "train" / "blue" / "new.jpg")
    _, err = resume("--resume", run, code=2)
    assert "train names" in err
    resume("--resume", run, "--allow-changes")
    assert (run / "results.json").exists()


def test_resume_of_no_run(tmp_path):
    _, err = resume("--resume", tmp_path, code=4)
    assert f"{tmp_path} is not a run" in err
    _, err = resume("--resume", "auto", code=2)
    assert "--output" in err


def test_a_full_disk_keeps_what_was_saved(small, tmp_path):
    """A file system of its own, too small for a second checkpoint."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1200k", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"needs the right to mount a tmpfs: {mounted.stderr.decode().strip()}")
    try:
        _, err = small_run.finish(start(small, "--epochs", 50, "--output", disk / "run", "--save-every-steps", 1), 6)
        assert "No space left on device" in err or "the disk is full" in err
        kept = disk / "run" / "arms" / "control" / "last.pth.tar"
        before = torch.load(kept)["train_state"]
        subprocess.run(["mount", "-o", "remount,size=100m", disk], check=True)
        process = small_run.in_a_process(["neutreno-adapt", "--resume", str(disk / "run")])
        line = process.stderr.readline()
        while line and "goes on in" not in line:
            line = process.stderr.readline()
        assert f"epoch {before['epoch'] + 1}, step {before['step'] + 1}" in line
        process.kill()
        process.communicate()
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_not_a_number_names_step_and_files(small, tmp_path):
    """The checkpoint of the epoch before stays; the batch's files are listed."""
    run = tmp_path / "run"
    _, err = small_run.finish(
        start(small, "--output", run, "--no-control", "--lr", 1e30, "--warmup-epochs", 0, "--clip-grad", 0), 7
    )
    assert "the loss became nan in step" in err or "the loss became inf in step" in err
    listed = json.loads((run / NEUTRENO / "not_finite.json").read_text())
    assert len(listed["files"]) == 8
    assert all(Path(file).exists() for file in listed["files"])
    last = run / NEUTRENO / "last.pth.tar"
    if last.exists():
        assert all(torch.isfinite(value).all() for value in torch.load(last)["state_dict"].values())


def test_data_that_vanishes(small, tmp_path):
    images, weights = small
    copy, run = tmp_path / "images", tmp_path / "run"
    shutil.copytree(images, copy)
    process = small_run.in_a_process(small_run.command(copy, weights, "--epochs", 400, "--output", run, "--no-control"))
    wait_for(process, run / NEUTRENO / "last.pth.tar")
    (copy / "train" / "blue" / "3.jpg").unlink()
    _, err = small_run.finish(process, 3)
    assert str(copy / "train" / "blue" / "3.jpg") in err
    assert "Everything up to then is saved" in err
    shutil.copy(images / "train" / "blue" / "3.jpg", copy / "train" / "blue" / "3.jpg")
    args = yaml.safe_load((run / "args.yaml").read_text())
    resume("--resume", run, "--dry-run")
    assert args["data"] == str(copy)


def test_a_dead_data_worker(small, tmp_path):
    run = tmp_path / "run"
    process = start(small, "--epochs", 400, "--output", run, "--no-control", "--workers", 1)
    wait_for(process, run / NEUTRENO / "last.pth.tar")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for child in children:
        os.kill(int(child), signal.SIGKILL)
    assert children
    _, err = small_run.finish(process, 3)
    assert "a data loader process died" in err
    assert f"--resume {run}" in err


def test_out_of_memory_names_the_knobs(small, tmp_path):
    """65,536 tokens without fused attention, in an address space that holds no such matrix."""
    limited = (
        "import resource, sys\nimport torch, timm_neutreno_cli.engine.run\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * 4096\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 1_500_000_000,) * 2)\n"
        "from timm_neutreno_cli.main import adapt_main\nadapt_main()"
    )
    argv = small_run.command(
        *small, "--output", tmp_path / "run", "--no-control", "--img-size", 2048, "--batch-size", 4
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TIMM_FUSED_ATTN": "0"}
    done = subprocess.run(
        [sys.executable, "-c", limited, *argv[1:]], capture_output=True, text=True, timeout=240, env=environment
    )
    assert done.returncode == 7, done.stderr
    assert "out of memory" in done.stderr
    assert "--accumulate" in done.stderr


def test_a_second_writer_is_refused(small, tmp_path):
    """While a run writes, resuming it elsewhere would mix two runs; the first one goes on."""
    run = tmp_path / "run"
    process = start(small, "--epochs", 4000, "--output", run, "--no-control")
    wait_for(process, run / "args.yaml", 400)
    _, err = resume("--resume", run, code=6)
    assert f"{run} is being written by process {process.pid} on " in err
    assert process.poll() is None
    process.kill()
    process.communicate()
    resume("--resume", run, "--time-limit", 1e-5, code=130)  # what was killed holds nothing


def test_umlauts_under_a_locale_that_has_none(small, tmp_path):
    """LC_ALL=C without Python's help: names of classes, folders and files, and all that is written."""
    root = tmp_path / "Bilder für ±"
    images, weights = small_run.make(root)
    for part in ("train", "val"):
        (images / part / "blue").rename(images / part / "grün")
    run, locale = root / "Läufe", {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    out, _ = small_run.finish(
        small_run.in_a_process(
            small_run.command(images, weights, "--output", run, "--seeds", 2, "--epochs", 1), **locale
        )
    )
    assert "mean of 2 seeds" in out
    for folder in (run, run / "seed-0"):
        assert str(images) in (folder / "README.md").read_text(encoding="utf-8")
        assert json.loads((folder / "results.json").read_text(encoding="utf-8"))["models"]
    again, _ = small_run.finish(small_run.in_a_process(["neutreno-adapt", "--resume", str(run)], **locale))
    assert again == out
    assert yaml.safe_load((run / "seed-0" / "args.yaml").read_text(encoding="utf-8"))["class_names"][0].startswith("gr")
