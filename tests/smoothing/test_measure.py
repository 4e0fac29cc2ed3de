"""Measuring on a model: which tensors are measured, streaming, nothing changed, and wrong use."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from hosts import SMALL, build, images
from torch import nn

import timm_neutreno
from timm_neutreno.smoothing import METRICS, measure, token_similarity, watch

from .test_tokens import literal_cosine


def expected_similarity(model: nn.Module, batch: torch.Tensor, *, of: str, skip: int = 0) -> list[float]:
    """Hooks of its own, all tokens kept, the double loop."""
    seen = []
    for block in model.blocks:
        (block if of == "block" else block.attn).register_forward_hook(lambda *call: seen.append(call[2]))
    with torch.no_grad():
        model(batch)
    return [sum(literal_cosine(image[skip:]) for image in x) / len(x) for x in seen]


@pytest.mark.parametrize("of", ["block", "attention"])
@pytest.mark.parametrize(("tokens", "skip"), [("all", 0), ("patch", 3)])
@pytest.mark.parametrize("patched", [False, True])
def test_equals_the_double_loop(of, tokens, skip, patched):
    model = build("vit_norms")  # one class and two register tokens
    if patched:
        timm_neutreno.patch(model)
    expected = expected_similarity(copy.deepcopy(model), images(3), of=of, skip=skip)
    assert token_similarity(model, [images(3)], of=of, tokens=tokens) == pytest.approx(expected, abs=1e-6)


def test_identical_tokens_have_similarity_one():
    model = timm.create_model("vit_tiny_patch16_224", **SMALL, class_token=False, global_pool="avg", pos_embed="none")
    grey = torch.full((1, 3, 32, 32), 0.5)
    assert token_similarity(model, [grey]) == pytest.approx([1.0] * 4, abs=1e-6)


class Orthogonal(nn.Module):
    """A model whose blocks give 16 orthogonal tokens, of any length."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(16, 16, bias=False) for _ in range(2))
        for block in self.blocks:
            nn.init.orthogonal_(block.weight)

    def forward(self, x):
        x = torch.eye(16).expand(len(x), 16, 16) * torch.arange(1.0, 17)[:, None]
        for block in self.blocks:
            x = block(x)
        return x


def test_orthogonal_tokens_have_similarity_zero():
    assert token_similarity(Orthogonal(), [images(2)]) == pytest.approx([0.0, 0.0], abs=1e-6)


def test_the_stream_may_come_in_any_batches():
    model, x = build("vit"), images(5)
    targets = torch.zeros(5)
    whole = measure(model, [x])
    parts = measure(model, ((x[i : i + 2], targets[i : i + 2]) for i in (0, 2, 4)))
    assert (whole.images, parts.images) == (5, 5)
    for name in whole.values:
        assert parts.values[name] == pytest.approx(whole.values[name], abs=1e-6)
        assert parts.spread[name] == pytest.approx(whole.spread[name], abs=1e-6)


def test_spread_is_the_standard_deviation_over_images():
    model, x = build("vit"), images(4)
    single = torch.tensor([token_similarity(model, [image[None]]) for image in x])
    spread = measure(model, [x]).spread["block_similarity"]
    assert spread == pytest.approx(single.std(dim=0, correction=0).tolist(), abs=1e-6)


def test_memory_does_not_grow_with_the_images():
    model = build("vit")
    with watch(model, ["block_similarity"]) as seen:
        for _ in range(20):
            model(images(2))
    held = [tensor for total in seen._totals["block_similarity"] for tensor in total]
    assert [tensor.numel() for tensor in held] == [3, 3, 3, 3]
    assert not any(tensor.requires_grad for tensor in held)


def test_watch_in_a_training_loop_changes_nothing():
    plain, watched = build("vit").train(), build("vit").train()
    with watch(watched, list(METRICS)) as seen:
        watched(images()).sum().backward()
    plain(images()).sum().backward()
    for a, b in zip(plain.parameters(), watched.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)
    assert watched.training
    assert set(seen.result().values) == set(METRICS)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in watched.modules())


@pytest.mark.parametrize("patched", [False, True])
def test_recomputed_layers_of_a_checkpoint_do_not_change_the_means(patched):
    model = timm_neutreno.patch(build("vit")) if patched else build("vit")
    expected = measure(model, [images()], list(METRICS)).values
    model.train().set_grad_checkpointing()
    with watch(model, list(METRICS)) as seen:
        model(images()).sum().backward()
    for name, values in seen.result().values.items():
        assert values == pytest.approx(expected[name], rel=1e-5), name


def test_measure_runs_without_dropout_whatever_the_mode():
    model = build("vit", proj_drop_rate=0.5, drop_path_rate=0.5)
    expected = token_similarity(model.eval(), [images()])
    assert token_similarity(model.train(), [images()]) == expected


def test_mode_is_put_back_module_by_module_even_after_an_error():
    model = build("vit").train()
    model.blocks[1].eval()
    with pytest.raises(ValueError, match="no images"):
        token_similarity(model, [])
    assert model.training
    assert not model.blocks[1].training
    assert model.blocks[2].training


FAMILIES = {  # host -> metrics that its attention has no answer for
    "vit": (),
    "deit_distilled": (),
    "eva02": (),
    "beit": (),
    "rel_pos": (),
    "gemma4": (),
    "naflex": (),
    "cait": ("functional_exp", "gradient_cosine"),
    "diff": ("functional_exp", "gradient_cosine"),
    "sam": ("map_cosine",),
}


@pytest.mark.parametrize("patched", [False, True])
@pytest.mark.parametrize("host", FAMILIES)
def test_other_families(host, patched):
    model = timm_neutreno.patch(build(host)) if patched else build(host)
    metrics = [name for name in METRICS if name not in FAMILIES[host]]
    for name, values in measure(model, [images()], metrics).values.items():
        assert len(values) == (3 if name == "map_cosine" else 4), name
    for name in FAMILIES[host]:
        with pytest.raises(ValueError, match="Leave"):
            measure(model, [images()], [name])


def test_the_class_token_of_cait_is_not_among_its_blocks_tokens():
    values = measure(build("cait"), [images()]).values
    assert values["block_similarity"] == values["block_similarity_patch"]


def test_progress_counts_images():
    counts = []
    measure(build("vit"), [images(2), images(1)], progress=counts.append)
    assert counts == [2, 3]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes(dtype):
    expected = token_similarity(build("vit"), [images()])
    assert token_similarity(build("vit").to(dtype), [images()]) == pytest.approx(expected, abs=0.03)


def test_autocast_is_the_models_not_the_measurements():
    model = build("vit")
    expected = token_similarity(model, [images()])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = token_similarity(model, [images()])
    assert values == pytest.approx(expected, abs=0.03)
    assert values != expected


def test_a_compiled_model_is_measured_eagerly():
    model = build("vit")
    assert token_similarity(torch.compile(model), [images()]) == token_similarity(model, [images()])


def one_token_model() -> nn.Module:
    return timm.create_model(
        "vit_tiny_patch16_224", **{**SMALL, "patch_size": 32}, class_token=False, global_pool="avg"
    )


def broken_model() -> nn.Module:
    model = build("vit")
    with torch.no_grad():
        model.blocks[2].mlp.fc1.weight[0, 0] = float("nan")
    return model


def overflowing_model() -> nn.Module:
    model = build("vit").half()
    with torch.no_grad():
        model.blocks[1].mlp.fc2.weight.mul_(6e4)
    return model


WRONG = {
    "no images": (lambda: build("vit"), [], {}, "no images were measured"),
    "one image without a batch": (lambda: build("vit"), [images()[0]], {}, r"give \[image\[None\]\]"),
    "not images": (lambda: build("vit"), ["photo.jpg"], {}, "got a str"),
    "one token": (one_token_model, [images()], {}, "needs at least two"),
    "NaN": (broken_model, [images()], {}, "of blocks.2 is nan: its activations contain NaN"),
    "half precision overflow": (overflowing_model, [images()], {}, "of blocks.1 is nan.*In float16 .* overflow"),
    "no blocks": (lambda: timm.create_model("resnet18"), [images()], {}, "cannot measure .*ResNet: it has no list"),
    "convolutions": (lambda: timm.create_model("efficientnet_b0"), [images()], {}, "not tokens"),
    "hierarchical": (lambda: timm.create_model("swin_tiny_patch4_window7_224"), [], {}, "4 groups of blocks"),
    "no attention": (lambda: timm.create_model("mixer_s32_224"), [], {"of": "attention"}, "no attention module"),
    "inline attention": (lambda: build("parallel_scaling"), [], {"of": "attention"}, "come out as one sum"),
    "two attentions": (lambda: build("parallel_things"), [], {"of": "attention"}, "2 attentions side by side"),
    "unknown place": (lambda: build("vit"), [images()], {"of": "head"}, "of must be 'block' or 'attention'"),
    "unknown tokens": (lambda: build("vit"), [images()], {"tokens": "cls"}, "tokens must be 'all' or 'patch'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_use(case):
    make, batches, kwargs, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        token_similarity(make(), batches, **kwargs)


def test_one_image_is_enough():
    result = measure(build("vit"), [images(1)], ["block_similarity"])
    assert result.images == 1
    assert result.spread["block_similarity"] == [0.0] * 4


def test_unknown_metric_names_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown metric\(s\): smooth. Choose from: block_similarity"):
        measure(build("vit"), [images()], ["smooth"])
