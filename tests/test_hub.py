"""Saved models: config.json tells the truth, and a new process builds the same function from the directory."""

import json
import subprocess
import sys

import hosts
import pytest
import timm
import torch
from hosts import HOSTS, build, images, randomize
from safetensors.torch import load_file
from timm.models import VisionTransformer, save_for_hf
from torch import nn

import timm_neutreno
from timm_neutreno.hub import save_pretrained

SMALL = HOSTS["vit"].kwargs
NAME = "neutreno_vit_tiny_patch16_224"


def created(name=NAME, **kwargs):
    return randomize(timm.create_model(name, **{**SMALL, **kwargs}).eval())


def learned(kind, key="vit"):
    """Fidelities that training has moved: other ones in every layer and head."""
    model = timm_neutreno.patch(build(key), fidelity=0.1, learnable_fidelity=kind)
    with torch.no_grad():
        for i, p in enumerate(p for name, p in model.named_parameters() if name.endswith("fidelity")):
            p.copy_(torch.linspace(0.1 * i, 0.5 + 0.1 * i, p.numel()))
    return model


def changed(model, fidelity):
    timm_neutreno.set_fidelity(model, fidelity)
    return model


def resized():
    model = created(fidelity=0.4)
    model.set_input_size(img_size=48)
    model.reset_classifier(9)
    return randomize(model)


def patched(key, **kwargs):
    return timm_neutreno.patch(build(key), **kwargs)


# case -> (the model, its effective fidelity, its learnable_fidelity)
CASES = {
    "default": (lambda: created(), 0.6, None),
    "constant": (lambda: created(fidelity=0.3), 0.3, None),
    "zero": (lambda: created(fidelity=0.0), 0.0, None),
    "alias": (lambda: created("neutreno_deit_tiny", fidelity=0.3), 0.3, None),
    "patched": (lambda: patched("vit", fidelity=0.2), 0.2, None),
    "set": (lambda: changed(created(fidelity=0.6), 0.15), 0.15, None),
    "patched_and_set": (lambda: changed(patched("vit", fidelity=0.6), 0.15), 0.15, None),
    "arguments": (lambda: created(num_classes=7, img_size=48, in_chans=1, qk_norm=True, fidelity=0.5), 0.5, None),
    "resized": (resized, 0.4, None),
    "layer": (lambda: learned("layer"), 0.1, "layer"),
    "head": (lambda: learned("head"), 0.1, "head"),
    "head_created": (lambda: created(learnable_fidelity="head", fidelity=0.7), 0.7, "head"),
    "head_set": (lambda: changed(created(learnable_fidelity="head", fidelity=0.7), 0.2), 0.2, "head"),
    "distilled": (lambda: patched("deit_distilled"), 0.6, None),
    "inline_learned": (lambda: learned("head", "parallel_scaling"), 0.1, "head"),
    "branches_learned": (lambda: learned("layer", "parallel_things"), 0.1, "layer"),
    "rope_learned": (lambda: learned("head", "eva02"), 0.1, "head"),
    "grouped_heads": (lambda: patched("sapiens2_gqa", fidelity=0.2), 0.2, None),
    "windows": (lambda: patched("sam", fidelity=0.2), 0.2, None),
    "encoder_inside": (lambda: learned("layer", "qwen3"), 0.1, "layer"),
    "naflex": (lambda: patched("naflex", fidelity=0.2), 0.2, None),
}
WRITERS = {
    "ours": save_pretrained,
    "timm": lambda model, directory: save_for_hf(model, str(directory), safe_serialization=True),
}


def input_for(model) -> torch.Tensor:
    channels = next(m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)).weight.shape[1]
    size = model._model_args.get("img_size") or 32
    size = size if isinstance(size, int) else size[0]
    return images(2, size)[:, : channels if channels < 3 else 3]


LOAD = """
import json, sys, traceback
from pathlib import Path
import timm, timm_neutreno, torch
results = {}
for directory in sorted(Path(sys.argv[1]).iterdir()):
    try:
        model = timm.create_model(f"local-dir:{directory}", pretrained=True).eval()
        x, expected = torch.load(directory / "expected.pt")
        assert timm_neutreno.is_patched(model)
        difference = (model(x) - expected).abs().max().item()
        shallow = timm.create_model(f"local-dir:{directory}", pretrained=True, fidelity=2.5).eval()
        assert json.loads((directory / "config.json").read_text())["model_args"]["learnable_fidelity"] or (
            (shallow(x) - expected).abs().max() > 1e-3
        ), "a fidelity given to create_model is not used"
        results[directory.name] = {"difference": difference, "training": shallow.training}
    except Exception:
        results[directory.name] = {"exception": traceback.format_exc(limit=-4)}
print(json.dumps(results))
"""


def method(spec, key="vit", **options):
    """A model whose learned strengths training has moved."""
    return hosts.spread(timm_neutreno.patch(build(key), spec, **{**hosts.learned(spec), **options}))


METHODS = {
    "gfsa": lambda: method("gfsa"),
    "attnscale": lambda: method("attnscale", "deit_distilled"),
    "featscale": lambda: method("featscale"),
    "twicing": lambda: method("twicing", "eva02", learnable_twicing="layer"),
    "value_residual": lambda: method("value_residual", "parallel_things"),
    "xsa_constant": lambda: method("xsa", xsa=0.3, learnable_xsa=False),
    "laplacian": lambda: method("laplacian", laplacian=1 / 3),
    "symmetric": lambda: method("symmetric", "vit_norms"),
    "neutreno+featscale": lambda: method("neutreno+featscale"),
    "neutreno+gfsa_last": lambda: method("neutreno+gfsa", layers=[-2, -1]),
    "everything": lambda: method(hosts.COMPOSED[-1]),
    "gfsa_set": lambda: set_gfsa(method("neutreno+gfsa", learnable_gfsa=False)),
}


def set_gfsa(model):
    timm_neutreno.set_strengths(model, gfsa=0.25)
    return model


LOAD_METHODS = """
import json, sys
from pathlib import Path
import timm, timm_neutreno, torch
for directory in sorted(Path(sys.argv[1]).iterdir()):
    model = timm.create_model(f"local-dir:{directory}", pretrained=True).eval()
    x, expected, shown = torch.load(directory / "expected.pt")
    with torch.no_grad():  # as there: SDPA takes another path for a mask with gradient
        assert torch.equal(model(x), expected), directory.name
    assert repr(model) == shown, directory.name
"""


@torch.no_grad()
def test_every_method_loads_bit_equal_in_a_new_process(tmp_path):
    for case, make in METHODS.items():
        model = make()
        for writer, save in WRITERS.items():
            directory = tmp_path / f"{case}-{writer}"
            save(model, directory)
            torch.save((images(), model(images()), repr(model)), directory / "expected.pt")
    run = subprocess.run([sys.executable, "-c", LOAD_METHODS, str(tmp_path)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


@torch.no_grad()
def test_saved_models_load_to_the_same_function_in_a_new_process(tmp_path):
    """One new process for every case and both writers: it imports timm and timm_neutreno, and nothing of this file."""
    for case, (make, fidelity, learnable) in CASES.items():
        model = make()
        x = input_for(model)
        for writer, save in WRITERS.items():
            directory = tmp_path / f"{case}-{writer}"
            save(model, directory)
            torch.save((x, model(x)), directory / "expected.pt")
            config = json.loads((directory / "config.json").read_text())
            assert config["architecture"].startswith("neutreno_"), directory
            assert timm.is_model(config["architecture"]), directory
            assert config["model_args"]["fidelity"] == pytest.approx(fidelity), directory
            assert config["model_args"]["learnable_fidelity"] == learnable, directory
            keys = load_file(directory / "model.safetensors").keys()
            assert any(key.endswith("fidelity") for key in keys) == bool(learnable), directory
    run = subprocess.run([sys.executable, "-c", LOAD, str(tmp_path)], capture_output=True, text=True, timeout=240)
    assert run.returncode == 0, run.stderr
    results = json.loads(run.stdout.splitlines()[-1])
    assert set(results) == {f"{case}-{writer}" for case in CASES for writer in WRITERS}
    wrong = {name: result for name, result in results.items() if not result.get("difference", 1.0) < 1e-5}
    assert not wrong, "\n".join(f"{name}: {r.get('exception', r)}" for name, r in wrong.items())


def test_loading_with_other_arguments(tmp_path):
    model = learned("head")
    save_pretrained(model, tmp_path)
    source = f"local-dir:{tmp_path}"
    values = {key: value for key, value in model.state_dict().items() if key.endswith("fidelity")}
    for kwargs in (dict(num_classes=3), dict(img_size=64), dict(in_chans=1)):
        other = timm.create_model(source, pretrained=True, **kwargs).eval()
        assert all(torch.equal(other.state_dict()[key], value) for key, value in values.items())
        assert torch.equal(other.blocks[1].attn.qkv.weight, model.blocks[1].attn.qkv.weight)
    untrained = timm.create_model(source)
    assert torch.equal(untrained.blocks[1].attn.fidelity, torch.full((3,), 0.1))
    with pytest.raises(RuntimeError, match="fidelity"):
        timm.create_model(source, pretrained=True, learnable_fidelity="layer")


@pytest.mark.parametrize("kind", [None, "layer", "head"])
@torch.no_grad()
def test_features_only_of_a_saved_model(kind, tmp_path):
    model = learned(kind) if kind else created(fidelity=0.4)
    save_pretrained(model, tmp_path)
    wrapper = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, features_only=True, out_indices=(1, 2)).eval()
    expected = model.forward_intermediates(images(), indices=[1, 2], intermediates_only=True)
    assert all(torch.equal(a, b) for a, b in zip(wrapper(images()), expected, strict=True))


def test_labels_preprocessing_and_tag(tmp_path):
    model = created(fidelity=0.3)
    names = ["ant", "bee", "cat", "dog", "eel"]
    data = dict(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), crop_pct=0.7, interpolation="bilinear")
    assert save_pretrained(model, str(tmp_path / "a" / "b"), label_names=names, data_config=data, tag="mine") == (
        tmp_path / "a" / "b"
    )
    config = json.loads((tmp_path / "a" / "b" / "config.json").read_text())
    assert config["label_names"] == names
    cfg = timm.create_model(f"local-dir:{tmp_path / 'a' / 'b'}").pretrained_cfg
    assert {key: tuple(cfg[key]) if key in ("mean", "std") else cfg[key] for key in data} == data
    assert cfg["tag"] == "mine"
    assert list(cfg["label_names"]) == names
    save_pretrained(created(), tmp_path)
    plain = json.loads((tmp_path / "config.json").read_text())
    assert "label_names" not in plain
    assert plain["pretrained_cfg"]["mean"] == list(timm.models.get_pretrained_cfg_value(NAME, "mean"))


def test_saving_again_replaces_the_files_and_changes_nothing_in_the_model(tmp_path):
    model = created(fidelity=0.3)
    (tmp_path / "notes.txt").write_text("mine")
    before = dict(model.pretrained_cfg), dict(model._model_args)
    save_pretrained(model, tmp_path)
    save_pretrained(changed(model, 0.2), tmp_path, tag="other")
    assert json.loads((tmp_path / "config.json").read_text())["model_args"]["fidelity"] == 0.2
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert (model.pretrained_cfg, {**model._model_args, "fidelity": 0.3}) == before


def test_unpatched_model_is_saved_by_timm_as_its_own_again(tmp_path):
    model = timm_neutreno.unpatch(created(learnable_fidelity="head"))
    save_for_hf(model, str(tmp_path), safe_serialization=True)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architecture"] == "vit_tiny_patch16_224"
    assert not {"fidelity", "learnable_fidelity"} & set(config["model_args"])
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert torch.equal(loaded(images()), model(images()))


def mixed_constants():
    model = created()
    model.blocks[2].attn.fidelity = 0.1
    return model


REFUSED = {
    "plain": (lambda: build("vit"), r"not patched: call timm_neutreno\.patch\(model\)"),
    "unpatched": (lambda: timm_neutreno.unpatch(created()), r"not patched: call timm_neutreno\.patch\(model\)"),
    "no_model": (lambda: nn.Linear(2, 2), "not patched"),
    "by_hand": (
        lambda: timm_neutreno.patch(VisionTransformer(img_size=32, patch_size=8, embed_dim=48, num_heads=3, depth=3)),
        r"architecture None is not a registered NeuTRENO model.*state_dict\(\) instead",
    ),
    "inside": (
        lambda: timm_neutreno.patch(nn.Sequential(build("vit"))),
        "Cannot save Sequential: its architecture None is not a registered NeuTRENO model",
    ),
    "mixed": (mixed_constants, r"different values of fidelity \(\[0\.1, 0\.6\]\), which config\.json.*set_strengths"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_built_again_is_refused_before_anything_is_written(case, tmp_path):
    make, sentence = REFUSED[case]
    with pytest.raises(ValueError, match=sentence):
        save_pretrained(make(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_features_wrapper_is_refused(tmp_path):
    wrapper = timm.create_model(NAME, features_only=True, **{**SMALL, "num_classes": None})
    with pytest.raises(ValueError, match="Cannot save FeatureGetterNet: it wraps a model"):
        save_pretrained(wrapper, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_weights_can_be_read_by_whoever_reads_the_config(tmp_path):
    timm_neutreno.hub.save_pretrained(timm_neutreno.patch(build("vit")), tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_mode == (tmp_path / "config.json").stat().st_mode


def test_a_channels_last_model_is_saved_as_any_other(tmp_path):
    model = timm.create_model("neutreno_deit_tiny", num_classes=3).to(memory_format=torch.channels_last)
    save_pretrained(model, tmp_path)
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value, rtol=0, atol=0)
    assert model.patch_embed.proj.weight.is_contiguous(memory_format=torch.channels_last)  # left as it was
