"""Whole runs of `neutreno-adapt` on tiny models and images: what they write, print, and give back to timm."""

from __future__ import annotations

import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import timm
import torch
import yaml
from PIL import Image
from timm.utils import CheckpointSaver
from timm_neutreno_cli.main import adapt_main, main

import timm_neutreno

SHAPE = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2}
ARCH = "vit_tiny_patch16_224"


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Two classes that differ in colour, so that a tiny model learns them."""
    root = tmp_path_factory.mktemp("images")
    for part, count in (("train", 12), ("val", 7)):
        for channel, label in enumerate(("blue", "red")):
            (root / part / label).mkdir(parents=True)
            for index in range(count):
                generator = torch.Generator().manual_seed(100 * channel + index + len(part))
                pixels = torch.randint(0, 120, (16, 16, 3), dtype=torch.uint8, generator=generator)
                pixels[..., 2 * (1 - channel)] += 120
                Image.fromarray(pixels.numpy()).save(root / part / label / f"{index}.jpg")
    return root


@pytest.fixture(scope="module")
def timm_file(tmp_path_factory, images) -> Path:
    """A ViT trained by timm alone for a few steps, saved by timm's own CheckpointSaver."""
    from timm.data import create_dataset, create_loader

    folder = tmp_path_factory.mktemp("timm")
    torch.manual_seed(0)
    model = timm.create_model(ARCH, num_classes=2, **SHAPE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    dataset = create_dataset("", str(images), split="train")
    loader = create_loader(dataset, (3, 16, 16), 8, is_training=True, num_workers=0, device=torch.device("cpu"))
    for _ in range(4):
        for pixels, target in loader:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(pixels), target).backward()
            optimizer.step()
    kwargs = {key: value for key, value in SHAPE.items() if key != "img_size"}
    args = Namespace(model=ARCH, img_size=16, model_kwargs=kwargs, mean=None)
    CheckpointSaver(model, optimizer, args=args, checkpoint_dir=str(folder)).save_checkpoint(0, metric=1.0)
    return folder / "last.pth.tar"


@pytest.fixture
def adapt(monkeypatch, capsys, tmp_path, timm_file, images):
    """Runs `neutreno-adapt` for an epoch on the images; returns the JSON document, the run directory and stderr."""

    def run(*args: object, data: Path | str = images, checkpoint: Path | str = timm_file, name: str = "run"):
        monkeypatch.chdir(tmp_path)
        argv = ["neutreno-adapt", "--checkpoint", checkpoint, "--data", data, "--epochs", 1, "--batch-size", 4,
                "--workers", 0, "--device", "cpu", "--output", tmp_path / name, "--json", *args]  # fmt: skip
        monkeypatch.setattr(sys, "argv", list(map(str, argv)))
        with pytest.raises(SystemExit) as stop:
            adapt_main()
        printed = capsys.readouterr()
        assert not stop.value.code, printed.err
        return json.loads(printed.out), tmp_path / name, printed.err

    return run


IN_A_NEW_PROCESS = """
import sys, timm, timm_neutreno, torch
model = timm.create_model(f"local-dir:{sys.argv[1]}", pretrained=True).eval()
torch.save(model(torch.load(sys.argv[2])), sys.argv[3])
"""


def test_a_file_of_timms_own_adapts_and_loads_in_a_new_process(adapt, tmp_path):
    document, run, _ = adapt()
    assert {path.name for path in run.iterdir()} == {
        "model.safetensors", "config.json", "args.yaml", "arms", "evaluations.json", "results.json", "similarity.png",
        "README.md", "report.html", "curves.png", "tokens.png",
    }  # fmt: skip
    page, readme = (run / "report.html").read_text(), (run / "README.md").read_text()
    assert page.count("<img ") == 3
    assert "http" not in page
    assert [name for name in ("curves.png", "similarity.png", "tokens.png") if f"]({name})" not in readme] == []
    torch.manual_seed(1)
    pixels = torch.randn(3, 3, 16, 16)
    torch.save(pixels, tmp_path / "pixels.pt")
    command = [sys.executable, "-W", "error::UserWarning", "-c", IN_A_NEW_PROCESS]
    subprocess.run([*command, run, tmp_path / "pixels.pt", tmp_path / "logits.pt"], check=True, timeout=120)

    state = torch.load(run / "arms" / "neutreno" / "last.pth.tar")["state_dict"]
    trained = timm_neutreno.patch(timm.create_model(ARCH, num_classes=2, **SHAPE), fidelity=0.2).eval()
    trained.load_state_dict(state)
    with torch.no_grad():
        torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), trained(pixels), rtol=0, atol=0)
    assert set(document["models"]) == {
        "checkpoint", "neutreno/start", "control", "neutreno",
    }  # fmt: skip
    assert document["verdict"]


def test_the_checkpoint_as_it_came_is_timms_own_model(adapt, timm_file, images):
    """Evaluated by plain timm, without this package's evaluation."""
    from timm.data import create_dataset, create_loader, resolve_model_data_config

    document, *_ = adapt("--no-control")
    model = timm.create_model(ARCH, num_classes=2, checkpoint_path=str(timm_file), **SHAPE).eval()
    config = resolve_model_data_config(model)
    keys = ("interpolation", "mean", "std", "crop_pct")
    loader = create_loader(
        create_dataset("", str(images), split="val"), (3, 16, 16), 14, num_workers=0, device=torch.device("cpu"),
        **{key: config[key] for key in keys},
    )  # fmt: skip
    ((pixels, target),) = loader
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(model(pixels), target).item()
        top1 = 100 * (model(pixels).argmax(1) == target).float().mean().item()
    came = document["models"]["checkpoint"]
    assert came["images"] == 14
    assert came["loss"] == pytest.approx(loss, rel=1e-5)
    assert came["top1"] == pytest.approx(top1, abs=1e-3)
    assert document["models"]["neutreno/start"]["loss"] != pytest.approx(loss, rel=1e-4)


def test_at_fidelity_0_the_adapted_arm_is_the_control(adapt):
    """Same data order, augmentation and dropped paths in both arms."""
    document, *_ = adapt("--fidelity", 0, "--drop-path", 0.5, "--color-jitter", 0.4)
    models = document["models"]
    for key in ("loss", "top1", "similarity"):
        assert models["neutreno"][key] == models["control"][key]
    assert "neutreno/start" not in models  # it starts from the checkpoint's own function


def test_same_seed_same_result_and_another_seed_another(adapt):
    losses = [
        adapt("--no-control", "--seed", seed, name=f"run{i}")[0]["models"]["neutreno"]["loss"]
        for i, seed in enumerate((3, 3, 4))
    ]
    assert losses[0] == losses[1] != losses[2]


def test_fidelity_rises_step_by_step_from_the_checkpoints_own_function(adapt, monkeypatch):
    from timm_neutreno_cli.engine import trainer

    values, real = [], trainer.set_strengths
    monkeypatch.setattr(trainer, "set_strengths", lambda model, **given: (values.append(given), real(model, **given)))
    _, run, _ = adapt("--no-control", "--epochs", 2, "--fidelity-warmup", 1)
    steps = 24 // 4
    assert [given["fidelity"] for given in values[:steps]] == pytest.approx([0.2 * i / steps for i in range(steps)])
    assert values[-1]["fidelity"] == pytest.approx(0.2)
    assert json.loads((run / "config.json").read_text())["model_args"]["fidelity"] == pytest.approx(0.2)


@pytest.mark.parametrize("per", ["layer", "head"])
def test_learnable_fidelity_is_learned_saved_and_loaded(adapt, per):
    _, run, _ = adapt("--no-control", "--learnable-fidelity", per, "--lr", 1e-2)
    model = timm.create_model(f"local-dir:{run}", pretrained=True)
    learned = [value for key, value in model.state_dict().items() if key.endswith("fidelity")]
    assert [value.numel() for value in learned] == [{"layer": 1, "head": 2}[per]] * 2
    assert all((value != 0.2).all() for value in learned)


def test_learnable_control_stays_plain_softmax(adapt):
    _, run, _ = adapt("--learnable-fidelity", "layer", "--lr", 1e-2)
    state = torch.load(run / "arms" / "control" / "last.pth.tar")["state_dict"]
    assert not [key for key in state if key.endswith("fidelity")]
    control = timm.create_model(f"local-dir:{run / 'arms' / 'control'}", pretrained=True)
    assert not timm_neutreno.is_patched(control)


def test_another_head_and_another_size_are_said(adapt, images, tmp_path):
    third = tmp_path / "three"
    for part in ("train", "val"):
        for label, source in (("x", "blue"), ("y", "red"), ("z", "red")):
            (third / part).mkdir(parents=True, exist_ok=True)
            (third / part / label).symlink_to(images / part / source)
    _, run, said = adapt("--no-control", "--img-size", 32, data=third)
    assert "2 classes" in said
    assert " 3" in said
    model = timm.create_model(f"local-dir:{run}", pretrained=True)
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 3)
    assert json.loads((run / "config.json").read_text())["label_names"] == ["x", "y", "z"]
    assert "new head" in (run / "README.md").read_text()


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_images_are_skipped_and_counted(adapt, images, tmp_path, workers):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(images, copy)
    (copy / "val" / "red" / "0.jpg").write_bytes(b"no image")
    document, *_ = adapt("--no-control", "--skip-bad-images", "--workers", workers, data=copy)
    assert document["skipped_images"] >= 1


def test_limit_batches(adapt):
    document, *_ = adapt("--no-control", "--limit-batches", 1)
    assert document["models"]["neutreno"]["images"] == 4


def test_a_run_can_be_the_next_runs_checkpoint(adapt):
    _, run, _ = adapt("--no-control", "--fidelity", 0.3)
    document, *_ = adapt("--no-control", checkpoint=run, name="next")
    first, second = (document["models"][name] for name in ("checkpoint", "neutreno/start"))
    assert first == second  # its own fidelity is kept
    assert yaml.safe_load((run.parent / "next" / "args.yaml").read_text())["fidelity"] == 0.3


def test_weights_in_every_wrapping(adapt, timm_file, tmp_path):
    state = torch.load(timm_file, weights_only=False)["state_dict"]
    expected = None
    wrappings = {
        "plain": state,
        "model": {"model": {f"module.{key}": value for key, value in state.items()}},
        "compiled": {"state_dict": {f"_orig_mod.{key}": value for key, value in state.items()}},
        "ema": {"state_dict": {key: value * 0 for key, value in state.items()}, "state_dict_ema": state},
    }
    shape = [part for key, value in SHAPE.items() for part in ("--model-kwargs", f"{key}={value}")]
    for name, wrapped in wrappings.items():
        torch.save(wrapped, tmp_path / f"{name}.pth")
        document, *_ = adapt(
            "--no-control", "--limit-batches", 1, "--arch", ARCH, *shape,
            checkpoint=tmp_path / f"{name}.pth", name=f"run-{name}",
        )  # fmt: skip
        loss = document["models"]["checkpoint"]["loss"]
        expected = expected or loss
        assert loss == pytest.approx(expected)


def test_args_yaml_has_everything_that_was_resolved(adapt):
    _, run, _ = adapt("--no-control")
    args = yaml.safe_load((run / "args.yaml").read_text())
    assert (args["recipe"], args["epochs"], args["label_smoothing"]) == ("finetune", 1, 0.1)
    assert args["data_config"]["input_size"] == [3, 16, 16]
    assert {"python", "torch", "timm", "timm-neutreno"} <= set(args["versions"])


def test_table_on_stdout_ends_with_the_two_lines_that_load(adapt, monkeypatch, capsys, tmp_path, timm_file, images):
    argv = ["neutreno", "adapt", "--checkpoint", timm_file, "--data", images, "--epochs", 1, "--batch-size", 4,
            "--workers", 0, "--output", tmp_path / "table", "--device", "cpu", "--quiet"]  # fmt: skip
    monkeypatch.setattr(sys, "argv", list(map(str, argv)))
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    printed = capsys.readouterr()
    assert printed.err == ""
    assert printed.out.strip().splitlines()[-2:] == [
        "import timm, timm_neutreno",
        f'model = timm.create_model("local-dir:{tmp_path / "table"}", pretrained=True)',
    ]
    assert "neutreno" in printed.out


@pytest.mark.parametrize("option", ["--help", "--version", "--nonsense"])
def test_help_and_usage_errors_import_no_torch(option):
    """These must answer at once; torch and timm take seconds to import."""
    code = (
        "import sys\nfrom timm_neutreno_cli.main import adapt_main\n"
        "try:\n    adapt_main()\nexcept SystemExit as stop:\n    code = stop.code or 0\n"
        "heavy = {'torch', 'timm', 'timm_neutreno', 'matplotlib'} & set(sys.modules)\n"
        "print('HEAVY', sorted(heavy), 'CODE', code)"
    )
    done = subprocess.run([sys.executable, "-c", code, option], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == f"HEAVY [] CODE {2 if option == '--nonsense' else 0}"


def test_a_head_for_other_classes_of_the_same_number_is_not_kept(adapt, images, tmp_path):
    """Ten digits are not ten animals: equal numbers of classes must not join a head to the wrong names."""
    _, first, _ = adapt("--no-control", name="first")
    for part in ("train", "val"):
        (tmp_path / "renamed" / part).mkdir(parents=True)
        for old, new in (("blue", "cold"), ("red", "warm")):
            (tmp_path / "renamed" / part / new).symlink_to(images / part / old)
    _, second, said = adapt("--no-control", checkpoint=first, data=tmp_path / "renamed", name="second")
    assert "initialised anew: classes blue, red, ... in checkpoint, cold, warm, ... in data" in said
    assert "| new head |" in (second / "README.md").read_text()
