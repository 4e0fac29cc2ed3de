"""The Triton kernels and their switch. Triton's interpreter runs the kernels on the CPU, in float64's sight.

TRITON_INTERPRET must be set before triton is imported, and triton is imported by other tests (inductor), so every test
of a kernel is a function below that a process of its own runs: `python test_fused_attention.py NAME`.
"""

import importlib.util
import itertools
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

import timm_neutreno
from timm_neutreno import fused

HERE = Path(__file__)
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="Triton is not installed: it comes with torch's CUDA builds for Linux only",
)


def plain(q, k, v, v0, fidelity, scale=None):
    """The formula with an explicit softmax matrix."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    fidelity = fidelity.view(-1, 1, 1) if isinstance(fidelity, torch.Tensor) else fidelity
    return (q @ k.transpose(-2, -1) * scale).softmax(-1) @ v + fidelity * (v0 - v)


def inputs(B, H, N, D, dtype, seed=0):
    """q, k, v as views of one tensor, as qkv's are; v0 and the output's gradient as tensors of their own."""
    generator = torch.Generator().manual_seed(seed)
    qkv = torch.randn(B, N, 3, H, D, generator=generator).to(dtype)
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    v0, g = (torch.randn(B, H, N, D, generator=generator).to(dtype) for _ in range(2))
    return [q, k, v, v0], g


def worst(got, want):
    return ((got.double() - want).abs().max() / want.abs().max()).item()


# --- in a process with the interpreter ------------------------------------------------------------------------------


def kernels_equal_float64():
    from timm_neutreno.triton_attention import neutreno_attention

    bounds = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
    shapes = [(1, 1, 1, 32), (2, 3, 17, 32), (1, 2, 65, 64), (1, 2, 131, 72), (1, 1, 64, 80), (1, 2, 97, 96)]
    cases = [*itertools.product([*shapes, (1, 1, 70, 128)], [torch.float32]), ((2, 3, 70, 64), torch.float16)]
    for (B, H, N, D), dtype in [*cases, ((2, 2, 70, 72), torch.bfloat16)]:
        for size in (1, H):
            tensors, g = inputs(B, H, N, D, dtype)
            leaves = [x.detach().requires_grad_() for x in (*tensors, torch.linspace(0.4, 0.9, size))]
            exact = [x.detach().double().requires_grad_() for x in leaves]
            o, want = neutreno_attention(*leaves), plain(*exact)
            assert o.dtype == dtype
            assert o.transpose(1, 2).is_contiguous()  # heads merge without a copy
            assert worst(o, want) < bounds[dtype], (B, H, N, D, dtype)
            grads = torch.autograd.grad(o, leaves, g)
            wanted = torch.autograd.grad(want, exact, g.double())
            for name, got, w in zip(("q", "k", "v", "v0", "fidelity"), grads, wanted, strict=True):
                if N > 1 or name not in "qk":  # of a single token, they are zero
                    assert worst(got, w) < bounds[dtype], (name, B, H, N, D, dtype)


def numbers_scales_and_large_scores():
    from timm_neutreno.triton_attention import neutreno_attention

    tensors, _ = inputs(1, 2, 40, 32, torch.float32)
    exact = [x.double() for x in tensors]
    for fidelity, scale in ((0.0, None), (0.6, None), (-1.5, 1.0), (0.6, 30.0)):
        assert worst(neutreno_attention(*tensors, fidelity, scale), plain(*exact, fidelity, scale)) < 1e-5
    wrong = plain(exact[0], exact[1], exact[2], exact[2], 0.6)  # v0 ignored: the comparison would see it
    assert worst(neutreno_attention(*tensors, 0.6), wrong) > 1e-2


def operator_keeps_torchs_rules():
    from timm_neutreno.triton_attention import _attention, _attention_backward

    tensors, g = inputs(1, 2, 5, 32, torch.float32)
    leaves = [x.detach().requires_grad_() for x in (*tensors, torch.tensor([0.4, 0.6]))]
    torch.library.opcheck(_attention, (*leaves, 0.2))
    o, lse = _attention(*(x.detach() for x in leaves), 0.2)
    torch.library.opcheck(_attention_backward, (g, *(x.detach() for x in leaves), o, lse, 0.2))
    for bad in ([leaves[0][:, :, :3], *leaves[1:]], [*leaves[:3], leaves[3].double(), leaves[4]], [*leaves[:4], g]):
        with pytest.raises(ValueError, match="must"):
            _attention(*bad, 0.2)


def patched_model_takes_the_kernels():
    from hosts import build, images

    from timm_neutreno import triton_attention as kernels

    calls = []
    original = kernels.neutreno_attention
    kernels.neutreno_attention = lambda *args: calls.append(1) or original(*args)

    def outcome(model, x, **kwargs):
        model.zero_grad()
        logits = model.forward_features(x, **kwargs)
        logits.square().sum().backward()
        return [logits, *(p.grad.clone() for p in model.parameters() if p.grad is not None)]

    def compare(model, expected_calls, x, bound=1e-4, **kwargs):
        fused.use_fused_attention(False)
        want = outcome(model, x, **kwargs)
        fused.use_fused_attention(True)
        calls.clear()
        got = outcome(model, x, **kwargs)
        assert len(calls) == expected_calls, (calls, expected_calls)
        assert len(got) == len(want)
        largest = max(w.abs().max() for w in want[1:])
        for a, b in zip(got, want, strict=True):
            assert (a - b).abs().max() <= bound * b.abs().max() + 1e-2 * bound * largest  # a key bias: zero, rounded

    x = images()
    for key in ("vit", "vit_norms", "rope", "eva02"):
        for learnable in (None, "layer", "head"):
            model = timm_neutreno.patch(build(key), fidelity=0.6, learnable_fidelity=learnable)
            compare(model, 3, x)  # four layers, the first has no term
    model = timm_neutreno.patch(build("vit"), fidelity=0.6)
    model.set_grad_checkpointing()
    compare(model, 6, x)  # and once more in the backward pass
    compare(timm_neutreno.patch(build("vit", depth=2).double()), 0, x.double())
    compare(timm_neutreno.patch(build("vit", depth=2)), 0, x, attn_mask=torch.randn(17, 17))
    compare(timm_neutreno.patch(build("vit", depth=2)), 0, x, is_causal=True)
    for key in ("diff", "cait", "gemma4"):
        compare(timm_neutreno.patch(build(key, depth=2)), 0, x)
    dropping = timm_neutreno.patch(build("vit", depth=2, attn_drop_rate=0.1))
    compare(dropping, 1, x)
    calls.clear()
    outcome(dropping.train(), x)
    assert not calls
    with torch.autocast("cpu", torch.bfloat16):
        compare(timm_neutreno.patch(build("vit", depth=2, qk_norm=True)), 1, x, bound=5e-2)
    compiled = timm_neutreno.patch(build("vit", depth=2))
    fused.use_fused_attention(False)
    want = outcome(compiled, x)
    fused.use_fused_attention(True)
    calls.clear()
    program = torch.export.export(compiled, (x,))  # a program must run where Triton is not
    assert not [node for node in program.graph.nodes if "timm_neutreno" in str(node.target)]
    kernels.neutreno_attention = original
    logits = torch.compile(compiled.forward_features, backend="aot_eager", fullgraph=True)(x)
    assert torch.allclose(logits, want[0], atol=1e-4)


# --- the tests ------------------------------------------------------------------------------------------------------


@needs_triton
@pytest.mark.parametrize(
    "function",
    [
        kernels_equal_float64,
        numbers_scales_and_large_scores,
        operator_keeps_torchs_rules,
        patched_model_takes_the_kernels,
    ],
)
def test_interpreted(function):
    env = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, str(HERE), function.__name__], capture_output=True, text=True, env=env)
    if "triton/runtime/interpreter.py" in done.stderr and "only 0-dimensional arrays can be converted" in done.stderr:
        pytest.skip(f"the interpreter of Triton {version('triton')} does not work with numpy {version('numpy')}")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_switch_is_off_by_default_and_asks_for_triton(monkeypatch):
    assert not fused.is_enabled()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match="needs Triton"):
        timm_neutreno.use_fused_attention(True)
    assert not fused.is_enabled()
    timm_neutreno.use_fused_attention(False)


@needs_triton
def test_on_a_cpu_without_the_interpreter_the_switch_changes_nothing(monkeypatch):
    from hosts import build, images

    model = timm_neutreno.patch(build("vit"))
    expected = model(images())
    monkeypatch.setattr(fused, "_enabled", True)
    assert torch.equal(model(images()), expected)


if __name__ == "__main__":
    globals()[sys.argv[1]]()
