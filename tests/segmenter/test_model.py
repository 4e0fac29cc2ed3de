"""The Segmenter and patch() against formulas written out here: the official decoder, and v0 per part at SDPA level."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from hosts import HOSTS, build, images, randomize
from reference import projection_oracle
from timm.optim import create_optimizer_v2

import timm_neutreno
from timm_neutreno import Segmenter, patch, strengths, unpatch
from timm_neutreno.segmenter import from_official

CLASSES = 6
FAMILIES = tuple(HOSTS)
SHAPE = dict(img_size=32, patch_size=8, embed_dim=24, depth=3, num_heads=2)
ONE_SIZE = {"beit", "rel_pos", "rel_pos_res_post", "cait"}


def segmenter(key: str = "vit", **arguments) -> Segmenter:
    """A row of HOSTS with a decoder of three blocks, whose weights make errors show."""
    model = Segmenter(build(key), CLASSES, decoder_depth=3, decoder_dim=24, decoder_heads=2, **arguments)
    randomize(model.decoder, seed=5)
    return model.eval()


@contextmanager
def two_groups(model: Segmenter, fidelity: dict[str, float], calls_per_layer: int = 1, parallel: bool = False):
    """Inside, SDPA adds fidelity[part] * (v0 - v), v0 of that part's own first layer; 0 leaves a part as it is."""
    original, now = F.scaled_dot_product_attention, {"part": "encoder", "call": 0, "seen": 0}
    first: dict = {}
    depth = {"encoder": len(timm_neutreno.support.find_vits(model)[0].blocks), "decoder": len(model.decoder.blocks)}

    def enter(part):
        def hook(*_):
            now.update(part=part, call=0)
            first.clear()

        return hook

    def sdpa(q, k, v, *args, **kwargs):
        part = now["part"]
        layer, branch = divmod(now["call"], calls_per_layer if part == "encoder" else 1)
        now.update(call=now["call"] + 1, seen=now["seen"] + 1)
        u = original(q, k, v, *args, **kwargs)
        if layer == 0:
            first[branch] = v
        if layer == 0 or layer >= depth[part] or (branch and not (parallel and part == "encoder")):
            return u
        return u + fidelity[part] * (first[branch] - v) if fidelity[part] else u

    handles = [getattr(model, part).register_forward_pre_hook(enter(part)) for part in ("decoder",)]
    handles.append(model.register_forward_pre_hook(enter("encoder")))
    F.scaled_dot_product_attention = sdpa
    try:
        yield now
    finally:
        F.scaled_dot_product_attention = original
        for handle in handles:
            handle.remove()


def expected(key: str, model: Segmenter, x: torch.Tensor, encoder: float, decoder: float) -> torch.Tensor:
    host = HOSTS[key]
    if host.calls_per_layer:
        parallel = hasattr(timm_neutreno.support.find_vits(model)[0].blocks[0], "attns")
        with two_groups(model, {"encoder": encoder, "decoder": decoder}, host.calls_per_layer, parallel) as seen:
            y = model(x)
        assert seen["seen"] >= len(model.decoder.blocks) + 2
        return y
    grid = tuple(side // model.patch_size for side in x.shape[-2:])
    with two_groups(model, {"encoder": 0.0, "decoder": decoder}), projection_oracle(model.encoder, encoder, grid):
        return model(x)


@pytest.mark.parametrize("key", FAMILIES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_each_part_has_first_layer_values_of_its_own(key, dtype, tolerance):
    plain, model = segmenter(key).to(dtype), segmenter(key).to(dtype)
    x = images().to(dtype)
    patch(model, fidelity=0.6)
    with torch.no_grad():
        got, want, untouched = model(x), expected(key, plain, x, 0.6, 0.6), plain(x)
    assert got.shape == (2, CLASSES, 32, 32)
    assert (got - want).abs().max() < tolerance * want.abs().max()
    assert (got - untouched).abs().max() > 1e-3
    with torch.no_grad():
        assert torch.equal(unpatch(model)(x), untouched)


@pytest.mark.parametrize("key", ["vit", "dinov3", "sam"])
@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_one_part_alone(key, part):
    plain, model = segmenter(key).double(), segmenter(key).double()
    patch(getattr(model, part), fidelity=0.4)
    x = images().double()
    with torch.no_grad():
        want = expected(key, plain, x, 0.4 * (part == "encoder"), 0.4 * (part == "decoder"))
        assert (model(x) - want).abs().max() < 1e-11
        assert (model(x) - plain(x)).abs().max() > 1e-4
    assert {name.partition(".")[0] for name in strengths(model)} == {part}


@pytest.mark.parametrize("key", [key for key in FAMILIES if key not in ONE_SIZE])
def test_images_of_any_size(key):
    """Built by name the encoder takes any size: padding with zeros to the patch size and cropping, nothing else."""
    config = segmenter(key).config()
    config.pop("architecture")
    model = randomize(Segmenter(**config)).eval()
    assert model.fixed_size is None
    x = images(1, 64)[..., :26, :43]
    with torch.no_grad():
        y = model(x)
        padded = model(F.pad(x, (0, 5, 0, 6)))
    assert y.shape == (1, CLASSES, 26, 43)
    assert torch.equal(y, padded[..., :26, :43])
    patch(model)
    with torch.no_grad():
        assert (model(x) - y).abs().max() > 1e-3


@pytest.mark.parametrize("key", sorted(ONE_SIZE))
def test_an_encoder_of_one_size_says_so_and_is_slid(key):
    model = segmenter(key)
    with pytest.raises(ValueError, match=r"takes images of \(32, 32\) pixels only, and got \(26, 43\): segment"):
        model(images(1, 64)[..., :26, :43])
    assert model.segment(images(1, 64)[..., :26, :43]).shape == (1, 26, 43)


def written_out(decoder, x: torch.Tensor) -> torch.Tensor:
    """The official decoder (segm/model/decoder.py), in eval mode, without our code and without SDPA."""
    B, D, h, w = x.shape
    x = x.permute(0, 2, 3, 1).reshape(B, h * w, D)
    p = dict(decoder.named_parameters())

    def linear(x, name):
        return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    def norm(x, name):
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        return x * p[f"{name}.weight"] + p[f"{name}.bias"]

    x = torch.cat([linear(x, "proj_dec"), p["cls_emb"].expand(B, -1, -1)], dim=1)
    for index in range(len(decoder.blocks)):
        name, heads = f"blocks.{index}", decoder.blocks[index].attn.num_heads
        q, k, v = linear(norm(x, f"{name}.norm1"), f"{name}.attn.qkv").chunk(3, dim=-1)
        q, k, v = (t.reshape(B, t.shape[1], heads, -1).transpose(1, 2) for t in (q, k, v))
        A = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(-1)
        x = x + linear((A @ v).transpose(1, 2).reshape(x.shape), f"{name}.attn.proj")
        hidden = linear(norm(x, f"{name}.norm2"), f"{name}.mlp.fc1")
        hidden = hidden / 2 * (1 + torch.erf(hidden / 2**0.5))
        x = x + linear(hidden, f"{name}.mlp.fc2")
    x = norm(x, "decoder_norm")
    patches, classes = x[:, :-CLASSES] @ p["proj_patch"], x[:, -CLASSES:] @ p["proj_classes"]
    patches, classes = (t / t.norm(dim=-1, keepdim=True) for t in (patches, classes))
    masks = norm(patches @ classes.transpose(1, 2), "mask_norm")
    return masks.reshape(B, h, w, CLASSES).permute(0, 3, 1, 2)


def test_the_decoder_is_the_official_formula():
    decoder = segmenter().double().decoder
    x = torch.randn(2, 48, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert (decoder(x) - written_out(decoder, x)).abs().max() < 1e-12


def official_state_dict(distilled: bool) -> dict[str, torch.Tensor]:
    """Names and shapes of the authors' DeiT-tiny Segmenter (vit_neutreno.py, decoder_neutreno.py), at a small width."""
    D, N, K = 24, 16, CLASSES

    def block(name):
        shapes = {"attn.qkv": (3 * D, D), "attn.proj": (D, D), "mlp.fc1": (4 * D, D), "mlp.fc2": (D, 4 * D)}
        pairs = {f"{name}.{part}": shape for part, shape in shapes.items()}
        return pairs | {f"{name}.norm1": (D,), f"{name}.norm2": (D,)}

    layers = {"encoder.patch_embed.proj": (D, 3, 8, 8), "encoder.norm": (D,), "encoder.head": (1000, D),
              "decoder.proj_dec": (D, D), "decoder.decoder_norm": (D,), "decoder.mask_norm": (K,)}  # fmt: skip
    layers |= {"encoder.head_dist": (1000, D)} if distilled else {}
    for name in [f"encoder.blocks.{i}" for i in range(3)] + [f"decoder.blocks.{i}" for i in range(2)]:
        layers |= block(name)
    weights = {f"{name}.weight": torch.randn(shape) for name, shape in layers.items()}
    weights |= {f"{name}.bias": torch.randn(shape[0]) for name, shape in layers.items()}
    alone = {"encoder.cls_token": (1, 1, D), "encoder.pos_embed": (1, N + 1 + distilled, D),
             "decoder.cls_emb": (1, K, D), "decoder.proj_patch": (D, D), "decoder.proj_classes": (D, D)}  # fmt: skip
    alone |= {"encoder.dist_token": (1, 1, D)} if distilled else {}
    return weights | {name: torch.randn(shape) for name, shape in alone.items()}


@pytest.mark.parametrize("distilled", [False, True])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_official_checkpoints_load(distilled, prefix):

    name = "deit_tiny_distilled_patch16_224" if distilled else "deit_tiny_patch16_224"
    model = Segmenter(name, CLASSES, encoder_args=SHAPE, decoder_heads=2)
    weights = official_state_dict(distilled)
    model.load_state_dict(from_official({"model": {prefix + key: value for key, value in weights.items()}}))
    assert torch.equal(model.decoder.blocks[1].attn.qkv.weight, weights["decoder.blocks.1.attn.qkv.weight"])
    with pytest.raises(ValueError, match=r"'backbone.norm.weight' is no name of the official Segmenter"):
        from_official({"backbone.norm.weight": weights["encoder.norm.weight"]})


def test_gradients_with_checkpointing_are_bit_equal():
    grads = []
    for checkpointing in (False, True):
        model = patch(segmenter(), "neutreno+featscale", learnable_fidelity="head").train()
        model.set_grad_checkpointing(checkpointing)
        torch.manual_seed(3)  # of dropout
        model(images()).square().mean().backward()
        assert all(p.grad is not None for p in model.parameters())
        grads.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize("key", ["vit", "vit_norms", "deepseek", "cait", "beit"])
@pytest.mark.parametrize("where", ["plain", "both", "decoder"])
def test_saved_and_loaded_it_gives_equal_logits(key, where, tmp_path):
    arguments = dict(class_names=[f"c{i}" for i in range(CLASSES)], window=(32, 32), stride=(16, 24), mean=(0.1,) * 3)
    model = segmenter(key, **arguments)
    if where != "plain":
        part = model if where == "both" else model.decoder
        patch(part, "neutreno+gfsa", fidelity=0.3, learnable_gfsa="head", layers=[-1, -2])
        for value in strengths(model).values():
            if isinstance(value, torch.nn.Parameter):
                value.data.uniform_(0.1, 0.4)
    model.save_pretrained(tmp_path / "model")
    again = Segmenter.from_pretrained(tmp_path / "model")
    with torch.no_grad():
        assert torch.equal(again(images()), model(images()))
    assert strengths(again).keys() == strengths(model).keys()
    assert (again.class_names, again.window, again.stride) == (model.class_names, (32, 32), (16, 24))
    assert again.mean == (0.1,) * 3
    assert again.config() == model.config()


def test_a_twin_by_name_is_patched_in_the_encoder_alone(tmp_path):
    model = Segmenter("neutreno_vit_tiny_patch16_224", 3, encoder_args={**SHAPE, "fidelity": 0.2})
    assert {name.partition(".")[0] for name in strengths(model)} == {"encoder"}
    model.eval().save_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(Segmenter.from_pretrained(tmp_path)(images()), model(images()))


def test_what_cannot_be_saved_or_made_says_so(tmp_path):
    model = segmenter()
    model.encoder.pretrained_cfg = {}
    with pytest.raises(ValueError, match="Cannot save a Segmenter around VisionTransformer"):
        model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="2 class_names for num_classes 6"):
        segmenter(class_names=["a", "b"])
    with pytest.raises(ValueError, match="a Linear gives no map of features"):
        Segmenter(torch.nn.Linear(3, 3), 2)
    with pytest.raises(ValueError, match="the parts of a Segmenter are encoder and decoder"):
        segmenter(methods={"head": {}})
    with pytest.raises(RuntimeError, match="Unknown model"):
        Segmenter("no_such_vit", 2)


def test_learning_rates_by_layer():
    """timm's optimizer sees the encoder's own layers, the decoder on top, and no decay on embeddings."""
    model = segmenter()
    groups = create_optimizer_v2(model, opt="adamw", lr=1.0, weight_decay=0.1, layer_decay=0.5).param_groups
    found = {id(p): (group["lr_scale"], group["weight_decay"]) for group in groups for p in group["params"]}
    of = dict(model.named_parameters())
    assert found[id(of["decoder.cls_emb"])] == (1.0, 0.0)
    assert found[id(of["decoder.proj_patch"])] == (1.0, 0.1)
    assert found[id(of["encoder.blocks.3.attn.qkv.weight"])][0] == 0.5
    assert found[id(of["encoder.patch_embed.proj.weight"])][0] == 0.5**5
    assert found[id(of["encoder.pos_embed"])] == (0.5**5, 0.0)


def test_the_import_is_lazy():
    assert timm_neutreno.Segmenter is Segmenter
    assert "Segmenter" in timm_neutreno.__all__
    assert Segmenter("deit_tiny", 2).config()["encoder"] == "deit_tiny_patch16_224"
