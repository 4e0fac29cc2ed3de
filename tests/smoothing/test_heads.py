"""Measures of attention against loops over positions in float64, on q, k, v of the test's own making."""

from __future__ import annotations

import itertools
import math

import hosts
import pytest
import timm
import torch
from hosts import HOSTS, build, images
from reference import explicit_map
from torch import Tensor

import timm_neutreno
from timm_neutreno.projections import ATTENTIONS
from timm_neutreno.smoothing import attention_maps, measure, plot_attention_maps
from timm_neutreno.smoothing.heads import Call, nonlocal_functional
from timm_neutreno.smoothing.layers import find_blocks

H, D = 3, 16  # of the "vit" host


def qkv_of(model, batch: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """q, k, v of every layer of a plain ViT, (B, H, N, D) in float64, by hooks on its qkv projections."""
    seen: list[Tensor] = []
    hooks = [block.attn.qkv.register_forward_hook(lambda *call: seen.append(call[2])) for block in model.blocks]
    with torch.no_grad():
        model(batch)
    for hook in hooks:
        hook.remove()
    return [tuple(x.double().unflatten(2, (3, H, D)).permute(2, 0, 3, 1, 4)) for x in seen]  # type: ignore[misc]


def softmax_row(scores: list[float]) -> list[float]:
    exponentials = [math.exp(s) for s in scores]
    return [e / sum(exponentials) for e in exponentials]


def literal_map(q: Tensor, k: Tensor) -> list[list[float]]:
    """(N, D), (N, D) -> N rows."""
    return [softmax_row([float(a @ b) / math.sqrt(D) for b in k]) for a in q]


def literal_functional(v: Tensor, weight) -> float:
    n = len(v)
    return sum(weight(i, j) * float((v[i] - v[j]).square().sum()) for i in range(n) for j in range(n)) / 2


def literal_gradient(v: Tensor, a: Tensor, b: Tensor) -> list[Tensor]:
    """g_i = sum_j (v_i - v_j) exp(a_i . b_j / sqrt(D))."""
    n = len(v)
    return [sum((v[i] - v[j]) * math.exp(float(a[i] @ b[j]) / math.sqrt(D)) for j in range(n)) for i in range(n)]


def mean_over_images_and_heads(layer, measure_one) -> float:
    q, k, v = layer
    values = [measure_one(q[b, h], k[b, h], v[b, h]) for b in range(len(q)) for h in range(H)]
    return sum(values) / len(values)


def softmax_functional(q, k, v):
    A = literal_map(q, k)
    return literal_functional(v, lambda i, j: A[i][j])


def exp_functional(q, k, v):
    return literal_functional(v, lambda i, j: math.exp(float(q[i] @ k[j]) / math.sqrt(D)))


def gradient_cosine(q, k, v):
    pairs = zip(literal_gradient(v, k, k), literal_gradient(v, q, k), strict=True)
    cosines = [float(a @ b) / float(a.norm() * b.norm()) for a, b in pairs]
    return sum(cosines) / len(cosines)


@pytest.mark.parametrize(
    ("metric", "literal"),
    [
        ("functional_softmax", softmax_functional),
        ("functional_exp", exp_functional),
        ("gradient_cosine", gradient_cosine),
    ],
)
def test_equals_the_literal_formula(metric, literal):
    model = build("vit")
    expected = [mean_over_images_and_heads(layer, literal) for layer in qkv_of(model, images())]
    assert measure(model, [images()], [metric]).values[metric] == pytest.approx(expected, rel=1e-5)


def test_maps_are_the_softmax_of_the_scores_and_rows_sum_to_one():
    model = build("vit")
    maps = attention_maps(model, images())
    for (q, k, _), A in zip(qkv_of(model, images()), maps, strict=True):
        assert A[1, 2].tolist() == [pytest.approx(row, abs=1e-6) for row in literal_map(q[1, 2], k[1, 2])]
        assert torch.allclose(A.sum(dim=-1), torch.ones(()))


def cosine(a: list[list[float]], b: list[list[float]]) -> float:
    x, y = torch.tensor(a).double().flatten(), torch.tensor(b).double().flatten()
    return float(x @ y) / math.sqrt(float(x @ x) * float(y @ y))


def test_map_cosine_compares_successive_layers_head_by_head():
    model = build("vit")
    layers = [
        [[literal_map(q[b, h], k[b, h]) for h in range(H)] for b in range(2)] for q, k, _ in qkv_of(model, images())
    ]
    expected = [
        sum(cosine(first[b][h], second[b][h]) for b in range(2) for h in range(H)) / (2 * H)
        for first, second in itertools.pairwise(layers)
    ]
    values = measure(model, [images()], ["map_cosine"]).values["map_cosine"]
    assert values == pytest.approx(expected, abs=1e-6)


def test_head_similarity_compares_the_heads_of_a_layer():
    model = build("vit")
    expected = []
    for q, k, _ in qkv_of(model, images(1)):
        maps = [literal_map(q[0, h], k[0, h]) for h in range(H)]
        expected.append(sum(cosine(maps[a], maps[b]) for a in range(H) for b in range(H) if a != b) / (H * (H - 1)))
    assert measure(model, [images(1)], ["head_similarity"]).values["head_similarity"] == pytest.approx(
        expected, abs=1e-6
    )


def test_the_functional_of_equal_values_is_zero_and_of_two_groups_is_known():
    weights = torch.rand(1, 1, 4, 4, dtype=torch.float64)
    equal = torch.full((1, 1, 4, 3), 1e6, dtype=torch.float64)
    assert nonlocal_functional(equal, weights).item() == 0
    groups = torch.tensor([0.0, 0.0, 1.0, 1.0], dtype=torch.float64).view(1, 1, 4, 1)
    between = weights[0, 0, :2, 2:].sum() + weights[0, 0, 2:, :2].sum()  # every pair at distance one, half of the sum
    assert nonlocal_functional(groups, weights).item() == pytest.approx(between.item() / 2)


def test_tied_queries_and_keys_make_the_gradients_equal():
    """Table 4's symmetric row: with W_Q = W_K the cosine is 1 by definition."""
    model = build("vit")
    with torch.no_grad():
        for block in model.blocks:
            for tensor in (block.attn.qkv.weight, block.attn.qkv.bias):
                tensor[:48] = tensor[48:96]
    values = measure(model, [images()], ["gradient_cosine"]).values["gradient_cosine"]
    assert values == pytest.approx([1.0] * 4, abs=1e-9)


HEADS = ["functional_softmax", "functional_exp", "gradient_cosine", "head_similarity", "map_cosine"]


def test_numbers_do_not_depend_on_the_path_that_ran():
    """To rounding of the residual stream, which the path changes; the maps of layer 0 have the same input exactly."""
    fused, unfused = build("vit"), build("vit")
    for block in unfused.blocks:
        block.attn.fused_attn = False
    assert fused.blocks[0].attn.fused_attn
    a, b = (measure(model, [images()], HEADS).values for model in (fused, unfused))
    for name in HEADS:
        assert a[name] == pytest.approx(b[name], rel=1e-5)
    assert a["functional_softmax"][0] == b["functional_softmax"][0]


def test_attention_dropout_of_a_training_loop_is_not_in_the_map():
    model = build("vit", attn_drop_rate=0.5).train()
    maps = attention_maps(model, images())
    with timm_neutreno.smoothing.watch(model, ["functional_softmax"]) as seen:
        model(images())
    first = seen.result().values["functional_softmax"][0]
    assert first == measure(model.eval(), [images()], ["functional_softmax"]).values["functional_softmax"][0]
    assert torch.allclose(maps[0].sum(dim=-1), torch.ones(()))


@pytest.mark.parametrize("host", [name for name in HOSTS if name not in ("parallel_things",)])
def test_the_map_times_the_values_is_what_the_class_computes(host):
    """The map of every class, against the class's own output: a hook on `attend` of the recipe sees u."""
    model = build(host)
    calls: list = []
    blocks = find_blocks(model).blocks
    for block in blocks:
        module = block if type(block) in ATTENTIONS else block.attn
        module.register_forward_pre_hook(lambda *call: calls.append(call), with_kwargs=True)
    with torch.no_grad():
        model(images())
        for module, args, kwargs in calls:
            recipe = ATTENTIONS[type(module)]
            u = recipe.attend(module, recipe.project(module, *args, **kwargs))
            call = Call(module, args, kwargs)
            error = (call.weights @ call.v - u).abs().max() / u.abs().max()
            assert error < 1e-5, error
    assert len(calls) == len(blocks)


def test_autocast_does_not_reach_into_the_map():
    model = build("vit")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        maps = attention_maps(model, images())
    assert torch.allclose(maps[0].sum(dim=-1), torch.ones(()), atol=1e-6)


def test_maps_are_plotted(tmp_path):
    maps = attention_maps(build("vit"), images(1))
    plot_attention_maps(maps, tmp_path / "maps.svg")
    text = (tmp_path / "maps.svg").read_text()
    for title in ("layer 1, head 1", "layer 2, head 3", "layer 4, head 3"):
        assert f">{title}<" in text
    with pytest.raises(ValueError, match=r"cannot plot layers \[7\] of image 0: there are 4 layers"):
        plot_attention_maps(maps, tmp_path / "maps.svg", layers=[7])


def test_unknown_attention_and_single_heads_are_said():
    with pytest.raises(ValueError, match=r"cannot look into timm\.models\.convit\.GPSA"):
        measure(timm.create_model("convit_tiny"), [images(1, 224)], ["functional_softmax"])
    with pytest.raises(ValueError, match="at least two heads"):
        measure(build("vit", num_heads=1), [images()], ["head_similarity"])


@pytest.mark.parametrize("spec", [*hosts.SINGLE, *hosts.COMPOSED])
def test_maps_of_a_patched_model_are_those_that_its_methods_make(spec):
    """symmetric and kernel change the scores, attnscale, gfsa, twicing and laplacian the map; the rest leaves it."""
    model = hosts.patched("vit", spec)
    attn, tokens = model.blocks[0].attn, model.blocks[0].norm1(model._pos_embed(model.patch_embed(images())))
    q, k, _ = attn.qkv(tokens).double().reshape(2, 17, 3, 3, 16).permute(2, 0, 3, 1, 4)
    strengths = {
        name.rpartition(".")[2]: w for name, w in timm_neutreno.strengths(model).items() if "blocks.0." in name
    }
    w = {name: v.detach().double().view(-1, 1, 1) if isinstance(v, Tensor) else v for name, v in strengths.items()}
    expected = explicit_map(tuple(spec.split("+")), w, q, k, 0.25, None)
    assert torch.allclose(attention_maps(model, images())[0].double(), expected, atol=1e-6)
    measured = measure(model, [images()], HEADS)
    assert all(len(values) >= 3 for values in measured.values.values())
