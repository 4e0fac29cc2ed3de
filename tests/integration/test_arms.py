"""One run with several methods: equal arms, one control, the same images, and models that load."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import timm
import torch
from integration import small_run
from integration.test_faults import assert_same_run, wait_for

import timm_neutreno

METHODS = ["neutreno", "featscale", "gfsa", "neutreno+featscale"]
OPTIONS = [
    *(word for method in METHODS for word in ("--method", method)), "--set", "gfsa=0.1", "--set", "fidelity=0.4",
    "--set", "learnable_gfsa=layer", "--epochs", 3, "--save-every-steps", 1, "--mixup", 0.5, "--random-erasing", 0.5,
]  # fmt: skip


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> tuple[Path, Path]:
    return small_run.make(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def whole(small, tmp_path_factory) -> tuple[Path, str]:
    run = tmp_path_factory.mktemp("whole") / "run"
    argv = small_run.command(*small, "--output", run, *OPTIONS)
    return run, small_run.finish(small_run.in_a_process(argv))[0]


def log(run: Path, arm: str) -> list[dict]:
    return [json.loads(line) for line in (run / "arms" / arm / "metrics.jsonl").read_text().splitlines()]


def test_one_control_and_a_row_for_every_method(whole):
    run, out = whole
    results = json.loads((run / "results.json").read_text())
    assert results["arms"] == ["control", *METHODS]
    # those that start from the checkpoint's own function have no row before training: it would repeat the first
    starts = ["neutreno/start", "gfsa/start", "neutreno+featscale/start"]
    assert list(results["models"]) == ["checkpoint", *starts, "control", *METHODS]
    assert sum("adapted" in line and "not adapted" not in line for line in out.splitlines()) == len(METHODS)
    assert "4 methods were compared with one control" in out
    strengths = {name: results["models"][name]["strengths"] for name in ("control", *METHODS)}
    assert strengths["control"] == {}
    assert strengths["neutreno"]["fidelity"]["mean_abs"] == 0.4
    assert strengths["gfsa"]["gfsa"]["mean_abs"] == pytest.approx(0.1, abs=0.05)
    assert strengths["neutreno+featscale"].keys() == {"fidelity", "featscale_low", "featscale_high"}
    assert strengths["featscale"]["featscale_low"]["max"] > 0


def test_all_arms_saw_the_same_images_in_the_same_order(whole):
    """`images_sum` depends on every pixel after augmentation, and on the step that had it."""
    run, _ = whole
    sums = [[record["images_sum"] for record in log(run, arm)] for arm in ("control", *METHODS)]
    assert all(one == sums[0] for one in sums)
    assert len(set(sums[0])) == 3
    losses = {record["train_loss"] for arm in ("control", *METHODS) for record in log(run, arm)}
    assert len(losses) == 15  # and are five trainings all the same


def test_every_arm_loads_as_what_it_is(whole):
    run, _ = whole
    for arm in ("control", *METHODS):
        model = timm.create_model(f"local-dir:{run / 'arms' / arm}", pretrained=True)
        assert timm_neutreno.is_patched(model) == (arm != "control")
        state = torch.load(run / "arms" / arm / "last.pth.tar")["state_dict"]
        assert state.keys() == model.state_dict().keys()
        for name, value in model.state_dict().items():
            assert torch.equal(value, state[name]), name
    root = timm.create_model(f"local-dir:{run}", pretrained=True)
    assert root.pretrained_cfg["architecture"] == f"neutreno_{small_run.ARCH}"
    assert root.blocks[1].attn.fidelity == pytest.approx(0.4)


def test_a_method_that_cannot_be_is_refused_before_anything_is_trained(small, tmp_path):
    argv = small_run.command(*small, "--output", tmp_path / "run", "--method", "gfsa", "--set", "layers=[7]")
    _, err = small_run.finish(small_run.in_a_process(argv), 2)
    assert "there is no block 7 among 3" in err
    assert not (tmp_path / "run").exists()


def test_killed_in_the_third_arm_it_ends_bit_equal(small, whole, tmp_path):
    run = tmp_path / "run"
    process = small_run.in_a_process(small_run.command(*small, "--output", run, *OPTIONS))
    wait_for(process, run / "arms" / "featscale" / "last.pth.tar")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (run / "arms" / "featscale" / "model.safetensors").exists()
    small_run.finish(small_run.in_a_process(["neutreno-adapt", "--resume", str(run)]))
    assert_same_run(whole[0], run)
