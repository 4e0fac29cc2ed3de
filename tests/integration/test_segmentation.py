"""Runs of --task segmentation: killed and resumed, two processes as one, evaluated, pushed, refused."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from hub_double import WRITE, Hub
from huggingface_hub import ModelCard
from integration import small_run
from integration.test_faults import assert_same_run
from PIL import Image
from timm_neutreno_cli.main import adapt_main
from timm_neutreno_cli.main import main as neutreno_main
from torchmetrics.classification import MulticlassJaccardIndex

from timm_neutreno import Segmenter, strengths

EXACT = ["--drop-path", 0, "--decoder-dropout", 0]  # their noise is drawn by each process for its own images


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> tuple[Path, Path]:
    return small_run.make_masks(tmp_path_factory.mktemp("small"))


def run(small, folder: Path, *options: object) -> dict:
    argv = small_run.segmentation(*small, "--output", folder, "--json", *options)
    return json.loads(small_run.finish(small_run.in_a_process(argv))[0])


@pytest.fixture(scope="module")
def whole(small, tmp_path_factory) -> tuple[Path, dict]:
    """A finished run of every part, with both kinds of evaluation."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    parts = ["--part", "both", "--part", "encoder", "--part", "decoder"]
    return folder, run(small, folder, *EXACT, "--multi-scale", "--window-stride", 8, *parts)


@pytest.fixture
def called(monkeypatch, capsys):
    """A command in this process; what it printed on stdout and stderr."""

    def call(main, argv: list, code: int = 0) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", list(map(str, argv)))
        with pytest.raises(SystemExit) as stop:
            main()
        printed = capsys.readouterr()
        assert (stop.value.code or 0) == code, printed.err
        return printed.out, printed.err

    return call


def test_arms_rows_and_models(whole):
    folder, document = whole
    assert document["arms"] == ["control", "neutreno", "neutreno-encoder", "neutreno-decoder"]
    images = torch.rand(1, 3, 20, 30)
    for arm in document["arms"]:
        row = document["models"][arm]
        assert (row["images"], len(row["iou"]), len(row["miou_by_image"])) == (5, 3, 5)
        assert (len(row["similarity"]), len(row["decoder_similarity"])) == (3, 2)
        assert {"miou", "miou_multi_scale", "pixel_accuracy", "loss"} <= row.keys()
        model = Segmenter.from_pretrained(folder / "arms" / arm)
        where = {name.partition(".")[0] for name in strengths(model)}
        both = {"encoder", "decoder"}
        assert where == {"control": set(), "neutreno": both}.get(arm, {arm.rpartition("-")[2]})
        assert model.segment(images).shape == (1, 20, 30)
        assert (model.stride, model.class_names) == ((8, 8), ["0", "1", "2"])
    assert Image.open(folder / "examples.png").size[0] > 300
    assert "Segmenter.from_pretrained" in (folder / "README.md").read_text()
    assert "mIoU" in document["verdict"][0]
    sums = [[json.loads(line)["images_sum"] for line in (folder / "arms" / arm / "metrics.jsonl").open()]
            for arm in document["arms"]]  # fmt: skip
    assert all(own == sums[0] for own in sums)


def test_evaluate_gives_the_figures_again(whole, called):
    folder, document = whole
    for arm in ("neutreno", "control"):
        found = json.loads(called(neutreno_main, ["neutreno", "evaluate", folder / "arms" / arm, "--json"])[0])
        row = document["models"][arm]
        assert {key: found[key] for key in row} == row
    assert "mIoU, multi scale" in called(neutreno_main, ["neutreno", "evaluate", folder])[0]


def test_analyze_measures_both_parts(whole, small, called, tmp_path):
    folder, _ = whole
    argv = ["neutreno", "analyze", folder / "arms" / "control", "--data", small[0] / "images" / "val", "--output",
            tmp_path / "report", "--metrics", "block_similarity,spectra", "--json"]  # fmt: skip
    found = json.loads(called(neutreno_main, argv)[0])
    layers = {result["model"]: result["values"]["block_similarity"] for result in found["results"]}
    assert {name: len(values) for name, values in layers.items()} == {"control, encoder": 3, "control, decoder": 2}
    assert "control, decoder" in (tmp_path / "report" / "report.html").read_text()


def test_evaluate_refuses_other_classes(whole, small, called, tmp_path):
    shutil.copytree(small[0], tmp_path / "data")
    path = tmp_path / "data" / "annotations" / "train" / "0.png"
    Image.fromarray(np.full((24, 32), 5, np.uint8)).save(path)
    err = called(neutreno_main, ["neutreno", "evaluate", whole[0], "--data", tmp_path / "data"], 4)[1]
    assert "3 in the model, 6 in the data" in err


def test_killed_and_resumed_it_is_bit_equal(small, tmp_path):
    run(small, tmp_path / "whole", "--no-control", "--drop-path", 0.2, "--ema-decay", 0.9, "--epochs", 4)
    argv = small_run.segmentation(*small, "--no-control", "--drop-path", 0.2, "--ema-decay", 0.9, "--epochs", 4)
    argv += ["--save-every-steps", "1", "--resume", "auto", "--output", str(tmp_path / "killed")]
    for saved in (1, 3):
        process = small_run.in_a_process(argv)
        seen, last = set(), tmp_path / "killed" / "arms" / "neutreno" / "last.pth.tar"
        while len(seen) < saved:
            assert process.poll() is None, process.communicate()
            if last.exists():
                seen.add(last.stat().st_mtime_ns)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert not (tmp_path / "killed" / "results.json").exists()
    small_run.finish(small_run.in_a_process(argv))
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


def test_two_processes_are_one(small, tmp_path):
    alone = run(small, tmp_path / "alone", "--no-control", *EXACT)
    document = run(small, tmp_path / "two", "--no-control", "--gpus", 2, *EXACT)
    assert document["processes"] == 2
    for key in ("checkpoint", "neutreno/start"):  # nothing was trained between: the same to the last bit
        assert document["models"][key] == alone["models"][key]
    one, two = (path / "arms" / "neutreno" for path in (tmp_path / "alone", tmp_path / "two"))
    losses = [[json.loads(line)["train_loss"] for line in (path / "metrics.jsonl").open()] for path in (one, two)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert document["models"]["neutreno"]["miou"] == pytest.approx(of_torchmetrics(small[0], two), rel=1e-5)
    weights, others = (torch.load(path / "last.pth.tar")["state_dict"] for path in (one, two))
    for name, value in weights.items():
        if "qkv.bias" not in name:  # a key bias has no gradient but rounding, which Adam magnifies
            torch.testing.assert_close(value, others[name], rtol=1e-3, atol=2e-5, msg=name)


def of_torchmetrics(data: Path, folder: Path) -> float:
    """mIoU in per cent of a saved Segmenter on the val images, by PIL, torchvision and torchmetrics alone."""
    model, metric = Segmenter.from_pretrained(folder), MulticlassJaccardIndex(3, ignore_index=255)
    for path in sorted((data / "images" / "val").iterdir()):
        mask = torch.from_numpy(np.array(Image.open(data / "annotations" / "val" / path.name))).long()
        pixels = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)
        x = torchvision.transforms.v2.functional.resize(pixels, [16], antialias=True).float() / 255
        x = (x - torch.tensor(model.mean)[:, None, None]) / torch.tensor(model.std)[:, None, None]
        metric.update(model.segment(x[None], size=tuple(mask.shape)), mask[None])
    return 100 * metric.compute().item()


def test_dry_run_writes_nothing(small, called, tmp_path):
    argv = small_run.segmentation(*small, "--dry-run", "--recipe", "segmenter", "--img-size", 16, "--epochs", 2)
    out, _ = called(adapt_main, [*argv, "--output", tmp_path / "run"])
    assert "then poly to 1e-05" in out
    assert "examples.png" in out
    assert not (tmp_path / "run").exists()


def test_pushed_and_loaded_from_the_hub(whole, tmp_path, monkeypatch):
    folder, document = whole
    with Hub() as hub:
        code = "import sys; from timm_neutreno_cli.main import main; sys.argv[0] = 'neutreno'; main()"
        done = subprocess.run(
            [sys.executable, "-c", code, "push", str(folder), "alice/segmenter"], capture_output=True, text=True,
            env=hub.environment(tmp_path / "home", WRITE), timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        load = (
            "import torch, sys; from timm_neutreno import Segmenter; torch.manual_seed(0); "
            "model = Segmenter.from_pretrained('alice/segmenter'); "
            "torch.save(model(torch.ones(1, 3, 20, 30)), sys.argv[1])"
        )
        done = subprocess.run(
            [sys.executable, "-c", load, str(tmp_path / "logits.pt")], capture_output=True, text=True,
            env=hub.environment(tmp_path / "empty", None), timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        files = hub.repositories["alice/segmenter"].revisions["main"]
    with torch.no_grad():
        expected = Segmenter.from_pretrained(folder)(torch.ones(1, 3, 20, 30))
    assert torch.equal(torch.load(tmp_path / "logits.pt"), expected)
    assert {"examples.png", "similarity.png", "config.json", "model.safetensors"} <= set(files)
    card = ModelCard(files["README.md"].decode())
    assert card.data.pipeline_tag == "image-segmentation"
    assert "| class | IoU" in card.text
    assert f"{document['models']['neutreno']['iou'][1]:.2f}" in card.text


# --- what is refused, each in one line


def no_mask(data: Path) -> None:
    (data / "annotations" / "train" / "3.png").unlink()


def other_size(data: Path) -> None:
    Image.new("L", (10, 10)).save(data / "annotations" / "val" / "1.png")


def beyond(data: Path) -> None:
    Image.new("L", (32, 24), 9).save(data / "annotations" / "val" / "1.png")


def all_void(data: Path) -> None:
    for path in (data / "annotations").rglob("*.png"):
        Image.new("L", (32, 24), 255).save(path)


def void_val(data: Path) -> None:
    for path in (data / "annotations" / "val").iterdir():
        Image.new("L", (32, 24), 255).save(path)


def colours(data: Path) -> None:
    Image.new("RGB", (32, 24)).save(data / "annotations" / "train" / "1.png")


def deep(data: Path) -> None:
    Image.fromarray(np.full((24, 32), 4000, np.uint16)).save(data / "annotations" / "val" / "1.png")


def damaged(data: Path) -> None:
    (data / "images" / "val" / "1.png").write_bytes(b"no picture")


def no_images(data: Path) -> None:
    shutil.move(data / "images", data / "pictures")


BAD = {
    no_mask: "1 of 8 images have no mask in",
    other_size: "val/1.png has 10 x 10 pixels and its image",
    beyond: "has the label 9, beyond the 3 labels that are known (0 to 2)",
    all_void: "so there is nothing to tell apart",
    void_val: "no pixel of the val masks is labelled: all are void",
    colours: "train/1.png is a picture of mode RGB",
    deep: "has the label 4000, beyond the 3 labels that are known",
    damaged: "cannot read the image",
    no_images: "has no images/: segmentation needs",
}


@pytest.mark.parametrize("spoil", BAD, ids=lambda spoil: spoil.__name__)
def test_bad_data_is_one_line(small, called, tmp_path, spoil):
    shutil.copytree(small[0], tmp_path / "data")
    spoil(tmp_path / "data")
    argv = small_run.segmentation(tmp_path / "data", small[1], "--output", tmp_path / "run", "--epochs", 1, "--quiet")
    err = called(adapt_main, argv, 3)[1]
    assert err.count("\n") == 1, err
    assert BAD[spoil] in err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--mixup", 0.5], "--mixup is for --task classification, and this is segmentation"),
        (["--teacher", "deit_tiny"], "--teacher is for --task classification"),
        (["--fsdp"], "--fsdp is for --task classification"),
        (["--part", "head"], "--part takes both, encoder, decoder; got 'head'"),
        (["--recipe", "deit"], "unknown recipe 'deit'. Choose from: finetune, segmenter, digits"),
        (["--window-stride", 20], "--window-stride 20 leaves gaps between windows of 16 pixels"),
        (["--scale-min", 3], "--scale-min 3.0 is above --scale-max 2.0"),
        (["--task", "classification"], "--ignore-label is for --task segmentation, and this is classification"),
    ],
)
def test_bad_options_are_one_line(small, called, tmp_path, options, words):
    err = called(adapt_main, [*small_run.segmentation(*small, "--output", tmp_path / "run"), *options], 2)[1]
    assert words in err
    assert err.count("\n") == 1 or "checkpoint" in err
