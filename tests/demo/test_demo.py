"""The embedded default: a fixed split of real digits, and a checkpoint that timm loads and whose tokens grow alike."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer

from timm_neutreno.demo import CHECKPOINT, digits, pretrain


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return digits.write_digits(tmp_path_factory.mktemp("digits") / "here")


def test_split_has_fixed_sizes_and_every_class(folder):
    counts = {
        part: [len(list((folder / part / str(digit)).glob("*.png"))) for digit in range(10)]
        for part in ("train", "val")
    }
    assert sum(counts["train"]) == 1400
    assert sum(counts["val"]) == 397
    assert max(counts["val"]) - min(counts["val"]) <= 3  # stratified


def test_no_image_is_in_both_parts(folder):
    train = {path.name for path in (folder / "train").rglob("*.png")}
    val = {path.name for path in (folder / "val").rglob("*.png")}
    assert not train & val


def test_a_complete_folder_is_reused(folder):
    before = (folder / "train").stat().st_mtime_ns
    assert digits.write_digits(folder) == folder
    assert (folder / "train").stat().st_mtime_ns == before


def test_a_folder_that_is_not_the_digits_is_refused_and_left_alone(tmp_path):
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(RuntimeError, match="should hold 1797 pictures and holds 0: remove it"):
        digits.write_digits(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_the_split_is_the_same_every_time(folder, tmp_path):
    again = digits.write_digits(tmp_path / "again")
    for path in sorted(folder.rglob("*.png"))[::37]:
        assert (again / path.relative_to(folder)).read_bytes() == path.read_bytes()


def test_without_a_writable_cache_the_digits_go_elsewhere(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/none")
    assert digits.default_directory().parent.is_dir() or digits.default_directory().parent.parent.is_dir()


def test_nothing_is_left_when_writing_fails(tmp_path, monkeypatch):
    def fail(root, *_):
        (root / "half").write_text("")
        raise OSError("no space")

    monkeypatch.setattr(digits, "_write_images", fail)
    with pytest.raises(OSError, match="no space"):
        digits.write_digits(tmp_path / "digits")
    assert list(tmp_path.iterdir()) == []


def test_missing_scikit_learn_is_named_with_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ModuleNotFoundError, match="pip install scikit-learn"):
        digits.write_digits(tmp_path / "digits")


def test_checkpoint_is_small_plain_and_as_good_as_recorded(folder):
    assert (CHECKPOINT / "model.safetensors").stat().st_size <= 2_000_000
    model = timm.create_model(f"local-dir:{CHECKPOINT}", pretrained=True)
    assert type(model) is VisionTransformer
    assert len(model.blocks) == 12
    record = json.loads((CHECKPOINT / "config.json").read_text())["pretraining"]
    assert record["recipe"] == json.loads(json.dumps(pretrain.RECIPE))
    _, val = pretrain.loaders(folder)
    assert pretrain.top1(model, val) == pytest.approx(record["top1"], abs=0.3)  # one image


def test_tokens_of_the_checkpoint_grow_alike(folder):
    model = timm.create_model(f"local-dir:{CHECKPOINT}", pretrained=True)
    _, val = pretrain.loaders(folder)
    curve = pretrain.token_similarity(model, val)
    assert curve[-1] > 2 * curve[0]
    assert all(later > earlier for earlier, later in itertools.pairwise(curve[4:]))


def test_pretraining_makes_a_folder_that_timm_loads(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(pretrain.RECIPE, "epochs", 1)
    monkeypatch.setitem(pretrain.RECIPE, "warmup_epochs", 0)
    monkeypatch.setitem(pretrain.MODEL_ARGS, "depth", 2)
    monkeypatch.setattr(sys, "argv", ["pretrain", "--output", str(tmp_path / "new")])
    pretrain.main()
    printed = json.loads(capsys.readouterr().out)
    assert len(printed["similarity"]) == 2
    with torch.no_grad():
        model = timm.create_model(f"local-dir:{tmp_path / 'new'}", pretrained=True).eval()
        assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    with pytest.raises(SystemExit) as stop:
        pretrain.main()  # the folder is there now
    assert stop.value.code == 2
