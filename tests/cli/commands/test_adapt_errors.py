"""Every mistake of a user is one line on stderr with what, where, and what next, and the documented exit code."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from timm_neutreno_cli.config import Config
from timm_neutreno_cli.engine import hub
from timm_neutreno_cli.engine.evaluate_model import evaluate_model
from timm_neutreno_cli.errors import CheckpointError
from timm_neutreno_cli.main import adapt_main
from timm_neutreno_cli.runtime.console import Console

SHAPE = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
KWARGS = [part for key, value in SHAPE.items() for part in ("--model-kwargs", f"{key}={value}")]


def write_images(folder: Path, classes: str = "ab", count: int = 6) -> None:
    """`count` images of random pixels in each class folder."""
    for label in classes:
        (folder / label).mkdir(parents=True)
        for index in range(count):
            generator = torch.Generator().manual_seed(ord(label) * 100 + index)
            pixels = torch.randint(0, 256, (16, 16, 3), dtype=torch.uint8, generator=generator)
            Image.fromarray(pixels.numpy()).save(folder / label / f"{index}.png")


@pytest.fixture
def images(tmp_path) -> Path:
    write_images(tmp_path / "images" / "train")
    write_images(tmp_path / "images" / "val")
    return tmp_path / "images"


@pytest.fixture(scope="session")
def weights(tmp_path_factory) -> Path:
    import timm

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "plain.pth"
    torch.save(timm.create_model("vit_tiny_patch16_224", num_classes=2, **SHAPE).state_dict(), path)
    return path


@pytest.fixture
def fails(monkeypatch, capsys, tmp_path):
    """Runs `neutreno-adapt`; returns the one line after `error: `, given the expected exit code."""

    def run(code: int, *args: object) -> str:
        monkeypatch.setattr(sys, "argv", ["neutreno-adapt", *map(str, args)])
        monkeypatch.chdir(tmp_path)
        with pytest.raises(SystemExit) as stop:
            adapt_main()
        printed = capsys.readouterr()
        assert stop.value.code == code, printed.err
        assert printed.out == ""
        assert "Traceback" not in printed.err
        (line,) = re.findall(r"^error: (.+)$", printed.err, re.MULTILINE)
        return line

    return run


@pytest.fixture
def small(images, weights, tmp_path) -> list[object]:
    """Options of a run that works."""
    return [
        "--checkpoint", weights, "--arch", "vit_tiny_patch16_224", *KWARGS, "--data", images, "--epochs", 1,
        "--batch-size", 4, "--workers", 0, "--output", tmp_path / "run", "--device", "cpu",
    ]  # fmt: skip


# --- usage: 2


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_fidelity_that_is_no_finite_number(fails, small, value):
    assert "--fidelity must be a finite number" in fails(2, *small, "--fidelity", value)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (("--fidelity", "much"), "--fidelity"),
        (("--nonsense",), "No such option"),
        (("--epochs", "0"), "epochs"),
    ],
)
def test_typers_own_usage_errors(monkeypatch, capsys, option, words):
    monkeypatch.setattr(sys, "argv", ["neutreno-adapt", *option])
    with pytest.raises(SystemExit) as stop:
        adapt_main()
    assert stop.value.code == 2
    assert words in " ".join(capsys.readouterr().err.split())


def test_unknown_recipe(fails, small):
    assert "Choose from: finetune, deit" in fails(2, *small, "--recipe", "soup")


def test_learnable_fidelity_per_what(fails, small):
    assert "takes layer, head" in fails(2, *small, "--learnable-fidelity", "block")


def test_output_that_exists_is_left_alone(fails, small, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("mine")
    line = fails(2, *small)
    assert str(tmp_path / "run") in line
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["mine.txt"]


def test_output_that_is_a_run_says_how_to_go_on(fails, small, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "args.yaml").touch()
    assert f"Go on with it: neutreno adapt --resume {tmp_path / 'run'}. Or choose" in fails(2, *small)
    (tmp_path / "run" / "results.json").touch()
    assert "is a finished run. Nothing is overwritten" in fails(2, *small)


def test_unknown_device(fails, small):
    assert "--device abacus cannot be used here: torch knows no such device. Try --device cpu" in fails(
        2, *small, "--device", "abacus"
    )


def test_a_batch_that_cannot_be_dealt_out_has_its_words_in_the_right_number(fails, small):
    assert "dealt out evenly to 1 process with 3 accumulation steps each. Use 3 or 6." in fails(
        2, *small, "--batch-size", 4, "--accumulate", 3
    )


def test_a_file_that_is_no_image_is_said_to_be_none(fails, small, images):
    image = next(images.glob("train/*/*"))
    image.write_text("hello")
    assert f"cannot read the image {image}: it is no image, or its beginning is damaged." in fails(3, *small)


def test_a_batch_larger_than_the_data(fails, small):
    assert "--batch-size 400 is more than the 12 train images" in fails(2, *small, "--batch-size", 400)


def test_a_recipes_batch_shrinks_and_says_so(monkeypatch, capsys, small, tmp_path):
    words = [word for word in map(str, small) if word not in ("--batch-size", "4")]
    monkeypatch.setattr(sys, "argv", ["neutreno-adapt", *words, "--dry-run", "--no-control", "--fidelity", "60"])
    with pytest.raises(SystemExit) as stop:
        adapt_main()
    assert stop.value.code == 0
    printed = capsys.readouterr().err
    assert "batch       12, not the recipe's 64: there are 12 images" in printed
    assert "warning: fidelity 60 is outside [0, 1]" in " ".join(printed.split())


def test_ones_own_checkpoint_is_not_trained_on_the_digits(fails, weights):
    line = fails(2, "--checkpoint", weights, "--arch", "vit_tiny_patch16_224", *KWARGS)
    assert "--data demo if the digits are meant" in line


def test_an_input_that_is_no_multiple_of_the_patch(fails, small):
    line = fails(2, *small, "--img-size", 20)
    assert "20 x 20 pixels cannot be cut into patches of 8 x 8" in line


@pytest.mark.parametrize("value", [-1, 10**23, 2**32])
def test_a_seed_that_no_generator_takes(monkeypatch, capsys, small, value):
    monkeypatch.setattr(sys, "argv", ["neutreno-adapt", *map(str, small), f"--seed={value}"])
    with pytest.raises(SystemExit) as stop:
        adapt_main()
    assert stop.value.code == 2
    assert "seed" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--data", "--checkpoint", "--output", "--resume"])
@pytest.mark.parametrize("value", ["x" * 300, "~nouser/x"])
def test_names_that_no_file_can_have(fails, small, option, value):
    assert "cannot be a file or folder" in fails(2, *small, option, value)


# --- data: 3


def test_missing_folder(fails, small, tmp_path):
    assert str(tmp_path / "none") in fails(3, *small, "--data", tmp_path / "none")


def test_empty_folder(fails, small, tmp_path):
    (tmp_path / "empty").mkdir()
    assert str(tmp_path / "empty") in fails(3, *small, "--data", tmp_path / "empty")


def test_empty_train_folder(fails, small, tmp_path, images):
    (tmp_path / "half" / "train").mkdir(parents=True)
    (images / "val").rename(tmp_path / "half" / "val")
    assert str(tmp_path / "half") in fails(3, *small, "--data", tmp_path / "half")


def test_train_without_val(fails, small, images):
    (images / "val").rename(images / "other")
    assert "val/" in fails(3, *small)


def test_class_folders_that_differ_are_named(fails, small, images):
    (images / "val" / "b").rename(images / "val" / "dog")
    line = fails(3, *small)
    assert "dog" in line
    assert re.search(r"only in train/?: b\b", line)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("part", ["train", "val"])
def test_unreadable_image_is_named(fails, small, images, part, workers):
    bad = images / part / "a" / "0.png"
    bad.write_bytes(bad.read_bytes()[:60])
    line = fails(3, *small, "--workers", workers)
    assert str(bad) in line
    assert "--skip-bad-images" in line


def test_scheme_that_cannot_be_opened(fails, small, tmp_path):
    assert "torch/cifar1" in fails(3, *small, "--data", "torch/cifar1", "--data-dir", tmp_path)


# --- checkpoint or model: 4


def test_unknown_name_has_the_nearest_ones(fails):
    assert "deit_tiny" in fails(4, "--checkpoint", "diet_tiny")


def test_unknown_tag_has_the_known_ones(fails):
    assert "augreg_in21k_ft_in1k" in fails(4, "--checkpoint", "vit_tiny_patch16_224.nope")


def test_unsupported_model_says_why(fails):
    line = fails(4, "--checkpoint", "swin_tiny_patch4_window7_224")
    assert line == (
        "cannot apply NeuTRENO to swin_tiny_patch4_window7_224: its feature maps change size between stages, so that "
        "the "
        "first layer's values fit no later layer. `neutreno models` lists the models that it can be applied to."
    )


def test_the_folder_of_several_seeds_names_them(fails, small, tmp_path):
    for seed in (0, 1):
        (tmp_path / "runs" / f"seed-{seed}").mkdir(parents=True)
        (tmp_path / "runs" / f"seed-{seed}" / "config.json").touch()
    line = fails(4, *small, "--checkpoint", tmp_path / "runs")
    assert line == (
        f"{tmp_path / 'runs'} holds one model for each seed: seed-0, seed-1. Name one of them: "
        f"{tmp_path / 'runs/seed-0'}."
    )
    with pytest.raises(CheckpointError, match="seed-0, seed-1"):
        hub.check_model(tmp_path / "runs")
    (tmp_path / "runs" / "args.yaml").write_text("versions: {}\n")
    with pytest.raises(CheckpointError, match="seed-0, seed-1"):
        evaluate_model(str(tmp_path / "runs"), Config(), Console(quiet=True))


def test_missing_file(fails, small, tmp_path):
    assert str(tmp_path / "no.pth") in fails(4, *small, "--checkpoint", tmp_path / "no.pth")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_truncated_file(fails, small, weights, tmp_path, suffix):
    from safetensors.torch import save_file

    whole = weights
    if suffix == ".safetensors":
        whole = tmp_path / "whole.safetensors"
        save_file(torch.load(weights), whole)
    cut = tmp_path / f"cut{suffix}"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    line = fails(4, *small, "--checkpoint", cut)
    assert str(cut) in line
    assert "truncated" in line


def test_file_that_does_not_say_what_it_is(fails, weights):
    assert "--arch" in fails(4, "--checkpoint", weights)


def test_wrong_architecture_for_a_file(fails, small, weights):
    line = fails(4, *small, "--arch", "vit_small_patch16_224", "--model-kwargs", "embed_dim=48")
    assert str(weights) in line
    assert "--arch" in line


def test_folder_without_config(fails, small, tmp_path):
    (tmp_path / "model").mkdir()
    assert "config.json" in fails(4, *small, "--checkpoint", f"local-dir:{tmp_path / 'model'}")


@pytest.mark.parametrize("name", ["hf-hub:", "hf-hub:a/b/c", "hf-hub:../x"])
def test_what_is_no_name_of_a_repository(fails, small, name):
    assert "give hf-hub:OWNER/NAME" in fails(4, *small, "--checkpoint", name)


BAD_CONFIGS = {
    "no JSON": "{",
    "not UTF-8": b"\xff\xfe",
    "too deep": "[" * 100_000,
    "a list": "[1]",
    "no architecture": '{"pretrained_cfg": {}}',
    "an architecture that is a number": '{"architecture": 3, "pretrained_cfg": {}}',
    "classes that are words": '{"architecture": "vit_tiny_patch16_224", "num_classes": "many", "pretrained_cfg": {}}',
    "a mean that is a word": '{"architecture": "vit_tiny_patch16_224", "pretrained_cfg": {"mean": "grey"}}',
    "arguments that are a list": '{"architecture": "vit_tiny_patch16_224", "pretrained_cfg": {}, "model_args": [1]}',
    "a depth that is a word": '{"architecture": "vit_tiny_patch16_224", "pretrained_cfg": {}, '
    '"model_args": {"depth": "x"}}',
    "a method that is a number": '{"architecture": "neutreno_vit_tiny_patch16_224", "pretrained_cfg": {}, '
    '"model_args": {"method": 3}}',
}


@pytest.mark.parametrize("name", BAD_CONFIGS)
def test_a_config_json_that_says_nonsense(fails, small, tmp_path, name):
    (tmp_path / "model").mkdir()
    text = BAD_CONFIGS[name]
    (tmp_path / "model" / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    line = fails(4, *small, "--checkpoint", tmp_path / "model")
    assert "bug" not in line


# --- Hub: 5


@pytest.mark.parametrize("name", ["deit_tiny", "hf-hub:nobody/nothing"])
def test_no_network_and_nothing_cached(images, tmp_path, name):
    """In a process of its own: huggingface_hub reads its environment when it is imported."""
    import os

    done = subprocess.run(
        [sys.executable, "-c", "from timm_neutreno_cli.main import adapt_main; adapt_main()", "--checkpoint", name,
         "--data", str(images), "--output", str(tmp_path / "run")],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "empty")},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 5, done.stderr
    assert "embedded" in done.stderr
    assert "Traceback" not in done.stderr


# --- output: 6


def test_a_folder_that_cannot_be_made(fails, small, tmp_path):
    words = [word for word in small if word not in ("--output", tmp_path / "run")]
    assert "cannot write /proc/run: " in fails(6, *words, "--output", "/proc/run")


# --- while it runs


def test_loss_that_is_not_finite_names_the_step(fails, small):
    line = fails(7, *small, "--lr", "1e30", "--epochs", 3)
    assert re.search(r"step \d+", line)
    assert "--lr" in line


FILE_LIMIT = """
import resource, sys
from timm_neutreno_cli.engine import state
from timm_neutreno_cli.config import Config
from timm_neutreno_cli.engine import hub
from timm_neutreno_cli.engine.evaluate_model import evaluate_model
from timm_neutreno_cli.errors import CheckpointError
from timm_neutreno_cli.main import adapt_main
real, saved = state.write, []
def write(path, content):
    saved.append(path)
    if len(saved) == 3:  # the second epoch's
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
    real(path, content)
state.write = write
adapt_main()
"""


def test_no_space_left_keeps_the_previous_checkpoint(small, tmp_path):
    """A limit on file size stands for the full disk: writing stops half-way all the same."""
    done = subprocess.run(
        [sys.executable, "-c", FILE_LIMIT, *map(str, small), "--epochs", "3", "--no-control"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 6, done.stderr
    assert re.search(r"^error: .*last\.pth\.tar", done.stderr, re.MULTILINE)
    assert "Traceback" not in done.stderr
    assert torch.load(tmp_path / "run" / "arms" / "neutreno" / "last.pth.tar")["epoch"] in (0, 1)
