"""The loop over one arm, in this process: what each step does, and that it can end and go on anywhere."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from integration import small_run
from timm_neutreno_cli.config import Config, resolve
from timm_neutreno_cli.data import loaders, sources
from timm_neutreno_cli.engine import setup
from timm_neutreno_cli.engine.arms import Models, list_arms
from timm_neutreno_cli.engine.checkpoint import resolve_checkpoint
from timm_neutreno_cli.engine.trainer import Trainer
from timm_neutreno_cli.errors import CheckpointError, Interrupted, TrainingError, UsageError
from timm_neutreno_cli.runtime.console import Console
from timm_neutreno_cli.runtime.processes import World
from timm_neutreno_cli.runtime.signals import StopSignal

import timm_neutreno

CPU = torch.device("cpu")
TIMED = ("images_per_second", "data_wait_share", "memory_mib")
DATA_CONFIG = {
    "input_size": (3, 16, 16), "interpolation": "bicubic", "mean": (0.5,) * 3, "std": (0.5,) * 3, "crop_pct": 1.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> tuple[Path, Path]:
    return small_run.make(tmp_path_factory.mktemp("small"))


@pytest.fixture
def trainer(small, tmp_path):
    """Makes the trainer of a run's last arm, in a folder of its own or in one that has begun."""

    def make(folder: str = "run", stop: StopSignal | None = None, **options) -> Trainer:
        images, weights = small
        given = {"epochs": 2, "batch_size": 8, "lr": 1e-2, "workers": 0, "drop_path": 0.2, "control": False, **options}
        config = resolve(replace(Config(data=str(images), recipe="finetune"), **given))
        source = resolve_checkpoint(str(weights), small_run.ARCH, small_run.SHAPE)
        datasets = sources.open_datasets(config)
        models, arm = Models(source, datasets, config, CPU), list_arms(config, source, tmp_path / folder)[-1]
        arm.directory.mkdir(parents=True, exist_ok=True)
        context = setup.RunContext(config, CPU, World(), Console(quiet=True), stop or StopSignal(), folder)
        train = loaders.train_loader(datasets, DATA_CONFIG, config, CPU, World())
        val = loaders.val_loader(datasets, 8, DATA_CONFIG, config, CPU, World())
        return Trainer(models.build(arm), models.architecture(arm), None, train, val, arm, context)

    return make


class AfterSteps(StopSignal):
    """Is asked after every step, and says stop after some."""

    def __init__(self, steps: int):
        super().__init__()
        self.left = steps

    @property
    def reason(self) -> str | None:
        self.left -= 1
        return "interrupted by the test" if self.left == 0 else None


def log(trainer: Trainer) -> list[dict]:
    return [json.loads(line) for line in (trainer.arm.directory / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("steps", [1, 3, 4])
@pytest.mark.parametrize(
    "options",
    [
        {"fidelity_warmup": 1.0, "ema_decay": 0.9, "random_erasing": 0.5},
        {"fidelity_warmup": 0.5, "learnable_fidelity": "head"},
        {"method": ["gfsa"], "accumulate": 2, "mixup": 0.5},
        {"trainable": "lora", "lora_rank": 4, "learnable_fidelity": "head", "ema_decay": 0.9},
    ],
    ids=["ramp", "learned", "gfsa", "lora"],
)
def test_stopped_after_any_step_it_ends_bit_equal(trainer, steps, options):
    whole = trainer("whole", **options)
    expected = whole.run()
    with pytest.raises(Interrupted, match=r"interrupted by the test .* Everything up to then is saved"):
        trainer("run", AfterSteps(steps), **options).run()
    resumed = trainer("run", **options)
    assert resumed.state.epoch * 3 + resumed.state.step == steps
    assert resumed.run() == expected
    for one, other in ((whole.model, resumed.model), (whole.ema, resumed.ema)):
        if one is not None:
            assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())
    for one, other in zip(log(whole), log(resumed), strict=True):
        assert all(one[name] == other[name] for name in one if name not in TIMED)


def test_the_log_has_no_figure_that_was_not_measured(trainer):
    """The similarity of tokens is measured after the last epoch only."""
    found = trainer(ema_decay=0.9)
    found.run()
    first, last = ({key for key in record if "similarity" in key} for record in log(found))
    assert first == set()
    assert last == {"val_similarity", "val_similarity_error", "val_ema_similarity", "val_ema_similarity_error"}
    header = (found.arm.directory / "metrics.csv").read_text().splitlines()
    values = dict(zip(header[0].split(","), header[1].split(","), strict=True))
    assert values["val_similarity_error"] == ""


def test_a_checkpoint_of_another_model_is_named(trainer):
    first = trainer("run")
    first.run()
    path = first.arm.directory / "last.pth.tar"
    content = torch.load(path)
    content["state_dict"] = {"other": torch.zeros(3)}
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=r"the checkpoint in .*neutreno is not of this neutreno model: "):
        trainer("run")


def test_a_finished_arm_trains_no_further(trainer):
    first = trainer().run()
    again = trainer()
    assert again.state.done
    assert again.run() == first
    assert len(log(again)) == 2


def test_the_fidelity_rises_linearly_and_stays(trainer):
    found = trainer(fidelity=0.6, fidelity_warmup=1.5)  # of three steps an epoch
    assert [found.fidelity(total) for total in (0, 1, 3, 5, 99)] == pytest.approx([0, 0.6 / 4.5, 0.4, 0.6, 0.6])


def test_passes_of_a_step_add_up_to_one(trainer):
    options = {"drop_path": 0.0, "epochs": 1}
    alone, parted = trainer("one", **options), trainer("four", accumulate=4, **options)
    alone.run()
    parted.run()
    assert log(parted)[0]["train_loss"] == pytest.approx(log(alone)[0]["train_loss"], rel=1e-5)
    assert log(parted)[0]["images_sum"] == pytest.approx(log(alone)[0]["images_sum"], rel=1e-4)


def test_a_loss_that_is_not_finite_saves_nothing_of_it(trainer):
    found = trainer(lr=1e30, warmup_epochs=0, clip_grad=0.0)
    with pytest.raises(TrainingError, match=r"the loss became (nan|inf) in step \d"):
        found.run()
    assert len(json.loads((found.arm.directory / "not_finite.json").read_text())["files"]) == 8
    last = found.arm.directory / "last.pth.tar"
    if last.exists():
        assert all(value.isfinite().all() for value in torch.load(last)["state_dict"].values())


@pytest.mark.parametrize(
    ("trainable", "moving"),
    [
        ("head", lambda name: name.startswith("head.")),
        ("attention", lambda name: ".attn." in name or name.startswith("head.")),
        ("lora", lambda name: ".lora_" in name or name.startswith("head.") or name.endswith(("fidelity", "gfsa"))),
        ("strengths", lambda name: name.endswith(("fidelity", "gfsa"))),
        ("fidelity", lambda name: name.endswith("fidelity")),
        ("all", lambda name: True),
    ],
)
def test_what_is_frozen(trainer, trainable, moving):
    found = trainer(method=["neutreno+gfsa"], learnable_fidelity="layer", trainable=trainable)
    free = {name for name, parameter in found.model.named_parameters() if parameter.requires_grad}
    assert free == {name for name, _ in found.model.named_parameters() if moving(name)}
    assert len(free) > 1


def test_nothing_to_train_is_refused(trainer):
    with pytest.raises(UsageError, match="--trainable strengths leaves a model without learnable strengths nothing"):
        trainer(trainable="strengths")


def test_strengths_of_the_last_step_are_the_model_s(trainer):
    found = trainer(fidelity=0.6, fidelity_warmup=1.0)
    found.run()
    assert set(timm_neutreno.strengths(found.model).values()) == {0.6}
    assert found.state.evaluations["raw"]["strengths"]["fidelity"]["min"] == 0.6
