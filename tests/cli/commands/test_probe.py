"""`neutreno probe`: from a checkpoint and a folder to table, report and JSON; wrong use in one line with its code."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
import torch
import typer
from hosts import SMALL
from PIL import Image
from probing.data import model, write_classes, write_scenes
from timm.models import save_for_hf
from timm_neutreno_cli.commands.probe import parse_layers, parse_size, probe
from timm_neutreno_cli.errors import CheckpointError, CliError, DataError, OutputError, UsageError
from typer.testing import CliRunner

import timm_neutreno
from timm_neutreno.probing import REFERENCE, Options, ProbeResult, Setting, loaders, measure, open_folder

app = typer.Typer()
app.command()(probe)
QUICK = ["--neighbors", "1,3", "--quiet"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A plain checkpoint, a patched one, class folders, scenes."""
    folder = tmp_path_factory.mktemp("probe")
    save(model(), folder / "plain")
    patched = timm_neutreno.patch(model(), fidelity=0.2)
    timm_neutreno.hub.save_pretrained(patched, folder / "patched", data_config={"input_size": (3, 32, 32)})
    write_classes(folder / "classes", {"train": 8, "val": 4, "test": 5})
    write_scenes(folder / "scenes", {"train": 8, "val": 4, "test": 5})
    return folder


def save(vit, folder) -> None:
    """As timm does; config.json has the arguments of the small model."""
    save_for_hf(vit, str(folder), model_args={**SMALL, "num_classes": 0}, safe_serialization=True)


def run(*args: object) -> str:
    """Its stdout; the error that it ends with is raised."""
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.stderr
    return result.stdout


def test_methods_layers_and_checkpoints_in_one_call(files, tmp_path):
    out = tmp_path / "report"
    stdout = run(
        files / "plain", files / "patched", "--data", files / "classes", "--method", "neutreno,gfsa", "--fidelity",
        "0,0.1,0.6", "--strength", "gfsa=0.2", "--layers", "all", "--layers", "-2:", "--blocks", "--pca", 2,
        "--output", out, "--json", *QUICK,
    )  # fmt: skip
    document = json.loads(stdout)
    assert document == json.loads((out / "results.json").read_text())
    result = ProbeResult.load(out / "results.json")
    settings = ["fidelity 0.1, all", "fidelity 0.6, all", "fidelity 0.1, last 2", "fidelity 0.6, last 2"]
    labels = [
        "as it is",
        *(f"neutreno {each} blocks" for each in settings),
        "gfsa 0.2, all blocks",
        "gfsa 0.2, last 2 blocks",
    ]
    assert [(row.model, row.label) for row in result.rows] == [
        (m, label) for m in ("plain", "patched") for label in labels
    ]
    assert len(result.verdicts) == 2 * (4 + 4 + 1)
    found = open_folder(files / "classes")
    splits, _ = loaders(found, model())
    options = Options(neighbors=(1, 3))
    for index, (vit, setting) in enumerate(
        ((model(), REFERENCE), (model(), Setting("neutreno", {"fidelity": 0.1})))
    ):  # the same as the library's on the same weights
        expected = measure(vit, setting, splits, options)
        assert result.rows[index].similarity == pytest.approx(expected.similarity[3], abs=1e-9)
        assert result.rows[index].scores["linear"].val == expected.outcomes["linear"][3].val
    as_it_is = measure(timm_neutreno.patch(model(), fidelity=0.2), REFERENCE, splits, options)
    assert result.rows[7].similarity == pytest.approx(as_it_is.similarity[3], abs=1e-6)  # of the adapted checkpoint
    plots = {path.name for path in (out / "plots").iterdir()}
    assert plots == {
        f"{n}.{s}"
        for n in ("neutreno", "gfsa", "blocks_linear", "blocks_knn", "pca_1", "pca_2")
        for s in ("png", "svg")
    }
    page = (out / "report.html").read_text()
    assert page.count("<img") == 6
    assert "http" not in page.replace("http-equiv", "")
    assert "18 comparisons" in page


def test_a_table_and_sentences(files, tmp_path):
    stdout = run(
        files / "plain", "--data", files / "scenes", "--ignore-label", 3, "--fidelity", "0.1",
        "--output", tmp_path / "r", *QUICK,
    )  # fmt: skip
    lines = [line for line in stdout.splitlines() if line.strip("-")]
    first = [line.split()[0] for line in lines]
    assert first == [*("linear", "setting", "as", "neutreno"), *("k-NN", "setting", "as", "neutreno"), *["plain,"] * 2]
    assert re.search(r"neutreno fidelity 0.1, all blocks  \d+\.\d\d\* +\d+\.\d\d +[+-]\d+\.\d\d \[", lines[3])
    assert "mIoU on 5 test images" in lines[-1]
    assert (tmp_path / "r" / "report.html").exists()


def test_the_embedded_digits(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run("demo", "--data", "demo", "--fidelity", "0,0.6", "--images", 100, *QUICK)
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.endswith("-probe")
    linear = [row.scores["linear"].test for row in ProbeResult.load(folder / "results.json").rows]
    assert linear[0] > 95
    assert linear[1] < linear[0]


def test_another_image_size(files, tmp_path):
    arguments = [files / "plain", "--data", files / "classes", "--fidelity", "0", "--output", tmp_path / "r", *QUICK]
    run(*arguments, "--img-size", "40x24")
    assert "40 x 24 pixels" in ProbeResult.load(tmp_path / "r" / "results.json").protocol["features"]
    with pytest.raises(UsageError, match="--img-size: an image of 36 x 36 pixels cannot be cut into patches of 8 x 8"):
        run(*arguments, "--overwrite", "--img-size", "36")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("all", None), ("-4:", (-4, -3, -2, -1)), ("2:5", (2, 3, 4)), (":2", (0, 1)), ("0,-1", (0, -1))],
)
def test_layers(text, expected):
    assert parse_layers(text) == expected


@pytest.mark.parametrize("text", ["some", "3:", "5:2", "1:2:3", ""])
def test_layers_that_are_none(text):
    with pytest.raises(UsageError, match=r"--layers .*expected all, -4:"):
        parse_layers(text)


def test_sizes():
    assert [parse_size(text) for text in ("", "224", "196x266")] == [None, (224, 224), (196, 266)]
    with pytest.raises(UsageError, match="--img-size 0x4"):
        parse_size("0x4")


def broken(files, tmp_path):
    vit = model()
    with torch.no_grad():
        vit.blocks[1].mlp.fc1.weight[0, 0] = float("nan")
    save(vit, tmp_path / "nan")
    return tmp_path / "nan"


WRONG = {
    "method": (["--method", "neutrino"], UsageError, "unknown method 'neutrino'"),
    "strength": (["--strength", "gfsa=0.1"], UsageError, "--strength gfsa: no strength of neutreno"),
    "strength form": (["--strength", "0.1"], UsageError, "expected NAME=VALUES"),
    "number": (["--fidelity", "0.1,x"], UsageError, "--fidelity 0.1,x: expected numbers"),
    "not finite": (["--fidelity", "nan"], UsageError, "expected finite numbers"),
    "neighbours": (["--neighbors", "0"], UsageError, "expected numbers from 1 on"),
    "more neighbours": (["--neighbors", "50"], DataError, "24 labelled train rows, fewer than 50 neighbours"),
    "block": (["--layers", "9"], UsageError, "there is no block 9 among 4"),
    "pool": (["--pool", "max"], UsageError, "--pool max: choose class or mean"),
    "no data": (["--data", "nowhere"], DataError, "nowhere is not a folder"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_use(case, files, tmp_path):
    given, error, message = WRONG[case]
    base = [files / "plain", "--data", files / "classes", "--fidelity", "0.1", *QUICK, "--output", tmp_path / "r"]
    with pytest.raises(error, match=message):
        run(*base, *given)


def test_models_that_cannot_be_probed(files, tmp_path):
    rest = ["--data", files / "classes", "--output", tmp_path / "r", *QUICK]
    with pytest.raises(CheckpointError, match=r"nan, as it is: the features of blocks.3 are not finite"):
        run(broken(files, tmp_path), *rest)
    with pytest.raises(UsageError, match="is named twice"):
        run(files / "plain", files / "plain", *rest)
    with pytest.raises(CheckpointError, match="unknown model 'deit_tinny'"):
        run("deit_tinny", *rest)


def test_an_earlier_report_is_not_overwritten(files, tmp_path):
    arguments = [files / "plain", "--data", files / "classes", "--fidelity", "0", "--output", tmp_path, *QUICK]
    run(*arguments)
    before = (tmp_path / "results.json").read_bytes()
    with pytest.raises(OutputError, match="holds a report already; add --overwrite"):
        run(*arguments)
    assert (tmp_path / "results.json").read_bytes() == before
    run(*arguments, "--overwrite")


def test_bad_data_is_one_line_and_code_3(files, tmp_path):
    write_scenes(tmp_path / "d", {"train": 4, "val": 2, "test": 2})
    Image.new("L", (9, 9)).save(tmp_path / "d" / "annotations" / "test" / "1.png")
    command = [
        sys.executable, "-m", "timm_neutreno_cli.main", "neutreno", "probe", str(files / "plain"), "--data",
        str(tmp_path / "d"), "--ignore-label", "3", "--quiet", "--output", str(tmp_path / "r"),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == DataError.exit_code == 3
    assert re.fullmatch(r"error: the mask \S+1.png has 9 x 9 pixels and its image \S+1.png 40 x 24\.\n", done.stderr)
    assert issubclass(DataError, CliError)


def test_help_costs_no_import_of_torch():
    lines = (
        "import sys; from timm_neutreno_cli.main import app; from typer.testing import CliRunner",
        "code = CliRunner().invoke(app, ['probe', '--help']).exit_code",
        "print(code, 'torch' in sys.modules, 'timm' in sys.modules)",
    )
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "False", "False"]
