"""The GELU runs in place only where that cannot be seen, and gives the same bits."""

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import Mlp
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

import timm_neutreno
from timm_neutreno.mlp import forward_in_place, is_unwatched

X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
MODELS = {
    "gelu": ("vit_tiny_patch16_224", {}),
    "tanh": ("vit_tiny_patch16_224", {"act_layer": "gelu_tanh"}),
    "quick": ("vit_tiny_patch16_224", {"act_layer": "quick_gelu"}),
    "swiglu": ("vit_tiny_patch16_224", {"mlp_layer": "swiglupacked"}),
    "norm in the MLP": ("eva02_tiny_patch14_224", {"scale_mlp": True, "swiglu_mlp": False, "patch_size": 16}),
    "eva": ("eva02_tiny_patch14_224", {"swiglu_mlp": False, "patch_size": 16}),
    "class attention": ("cait_xxs24_224", {"patch_size": 16}),
    "parallel": ("vit_tiny_patch16_224", {"block_fn": "parallel_things"}),
}


def create(name="gelu", **more) -> nn.Module:
    torch.manual_seed(0)
    base, kwargs = MODELS[name]
    if "mlp_layer" in kwargs:
        kwargs = {"mlp_layer": timm.layers.SwiGLUPacked}
    if "block_fn" in kwargs:
        kwargs = {"block_fn": timm.models.vision_transformer.ParallelThingsBlock}
    return timm_neutreno.patch(timm.create_model(base, img_size=32, num_classes=5, **kwargs, **more)).eval()


def calls(model) -> int:
    """How many MLPs of a forward pass without gradients would run in place."""
    with torch.no_grad():
        return sum(is_unwatched(getattr(block, "mlp", None)) for block in model.blocks)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_bits(name, dtype):
    model = create(name).to(dtype)
    expected = model(X.to(dtype)).detach()  # with gradients: never in place
    with torch.no_grad():
        assert torch.equal(model(X.to(dtype)), expected)
    with torch.inference_mode():
        assert torch.equal(model(X.to(dtype)), expected)
    in_place = name in ("gelu", "tanh", "eva", "class attention")
    assert calls(model) == (len(model.blocks) if in_place else 0)


def test_autocast_and_compile_give_the_same_bits():
    model = create()
    with torch.autocast("cpu", torch.bfloat16):
        expected = model(X).detach()
        with torch.no_grad():
            assert torch.equal(model(X), expected)
    with torch.no_grad():
        eager, compiled = model(X), torch.compile(model, fullgraph=True)(X)
    assert torch.allclose(eager, compiled, atol=1e-5)


def watch_fc1(mlp, seen):
    return mlp.fc1.register_forward_hook(lambda module, inputs, output: seen.append(output))


def watch_act(mlp, seen):
    return mlp.act.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))


def watch_everything(mlp, seen):
    return register_module_forward_hook(lambda module, inputs, out: seen.append(out) if module is mlp.fc1 else None)


def replace_forward(mlp, seen):
    def forward(x):
        seen.append(F.linear(x, mlp.fc1.weight, mlp.fc1.bias))
        return seen[-1]

    mlp.fc1.forward = forward


@pytest.mark.parametrize("watch", [watch_fc1, watch_act, watch_everything, replace_forward])
def test_whoever_watches_sees_the_input_of_the_activation(watch):
    model, seen, inputs = create(), [], []
    mlp = model.blocks[1].mlp
    model.blocks[1].norm2.register_forward_hook(lambda module, args, output: inputs.append(output))
    handle = watch(mlp, seen)
    try:
        with torch.no_grad():
            model(X)
            assert torch.equal(seen[0], F.linear(inputs[0], mlp.fc1.weight, mlp.fc1.bias))
    finally:
        if handle is not None:
            handle.remove()


def test_hooks_of_the_mlp_run():
    model, seen = create(), []
    model.blocks[1].mlp.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        model(X)
    assert len(seen) == 1
    assert calls(model) == len(model.blocks) - 1


def test_dropout_without_gradients_drops():
    """Monte Carlo dropout: train() under no_grad."""
    model = create(proj_drop_rate=0.5)
    assert calls(model) == len(model.blocks)
    model.train()
    assert calls(model) == 0
    with torch.no_grad():
        assert not torch.equal(model(X), model(X))


def test_a_part_that_is_not_timms_is_left_alone():
    model = create()
    mlp = model.blocks[0].mlp
    mlp.extra = nn.Linear(2, 2)
    model.blocks[1].mlp.fc1 = nn.Sequential(model.blocks[1].mlp.fc1)
    model.blocks[2].mlp = nn.Sequential(model.blocks[2].mlp)
    model.blocks[3].mlp.act.compile(backend="eager")
    assert type(mlp) is Mlp
    assert calls(model) == len(model.blocks) - 4


@pytest.mark.filterwarnings("ignore")  # torch's own, about tracing
def test_a_trace_has_timms_operations():
    with torch.no_grad():
        traced = torch.jit.trace(create(), X)
    assert "aten::gelu(" in str(traced.inlined_graph)
    assert "aten::gelu_(" not in str(traced.inlined_graph)


def test_another_kind_of_tensor_takes_the_usual_way():
    """A quantized or distributed layer may give a tensor of another class, which need not know the operation."""

    class Other(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            if function is torch._C._nn.gelu_:
                raise NotImplementedError("this class has no gelu_, as DTensor has none")
            return super().__torch_function__(function, types, args, kwargs)

    mlp = create().blocks[0].mlp
    with torch.no_grad():
        x = torch.randn(2, 4, 192).as_subclass(Other)
        assert torch.equal(forward_in_place(mlp, x), mlp(x))


@pytest.mark.filterwarnings("error:There is a performance drop.*gelu_")
def test_vmap():
    model = create()
    with torch.no_grad():
        assert torch.allclose(torch.func.vmap(lambda x: model(x[None])[0])(X), model(X), atol=1e-6)
