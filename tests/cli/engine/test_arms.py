"""The arms that a run is asked for: methods and their options, and models that are all from one checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from integration import small_run
from timm_neutreno_cli.config import Config
from timm_neutreno_cli.data.sources import Datasets
from timm_neutreno_cli.engine.arms import Arm, Models, list_arms
from timm_neutreno_cli.engine.checkpoint import Source
from timm_neutreno_cli.errors import UsageError

import timm_neutreno

PLAIN = Source("file", small_run.ARCH, num_classes=2)
LEARNED = Source(
    "run", small_run.ARCH, method="neutreno", options={"fidelity": 0.3, "learnable_fidelity": "head"}, num_classes=2
)
HERE = Path("run")


def arms(source: Source = PLAIN, **given) -> list[Arm]:
    return list_arms(Config(**given), source, HERE)


def test_neutreno_and_a_control_without_a_method():
    control, neutreno = arms()
    assert (control.name, control.method, control.options) == ("control", None, {})
    assert (neutreno.method, neutreno.options) == ("neutreno", {"fidelity": 0.2, "learnable_fidelity": None})
    assert [arm.directory for arm in (control, neutreno)] == [HERE / "arms" / "control", HERE / "arms" / "neutreno"]
    assert [arm.name for arm in arms(control=False)] == ["neutreno"]


@pytest.mark.parametrize(
    ("given", "fidelity"),
    [
        ({}, 0.2),
        ({"recipe": "finetune"}, 0.2),
        ({"recipe": "deit"}, 0.6),  # the paper's own
        ({"recipe": "digits"}, 0.6),
        ({"task": "segmentation"}, 0.6),
        ({"fidelity": 0.5}, 0.5),
        ({"set": {"fidelity": 0.5}}, 0.5),
        ({"learnable_fidelity": "layer"}, 0.2),
        ({"method": ["neutreno+featscale"]}, 0.2),
    ],
)
def test_the_recipe_says_the_fidelity_if_nothing_else_does(given, fidelity):
    assert arms(**given)[1].options["fidelity"] == fidelity


def test_the_checkpoint_s_own_method_goes_before_the_recipe_s():
    assert arms(LEARNED)[1].options == LEARNED.options
    plain = replace(LEARNED, options={})
    assert arms(plain)[1].options["fidelity"] == 0.6, "as `neutreno_...` of timm has it"


def test_options_go_to_the_methods_that_have_them():
    options = {"gfsa": 0.1, "learnable_gfsa": "layer", "layers": [-1]}
    _, one, two = arms(method=["neutreno", "gfsa+neutreno"], fidelity=0.4, set=options)
    assert one.options == {"fidelity": 0.4, "learnable_fidelity": None, "layers": [-1]}
    assert two.name == timm_neutreno.methods.canonical("neutreno+gfsa")
    assert two.options == {
        "gfsa": 0.1, "learnable_gfsa": "layer", "fidelity": 0.4, "learnable_fidelity": None, "layers": [-1],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"method": ["neutrino"]}, "unknown method 'neutrino'"),
        ({"method": ["gfsa+neutreno", "neutreno+gfsa"]}, "is named twice"),
        ({"set": {"fidelitty": 1}}, "--set fidelitty: no method of this run has it. Did you mean: fidelity"),
        ({"set": {"gfsa": 1}}, "--set gfsa: no method of this run has it"),
        ({"method": ["gfsa"], "set": {"gfsa": "much"}}, "gfsa must be a finite number"),
        ({"method": ["featscale"], "set": {"learnable_featscale_low": "head"}}, "learnable_featscale_low must be one"),
    ],
)
def test_what_makes_no_sense_is_named(given, words):
    with pytest.raises(UsageError, match=words):
        arms(**given)


def test_a_checkpoint_s_own_method_goes_on_unless_another_is_asked_for():
    (_, own) = arms(LEARNED)
    assert own.options == {"fidelity": 0.3, "learnable_fidelity": "head"}
    assert arms(LEARNED, fidelity=0.5)[1].options["fidelity"] == 0.5
    assert arms(LEARNED, method=["gfsa"])[1].options == {"gfsa": 0.0, "learnable_gfsa": "head"}
    with pytest.raises(UsageError, match="run has a fidelity learned per head"):
        arms(LEARNED, learnable_fidelity="layer")


@pytest.mark.parametrize(
    ("given", "exact"),
    [
        ({}, False),
        ({"fidelity": 0.0}, True),
        ({"fidelity_warmup": 2.0}, True),
        ({"method": ["gfsa"]}, True),
        ({"method": ["gfsa"], "set": {"gfsa": 0.1}}, False),
        ({"method": ["symmetric"]}, False),
        ({"method": ["symmetric+neutreno"], "fidelity": 0.0}, False),
        ({"method": ["neutreno+featscale"]}, False),
        ({"method": ["neutreno+featscale"], "fidelity": 0.0}, True),
    ],
)
def test_what_is_exact_at_its_start(given, exact, tmp_path):
    """Said from the table of methods, and so it is."""
    (arm,) = arms(**given, control=False)
    assert arm.exact_at_start == exact
    model = timm.create_model(small_run.ARCH, num_classes=2, **small_run.SHAPE).eval()
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    from timm_neutreno_cli.engine.checkpoint import resolve_checkpoint

    source = resolve_checkpoint(str(tmp_path / "weights.pth"), small_run.ARCH, small_run.SHAPE)
    models = Models(source, Datasets("", [], [], None, 2), Config(drop_path=0.0), torch.device("cpu"))
    patched = models.build(arm).eval()
    if arm.warmup:
        timm_neutreno.set_strengths(patched, fidelity=0.0)
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(patched(images), model(images)) == exact


def test_all_models_have_the_checkpoint_s_weights_and_one_new_head(tmp_path):
    """The file is read once: it may go."""
    from timm_neutreno_cli.engine.checkpoint import resolve_checkpoint

    _, path = small_run.make(tmp_path)
    source = resolve_checkpoint(str(path), small_run.ARCH, small_run.SHAPE)
    path.unlink()
    models = Models(source, Datasets("", [], [], ["a", "b", "c"], 3), Config(seed=5), torch.device("cpu"))
    assert models.new_head == "2 classes in checkpoint, 3 in data"
    first = models.original.state_dict()
    for arm in list_arms(Config(method=["neutreno", "featscale"]), source, HERE):
        state = models.build(arm).state_dict()
        assert all(torch.equal(state[name], value) for name, value in first.items())
    again = Models(source, Datasets("", [], [], ["a", "b", "c"], 3), Config(seed=6), torch.device("cpu"))
    assert not torch.equal(again.original.state_dict()["head.weight"], first["head.weight"])
