"""metrics.jsonl, metrics.csv, and the loggers that others make."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
from timm_neutreno_cli.errors import OutputError, UsageError
from timm_neutreno_cli.runtime.loggers import Loggers, check, rewind


def record(epoch: int, arm: str = "adapted", **figures: object) -> dict:
    return {"arm": arm, "epoch": epoch, "val_top1": 50.0 + epoch, **figures}


def lines(directory) -> list[dict]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def table(directory) -> list[dict]:
    with (directory / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def loggers(tmp_path):
    return Loggers(tmp_path, [], "run", {})


# --- metrics.jsonl and metrics.csv


def test_every_record_is_in_both_files_at_once(loggers, tmp_path):
    for epoch in (1, 2):
        loggers.log(record(epoch))
        assert lines(tmp_path)[-1] == record(epoch)
        assert table(tmp_path)[-1] == {"arm": "adapted", "epoch": str(epoch), "val_top1": str(50.0 + epoch)}
    assert len(lines(tmp_path)) == len(table(tmp_path)) == 2


def test_columns_grow_and_begin_with_where_a_figure_belongs(loggers, tmp_path):
    loggers.log({"loss": 1.0, "epoch": 1, "arm": "control"})
    loggers.log({"loss": 0.5, "epoch": 2, "arm": "control", "step": 7, "memory": 3})
    assert list(table(tmp_path)[0]) == ["arm", "epoch", "step", "loss", "memory"]
    assert [row["memory"] for row in table(tmp_path)] == ["", "3"]


def test_lists_stay_out_of_the_table(loggers, tmp_path):
    loggers.log(record(1, similarity=[0.1, 0.2]))
    assert lines(tmp_path)[0]["similarity"] == [0.1, 0.2]
    assert list(table(tmp_path)[0]) == ["arm", "epoch", "val_top1"]


def test_a_second_process_goes_on(tmp_path):
    for epoch in (1, 2):
        Loggers(tmp_path, [], "run", {}).log(record(epoch))
    assert [row["epoch"] for row in table(tmp_path)] == ["1", "2"]


def test_a_half_written_line_is_forgotten(loggers, tmp_path):
    loggers.log(record(1))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"arm": "adapted", "epo')
    Loggers(tmp_path, [], "run", {}).log(record(2))
    assert lines(tmp_path) == [record(1), record(2)]
    assert len(table(tmp_path)) == 2


def test_rewind_keeps_what_is_asked_for(loggers, tmp_path):
    for arm in ("control", "adapted"):
        for epoch in (1, 2, 3):
            loggers.log(record(epoch, arm))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"arm": "adapted", "epoch": 4')
    kept = rewind(tmp_path, lambda r: r["arm"] == "control" or r["epoch"] < 3)
    assert kept == lines(tmp_path)
    assert [(r["arm"][0], r["epoch"]) for r in kept] == [("c", 1), ("c", 2), ("c", 3), ("a", 1), ("a", 2)]
    assert [row["epoch"] for row in table(tmp_path)] == ["1", "2", "3", "1", "2"]


def test_rewind_before_anything_was_logged(tmp_path):
    assert rewind(tmp_path, lambda r: True) == []
    assert list(tmp_path.iterdir()) == []


FULL = """
import resource, sys
from pathlib import Path
from timm_neutreno_cli.errors import OutputError
from timm_neutreno_cli.runtime.loggers import Loggers
loggers = Loggers(Path(sys.argv[1]), [], "run", {})
loggers.log({"arm": "adapted", "epoch": 1, "loss": 1.0})
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    loggers.log({"arm": "adapted", "epoch": 2, "loss": 1.0, "notes": "x" * 60})
except OutputError as error:
    print(error)
"""


def test_no_space_left(tmp_path):
    """A limit on file size stands for the full disk: the line is cut off, what was before it is still there."""
    done = subprocess.run([sys.executable, "-c", FULL, str(tmp_path), "60"], capture_output=True, text=True, timeout=60)
    assert f"cannot write {tmp_path / 'metrics.jsonl'}" in done.stdout, done.stderr
    assert len(rewind(tmp_path, lambda r: True)) == len(table(tmp_path)) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.jsonl", "metrics.csv"}


def test_a_table_that_cannot_be_written(loggers, tmp_path):
    (tmp_path / "metrics.csv").mkdir()
    with pytest.raises(OutputError, match=r"metrics\.csv"):
        loggers.log(record(1))


def test_a_folder_that_is_gone(loggers, tmp_path):
    tmp_path.rmdir()
    with pytest.raises(OutputError, match=r"metrics\.jsonl"):
        loggers.log(record(1))


# --- names


def test_an_unknown_name_has_a_suggestion():
    with pytest.raises(UsageError, match=r"unknown 'tensorbord'\. Did you mean: tensorboard\?"):
        check(["tensorbord"])
    with pytest.raises(UsageError, match=r"Choose from: tensorboard, wandb, trackio"):
        check(["xyzzy"])


def test_a_package_that_is_not_installed(monkeypatch, tmp_path):
    """A folder wandb/, which W&B leaves where it ran, is not the package."""
    (tmp_path / "wandb").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with pytest.raises(UsageError, match="--log wandb needs the package wandb: pip install wandb"):
        check(["wandb"])


def test_checking_imports_neither_torch_nor_the_packages():
    code = (
        "import sys; from timm_neutreno_cli.runtime.loggers import check; check(['tensorboard']); "
        "print({'torch', 'tensorboard'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "set()", done.stderr


# --- TensorBoard


def events(directory) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(directory))
    found.Reload()
    return {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def test_tensorboard_has_the_figures_of_each_arm(tmp_path):
    loggers = Loggers(tmp_path, ["tensorboard"], "run", {})
    loggers.log(record(1, "control", similarity=[0.1]))
    loggers.log(record(1))
    loggers.log(record(2, step=40))
    loggers.close()
    assert events(tmp_path / "tensorboard" / "control") == {"val_top1": [(1, 51.0)]}
    assert events(tmp_path / "tensorboard" / "adapted") == {"val_top1": [(1, 51.0), (40, 52.0)]}


def test_tensorboard_of_a_resumed_run_has_no_second_past(tmp_path):
    loggers = Loggers(tmp_path, ["tensorboard"], "run", {})
    for epoch in (1, 2, 3):
        loggers.log(record(epoch))
    loggers.close()
    rewind(tmp_path, lambda r: r["epoch"] < 2)
    loggers = Loggers(tmp_path, ["tensorboard"], "run", {})
    loggers.log(record(2, loss=0.5))
    loggers.close()
    assert events(tmp_path / "tensorboard" / "adapted")["val_top1"] == [(1, 51.0), (2, 52.0)]


# --- W&B and trackio, played by a module of the same name: what is called, and what becomes of its failure


class Double:
    def __init__(self, fails: str = ""):
        self.calls: list[tuple] = []
        self.fails = fails

    def __getattr__(self, name: str):
        def call(*args, **kwargs):
            print("hello from a library")
            self.calls.append((name, args, kwargs))
            if name == self.fails:
                raise ConnectionError("no route to host")
            return self

        return call


@pytest.fixture
def double(monkeypatch):
    def install(name: str, fails: str = "") -> Double:
        made = Double(fails)
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(init=made.init))
        return made

    return install


def test_wandb_is_told_everything_and_goes_on_with_the_same_run(tmp_path, double, capsys):
    wandb = double("wandb")
    for epoch in (1, 2):
        loggers = Loggers(tmp_path, ["wandb"], "my-run", {"lr": 0.1})
        loggers.log(record(epoch, step=epoch * 10, similarity=[0.1]))
        loggers.close()
    starts = [kwargs for name, _, kwargs in wandb.calls if name == "init"]
    assert starts[0] == starts[1]
    assert (starts[0]["name"], starts[0]["config"], starts[0]["resume"]) == ("my-run", {"lr": 0.1}, "allow")
    logged = [args[0] for name, args, _ in wandb.calls if name == "log"]
    assert logged[1] == {"adapted/val_top1": 52.0, "epoch": 2, "step": 20}
    assert wandb.calls[-1][0] == "finish"
    assert capsys.readouterr().out == ""


def test_trackio_is_told_everything(tmp_path, double, capsys):
    trackio = double("trackio")
    loggers = Loggers(tmp_path, ["trackio"], "my-run", {"lr": 0.1})
    loggers.log(record(1))
    loggers.close()
    loggers.close()
    assert [name for name, _, _ in trackio.calls] == ["init", "log", "finish"]
    assert trackio.calls[1][1:] == (({"adapted/val_top1": 51.0, "epoch": 1},), {"step": 1})
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["wandb", "trackio"])
@pytest.mark.parametrize("fails", ["init", "log", "finish"])
def test_a_network_that_fails_is_said_once_and_ends_nothing(tmp_path, double, capsys, name, fails):
    other = double(name, fails)
    loggers = Loggers(tmp_path, [name], "run", {})
    for epoch in (1, 2, 3):
        loggers.log(record(epoch))
    loggers.close()
    assert len(lines(tmp_path)) == len(table(tmp_path)) == 3
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert len(warnings) == 1
    assert f"--log {name} failed and is off from here: no route to host" in warnings[0]
    assert [call[0] for call in other.calls].count(fails) == 1


def test_wandb_itself_without_a_network(tmp_path, monkeypatch):
    """The package, if it is installed: that it takes what we call."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    loggers = Loggers(tmp_path, ["wandb"], "run", {"lr": 0.1})
    loggers.log(record(1))
    assert "wandb" in loggers.others
    loggers.close()
    assert list((tmp_path / "wandb").glob("offline-run-*"))
