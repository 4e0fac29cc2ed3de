"""Files of weights, with a head that fits the data and with one that does not: the right load, others are named."""

from __future__ import annotations

import re
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import timm
import torch
from integration import small_run
from timm_neutreno_cli import checkpoint
from timm_neutreno_cli.main import adapt_main

ARCH, SHAPE = small_run.ARCH, small_run.SHAPE
OTHER = 5  # classes that the data does not have


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return small_run.make(tmp_path_factory.mktemp("small"))[0]


def state(classes: int = OTHER, seed: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return timm.create_model(ARCH, num_classes=classes, **SHAPE).state_dict()


def under(prefix: str, weights: dict) -> dict:
    return {prefix + key: value for key, value in weights.items()}


def dino(seed: int, prefix: str = "") -> dict:
    """A backbone without a classifier, and a projection head beside it."""
    backbone = {key: value for key, value in state(seed=seed).items() if not key.startswith("head.")}
    head = {"head.mlp.0.weight": torch.zeros(3, 24), "head.last_layer.weight_v": torch.zeros(4, 3)}
    return under(prefix, under("backbone.", backbone) | head)


@pytest.fixture
def file(tmp_path):
    def write(content: object) -> Path:
        torch.save(content, tmp_path / "weights.pth")
        return tmp_path / "weights.pth"

    return write


@pytest.fixture
def plan(images, monkeypatch, capsys):
    """`neutreno-adapt --dry-run` with a file; its exit code and what it said."""

    def run(path: Path, *options: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", small_run.command(images, path, "--dry-run", *options))
        with pytest.raises(SystemExit) as stop:
            adapt_main()
        return stop.value.code or 0, capsys.readouterr().err

    return run


DINO = {"student": dino(1, "module."), "teacher": dino(0), "epoch": 3, "args": Namespace(arch="vit_small")}
AVERAGED = {"state_dict": state(seed=1), "state_dict_ema": state(seed=0)}
RIGHT = {
    "as timm saves": (state(), [], ""),
    "DeiT's": ({"model": state(), "epoch": 3}, [], ""),
    "DDP's": (under("module.", state()), [], "the prefix module. is taken off"),
    "compiled": ({"state_dict": under("_orig_mod.", state())}, [], "the prefix _orig_mod. is taken off"),
    "backbone": (under("backbone.", state()), [], "the prefix backbone. is taken off"),
    "encoder": (under("encoder.", state()), [], "the prefix encoder. is taken off"),
    "Lightning's": ({"state_dict": under("model.", state())}, [], "the prefix model. is taken off"),
    "nested": (under("module.student.", state()), [], "the prefix module.student. is taken off"),
    "DINO's teacher": (DINO, [], "teacher is taken, of several in the file (or student with --weights raw)"),
    "DINO's student": ({**DINO, "student": dino(0, "module.")}, ["--weights", "raw"], "student is taken"),
    "DINO's head": (DINO, [], "the head beside it is left out (head.mlp.0.weight, head.last_layer.weight_v)"),
    "averaged": (AVERAGED, [], "state_dict_ema is taken, of several in the file (or state_dict with --weights raw)"),
    "averaged, asked": (AVERAGED, ["--weights", "ema"], "state_dict_ema is taken"),
    "raw, asked": ({**AVERAGED, "state_dict": state()}, ["--weights", "raw"], "state_dict is taken, of several"),
    "both flat": (under("student.", state(seed=1)) | under("teacher.", state()), [], "teacher. is taken, of student."),
    "raw flat": (under("student.", state()) | under("teacher.", state(seed=1)), ["--weights", "raw"], "student. is"),
}


@pytest.mark.parametrize("name", RIGHT)
def test_the_right_weights_load_and_what_was_done_is_said(file, plan, name):
    content, options, words = RIGHT[name]
    path = file(content)
    code, said = plan(path, *options)
    assert code == 0, said
    assert words in said
    assert not words or "weights   " in said
    source = checkpoint.find(str(path), ARCH, SHAPE, *options[1:])
    model = checkpoint.build(source, num_classes=2)
    for key, value in state().items():
        if not key.startswith("head."):
            assert torch.equal(model.state_dict()[key], value), key
    assert model.pretrained_cfg.get("state_dict") is None  # not kept twice


@pytest.mark.parametrize("classes", [2, OTHER], ids=["head fits", "head does not fit"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: under("trunk.", w), r"42 .* missing \(cls_token, .*44 .* not belong .*trunk\.cls_token"),
        (lambda w: {k: v for k, v in w.items() if "blocks.1." not in k}, r"12 .* missing \(blocks\.1\.norm1\.weight, "),
        (lambda w: w | {"neck.weight": torch.zeros(2)}, r"1 do not belong to it \(neck\.weight\)"),
        (lambda w: {"cls_token": w["cls_token"]}, r"missing \(pos_embed, patch_embed\.proj\.weight, "),
        (lambda w: under("backbone.", w) | {"neck.weight": torch.zeros(2)}, r"\(neck\.weight\)"),
        (lambda w: under("encoder.", w) | {"decoder.blocks.0.a": torch.zeros(2)}, r"\(decoder\.blocks\.0\.a\)"),
        (lambda w: under("encoder.", w) | under("model.", w), r"several models \(encoder\., model\.\)"),
    ],
    ids=["wrong prefix", "missing block", "extra key", "one tensor", "extra key beside", "a decoder", "two models"],
)
def test_weights_of_something_else_are_refused(file, plan, classes, change, words):
    path = file(change(state(classes)))
    code, said = plan(path)
    assert code == 4, said
    (line,) = re.findall(r"^error: (.+)$", said, re.MULTILINE)
    assert str(path) in line
    assert re.search(words, line), line


def test_a_missing_head_is_refused_only_where_it_would_be_used(file, plan, tmp_path):
    """A file that claims two classes (by its config.json) must have the classifier for them."""
    from timm_neutreno.hub import save_pretrained

    save_pretrained(timm.create_model(f"neutreno_{ARCH}", num_classes=2, **SHAPE), tmp_path / "model")
    headless = {key: value for key, value in state(2).items() if not key.startswith("head.")}
    torch.save(headless, tmp_path / "model" / "weights.pth")
    source = checkpoint.find(str(tmp_path / "model" / "weights.pth"))
    with pytest.raises(checkpoint.CheckpointError, match=r"2 of its tensors are missing \(head\.weight, head\.bias\)"):
        checkpoint.build(source, num_classes=2)
    checkpoint.build(source, num_classes=3)
    assert plan(file(headless))[0] == 0


@pytest.mark.parametrize(
    ("content", "option", "words"),
    [
        ({"state_dict": state()}, "ema", "has no weights of the kind --weights ema: it has state_dict only"),
        ({"state_dict_ema": state()}, "raw", "it has state_dict_ema only"),
        (state(), "ema", "does not say that it is averaged"),
    ],
)
def test_weights_that_are_not_in_the_file(file, plan, content, option, words):
    code, said = plan(file(content), "--weights", option)
    assert code == 4
    assert words in said


def test_weights_of_no_file_and_of_no_kind(file, plan, tmp_path):
    assert plan(file(state()), "--weights", "best")[0] == 2
    code, said = plan(tmp_path, "--weights", "raw")
    assert code == 2
    assert f"{tmp_path} is no file" in said


def test_learned_strengths_are_used_or_left_out_and_said(file, plan):
    learned = {f"blocks.{layer}.attn.fidelity": torch.tensor([0.1 * layer]) for layer in (1, 2)}
    for classes in (2, OTHER):
        path = file(state(classes) | learned)
        code, said = plan(path)
        assert code == 0, said
        assert "learned strengths are used if the model learns them, else left out (blocks.1.attn.fidelity" in said
        model = checkpoint.build(checkpoint.find(str(path), ARCH, SHAPE), num_classes=2, learnable_fidelity="layer")
        assert [block.attn.fidelity.item() for block in model.blocks[1:]] == pytest.approx([0.1, 0.2])
        code, said = plan(path, "--learnable-fidelity", "head")
        assert code == 4
        assert "fidelity" in said


def test_a_prefix_of_the_models_own_stays():
    from timm_neutreno_cli.weights import without_prefix

    value = torch.zeros(1)
    named, notes = without_prefix({"encoder.blocks.0.a": value}, "deepseek_vit_412m", "file")
    assert (list(named), notes) == (["encoder.blocks.0.a"], [])
    named, notes = without_prefix({"module.encoder.blocks.0.a": value}, "deepseek_vit_412m", "file")
    assert list(named) == ["encoder.blocks.0.a"]
    assert notes == ["the prefix module. is taken off their names"]


def test_names_of_strengths_can_be_given():
    from timm_neutreno_cli.weights import misfit

    model = timm.create_model(ARCH, num_classes=2, **SHAPE)
    model.pretrained_cfg = {**model.pretrained_cfg, "num_classes": 2}
    weights = [*model.state_dict(), "blocks.1.attn.gfsa"]
    assert "blocks.1.attn.gfsa" in misfit(model, weights)
    assert misfit(model, weights, strengths=("fidelity", "gfsa")) == ""
