"""`neutreno runs`, `compare`, `predict`, `env`, `push --dry-run` and `python -m timm_neutreno`, on real runs."""

import json
import shutil
import subprocess
import sys

import pytest
import timm
import torch
from integration import small_run
from PIL import Image
from timm_neutreno_cli.main import adapt_main, main


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished run; images and weights beside it."""
    root = tmp_path_factory.mktemp("small")
    images, weights = small_run.make(root)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "argv", small_run.command(images, weights, "--output", root / "runs" / "one"))
        with pytest.raises(SystemExit):
            adapt_main()
    return root


@pytest.fixture
def neutreno(monkeypatch, capsys):
    def run(*words, code=0):
        monkeypatch.setattr(sys, "argv", ["neutreno", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            main()
        printed = capsys.readouterr()
        assert stop.value.code == code, printed.err
        return printed

    return run


def test_runs_says_state_figures_and_what_goes_on(made, neutreno, tmp_path):
    shutil.copytree(made / "runs" / "one", tmp_path / "half")
    (tmp_path / "half" / "results.json").unlink()
    shutil.copytree(made / "runs" / "one", tmp_path / "whole")
    shutil.copytree(made / "runs" / "one", tmp_path / "damaged")
    (tmp_path / "damaged" / "results.json").write_text("{")
    rows = {row["run"].rpartition("/")[2]: row for row in json.loads(neutreno("runs", tmp_path, "--json").out)}
    result = json.loads((tmp_path / "whole" / "results.json").read_text())
    assert rows["whole"]["state"] == "finished"
    assert rows["whole"]["top1"] == result["models"]["neutreno"]["top1"]
    assert rows["whole"]["control_top1"] == result["models"]["control"]["top1"]
    assert rows["whole"]["verdict"] == result["verdict"]
    assert rows["half"]["state"] == "neutreno: epoch 2 of 2 done"
    assert rows["half"]["resume"] == f"neutreno-adapt --resume {tmp_path / 'half'}"
    assert rows["damaged"]["state"].startswith("unreadable: ")
    assert rows["damaged"]["resume"] is None
    printed = neutreno("runs", tmp_path).out
    assert f"half goes on with: neutreno-adapt --resume {tmp_path / 'half'}" in printed


@pytest.mark.parametrize("make", [True, False])
def test_no_runs(neutreno, tmp_path, make):
    folder = tmp_path / "runs"
    if make:
        folder.mkdir()
    (line,) = neutreno("runs", folder, code=2).err.splitlines()
    assert line.startswith(f"error: {'there is no run in ' if make else ''}{folder}")


def test_predict_gives_the_models_own_probabilities(made, neutreno):
    image = next((made / "images" / "val" / "red").iterdir())
    run = made / "runs" / "one"
    (row,) = json.loads(neutreno("predict", run, image, "--json", "--device", "cpu").out)
    model = timm.create_model(f"local-dir:{run}", pretrained=True).eval()
    config = timm.data.resolve_data_config({"input_size": (3, 16, 16)}, model=model)
    with torch.inference_mode():
        expected = model(timm.data.create_transform(**config)(Image.open(image))[None])[0].softmax(0)
    assert [found["name"] for found in row["classes"]] == [
        ("blue", "red")[i] for i in expected.argsort(descending=True)
    ]
    torch.testing.assert_close(row["classes"][0]["probability"], float(expected.max()), rtol=1e-5, atol=1e-6)
    everything = neutreno("predict", run, made / "images" / "val", "--top", "1", "--device", "cpu").out
    assert everything.count(" %  ") == 14


def test_predict_without_image_or_head(made, neutreno, tmp_path):
    assert (
        neutreno("predict", "demo", tmp_path / "none.png", code=3).err
        == f"error: there is no image {tmp_path}/none.png.\n"
    )
    headless = timm.create_model(small_run.ARCH, num_classes=0, **small_run.SHAPE)
    torch.save(headless.state_dict(), tmp_path / "headless.pth")
    shape = [word for key, value in small_run.SHAPE.items() for word in ("--model-kwargs", f"{key}={value}")]
    image = next((made / "images" / "val" / "red").iterdir())
    printed = neutreno("predict", tmp_path / "headless.pth", image, "--arch", small_run.ARCH, *shape, code=4)
    assert "has no head" in printed.err


def test_env_names_versions_and_nothing_private(neutreno, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_" + "a" * 30)
    found = json.loads(neutreno("env", "--json").out)
    assert (found["torch"], found["timm"]) == (torch.__version__.partition("+")[0], timm.__version__)
    assert "hf_aaa" not in neutreno("env").out


def test_push_dry_run_prints_the_card_and_asks_nobody(made, neutreno, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    printed = neutreno("push", made / "runs" / "one", "me/small", "--dry-run")
    assert "# small" in printed.out or "me/small" in printed.out
    assert "library_name: timm" in printed.out
    assert [line.split()[6] for line in printed.err.splitlines()] == [
        "model.safetensors,",
        "config.json,",
        "similarity.png,",
    ]


def test_python_m():
    command = [sys.executable, "-m", "timm_neutreno", "--version"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.startswith("timm-neutreno ")


def test_compare_pairs_the_arms_of_a_run(made, neutreno):
    run = made / "runs" / "one"
    names = [str(run / "arms" / "control"), str(run)]
    found = json.loads(neutreno("compare", *names, "--json").out)
    recorded = json.loads((run / "results.json").read_text())["models"]
    assert found["models"] == {names[0]: recorded["control"], names[1]: recorded["neutreno"]}
    (pair,) = found["differences"].values()
    assert pair["difference"] == pytest.approx(recorded["neutreno"]["top1"] - recorded["control"]["top1"])
    assert pair["won"] - pair["lost"] == round(pair["difference"] * 14 / 100)
    won = f"{pair['won']} image{'' if pair['won'] == 1 else 's'}"
    assert f"{run} alone recognises {won}, {run}/arms/control alone {pair['lost']}." in neutreno("compare", *names).out


def test_compare_refuses_other_images_and_one_run(made, neutreno, tmp_path):
    images, _ = small_run.make(tmp_path, val=5)
    shutil.copytree(made / "runs" / "one", tmp_path / "run")
    arguments = (tmp_path / "run" / "args.yaml").read_text().replace(str(made / "images"), str(images))
    (tmp_path / "run" / "args.yaml").write_text(arguments)
    printed = neutreno("compare", made / "runs" / "one", tmp_path / "run", code=2)
    assert "have other val images: they cannot be paired" in printed.err
    assert "at least two" in neutreno("compare", made / "runs" / "one", code=2).err
