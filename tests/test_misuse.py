"""Contract 7: wrong use raises at once, says where, what, why and what to do, and leaves the model as it was."""

import copy
import math

import pytest
import timm
import torch
import torch.distributed as dist
from hosts import HOSTS, NEED_V0, build, images, patched
from timm.layers import Attention
from timm.models.vision_transformer import Block
from torch import nn

import timm_neutreno
from timm_neutreno import UnsupportedModelError

X = images()
TOKENS = torch.randn(2, 17, 48, generator=torch.Generator().manual_seed(0))


def make(key="vit", **kwargs):
    return timm_neutreno.patch(build(key), fidelity=0.6, **kwargs)


def state(model: nn.Module):
    """Everything that patch could change, with the tensors by identity and by value."""
    modules = [(name, type(m), sorted(m.__dict__), m.training) for name, m in model.named_modules()]
    tensors = {name: (id(t), t.detach().clone()) for name, t in (*model.named_parameters(), *model.named_buffers())}
    return modules, tensors, copy.deepcopy(getattr(model, "pretrained_cfg", None)), getattr(model, "_model_args", None)


def assert_untouched(model, before):
    modules, tensors, *records = state(model)
    assert modules == before[0]
    assert records == list(before[2:])
    assert set(tensors) == set(before[1])
    assert all(tensors[n][0] == before[1][n][0] and torch.equal(tensors[n][1], before[1][n][1]) for n in tensors)


def refused(model) -> str:
    """The sentence with which patch refuses the model, which it leaves as it was."""
    before = state(model)
    with pytest.raises(UnsupportedModelError) as error:
        timm_neutreno.patch(model)
    assert_untouched(model, before)
    assert not timm_neutreno.is_patched(model)
    message = str(error.value)
    assert "check_support(model)" in message
    assert "supported_models()" in message
    return message


# --- blocks and attentions out of order ---------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["vit", "parallel_scaling", "parallel_things", "cait", "deit_distilled"])
def test_later_block_alone(key):
    model, x = make(key), TOKENS[:, :16]
    with pytest.raises(RuntimeError, match=r"block 2 was called without the first block.*all its blocks in order"):
        model.blocks[2](x)
    model(X)
    with pytest.raises(RuntimeError, match="block 3 was called without the first block"):
        model.blocks[3](x)  # nothing is left from the whole forward before


def test_attention_alone():
    model = make()
    for layer in (0, 2):
        with pytest.raises(RuntimeError, match=r"NeutrenoAttention was called on its own.*or unpatch\(\) the model"):
            model.blocks[layer].attn(TOKENS)
    assert timm_neutreno.unpatch(model).blocks[2].attn(TOKENS).shape == TOKENS.shape


@pytest.mark.parametrize("spec", [spec for spec in NEED_V0 if spec != "neutreno"])
def test_later_block_or_attention_alone_with_every_method_that_needs_v0(spec):
    model = patched("vit", spec)
    with pytest.raises(RuntimeError, match="block 2 was called without the first block"):
        model.blocks[2](TOKENS)
    with pytest.raises(RuntimeError, match="was called on its own"):
        model.blocks[2].attn(TOKENS)


@pytest.mark.parametrize("again", [1, 2])
def test_wrong_order_after_a_partial_loop(again):
    model = make()
    x = TOKENS
    for block in model.blocks[:3]:
        x = block(x)
    with pytest.raises(RuntimeError, match=rf"block {again} was called after block 2 without the first.*in order"):
        model.blocks[again](x)
    with pytest.raises(RuntimeError, match="block 3 was called without the first block"):
        model.blocks[3](x)  # the stale values are gone
    assert torch.isfinite(model(X)).all()


def test_partial_loop_does_not_leak_into_the_next_forward():
    model = make()
    expected = model(X)
    model.blocks[1](model.blocks[0](TOKENS))
    assert torch.equal(model(X), expected)


def test_first_block_without_gradients_then_others_with():
    model = make()
    with torch.no_grad():
        x = model.blocks[0](TOKENS)
    with pytest.raises(RuntimeError, match=r"first block ran without gradients.*requires_grad_\(False\)"):
        model.blocks[1](x)


@pytest.mark.parametrize("change", ["tokens_dropped", "tokens_added", "images_dropped"])
def test_tokens_or_images_changed_between_blocks(change):
    model = make()
    changes = {
        "tokens_dropped": lambda m, i, y: y[:, :-3],
        "tokens_added": lambda m, i, y: torch.cat([y, y[:, -2:]], dim=1),
        "images_dropped": lambda m, i, y: y[:1],
    }
    model.blocks[1].register_forward_hook(changes[change])
    with pytest.raises(RuntimeError, match=r"values of every layer in one shape.*\(2, 3, 17, 16\).*dropped, merged"):
        model(X)
    assert model.first_values.begin()[0] is None


# --- wrong arguments and wrong states -----------------------------------------------------------------------------


BAD = [math.nan, math.inf, -math.inf, "a", None, [0.1, 0.2]]


@pytest.mark.parametrize("bad", BAD, ids=str)
def test_fidelity_not_a_finite_number(bad):
    plain = build("vit")
    before = state(plain)
    with pytest.raises(ValueError, match=r"fidelity must be a finite number such as 0\.6, got"):
        timm_neutreno.patch(plain, fidelity=bad)
    assert_untouched(plain, before)
    model = make()
    expected = model(X)
    with pytest.raises(ValueError, match=r"fidelity must be a finite number such as 0\.6, got"):
        timm_neutreno.set_fidelity(model, bad)
    assert torch.equal(model(X), expected)
    if bad is not None:  # timm takes a None as not given
        with pytest.raises(ValueError, match="fidelity must be a finite number"):
            timm.create_model("neutreno_vit_tiny_patch16_224", fidelity=bad, **HOSTS["vit"].kwargs)


@pytest.mark.parametrize("bad", ["x", "Layer", True, 1])
def test_learnable_fidelity_unknown(bad):
    plain = build("vit")
    before = state(plain)
    with pytest.raises(ValueError, match=r"learnable_fidelity must be one of None, False, 'layer', 'head'; got"):
        timm_neutreno.patch(plain, learnable_fidelity=bad)
    assert_untouched(plain, before)


@pytest.mark.parametrize("key", ["vit", "parallel_scaling"])
def test_patched_twice(key):
    model = make(key)
    expected, before = model(X), state(model)
    with pytest.raises(ValueError, match=r"patched already. Use set_strengths\(\).*or unpatch\(\)"):
        timm_neutreno.patch(model, fidelity=0.1)
    assert_untouched(model, before)
    assert torch.equal(model(X), expected)
    with pytest.raises(ValueError, match="patched already"):
        timm_neutreno.patch(nn.Sequential(model))


def test_plain_model_is_not_patched():
    for call in (timm_neutreno.unpatch, lambda m: timm_neutreno.set_fidelity(m, 0.1)):
        for model in (build("vit"), nn.Linear(2, 2)):
            with pytest.raises(ValueError, match=r"not patched: call timm_neutreno.patch\(model\)"):
                call(model)
    assert not timm_neutreno.is_patched(build("vit"))


def test_a_number_for_the_method_says_what_was_meant():
    plain = build("vit")
    before = state(plain)
    with pytest.raises(ValueError, match=r"For a fidelity of 0\.3 say fidelity=0\.3"):
        timm_neutreno.patch(plain, 0.3)
    assert_untouched(plain, before)


def test_strengths_that_are_not_there():
    model = timm_neutreno.patch(build("vit"), "gfsa")
    with pytest.raises(ValueError, match=r"the model has no strength 'fidelity'\. It has: gfsa"):
        timm_neutreno.set_fidelity(model, 0.1)
    with pytest.raises(ValueError, match="the model has no strength 'x'"):
        timm_neutreno.set_strengths(model, x=0.1)
    with pytest.raises(ValueError, match="gfsa must be a finite number"):
        timm_neutreno.set_strengths(model, gfsa=math.nan)


def test_single_layer_has_nothing_to_change():
    assert "single attention layer" in refused(build("vit", depth=1))


# --- unsupported classes ------------------------------------------------------------------------------------------


UNSUPPORTED = {
    "xcit_nano_12_p8_224": ("blocks.0", "timm.models.xcit.XCABlock", "attends over channels"),
    "crossvit_tiny_240": ("blocks.0", "timm.models.crossvit.MultiScaleBlock", "two token sequences"),
    "tnt_s_legacy_patch16_224": ("blocks.0", "timm.models.tnt.Block", "attention inside patches"),
    "hiera_tiny_224": ("blocks.0", "timm.models.hiera.HieraBlock", "change size between stages"),
    "pit_ti_224": ("transformers.0.blocks.0", "timm.models.vision_transformer.Block", "change size between stages"),
    "convit_tiny": ("blocks.0", "timm.models.convit.Block", "gated positional attention"),
    "swin_tiny_patch4_window7_224": ("layers.0.blocks.0", "SwinTransformerBlock", "change size between stages"),
    "swinv2_cr_tiny_224": ("stages.0.blocks.0", "SwinTransformerV2CrBlock", "change size between stages"),
    "levit_128s": ("stages.0.blocks.0", "timm.models.levit.LevitBlock", "change size between stages"),
    "mvitv2_tiny": ("stages.0.blocks.0", "MultiScaleBlock", "change size between stages"),
    "volo_d1_224": ("(the model)", "timm.models.volo.VOLO", "change size between stages"),
    "twins_svt_small": ("blocks.0", "torch.nn.modules.container.ModuleList", "change size between stages"),
    "mobilevit_xxs": ("(the model)", "timm.models.byobnet.ByobNet", "change size between stages"),
    "resnet18": ("(the model)", "timm.models.resnet.ResNet", "change size between stages"),
    "convnext_atto": ("stages.0.blocks.0", "timm.models.convnext.ConvNeXtBlock", "change size between stages"),
    "efficientnet_b0": ("blocks.0", "torch.nn.modules.container.Sequential", "change size between stages"),
    "mixer_s16_224": ("blocks.0", "timm.models.mlp_mixer.MixerBlock", "no self-attention over tokens"),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_unsupported_architectures_are_refused_by_name_and_reason(name):
    with torch.device("meta"):
        model = timm.create_model(name)
    types = [type(m) for m in model.modules()]
    with pytest.raises(UnsupportedModelError) as error:
        timm_neutreno.patch(model)
    assert [type(m) for m in model.modules()] == types
    layer, cls, reason = UNSUPPORTED[name]
    message = str(error.value)
    assert name in message  # the model
    assert f"  {layer}  " in message
    assert cls in message
    assert reason in message
    assert "never: " in message or "not yet: " in message
    assert not any(entry.supported for entry in timm_neutreno.check_support(model))
    with pytest.raises(RuntimeError, match="Unknown model"):
        timm.create_model(f"neutreno_{name}")


def test_features_only_of_an_unsupported_model_keeps_the_reason():
    assert "change size between stages" in refused(
        timm.create_model("swin_tiny_patch4_window7_224", features_only=True)
    )
    assert "change size between stages" in refused(timm.create_model("resnet18", features_only=True))


@pytest.mark.parametrize("model", [nn.Linear(2, 2), nn.TransformerEncoderLayer(8, 2), nn.Sequential()], ids=repr)
def test_modules_that_are_no_vit(model):
    assert "(the model)" in refused(model)
    assert "not yet: has no `blocks` of a known class" in refused(model)


class OtherAttention(Attention):
    def forward(self, x, attn_mask=None, is_causal=False):
        return 2 * super().forward(x, attn_mask, is_causal)


class OtherBlock(Block):
    def forward(self, x, attn_mask=None, is_causal=False):
        return super().forward(x, attn_mask, is_causal) + 1


class SameBlock(Block):
    """No forward of its own; but exact type is the rule, since nobody promises that it stays so."""


class StrangeAttention(nn.Module):
    def forward(self, x, attn_mask=None, is_causal=False):
        return x


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("what", ["attention", "block", "same_block", "strange_attention"])
def test_one_layer_of_a_users_class_refuses_the_whole_model(what, layer):
    model = build("vit")
    if what == "attention":
        model.blocks[layer].attn.__class__ = OtherAttention
    elif what == "strange_attention":
        model.blocks[layer].attn = StrangeAttention()
    else:
        model.blocks[layer].__class__ = OtherBlock if what == "block" else SameBlock
    expected = model(X)
    message = refused(model)
    assert torch.equal(model(X), expected)
    wanted = {
        "attention": (f"blocks.{layer}.attn", "OtherAttention", "a subclass of Attention may compute something else"),
        "block": (f"blocks.{layer}", "OtherBlock", "a subclass of Block may compute something else"),
        "same_block": (f"blocks.{layer}", "SameBlock", "only the exact class is known"),
        "strange_attention": (f"blocks.{layer}.attn", "StrangeAttention", "how its values are made is not known"),
    }[what]
    assert all(part in message for part in wanted)
    assert f"{__name__}." in message  # the full path of the class
    assert [e.name for e in timm_neutreno.check_support(model) if not e.supported] == [wanted[0]]


def test_all_unsupported_layers_are_named():
    model = build("vit")
    model.blocks[1].attn.__class__, model.blocks[3].__class__ = OtherAttention, OtherBlock
    message = refused(model)
    assert "blocks.1.attn  " in message
    assert "blocks.3  " in message
    assert "blocks.2" not in message


def test_supported_tower_beside_an_unsupported_one_is_untouched():
    towers = nn.ModuleDict(dict(vit=build("vit"), pit=timm.create_model("pit_ti_224")))
    message = refused(towers)
    assert "pit.transformers.0.blocks.0" in message
    assert "vit.blocks" not in message
    assert timm_neutreno.is_patched(timm_neutreno.patch(nn.ModuleDict(dict(a=build("vit"), b=build("cait")))))


# --- wrapped models -----------------------------------------------------------------------------------------------


@pytest.fixture
def process_group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("wrapper", ["ddp", "data_parallel", "compile"])
def test_wrapped_models_are_refused(wrapper, inside, process_group):
    wrap = {"ddp": nn.parallel.DistributedDataParallel, "data_parallel": nn.DataParallel, "compile": torch.compile}
    model = wrap[wrapper](build("vit"))
    sentence = refused(nn.Sequential(model) if inside else model)
    assert ("is compiled; patch first, then torch.compile" in sentence) == (wrapper == "compile")
    assert ("is wrapped for several devices; patch first, then wrap" in sentence) == (wrapper != "compile")


def test_sharded_model_is_refused(process_group):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model, mesh = build("vit"), init_device_mesh("cpu", (1,))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    with pytest.raises(UnsupportedModelError, match=r"blocks\.0  .*is sharded; patch first, then fully_shard"):
        timm_neutreno.patch(fully_shard(model, mesh=mesh))
