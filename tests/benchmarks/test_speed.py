"""benchmarks/speed.py measures what it says; what docs/performance.md says is what it measured. No timing here."""

import importlib
import json
from pathlib import Path

import pytest
import torch
from torch._inductor.utils import run_and_get_code

import timm_neutreno

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def speed():
    return importlib.import_module("speed")


def test_the_arms_compute_what_their_names_say(speed):
    models = {name: model.eval() for name, model in speed.arms(speed.Cell(speed.TINY, image=64), "cpu").items()}
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        outputs = {name: model(x) for name, model in models.items()}
    assert torch.equal(outputs["timm"], outputs["control"])
    assert torch.allclose(outputs["neutreno"], outputs["reference"], atol=1e-4)
    assert not torch.allclose(outputs["neutreno"], outputs["timm"], atol=1e-2)


def test_the_document_says_what_was_measured(speed):
    document = json.loads(speed.JSON.read_text())
    assert speed.section(document) in speed.DOCUMENT.read_text(), "run python benchmarks/speed.py --document"


def test_compiled_has_one_more_kernel_per_layer_after_the_first(speed):
    """The term is one fused kernel; v0 is read where it lies."""
    models = speed.arms(speed.Cell(speed.TINY, image=64), "cpu")
    x = torch.randn(2, 3, 64, 64)
    calls = {}
    for name in ("timm", "neutreno"):
        torch._dynamo.reset()
        with torch.no_grad():
            _, (code,) = run_and_get_code(torch.compile(models[name].eval(), fullgraph=True), x)
        body = code[code.index("def call(") :]
        calls[name] = sum(line.strip().startswith("cpp_fused_") for line in body.splitlines())
    assert timm_neutreno.is_patched(models["neutreno"])
    assert calls["neutreno"] - calls["timm"] == 11, calls
