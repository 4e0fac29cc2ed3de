"""The sum that `proj` would save is made anew: to the same bits, where it saves memory, never from changed tensors.

An outer pair of hooks that changes nothing makes the package step back, which gives the gradients to compare with.
"""

import gc
import weakref
from contextlib import nullcontext

import pytest
import timm
import torch
import torch.nn.functional as F
from torch.autograd.graph import disable_saved_tensors_hooks, save_on_cpu, saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

import timm_neutreno
from timm_neutreno.attention import add_fidelity_term
from timm_neutreno.recomputation import is_kept, recomputed

X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
MODELS = {
    "vit": ("vit_tiny_patch16_224", {}),
    "dropout": ("vit_tiny_patch16_224", {"attn_drop_rate": 0.2, "proj_drop_rate": 0.2, "drop_path_rate": 0.1}),
    "norm and gate": ("vit_tiny_patch16_224", {"scale_attn_norm": True}),
    "eva": ("eva02_tiny_patch14_224", {"patch_size": 16}),
    "beit": ("beit_base_patch16_224", {"embed_dim": 96, "num_heads": 3, "depth": 4}),
    "cait": ("cait_xxs24_224", {"patch_size": 16}),
}


def create(name="vit", learnable=None, fused=True):
    torch.manual_seed(0)
    base, kwargs = MODELS[name]
    model = timm.create_model(base, img_size=32, num_classes=5, **kwargs)
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = fused
    return timm_neutreno.patch(model, learnable_fidelity=learnable).train()


def same(x):
    return x


def untouched():
    return saved_tensors_hooks(same, same)


def gradients(model, context, dtype=None, times=1):
    torch.manual_seed(1)
    model.zero_grad()
    with context(), torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
        loss = model(X).float().square().sum()
    for left in range(times)[::-1]:
        loss.backward(retain_graph=left > 0)
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("learnable", [None, "head"])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_the_same_bits(name, learnable, dtype):
    model = create(name, learnable)
    ours, theirs = (gradients(model, context, dtype) for context in (nullcontext, untouched))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert len(ours) == len(list(model.parameters()))


def test_a_graph_can_be_used_twice():
    model = create()
    once, twice = gradients(model, nullcontext), gradients(model, nullcontext, times=2)
    assert all(torch.allclose(2 * a, b, rtol=1e-4, atol=1e-6) for a, b in zip(once, twice, strict=True))


def parts():
    """q, v and v0, (B, N, H, D) as projections lay them out, and a weight; double, to check derivatives."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 5, 3, 4)] * 3 + [(12, 12)]
    return [torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes]


def projected(q, v, v0, weight, fidelity=0.6):
    """What neutreno_attention does after its projections; also the attention output u and the sum."""
    q, v, v0 = (x.transpose(1, 2) for x in (q, v, v0))
    u = F.scaled_dot_product_attention(q, q, v)
    total = add_fidelity_term(u, v, v0, fidelity)
    with recomputed(total, add_fidelity_term, u, v, v0, fidelity):
        return F.linear(total.transpose(1, 2).reshape(2, 5, 12), weight), u, total


def saved_input(y):
    """What F.linear's node keeps of its input."""
    node = y.grad_fn
    while not hasattr(node, "_saved_self"):
        node = node.next_functions[0][0]
    return node._saved_self


def is_saved(y, total) -> bool:
    kept = saved_input(y)
    assert torch.equal(kept.reshape(2, 5, 12), total.transpose(1, 2).reshape(2, 5, 12))
    return kept.untyped_storage().data_ptr() == total.untyped_storage().data_ptr()


def test_the_sum_is_not_saved():
    y, u, total = projected(*parts())
    assert [is_kept(x) for x in (u, total, parts()[0])] == [True, False, False]
    assert not is_saved(y, total)


def test_a_part_of_the_sum_is_made_anew_too():
    u, v, v0 = (x.transpose(1, 2) for x in parts()[:3])
    total = add_fidelity_term(u, v, v0, 0.6)
    with recomputed(total, add_fidelity_term, u, v, v0, 0.6):
        y = total[:, 1:, :, 2:].square()
    kept = y.grad_fn._saved_self
    assert torch.equal(kept, total[:, 1:, :, 2:])
    assert kept.untyped_storage().data_ptr() != total.untyped_storage().data_ptr()


@pytest.mark.parametrize("context", [untouched, save_on_cpu])
def test_other_hooks_decide(context):
    """Under hooks of somebody else, such as offloading, holding u, v and v0 would undo what they are for."""
    with context():
        y, _, total = projected(*parts())
    assert is_saved(y, total)
    y.sum().backward()


def test_a_checkpointed_region_keeps_nothing():
    inputs, held = parts(), []

    def region(*x):
        y, u, total = projected(*x)
        held.extend(weakref.ref(x.untyped_storage()) for x in (u, total))
        return y

    y = checkpoint(region, *inputs, use_reentrant=False)
    gc.collect()
    assert [ref() for ref in held] == [None, None]
    y.sum().backward()
    ours = [x.grad for x in inputs]
    again = parts()
    projected(*again)[0].sum().backward()
    assert all(torch.equal(a, x.grad) for a, x in zip(ours, again, strict=True))


def test_torch_func_steps_back():
    inputs = parts()
    gradient = torch.func.grad(lambda *x: projected(*x)[0].sum(), argnums=(0, 1, 2, 3))(*inputs)
    projected(*inputs)[0].sum().backward()
    assert all(torch.allclose(a, x.grad) for a, x in zip(gradient, inputs, strict=True))


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_vmap_steps_back():
    inputs = parts()
    twice = [torch.stack((x, x)) for x in inputs]
    torch.func.vmap(lambda *x: projected(*x)[0])(*twice).sum().backward()
    ours = [x.grad.clone() for x in inputs]
    again = parts()
    projected(*again)[0].sum().backward()
    assert all(torch.allclose(a, 2 * x.grad) for a, x in zip(ours, again, strict=True))


def test_where_hooks_are_forbidden():
    with disable_saved_tensors_hooks("no hooks here"):
        y, _, total = projected(*parts())
    assert is_saved(y, total)


def test_second_derivatives():
    """Through the recomputed sum too: here u is an input, since fused SDPA has no second derivative."""
    q, v, v0, weight = parts()

    def function(u, v, v0, weight):
        u, v, v0 = (x.transpose(1, 2) for x in (u, v, v0))
        total = add_fidelity_term(u, v, v0, 0.6)
        with recomputed(total, add_fidelity_term, u, v, v0, 0.6):
            return F.linear(total.transpose(1, 2).reshape(2, 5, 12), weight).tanh()

    assert torch.autograd.gradgradcheck(function, (q, v, v0, weight))


@pytest.mark.parametrize("index", range(4), ids=["u", "v", "v0", "weight"])
def test_a_tensor_changed_before_the_backward_pass_is_refused(index):
    """As autograd itself refuses; where hooks are set, it does not look."""
    q, v, v0, weight = parts()
    y, u, _ = projected(q, v, v0, weight)
    with torch.no_grad():
        (u, v, v0, weight)[index].mul_(2)
    with pytest.raises(RuntimeError, match="changed in place after the forward pass"):
        y.sum().backward()


def test_an_optimizer_step_before_the_backward_pass_is_refused():
    model = create(learnable="layer")
    loss = model(X).square().sum()
    with torch.no_grad():
        model.blocks[3].attn.proj.weight.mul_(2)  # nothing else saves it
    with pytest.raises(RuntimeError, match="changed in place after the forward pass"):
        loss.backward()
    fidelity = torch.full((3,), 0.5, dtype=torch.float64, requires_grad=True)
    y, _, _ = projected(*parts(), fidelity)
    with torch.no_grad():
        fidelity.mul_(2)
    with pytest.raises(RuntimeError, match="changed in place after the forward pass"):
        y.sum().backward()


@pytest.mark.parametrize("backward", [True, False])
def test_nothing_stays_alive(backward):
    model, held = create(), []
    for block in model.blocks:
        block.attn.qkv.register_forward_hook(
            lambda module, inputs, qkv: held.append(weakref.ref(qkv.untyped_storage()))
        )
    loss = model(X).square().sum()
    if backward:
        loss.backward()
    else:
        del loss
    assert [ref() for ref in held] == [None] * 12
