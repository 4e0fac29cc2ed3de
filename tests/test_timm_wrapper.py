"""transformers' TimmWrapper builds what we save: the same function, labels and preprocessing, and saves it again."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import timm
import torch
from hosts import build, images, learned, spread

import timm_neutreno
from timm_neutreno.hub import save_pretrained

transformers = pytest.importorskip("transformers", reason="the extra `transformers` is not installed")

MODELS = {  # constant, per head, outputs, several strengths in some layers, rotary embeddings, LayerScale and registers
    "constant": ("vit", "neutreno", {"fidelity": 0.3}),
    "head": ("vit_norms", "neutreno", learned("neutreno")),
    "composed": ("deit_distilled", "neutreno+featscale", learned("neutreno+featscale")),
    "last": ("beit", "neutreno+gfsa", {**learned("neutreno+gfsa"), "layers": [-2, -1]}),
    "rope": ("dinov3", "value_residual", learned("value_residual")),
}
LABELS = ["ant", "bee", "cat", "dog", "elk"]


def make(case: str) -> torch.nn.Module:
    key, method, options = MODELS[case]
    return spread(timm_neutreno.patch(build(key), method, **options))


@torch.no_grad()
@pytest.mark.parametrize("case", MODELS)
def test_loads_saves_and_loads_again_bit_equal(case, tmp_path):
    from transformers import AutoModel, AutoModelForImageClassification

    model, x = make(case), images()
    save_pretrained(model, tmp_path / "ours", label_names=LABELS)
    theirs = AutoModelForImageClassification.from_pretrained(tmp_path / "ours").eval()
    assert timm_neutreno.is_patched(theirs)
    assert torch.equal(theirs(x).logits, model(x))
    assert theirs.config.id2label == dict(enumerate(LABELS))
    tokens = AutoModel.from_pretrained(tmp_path / "ours").eval()(x).last_hidden_state
    assert torch.equal(tokens, model.forward_features(x))
    theirs.save_pretrained(tmp_path / "theirs")
    again = AutoModelForImageClassification.from_pretrained(tmp_path / "theirs").eval()
    assert torch.equal(again(x).logits, model(x))
    back = timm.create_model(f"local-dir:{tmp_path / 'theirs'}", pretrained=True).eval()
    assert timm_neutreno.is_patched(back)
    assert torch.equal(back(x), model(x))


@torch.no_grad()
def test_processor_and_pipeline_see_the_images_as_timm_does(tmp_path):
    from PIL import Image
    from transformers import AutoImageProcessor, pipeline

    data_config = {"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.6, 0.7), "crop_pct": 0.8, "interpolation": "bilinear"}
    model = make("constant")
    save_pretrained(model, tmp_path, data_config=data_config, label_names=LABELS)
    pixels = torch.randint(0, 255, (40, 60, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    image = Image.fromarray(pixels.numpy())
    own = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    x = timm.data.create_transform(**timm.data.resolve_model_data_config(own), is_training=False)(image)[None]
    assert torch.equal(AutoImageProcessor.from_pretrained(tmp_path)(image)["pixel_values"], x)
    found = pipeline("image-classification", model=str(tmp_path))(image, top_k=5)
    expected = model(x).softmax(-1)[0]
    assert {entry["label"]: entry["score"] for entry in found} == pytest.approx(
        dict(zip(LABELS, expected.tolist(), strict=True)), abs=1e-6
    )


def test_without_the_plugin_transformers_says_that_it_does_not_know_the_name(tmp_path):
    """What the card's sentence is about."""
    save_pretrained(make("constant"), tmp_path)
    load = "import sys, transformers; transformers.AutoModelForImageClassification.from_pretrained(sys.argv[1])"
    run = subprocess.run([sys.executable, "-c", load, tmp_path], capture_output=True, text=True)
    assert "not supported in your version of timm" in run.stderr


def test_a_config_that_names_the_classes_twice_still_loads(tmp_path):
    """As timm writes it, and so did we."""
    model = make("constant")
    save_pretrained(model, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["num_classes"] == 5
    assert "num_classes" not in config["model_args"]
    config["model_args"]["num_classes"] = 5
    (tmp_path / "config.json").write_text(json.dumps(config))
    old = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    with torch.no_grad():
        assert torch.equal(old(images()), model(images()))
