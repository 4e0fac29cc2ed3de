"""`neutreno analyze`: from names, folders and files to one report; wrong use in one sentence."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pytest
import timm
import torch
import typer
from hosts import SMALL, randomize
from PIL import Image
from timm_neutreno_cli.commands.analyze import analyze, choose, label_of, prepared_output
from timm_neutreno_cli.data.photos import find_photos, photo_batches
from timm_neutreno_cli.errors import CheckpointError, CliError, DataError, OutputError, UsageError
from typer.testing import CliRunner

import timm_neutreno
from timm_neutreno.smoothing import METRICS, SIMILARITIES, measure

app = typer.Typer()
app.command()(analyze)
PLAIN, TWIN = "vit_tiny_patch16_224", "neutreno_vit_tiny_patch16_224"


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for i in range(4):
        pixels = torch.randint(0, 256, (20, 24, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(i))
        Image.fromarray(pixels.numpy()).resize((40, 48)).save(folder / f"{i}.png")
    return folder


def run(*args: object) -> str:
    """Its stdout; the error that it ends with is raised."""
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.stderr
    return result.stdout


def small(name: str, **kwargs):
    return randomize(timm.create_model(name, **SMALL, **kwargs)).eval()


def test_two_random_models_side_by_side(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/bin/neutreno", "analyze", "a b"])
    out = tmp_path / "report"
    stdout = run(
        PLAIN, TWIN, "--no-pretrained", "--data", photos, "--images", 2, "--output", out, "--json",
        "--metrics", "block_similarity,attention_similarity", "--metrics", "spectra",
    )  # fmt: skip
    document = json.loads(stdout)
    assert document == json.loads((out / "results.json").read_text())
    assert document["images"] == 2
    plain, twin = document["results"]
    assert (plain["model"], twin["model"]) == (PLAIN, TWIN)
    for metric in ("block_similarity", "attention_similarity"):
        a, b = plain["values"][metric], twin["values"][metric]
        assert len(a) == len(b) == 12
        assert a[0] == pytest.approx(b[0], abs=1e-6)  # the same random weights, and no fidelity in layer 1
        assert a[1:] != pytest.approx(b[1:], abs=1e-3)
        for suffix in ("png", "svg"):
            assert (out / "plots" / f"{metric}.{suffix}").stat().st_size > 1000
    assert set(document["spectra"]) == {PLAIN, TWIN}
    page = (out / "report.html").read_text()
    assert re.findall("<h2>(.*?)</h2>", page)[::4] == ["Summary", "How it was done"]
    assert f"<td>{PLAIN}, {TWIN}. Model names stand for random weights (seed 0).</td>" in page
    assert f"Compared with {PLAIN}, {TWIN} is " in page.partition("</h2>")[2].partition("<h2>")[0]
    assert all(
        words in page
        for words in (
            "<td>neutreno analyze &#x27;a b&#x27;</td>",
            f"torch {version('torch')}",
            time.strftime("%Y-%m-%d"),
        )
    )
    assert "http" not in page.replace("http-equiv", "")


def test_a_saved_model_is_measured_as_itself(photos, tmp_path):
    model = small("neutreno_vit_tiny_patch16_224", fidelity=0.3)
    timm_neutreno.hub.save_pretrained(model, tmp_path / "run", data_config={"input_size": (3, 32, 32)})
    expected = measure(model, photo_batches(find_photos(photos), model), SIMILARITIES).values
    document = json.loads(run(tmp_path / "run", "--data", photos, "--output", tmp_path / "report", "--json"))
    for metric, values in expected.items():
        assert document["results"][0]["values"][metric] == pytest.approx(values, abs=1e-6)


def test_models_of_runs_are_named_by_run_and_arm(tmp_path, monkeypatch):
    (tmp_path / "first" / "arms" / "control" / "ema").mkdir(parents=True)
    (tmp_path / "first" / "args.yaml").touch()
    monkeypatch.chdir(tmp_path)
    inside = ["first", "first/arms/control", "first/arms/control/ema"]
    assert [label_of(Path(path)) for path in inside] == ["first", "first/control", "first/control/ema"]
    (tmp_path / "first" / "results.json").write_text('{"main": "gfsa"}')
    assert label_of(Path("first")) == "first/gfsa"
    (tmp_path / "args.yaml").touch()  # a run of several seeds around it
    assert label_of(Path("first")) == f"{tmp_path.name}/first/gfsa"
    assert label_of(Path("weights.pth")) == "weights.pth"


def test_every_metric_and_part(photos, tmp_path):
    out, model = tmp_path / "report", small("neutreno_vit_tiny_patch16_224")
    timm_neutreno.hub.save_pretrained(model, tmp_path / "run", data_config={"input_size": (3, 32, 32)})
    shown = run(tmp_path / "run", "--data", photos, "--images", 1, "--output", out, "--metrics", "all")
    assert [line.split()[0] for line in shown.splitlines()[2:] if line] == list(METRICS)
    document = json.loads((out / "results.json").read_text())
    assert set(document["results"][0]["values"]) == set(METRICS)
    assert document["cost"]["run"]["flops_added_per_image"] == 3 * 3 * 17 * 48
    assert (out / "plots" / "maps_1.png").exists()
    assert (out / "report.html").read_text().count("<h2>") == len(METRICS) + 5


def test_a_file_that_does_not_say_what_it_is(photos, tmp_path):
    model = timm.create_model(PLAIN, num_classes=3).eval()
    torch.save(model.state_dict(), tmp_path / "model.pth")
    arguments = ["--arch", PLAIN, "--data", photos, "--images", 1, "--metrics", "block_similarity", "--json"]
    document = json.loads(run(tmp_path / "model.pth", *arguments, "--output", tmp_path / "report"))
    expected = measure(model, photo_batches(find_photos(photos, 1), model)).values["block_similarity"]
    assert document["results"][0]["values"]["block_similarity"] == pytest.approx(expected, abs=1e-6)


def test_it_is_a_command_of_neutreno_that_costs_no_import_of_torch():
    lines = (
        "import sys; from timm_neutreno_cli.main import app; from typer.testing import CliRunner",
        "code = CliRunner().invoke(app, ['analyze', '--help']).exit_code",
        "print(code, 'torch' in sys.modules, 'timm' in sys.modules)",
    )
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "False", "False"]


def test_groups_and_names_keep_the_order_of_the_table():
    assert choose(["spectra", "similarity"]) == (list(SIMILARITIES), ["spectra"])
    assert choose(["all"]) == (list(METRICS), ["spectra", "maps", "cost"])
    assert choose(["map_cosine,block_angle"]) == (["block_angle", "map_cosine"], [])


def broken_weights(tmp_path):
    model = timm.create_model(PLAIN, num_classes=3)
    with torch.no_grad():
        model.blocks[1].mlp.fc1.weight[0, 0] = float("nan")
    torch.save(model.state_dict(), tmp_path / "nan.pth")
    return [tmp_path / "nan.pth", "--arch", PLAIN, "--metrics", "block_similarity"]


WRONG = {
    "metric": (
        lambda tmp: [PLAIN, "--metrics", "smooth"],
        UsageError,
        "--metrics: there is no smooth. The groups are similarity",
    ),
    "typo": (lambda tmp: [PLAIN, "--metrics", "block_cosin"], UsageError, "there is no block_cosin. Did you mean: "),
    "no metric": (lambda tmp: [PLAIN, "--metrics", ","], UsageError, "nothing to measure"),
    "twice": (lambda tmp: [PLAIN, PLAIN, "--no-pretrained"], UsageError, "is named twice"),
    "model": (lambda tmp: ["deit_tinny"], CheckpointError, "unknown model 'deit_tinny'.*deit_tiny"),
    "unsupported": (lambda tmp: ["resnet18", "--no-pretrained"], CheckpointError, "cannot apply NeuTRENO to resnet18"),
    "NaN": (broken_weights, CheckpointError, "nan.pth: block_similarity of blocks.1 is nan"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_use(case, photos, tmp_path):
    make, error, message = WRONG[case]
    with pytest.raises(error, match=message):
        run(*make(tmp_path), "--data", photos, "--images", 1, "--output", tmp_path / "report")


def test_wrong_data_and_an_earlier_report(photos, tmp_path):
    with pytest.raises(DataError, match="there are no images"):
        run(PLAIN, "--no-pretrained", "--data", tmp_path, "--output", tmp_path / "report")
    (tmp_path / "results.json").write_text("{}")
    arguments = [
        PLAIN,
        "--no-pretrained",
        "--data",
        photos,
        "--images",
        1,
        "--metrics",
        "spectra",
        "--output",
        tmp_path,
    ]
    with pytest.raises(OutputError, match="holds a report already; add --overwrite"):
        run(*arguments)
    run(*arguments, "--overwrite")
    assert "spectra" in json.loads((tmp_path / "results.json").read_text())
    (tmp_path / "file").write_text("")
    with pytest.raises(CliError, match=r"cannot write .*plots: Not a directory"):
        run(PLAIN, "--no-pretrained", "--data", photos, "--output", tmp_path / "file" / "report")


@pytest.mark.parametrize("bad", ["model", "image"])
def test_what_fails_leaves_no_empty_folder(photos, tmp_path, bad):
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "0.png").write_bytes(b"no image" if bad == "image" else (photos / "0.png").read_bytes())
    name = PLAIN if bad == "image" else "swin_tiny_patch4_window7_224"
    with pytest.raises(DataError if bad == "image" else CheckpointError):
        run(name, "--no-pretrained", "--data", folder, "--output", tmp_path / "new" / "report")
    assert not (tmp_path / "new").exists()
    (tmp_path / "mine").mkdir()
    with pytest.raises(CliError):
        run(name, "--no-pretrained", "--data", folder, "--output", tmp_path / "mine")
    assert list((tmp_path / "mine").iterdir()) == []  # a folder that was there stays


def test_a_full_disk_is_one_sentence(tmp_path):
    """Pillow and matplotlib name no file then."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def report() -> None:
        with prepared_output(tmp_path / "report", False):
            file = os.open(tmp_path / "report" / "plots" / "x", os.O_CREAT | os.O_WRONLY)
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
            os.write(file, b"x")

    try:
        with pytest.raises(OutputError, match=r"cannot write .*report: File too large"):
            report()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
