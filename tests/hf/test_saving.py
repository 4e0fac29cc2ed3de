"""What save_pretrained writes, and who gets which model out of it: real folders, new processes."""

import json
import os
import subprocess
import sys

import pytest
import torch
from hf_models import MODELS, build, inputs, output
from transformers import AutoModelForCausalLM, GPT2LMHeadModel, SiglipConfig, SiglipModel

import timm_neutreno
from timm_neutreno import hf


def run(code: str, *arguments) -> subprocess.CompletedProcess:
    """`code` in a new process, where sys.argv[1:] are the arguments."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.path.dirname(os.path.dirname(__file__))}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


LOAD = """
import sys, torch
from hf_models import MODELS, inputs, output
from timm_neutreno import hf
for name in MODELS:
    folder = f"{sys.argv[1]}/{name}"
    model = hf.load(folder)
    pickled = torch.load(folder + "/model.pt", weights_only=False)
    torch.save({"output": output(model, inputs(name)), "class": type(model).__name__, "training": model.training,
                "keys": list(model.state_dict()), "pickled": output(pickled, inputs(name))}, folder + "/result.pt")
"""


def test_a_new_process_loads_the_same_models(tmp_path):
    """From what save_pretrained wrote, and from a pickle of the whole model."""
    models = {name: hf.patch(build(name), fidelity=0.4) for name in MODELS}
    for name, model in models.items():
        model.save_pretrained(tmp_path / name)
        torch.save(model, tmp_path / name / "model.pt")
    done = run(LOAD, tmp_path)
    assert done.returncode == 0, done.stderr
    for name, model in models.items():
        result = torch.load(tmp_path / name / "result.pt")
        assert torch.equal(result["output"], output(model, inputs(name)))
        assert torch.equal(result["pickled"], output(model, inputs(name)))
        assert result["class"] == type(model).__name__
        assert result["keys"] == list(model.state_dict())
        assert not result["training"]


def test_all_options_come_back(tmp_path):
    model = hf.patch(
        build("gpt2"), "neutreno+gfsa", fidelity=0.4, learnable_fidelity="head", gfsa=0.1, learnable_gfsa=False,
        layers=[-2, -1],
    )  # fmt: skip
    with torch.no_grad():
        for i, w in enumerate(v for v in timm_neutreno.strengths(model).values() if isinstance(v, torch.Tensor)):
            w += torch.randn(4, generator=torch.Generator().manual_seed(i))
    timm_neutreno.set_strengths(model, gfsa=0.25)
    model.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())["timm_neutreno"]
    assert written == {
        "method": "gfsa+neutreno", "layers": [-2, -1], "fidelity": 0.4, "learnable_fidelity": "head",
        "gfsa": 0.25, "learnable_gfsa": False,
    }  # fmt: skip
    loaded, x = hf.load(tmp_path), inputs("gpt2")
    assert type(loaded) is GPT2LMHeadModel
    assert torch.equal(output(loaded, x), output(model, x))
    found, wanted = timm_neutreno.strengths(loaded), timm_neutreno.strengths(model)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(torch.as_tensor(found[key]), torch.as_tensor(wanted[key])) for key in wanted)
    again = tmp_path / "again"
    loaded.save_pretrained(again)
    assert torch.equal(output(hf.load(again), x), output(model, x))
    assert hf.unpatch(loaded).config._attn_implementation == "sdpa"


def test_load_takes_a_class_a_dtype_and_shards(tmp_path):
    model = hf.patch(build("gpt2"))
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    for model_class in (AutoModelForCausalLM, GPT2LMHeadModel):
        loaded = hf.load(tmp_path, model_class, dtype=torch.float32)
        assert type(loaded) is GPT2LMHeadModel
        torch.testing.assert_close(
            output(loaded, inputs("gpt2")), output(model, inputs("gpt2")).float(), rtol=1e-3, atol=1e-3
        )
        assert loaded.dtype == torch.float32


PLAIN = """
import sys
{extra}
from transformers import AutoModelForCausalLM, GPT2LMHeadModel, SiglipConfig, SiglipModel
for cls in (AutoModelForCausalLM, GPT2LMHeadModel):
    try:
        model = cls.from_pretrained(sys.argv[1])
        model(model.dummy_inputs["input_ids"])
    except {error} as error:
        print(error)
"""


def test_from_pretrained_does_not_lose_the_method_silently(tmp_path):
    hf.patch(build("gpt2")).save_pretrained(tmp_path)
    plain = run(PLAIN.format(extra="", error="ValueError"), tmp_path)
    assert plain.returncode == 0, plain.stderr
    assert plain.stdout.count('Specified `attn_implementation="timm_neutreno.hf"` is not supported') == 2
    imported = run(PLAIN.format(extra="import timm_neutreno.hf", error="RuntimeError"), tmp_path)
    assert imported.returncode == 0, imported.stderr
    assert imported.stdout.count("Load it with timm_neutreno.hf.load(folder)") == 2


def test_only_another_implementation_by_name_gives_the_plain_model(tmp_path):
    """docs/transformers.md says that this cannot be prevented."""
    model, x = build("gpt2"), inputs("gpt2")
    before = output(model, x)
    hf.patch(model).save_pretrained(tmp_path)
    assert torch.equal(output(GPT2LMHeadModel.from_pretrained(tmp_path, attn_implementation="sdpa"), x), before)


def test_the_inner_model_alone_keeps_the_method(tmp_path):
    model = hf.patch(build("gpt2"))
    model.transformer.save_pretrained(tmp_path)
    loaded, x = hf.load(tmp_path), inputs("gpt2")
    assert torch.equal(output(loaded, x), output(model.transformer, x))


def test_one_tower_alone_keeps_the_method(tmp_path):
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    config = SiglipConfig(text_config=size, vision_config={**size, "image_size": 24, "patch_size": 8})
    model, x = hf.patch(SiglipModel(config).eval()), inputs("siglip").float()
    model.vision_model.save_pretrained(tmp_path / "tower")
    model.save_pretrained(tmp_path / "both")
    expected = output(model.vision_model, x)
    assert torch.equal(output(hf.load(tmp_path / "tower"), x), expected)
    assert torch.equal(output(hf.load(tmp_path / "both").vision_model, x), expected)
    timm_neutreno.set_fidelity(model, 0.1)
    assert model.config.vision_config.timm_neutreno["fidelity"] == model.config.timm_neutreno["fidelity"] == 0.1


def test_an_unpatched_model_saves_as_transformers_own(tmp_path):
    before = build("gpt2")
    before.save_pretrained(tmp_path / "before")
    hf.unpatch(hf.patch(before)).save_pretrained(tmp_path / "after")
    assert (tmp_path / "after/config.json").read_text() == (tmp_path / "before/config.json").read_text()
    with pytest.raises(ValueError, match=r"no 'timm_neutreno' in its config.json.*from_pretrained, then call"):
        hf.load(tmp_path / "after")


def test_lost_strengths_are_named(tmp_path):
    model = hf.patch(build("gpt2"))
    model.config.timm_neutreno["learnable_fidelity"] = "layer"
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"no weights for learned strengths: transformer\.h\.1\.attn\.fidelity, "):
        hf.load(tmp_path)
