"""Resuming with other options: what was given counts, and only more epochs make a finished run go on."""

from __future__ import annotations

import json
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch
import yaml
from integration import small_run
from integration.test_faults import assert_same_run, wait_for
from timm_neutreno_cli.main import adapt_main

MADE_WITH = ["--seed", 3, "--no-tf32", "--no-control", "--distill-weight", 0.3, "--fidelity-warmup", 1]


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> tuple[Path, Path]:
    return small_run.make(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def runs(small, tmp_path_factory) -> Path:
    """`plain`: finished, of two epochs. `other`: an epoch with no option at its default, not finished."""
    folder = tmp_path_factory.mktemp("runs")
    for name, options in (("plain", []), ("other", MADE_WITH)):
        argv = small_run.command(*small, "--output", folder / name, *options)
        small_run.finish(small_run.in_a_process(argv))
    (folder / "other" / "results.json").unlink()
    return folder


@pytest.fixture
def run(runs, tmp_path) -> Path:
    """A copy of the finished run."""
    shutil.copytree(runs / "plain", tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def resume(monkeypatch, capsys):
    """`neutreno-adapt --resume` in this process; what it printed on stdout and stderr."""

    def go(folder: Path, *options: object, code: int = 0) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["neutreno-adapt", "--resume", str(folder), *map(str, options)])
        with pytest.raises(SystemExit) as stop:
            adapt_main()
        printed = capsys.readouterr()
        assert (stop.value.code or 0) == code, printed.err
        return printed.out, printed.err

    return go


def content(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def log(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


# --- what was given


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (["--seed", 0], "--seed 3 in the run, 0 now"),
        (["--tf32"], "--tf32 False in the run, True now"),
        (["--control"], "--control False in the run, True now"),
        (["--distill-weight", 0.5], "--distill-weight 0.3 in the run, 0.5 now"),
        (["--fidelity-warmup", 0], "--fidelity-warmup 1.0 in the run, 0.0 now"),
    ],
)
def test_an_option_given_with_its_default_is_given(runs, resume, tmp_path, monkeypatch, option, words):
    """On the command line, in the environment, and in a file."""
    before = content(runs / "other")
    assert words in resume(runs / "other", *option, code=2)[1]
    name, value = option[0].removeprefix("--"), option[1] if len(option) > 1 else True
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({name: value}))
    assert words in resume(runs / "other", "--config", tmp_path / "run.yaml", code=2)[1]
    monkeypatch.setenv(f"NEUTRENO_{name.replace('-', '_').upper()}", str(value).lower())
    assert words in resume(runs / "other", code=2)[1]
    assert content(runs / "other") == before


def test_what_the_run_was_made_with_may_be_given_again(runs, resume, tmp_path):
    shutil.copytree(runs / "other", tmp_path / "run")
    resume(tmp_path / "run", *MADE_WITH)
    given = yaml.safe_load((tmp_path / "run" / "args.yaml").read_text())
    assert given["seed"] == 3
    resume(tmp_path / "run", "--config", tmp_path / "run" / "args.yaml")
    assert "given" not in given


def test_an_allowed_change_to_a_default_is_made(runs, resume, tmp_path):
    shutil.copytree(runs / "other", tmp_path / "run")
    resume(tmp_path / "run", "--control", "--allow-changes")
    assert len(log(tmp_path / "run" / "control")) == 2


def test_a_run_of_several_seeds_keeps_its_seeds(resume, tmp_path):
    (tmp_path / "seeds.json").write_text('{"seed": 4, "seeds": 2}')
    assert "--seed is 4 in the run" in resume(tmp_path, "--seed", 0, code=2)[1]
    assert "--seeds is 2 in the run" in resume(tmp_path, "--seeds", 1, code=2)[1]


def test_a_change_that_one_seed_refuses_reaches_none(runs, resume, tmp_path):
    """The first seed is finished and could be made longer, the second is under way."""
    (tmp_path / "seeds.json").write_text('{"seed": 0, "seeds": 2}')
    for seed in (0, 1):
        shutil.copytree(runs / "plain", tmp_path / f"seed-{seed}")
    (tmp_path / "seed-1" / "results.json").unlink()
    before = content(tmp_path)
    assert f"{tmp_path / 'seed-1'}: --epochs 2 in the run, 4 now" in resume(tmp_path, "--epochs", 4, code=2)[1]
    assert content(tmp_path) == before


# --- a finished run


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--epochs", 1], "--epochs 2 in the run, 1 now"),
        (["--epochs", 1, "--allow-changes"], "--epochs 2 in the run, 1 now"),
        (["--lr", 1e-2], "--lr 0.001 in the run, 0.01 now"),
        (["--lr", 1e-2, "--allow-changes"], "--lr 0.001 in the run, 0.01 now"),
        (["--data", "demo"], "--data"),
        (["--no-control"], "--control True in the run, False now"),
    ],
)
def test_a_finished_run_refuses_changes(run, resume, options, words):
    before = content(run)
    out, err = resume(run, *options, code=2)
    assert words in err
    assert "the run is finished" in err
    assert out == ""
    assert content(run) == before


def test_a_finished_run_prints_its_result_again(run, resume):
    before = content(run)
    assert "NeuTRENO, adapted" in resume(run, "--workers", 1, "--epochs", 2)[0]
    assert content(run) == before


def test_more_epochs_make_both_arms_longer(small, run, resume, tmp_path):
    """The learning rates of the epochs that follow are those of a run that was planned for four."""
    earlier = json.loads((run / "results.json").read_text())
    dry = content(run)
    assert "Nothing was written" in resume(run, "--epochs", 4, "--dry-run")[0]
    assert content(run) == dry
    _, err = resume(run, "--epochs", 4)
    assert "2 epochs are done, 4 asked for: every arm goes on" in err
    small_run.finish(small_run.in_a_process(small_run.command(*small, "--epochs", 4, "--output", tmp_path / "four")))
    for arm in ("", "control"):
        records, planned = log(run / arm), log(tmp_path / "four" / arm)
        assert [record["epoch"] for record in records] == [1, 2, 3, 4]
        assert [record["lr"] for record in records[2:]] == [record["lr"] for record in planned[2:]]
        assert records[1]["lr"] != planned[1]["lr"]
        assert torch.load(run / arm / "last.pth.tar")["progress"]["epoch"] == 4
    results = json.loads((run / "results.json").read_text())
    for row in ("control, fidelity 0", "NeuTRENO, adapted"):
        assert results["models"][row] != earlier["models"][row]
    assert json.loads((run / "results-2-epochs.json").read_text()) == earlier
    assert (results["epochs"], results["epochs_before"]) == (4, [2])
    assert "planned for 2 epochs before it was made 4" in (run / "README.md").read_text()
    after = content(run)
    resume(run)
    assert content(run) == after
    assert "4 in the run, 3 now" in resume(run, "--epochs", 3, code=2)[1]


def test_a_longer_run_that_is_killed_ends_bit_equal(run, resume, tmp_path):
    shutil.copytree(run, tmp_path / "whole")
    resume(tmp_path / "whole", "--epochs", 12)
    argv = ["neutreno-adapt", "--resume", str(run), "--epochs", "12", "--save-every-steps", "1"]
    process = small_run.in_a_process(argv)
    wait_for(process, run / "results-2-epochs.json")
    while len(log(run / "control")) < 4:
        assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (run / "results.json").exists()
    resume(run)
    assert_same_run(tmp_path / "whole", run)


# --- a run that is not finished


def test_fewer_epochs_than_are_done_are_refused(small, run, resume, tmp_path):
    """Such a run trained for ever: it waited for an epoch that had passed."""
    process = small_run.in_a_process(small_run.command(*small, "--epochs", 400, "--output", tmp_path / "stopped"))
    wait_for(process, tmp_path / "stopped" / "control" / "previous.pth.tar")
    process.send_signal(signal.SIGTERM)
    small_run.finish(process, 130)
    (run / "results.json").unlink()
    for folder, arm in ((tmp_path / "stopped", "control"), (run, "control")):
        done = torch.load(folder / arm / "last.pth.tar")["progress"]["epoch"]
        before = content(folder)
        for epochs in {1, max(done - 1, 1)}:
            _, err = resume(folder, "--epochs", epochs, "--allow-changes", code=2)
            assert f"--epochs {epochs}: the control of {folder} has done {done} epochs already" in err
        assert content(folder) == before


def test_a_change_of_the_epochs_reaches_the_arm_that_was_done(run, resume):
    """The control was finished, the adapted model not: both end with the same number of epochs."""
    for name in ("results.json", "model.safetensors", "last.pth.tar", "previous.pth.tar"):
        (run / name).unlink()
    resume(run, "--epochs", 3, "--allow-changes")
    assert [len(log(run / arm)) for arm in ("control", "")] == [3, 3]


def test_an_allowed_learning_rate_is_used(run, resume):
    """It was read back from the checkpoint, whatever had been asked for."""
    (run / "results.json").unlink()
    resume(run, "--epochs", 4, "--lr", 1e-2, "--weight-decay", 0.3, "--allow-changes")
    assert log(run)[2]["lr"] == pytest.approx(0.146 * 1e-2, rel=0.01)  # three quarters down the cosine
    assert 0.3 in {group["weight_decay"] for group in torch.load(run / "last.pth.tar")["optimizer"]["param_groups"]}
