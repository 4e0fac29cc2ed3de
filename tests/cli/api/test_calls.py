"""`timm_neutreno.adapt`, `.evaluate` and `.probe`: what they return, and that they leave the process as it was."""

from __future__ import annotations

import inspect
import json
import multiprocessing
import random
import signal
import sys
import threading

import numpy as np
import pytest
import timm
import torch
from integration import small_run
from timm_neutreno_cli import errors
from timm_neutreno_cli.config import OPTIONS

import timm_neutreno

SMALL = dict(arch=small_run.ARCH, model_kwargs=small_run.SHAPE, epochs=2, batch_size=8, device="cpu", lr=1e-3)


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> dict:
    """Options of a tiny run."""
    images, weights = small_run.make(tmp_path_factory.mktemp("small"))
    return dict(SMALL, data=images, checkpoint=weights, workers=0)


@pytest.fixture(scope="module")
def run(small, tmp_path_factory) -> timm_neutreno.adapt:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as each of two processes has: more threads sum in another order
    try:
        return timm_neutreno.adapt(**small, output=tmp_path_factory.mktemp("run") / "run", ema_decay=0.5)
    finally:
        torch.set_num_threads(threads)


def state() -> tuple:
    """What a call could change in the process."""
    return (
        random.random(), np.random.rand(), torch.rand(1).item(), torch.get_num_threads(),
        torch.get_float32_matmul_precision(), signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM),
    )  # fmt: skip


def seeded() -> None:
    random.seed(1), np.random.seed(1), torch.manual_seed(1)


def test_the_names_are_those_of_the_command_line():
    names = set(inspect.signature(timm_neutreno.adapt).parameters)
    assert names == OPTIONS.keys() - {"json"}
    assert all(f"{name}: " in timm_neutreno.adapt.__doc__ for name in names)


def test_two_runs_in_one_process_print_nothing_and_leave_it_as_it_was(small, run, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(sys, "argv", ["program", "--no-such-option"])
    monkeypatch.setenv("NEUTRENO_EPOCHS", "7")
    torch.set_float32_matmul_precision("highest")
    torch.set_num_threads(1)
    seeded()
    before = state()
    seeded()
    again = timm_neutreno.adapt(**{**small, "workers": 1}, output=tmp_path / "run", ema_decay=0.5)
    found = timm_neutreno.evaluate(again.paths["output"])
    assert state() == before
    assert capfd.readouterr() == ("", "")
    assert not multiprocessing.active_children()
    assert again.rows == run.rows  # the same run
    assert found.rows[str(tmp_path / "run")] == again.rows["neutreno"]


def test_what_adapt_gives_back(run):
    folder = run.paths["output"]
    saved = json.loads((folder / "results.json").read_text())
    assert run.rows == saved["models"]
    assert run.verdict == saved["verdict"]
    assert list(run.rows) == ["checkpoint", "neutreno/start", "control", "control/ema", "neutreno", "neutreno/ema"]
    assert str(run).splitlines()[1] == "-" * len(str(run).splitlines()[0])
    assert "<table>" in run._repr_html_()
    assert "NeuTRENO" not in run.paths
    assert all(path.exists() for path in run.paths.values())


@pytest.mark.parametrize("name", [None, "neutreno", "neutreno/ema", "control"])
def test_its_models_are_those_that_were_saved(run, name):
    folder = run.paths["output"] / (f"arms/{name}" if name else "")
    saved = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    pixels, model = torch.randn(2, 3, 16, 16), run.model(name)
    assert torch.equal(model(pixels), saved(pixels))
    assert not model.training
    assert timm_neutreno.is_patched(model) == (name != "control")


def test_a_model_that_is_not_there(run):
    with pytest.raises(errors.UsageError, match=r"no model 'gfsa' here. There are: neutreno, control/?"):
        run.model("gfsa")
    assert not timm_neutreno.is_patched(run.model("checkpoint"))


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"epoch": 3}, "UsageError", "adapt has no option 'epoch'. Did you mean: epochs"),
        ({"json": True}, "UsageError", "adapt has no option 'json'"),
        ({"given": frozenset()}, "UsageError", "adapt has no option 'given'"),
        ({"epochs": "3"}, "UsageError", "epochs takes an int, got '3'"),
        ({"epochs": True}, "UsageError", "epochs takes an int, got True"),
        ({"control": 1}, "UsageError", "control takes a bool, got 1"),
        ({"set": "fidelity"}, "UsageError", "set takes a dict, got 'fidelity'"),
        ({"method": 3}, "UsageError", "method takes a list, got 3"),
        ({"lr": -1}, "UsageError", "--lr must be a finite number"),
        ({"data": "nowhere"}, "DataError", "no such folder: nowhere"),
        ({"checkpoint": "deit_tinny"}, "CheckpointError", "Did you mean"),
        ({"resume": "nowhere"}, "CheckpointError", "is not a run"),
    ],
)
def test_errors_are_ours(small, tmp_path, options, kind, words, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(getattr(errors, kind), match=words):
        timm_neutreno.adapt(**{**small, **options})
    assert capfd.readouterr() == ("", "")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("model", [7, None, torch.nn.Identity(), {"demo"}])
def test_what_is_no_name_of_a_model(model):
    with pytest.raises(errors.UsageError, match=f"model takes a name, a file or a folder, got {type(model).__name__}"):
        timm_neutreno.evaluate(model)
    for models in (model, ["demo", model]):
        with pytest.raises(errors.UsageError, match="models takes a name, a file or a folder, got"):
            timm_neutreno.probe(models, data="demo")


def test_evaluate_takes_its_own_options_only(run):
    with pytest.raises(errors.UsageError, match="evaluate has no option 'lr'"):
        timm_neutreno.evaluate(run.paths["output"], lr=1.0)


def test_words_paths_and_numbers_of_numpy(small, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    plan = timm_neutreno.adapt(**{**small, "epochs": np.int64(3), "patience": None}, method="gfsa", dry_run=True)
    assert plan.document["steps"] == 9
    assert "gfsa" in plan.document["plan"]["arms"]
    assert plan.rows == {}
    assert "Nothing was written" in str(plan)
    assert capfd.readouterr() == ("", "")


def test_outside_the_main_thread(small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plans: list = []
    thread = threading.Thread(target=lambda: plans.append(timm_neutreno.adapt(**small, dry_run=True)))
    thread.start()
    thread.join()
    assert plans[0].document["steps"] == 6


def test_it_says_what_happens_if_asked(small, tmp_path, capfd):
    timm_neutreno.adapt(**{**small, "epochs": 1}, output=tmp_path / "run", quiet=False)
    out, err = capfd.readouterr()
    assert out == ""
    assert "training    1 epoch, " in err


def test_several_seeds_have_models_of_each(small, tmp_path):
    result = timm_neutreno.adapt(**{**small, "epochs": 1}, seeds=2, output=tmp_path / "run")
    assert result.rows["neutreno"]["top1"]["values"]
    assert "±" in str(result)
    one, other = (result.model(f"seed-{seed}/neutreno") for seed in (0, 1))
    assert torch.equal(result.model()(torch.ones(1, 3, 16, 16)), one(torch.ones(1, 3, 16, 16)))
    assert not torch.equal(one.head.weight, other.head.weight)


def test_several_processes(small, run, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("NEUTRENO_EPOCHS", "7")
    options = {**small, "gpus": 2, "ema_decay": 0.5}
    result = timm_neutreno.adapt(**options, output=tmp_path / "run")
    assert capfd.readouterr() == ("", "")
    assert result.document["processes"] == 2
    assert result.document["epochs"] == 2
    assert result.rows["checkpoint"] == run.rows["checkpoint"]
    assert result.rows.keys() == run.rows.keys()
    assert "neutreno, adapted" in str(result)
    with pytest.raises(errors.DataError, match="no such folder: nowhere"):
        timm_neutreno.adapt(**{**options, "data": "nowhere"}, output=tmp_path / "other")


def test_under_torchrun_it_sends_to_the_command(small, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(errors.UsageError, match="start neutreno-adapt"):
        timm_neutreno.adapt(**small)


def test_probe(small, run, tmp_path, capfd):
    seeded()
    before = state()
    seeded()
    result = timm_neutreno.probe(
        run.paths["output"],
        small["data"],
        fidelity=[0.0, 0.1],
        neighbors=[1, 2],
        device="cpu",
        output=tmp_path / "probe",
    )
    assert state() == before
    assert capfd.readouterr() == ("", "")
    assert json.loads((tmp_path / "probe" / "results.json").read_text()) == json.loads(json.dumps(result.document))
    assert len(result.rows) == 2
    assert result.verdict == [each["sentence"] for each in result.document["verdicts"]]
    assert result.paths["report.html"].exists()
    assert timm_neutreno.is_patched(result.model())
    with pytest.raises(errors.UsageError, match="pool median"):
        timm_neutreno.probe("demo", pool="median")
    with pytest.raises(errors.DataError):
        timm_neutreno.probe("demo", "nowhere")
