"""A model in unusual use: an empty batch, inside its own forward, in many threads at once; and what is no model."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hosts import HOSTS, build, images, patched

import timm_neutreno
from timm_neutreno import METHODS

X = images()
REFUSED_BY_TIMM = (
    "eva02",
    "eva_clip_post_norm",
    "dinov3",
    "sapiens2_gqa",
    "beit",
    "sam",
    "deepseek",
    "qwen3",
    "gemma4",
)


def empty_works(model: torch.nn.Module) -> bool:
    try:
        model(X[:0])
    except RuntimeError:
        return False
    return True


@pytest.mark.parametrize("key", [key for key in HOSTS if key != "naflex"])
def test_an_empty_batch_works_where_timm_s_does(key):
    """In evaluation of the last shard, of a filter that left nothing."""
    model = build(key).eval()
    if not empty_works(model):
        assert key in REFUSED_BY_TIMM
        return
    shape = model(X[:0]).shape
    assert timm_neutreno.patch(model)(X[:0]).shape == shape


@pytest.mark.parametrize("method", METHODS)
def test_an_empty_batch_under_every_method(method):
    assert patched("vit", method).eval()(X[:0]).shape == (0, 5)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_model_inside_its_own_forward(checkpointing):
    """A hook that looks at other images, without gradients, while the model runs: both passes are as if alone."""
    model = patched("vit", "neutreno").train()
    model.set_grad_checkpointing(checkpointing)
    alone, other = model(X), model(X[:1] + 1).detach()
    alone.sum().backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    inner = []

    def look(*_: object) -> None:
        if not inner:
            inner.append(None)
            with torch.no_grad():
                inner[0] = model(X[:1] + 1)

    model.blocks[1].register_forward_hook(look)
    out = model(X)
    out.sum().backward()
    assert torch.equal(out, alone)
    assert torch.equal(inner[0], other)
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True))


def test_many_threads_at_once():
    """THREADED (environment) forwards, each of its own image, on one model: none gets another one's first values."""
    count = int(os.environ.get("THREADED", 400))
    model = patched("vit", "neutreno").eval()
    torch.manual_seed(0)
    inputs = torch.randn(16, 1, *X.shape[1:])
    with torch.inference_mode():
        expected = [model(x) for x in inputs]

        def forward(number: int) -> bool:
            with torch.inference_mode():
                return torch.equal(model(inputs[number % 16]), expected[number % 16])

        with ThreadPoolExecutor(8) as pool:
            right = list(pool.map(forward, range(count)))
    assert (len(right), sum(right)) == (count, count)


@pytest.mark.parametrize("model", ["vit", 3, None, torch.zeros(2), build])
@pytest.mark.parametrize(
    "function",
    ["patch", "unpatch", "is_patched", "strengths", "check_support", "set_fidelity"],
)
def test_what_is_no_model_is_said(function, model):
    arguments = (0.5,) if function == "set_fidelity" else ()
    with pytest.raises(TypeError, match=r"expected a model \(torch.nn.Module\), got "):
        getattr(timm_neutreno, function)(model, *arguments)
