"""The registry: a twin for every supported timm name, which timm treats as any model of its own."""

import dataclasses
import importlib
import json
import subprocess
import sys
from fnmatch import filter as matching

import huggingface_hub
import pytest
import timm
import torch
from hosts import HOSTS, images, randomize
from safetensors.torch import save_file
from timm.models import (
    get_arch_pretrained_cfgs,
    get_pretrained_cfg,
    get_pretrained_cfg_value,
    is_model_in_modules,
    is_model_pretrained,
    list_modules,
    model_entrypoint,
)

import timm_neutreno
from timm_neutreno import neutreno_vit
from timm_neutreno.support import FAMILIES, HIERARCHICAL, NO_ATTENTION

BASES = timm_neutreno.supported_models()
TWINS = {f"neutreno_{base}": base for base in BASES}
ALIASES = {f"neutreno_deit_{size}": f"deit_{size}_patch16_224" for size in ("tiny", "small", "base")}
SMALL = HOSTS["vit"].kwargs
BODY = {k: v for k, v in SMALL.items() if k not in ("img_size", "num_classes", "patch_size")} | {"patch_size": 16}
X = images()


def create(name="neutreno_vit_tiny_patch16_224", **kwargs):
    torch.manual_seed(0)
    return timm.create_model(name, **{**SMALL, **kwargs}).eval()


def timm_modules():
    return [module for module in list_modules() if module != "neutreno_vit"]


# --- names ----------------------------------------------------------------------------------------------------------


def test_every_supported_name_has_a_twin_and_the_aliases_are_there():
    assert len(BASES) >= 335
    assert set(timm.list_models("neutreno_*")) == {*TWINS, *ALIASES}
    assert set(timm.list_models(module="neutreno_vit")) == {*TWINS, *ALIASES}
    assert all(timm.is_model(name) and is_model_in_modules(name, ["neutreno_vit"]) for name in (*TWINS, *ALIASES))
    found = timm.list_models("*deit_tiny*", module="neutreno_vit")
    assert set(found) == set(matching([*TWINS, *ALIASES], "*deit_tiny*"))


def test_supported_models_are_the_names_of_the_listed_modules():
    assert set(BASES) == set(timm.list_models(module=list(neutreno_vit.MODULES)))
    assert not any(name.startswith("neutreno_") for name in BASES)


@pytest.mark.parametrize("module", timm_modules())
def test_every_module_of_timm_is_supported_or_refused_with_its_own_reason(module):
    """No name is left out silently: a module that timm adds fails here until it is supported or explained."""
    names = timm.list_models(module=module)
    if module in neutreno_vit.MODULES:
        assert all(name in BASES for name in names)
        return
    small = ("nano", "tiny", "atto", "small", "xxs", "_xs", "_b0", "_s0", "_s1", "_t0", "050", "18")
    name = min(names, key=lambda n: (not any(part in n for part in small), len(n), n))
    with torch.device("meta"):
        model = timm.create_model(name)
    entries = timm_neutreno.check_support(model)
    assert entries
    assert [entry for entry in entries if entry.supported] == []
    known = {HIERARCHICAL, NO_ATTENTION, *FAMILIES.values()}
    assert {entry.reason for entry in entries} <= known, "the family needs a line in support.FAMILIES"
    assert all(entry.reason.startswith(("never: ", "not yet: ")) for entry in entries)


@pytest.mark.filterwarnings("ignore:Overwriting")
def test_names_survive_a_reload():
    before, names = timm.list_pretrained(), timm.list_models()
    importlib.reload(neutreno_vit)
    assert timm.list_models() == names
    assert timm.list_pretrained() == before
    assert timm_neutreno.is_patched(create())


def test_entrypoints_document_themselves():
    for name, base in {**TWINS, **ALIASES}.items():
        function = model_entrypoint(name)
        assert function.__name__ == name
        assert base in function.__doc__
        assert getattr(neutreno_vit, name) is function
        assert name in neutreno_vit.__all__


# --- pretrained cfgs and tags ---------------------------------------------------------------------------------------


def test_every_tag_carries_over_with_its_repository_preprocessing_and_licence():
    count = 0
    for name, base in {**TWINS, **ALIASES}.items():
        mine, theirs = get_arch_pretrained_cfgs(name), get_arch_pretrained_cfgs(base)
        assert [key.removeprefix(name) for key in mine] == [key.removeprefix(base) for key in theirs]
        for got, want in zip(mine.values(), theirs.values(), strict=True):
            assert got == dataclasses.replace(want, architecture=name)
            count += 1
    assert count > 400
    with_weights = {f"neutreno_{name}" for name in timm.list_pretrained() if name.split(".")[0] in BASES}
    aliased = {a + f".{cfg.tag}" for a, b in ALIASES.items() for cfg in get_arch_pretrained_cfgs(b).values()}
    assert set(timm.list_pretrained("neutreno_*")) == with_weights | aliased
    assert set(timm.list_models("neutreno_*", pretrained=True)) == with_weights | aliased


def test_the_default_tag_is_the_bases():
    for name, base in {**TWINS, **ALIASES}.items():
        mine, theirs = get_pretrained_cfg(name), get_pretrained_cfg(base)
        assert (mine is None) == (theirs is None), name
        if mine is not None:
            assert mine == dataclasses.replace(theirs, architecture=name)
        assert is_model_pretrained(name) == is_model_pretrained(base)


def test_single_values():
    assert get_pretrained_cfg_value("neutreno_deit_tiny", "hf_hub_id") == "timm/deit_tiny_patch16_224.fb_in1k"
    assert get_pretrained_cfg_value("neutreno_vit_base_patch16_224", "mean") == (0.5, 0.5, 0.5)
    assert get_pretrained_cfg_value("neutreno_deit_tiny", "license") == "apache-2.0"
    assert is_model_pretrained("neutreno_vit_base_patch16_224.dino")
    assert not is_model_pretrained("neutreno_vit_base_patch16_224.nonsense")


@pytest.mark.parametrize("tag", ["", ".dino", ".augreg_in21k"])
def test_a_created_model_tells_its_tag(tag):
    mine, base = (create(f"{p}vit_base_patch16_224{tag}").pretrained_cfg for p in ("neutreno_", ""))
    assert mine == {**base, "architecture": "neutreno_vit_base_patch16_224"}


def test_aliases_are_the_paper_models():
    for alias, base in ALIASES.items():
        model = create(alias)
        assert model.pretrained_cfg["architecture"] == f"neutreno_{base}"
        assert model.state_dict().keys() == create(base).state_dict().keys()


# --- arguments pass through -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kwargs",
    [
        dict(num_classes=7),
        dict(num_classes=0),
        dict(img_size=48),
        dict(in_chans=1),
        dict(global_pool="avg"),
        dict(global_pool=""),
        dict(drop_rate=0.2, proj_drop_rate=0.1, attn_drop_rate=0.3, pos_drop_rate=0.1, drop_path_rate=0.2),
        dict(patch_drop_rate=0.25),
        dict(dynamic_img_size=True),
        dict(class_token=False, global_pool="avg", qk_norm=True, init_values=1e-5),
        dict(features_only=True, out_indices=(1, 3), num_classes=None),
        dict(pretrained_cfg_overlay=dict(crop_pct=0.5)),
        dict(exportable=True, scriptable=False),
    ],
    ids=str,
)
def test_arguments_pass_through(kwargs):
    twin = create(fidelity=0.0, **kwargs)
    plain = create("vit_tiny_patch16_224", **kwargs)
    assert timm_neutreno.is_patched(twin)
    timm_neutreno.set_fidelity(twin, 0.0)
    x = torch.randn(2, kwargs.get("in_chans", 3), *2 * (kwargs.get("img_size", 32),))
    for training in (False, True):
        outputs = []
        for model in (twin.train(training), plain.train(training)):
            torch.manual_seed(1)
            out = model(x)
            outputs.append(out if isinstance(out, list) else [out])
        assert all(torch.equal(a, b) for a, b in zip(*outputs, strict=True))
    drops = [[m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)] for model in (twin, plain)]
    assert drops[0] == drops[1]
    if not kwargs.get("features_only"):
        assert twin.pretrained_cfg == {**plain.pretrained_cfg, "architecture": "neutreno_vit_tiny_patch16_224"}


def error_of(name, **kwargs):
    with pytest.raises(Exception) as error:  # noqa: PT011 - the caller compares its type and text with timm's
        timm.create_model(name, **kwargs)
    return type(error.value), str(error.value).replace("neutreno_", "")


@pytest.mark.parametrize(
    ("suffix", "kwargs"),
    [
        (".nonsense", {}),
        (".nonsense", dict(pretrained=True)),
        ("", dict(nonsense=1)),
        ("", dict(img_size="x")),
        ("", dict(num_heads=7)),
        ("", dict(features_only=True, out_indices=(40,))),
        ("", dict(checkpoint_path="nowhere.pth")),
    ],
    ids=str,
)
def test_errors_are_timms(suffix, kwargs):
    name = f"deit_tiny_patch16_224{suffix}"
    assert error_of(f"neutreno_{name}", **kwargs) == error_of(name, **kwargs)


def test_wrong_tag_and_unknown_argument_are_errors():
    with pytest.raises(RuntimeError, match=r"Invalid pretrained tag \(nonsense\)"):
        create("neutreno_deit_tiny_patch16_224.nonsense")
    with pytest.raises(TypeError, match="unexpected keyword argument 'nonsense'"):
        create(nonsense=1)
    with pytest.raises(RuntimeError, match="Unknown model"):
        create("neutreno_nonsense")


# --- weights ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A small model of the base's own class with a head of 1,000 classes at 224: what a pretrained file looks like."""
    model = randomize(timm.create_model("vit_tiny_patch16_224", **BODY))
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_file(model.state_dict(), path)
    return path, model.state_dict()


def both(path, **kwargs):
    models = []
    for prefix in ("neutreno_", ""):
        torch.manual_seed(0)  # a dropped head is initialised anew
        models.append(
            timm.create_model(
                f"{prefix}vit_tiny_patch16_224",
                pretrained=True,
                pretrained_cfg_overlay=dict(file=str(path)),
                **BODY,
                **kwargs,
            ).eval()
        )
    timm_neutreno.set_fidelity(models[0], 0.0)
    return models


@pytest.mark.parametrize(
    "kwargs",
    [{}, dict(num_classes=7), dict(img_size=64), dict(num_classes=7, img_size=96, in_chans=1), dict(num_classes=0)],
    ids=str,
)
def test_pretrained_file_loads_as_into_timms_own(weights, kwargs):
    path, state = weights
    twin, plain = both(path, **kwargs)
    assert timm_neutreno.is_patched(twin)
    assert torch.equal(plain.blocks[1].attn.qkv.weight, state["blocks.1.attn.qkv.weight"])  # the file was read
    assert twin.state_dict().keys() == plain.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(twin.state_dict().values(), plain.state_dict().values(), strict=True))
    x = torch.randn(2, kwargs.get("in_chans", 3), *2 * (kwargs.get("img_size", 224),))
    logits = twin(x)
    assert torch.equal(logits, plain(x))
    timm_neutreno.set_fidelity(twin, 0.6)
    assert not torch.allclose(twin(x), logits, atol=1e-2)


def test_pretrained_file_into_features_only_and_by_checkpoint_path(weights):
    path, state = weights
    (twin, plain) = both(path, features_only=True, img_size=64)
    for a, b in zip(twin(images(2, 64)), plain(images(2, 64)), strict=True):
        assert torch.equal(a, b)
    loaded = timm.create_model("neutreno_vit_tiny_patch16_224", checkpoint_path=str(path), **BODY)
    assert torch.equal(loaded.blocks[3].mlp.fc1.weight, state["blocks.3.mlp.fc1.weight"])


def test_plain_weights_with_learnable_fidelity_start_at_the_given_number(weights):
    path, state = weights
    model = timm.create_model(
        "neutreno_vit_tiny_patch16_224",
        pretrained=True,
        fidelity=0.25,
        learnable_fidelity="head",
        pretrained_cfg_overlay=dict(file=str(path)),
        **BODY,
    )
    learnt = {key: value for key, value in model.state_dict().items() if key.endswith("fidelity")}
    assert len(learnt) == 3
    assert all(torch.equal(value, torch.full((3,), 0.25)) for value in learnt.values())
    assert all(torch.equal(model.state_dict()[key], value) for key, value in state.items())


@pytest.mark.parametrize("name", ["neutreno_deit_tiny", "neutreno_deit_tiny_patch16_224.fb_in1k"])
@pytest.mark.parametrize("learnable", [None, "head"])
def test_pretrained_reads_the_base_models_repository(weights, name, learnable, tmp_path, monkeypatch):
    """The Hub's cache on disk holds the base model's repository and nothing else; the network is off."""
    path, state = weights
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    snapshot = tmp_path / "models--timm--deit_tiny_patch16_224.fb_in1k" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").symlink_to(path)
    refs = snapshot.parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text("0" * 40)
    model = timm.create_model(name, pretrained=True, cache_dir=tmp_path, learnable_fidelity=learnable, **BODY)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in state.items())
    assert len([key for key in model.state_dict() if key.endswith("fidelity")]) == (3 if learnable else 0)


# --- importing --------------------------------------------------------------------------------------------------------


IMPORT = """
import timm, warnings, logging, sys, json
names = timm.list_models()
with warnings.catch_warnings():  # not to the end of the process: torch 2.6 itself warns there
    warnings.simplefilter("error")
    import timm_neutreno
twins = timm.list_models("neutreno_*")
assert [n for n in timm.list_models() if n not in twins] == names
json.dump(sorted(set(sys.modules) & {"matplotlib.pyplot", "sklearn", "typer", "rich", "onnx", "IPython"}), sys.stderr)
"""


def test_importing_prints_and_warns_nothing_and_brings_no_heavy_package():
    run = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert run.stdout == ""
    assert json.loads(run.stderr) == []
