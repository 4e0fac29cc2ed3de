"""`neutreno export`: files of five families give the model's answers in new programs, and nothing half-made is left."""

from __future__ import annotations

import json
import subprocess
import sys

import onnx
import pytest
import timm
import torch
from hosts import HOSTS, images, patched
from integration import small_run
from timm_neutreno_cli.engine import export
from timm_neutreno_cli.errors import CheckpointError, OutputError, UsageError
from timm_neutreno_cli.main import main

import timm_neutreno

FAMILIES = ["vit", "deit_distilled", "eva02", "beit", "dinov3"]

IN_A_NEW_PROCESS = """
import sys, numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
numpy.save(sys.argv[3], session.run(None, {session.get_inputs()[0].name: numpy.load(sys.argv[2])})[0])
"""


@pytest.mark.parametrize("key", FAMILIES)
def test_five_families_to_1e_4(key, tmp_path):
    """Without this package and without torch in the process that reads the file; a batch that was not compared."""
    import numpy as np

    spec = "neutreno+gfsa" if key == "vit" else "neutreno"
    model = patched(key, spec, depth=2)
    timm_neutreno.hub.save_pretrained(model, tmp_path / "model")
    found = export.export(str(tmp_path / "model"), tmp_path / "m.onnx", tmp_path / "m.pt2")
    assert found["onnx"]["largest_difference"] < 1e-4
    assert {path.name for path in tmp_path.iterdir()} == {"model", "m.onnx", "m.pt2"}
    x = images(7)
    np.save(tmp_path / "x.npy", x.numpy())
    command = [sys.executable, "-c", IN_A_NEW_PROCESS, *(str(tmp_path / name) for name in ("m.onnx", "x.npy", "y.npy"))]
    subprocess.run(command, check=True, timeout=300)
    with torch.no_grad():
        expected = model(x)
        assert torch.allclose(torch.from_numpy(np.load(tmp_path / "y.npy")), expected, atol=1e-4)
        assert torch.allclose(torch.export.load(tmp_path / "m.pt2").module()(x), expected, atol=1e-4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model")
    model = timm_neutreno.patch(timm.create_model(small_run.ARCH, num_classes=2, **small_run.SHAPE))
    timm_neutreno.hub.save_pretrained(model, path, label_names=["blue", "red"])
    return path


def test_the_file_says_how_images_are_prepared(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["neutreno", "export", str(folder), "--onnx", str(tmp_path / "a" / "m.onnx")])
    with pytest.raises(SystemExit) as stop:
        main()
    printed = capsys.readouterr()
    assert not stop.value.code, printed.err
    assert "equal to the model in onnxruntime" in printed.out
    about = {entry.key: json.loads(entry.value) for entry in onnx.load(tmp_path / "a" / "m.onnx").metadata_props}
    assert about["mean"] == [0.5, 0.5, 0.5]
    assert about["input_size"] == [3, 16, 16]
    assert about["label_names"] == ["blue", "red"]
    (image,) = onnx.load(tmp_path / "a" / "m.onnx").graph.input
    assert [size.dim_param or size.dim_value for size in image.type.tensor_type.shape.dim] == ["batch", 3, 16, 16]


def test_a_file_that_answers_otherwise_is_not_put_in_its_place(folder, tmp_path):
    """Asked of the comparison itself, with a model that is not the file's."""
    one = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    other = timm.create_model(f"local-dir:{folder}", pretrained=True, fidelity=0.59).eval()
    with pytest.raises(CheckpointError, match=r"was not written: its outputs differ from the model's by"):
        export.compare(one, other, (3, 16, 16), tmp_path / "m.onnx")
    assert export.compare(one, one, (3, 16, 16), tmp_path / "m.onnx") == 0
    nothing = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    nothing.head.weight.data.fill_(float("nan"))
    with pytest.raises(CheckpointError, match="differ"):
        export.compare(one, nothing, (3, 16, 16), tmp_path / "m.onnx")


def test_what_is_refused(folder, tmp_path):
    path = tmp_path / "m.pt2"
    with pytest.raises(UsageError, match="nothing to export"):
        export.export(str(folder), None, None)
    with pytest.raises(UsageError, match=r"must end in .onnx"):
        export.export(str(folder), path, None)
    path.write_text("mine")
    with pytest.raises(OutputError, match=r"m.pt2 exists"):
        export.export(str(folder), None, path)
    assert path.read_text() == "mine"
    with pytest.raises(CheckpointError, match="no such file or folder"):
        export.export(str(tmp_path / "none"), None, tmp_path / "n.pt2")
    assert [each.name for each in tmp_path.iterdir()] == ["m.pt2"]
    assert export.export(str(folder), None, path, overwrite=True)["pt2"]["largest_difference"] < 1e-6


def test_the_families_are_hosts():
    assert set(FAMILIES) <= HOSTS.keys()


ON_A_FULL_DISK = """
import resource, signal, sys
from timm_neutreno_cli.engine import export
from timm_neutreno_cli.main import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
main()
"""


def test_a_full_disk_is_one_sentence_and_leaves_nothing(folder, tmp_path):
    """torch's own writer ended the process with SIGABRT."""
    command = [sys.executable, "-c", ON_A_FULL_DISK, "export", str(folder), "--pt2", str(tmp_path / "m.pt2")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 6, done.stderr
    assert f"cannot write {tmp_path / 'm.pt2'}: File too large" in done.stderr
    assert list(tmp_path.iterdir()) == []
