"""Contract 3: torch.compile, torch.export, ONNX, tracing; scripting is refused."""

import pytest
import torch
from hosts import COMPOSED, HOSTS, SINGLE, build, images, is_refused, patched
from timm.models._features_fx import get_notrace_functions, get_notrace_modules
from torch._dynamo.testing import CompileCounterWithBackend
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

import timm_neutreno

X = images()


def make(key="vit", **kwargs):
    return timm_neutreno.patch(build(key), fidelity=0.6, **kwargs)


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def gradients(call, model):
    model.zero_grad()
    call(X).square().sum().backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def close(got, want):
    return all((g - w).abs().max() <= 1e-5 * w.abs().max() + 1e-6 for g, w in zip(got, want, strict=True))


@pytest.mark.parametrize("key", HOSTS)
def test_fullgraph_inference_and_training_with_checkpointing(key):
    depth = {} if key == "sapiens2_gqa" else dict(depth=3)  # first, middle and last block
    model = timm_neutreno.patch(build(key, **depth), fidelity=0.6)
    expected = model(X)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    with torch.no_grad():
        assert torch.allclose(compiled(X), expected, atol=1e-5)
        assert torch.allclose(compiled(X), expected, atol=1e-5)
    assert counter.frame_count == 1
    expected_grads = gradients(model, model)
    model.set_grad_checkpointing()
    torch._dynamo.reset()
    assert close(gradients(torch.compile(model, backend="aot_eager", fullgraph=True), model), expected_grads)


@pytest.mark.parametrize(("checkpointing", "learnable"), [(False, None), (True, "head")])
def test_inductor(checkpointing, learnable):
    model = timm_neutreno.patch(build("vit", depth=3), fidelity=0.6, learnable_fidelity=learnable)
    expected, expected_grads = model(X), gradients(model, model)
    model.set_grad_checkpointing(checkpointing)
    compiled = torch.compile(model, fullgraph=True)
    with torch.no_grad():
        assert torch.allclose(compiled(X), expected, atol=1e-5)
    assert close(gradients(compiled, model), expected_grads)


def frames(model, calls):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter)
    with torch.no_grad():
        for x in calls:
            compiled(x)
    return counter.frame_count


def test_as_many_frames_as_timm():
    for calls in ([X, X], [X, images(3), images(4), images(5)]):
        assert frames(make(), calls) == frames(build("vit"), calls)


def test_frames_from_a_second_thread():
    import threading

    model, counter = make(), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter)
    with torch.no_grad():
        expected = compiled(X)
        got = []

        def run():
            with torch.no_grad():
                got.append(compiled(X))

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    assert torch.equal(got[0], expected)
    assert counter.frame_count <= 2


def test_dynamic_batch():
    model = make()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=True)
    for batch in (2, 5, 3):
        x = images(batch)
        assert torch.allclose(compiled(x), model(x), atol=1e-5)


def test_per_block_compile_does_not_grow_with_depth():
    counts = []
    for depth in (4, 8):
        torch._dynamo.reset()
        model = timm_neutreno.patch(build("vit", depth=depth))
        expected = model(X)
        counter = CompileCounterWithBackend("aot_eager")
        for block in model.blocks:
            block.compile(backend=counter)
        with torch.no_grad():
            assert torch.allclose(model(X), expected, atol=1e-5)
            assert torch.allclose(model(X), expected, atol=1e-5)
        counts.append(counter.frame_count)
    assert counts[0] == counts[1] <= 4


def test_learnable_fidelity_ramps_without_compiling_again():
    model, counter = make(learnable_fidelity="layer"), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter)
    with torch.no_grad():
        for step in range(4):
            timm_neutreno.set_fidelity(model, 0.2 * step)
            assert torch.allclose(compiled(X), model(X), atol=1e-5)
    assert counter.frame_count == 1


def test_toggling_checkpointing_after_compile():
    model = make()
    compiled = torch.compile(model, backend="aot_eager")
    expected = gradients(model, model)
    for enable in (True, False, True):
        model.set_grad_checkpointing(enable)
        assert close(gradients(compiled, model), expected)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("key", ["vit", "parallel_scaling", "parallel_things", "eva02", "cait"])
def test_export(key, strict):
    model = make(key)
    with torch.no_grad():
        expected = model(X)
        program = torch.export.export(model, (X,), strict=strict)
        assert torch.allclose(program.module()(X), expected, atol=1e-5)
    assert set(program.state_dict) == set(model.state_dict())


def test_onnx_in_onnxruntime(tmp_path):
    import onnxruntime

    model, path = make(), tmp_path / "model.onnx"
    batch = torch.export.Dim("batch", min=1, max=16)
    torch.onnx.export(model, (X,), path, dynamo=True, dynamic_shapes=({0: batch},), verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for x in (X, images(5)):
        (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        assert torch.allclose(torch.from_numpy(got), model(x), atol=1e-5)


def test_trace():
    model = make()
    traced = torch.jit.trace(model, X)
    y = images(2, seed=5)
    assert torch.allclose(traced(y), model(y), atol=1e-6)


UNTRACEABLE = {"gemma4"}  # timm's own model branches on a traced value


@pytest.mark.parametrize("learnable", [None, "head"])
@pytest.mark.parametrize("key", [key for key in HOSTS if key not in UNTRACEABLE])
def test_fx(key, learnable):
    skip_where_timm_cannot(key)
    model = make(key, learnable_fidelity=learnable)
    assert_fx_equal(model)


def skip_where_timm_cannot(key):
    """Before torch 2.10 SDPA does not take a traced is_causal, which most of timm's attentions pass."""
    if torch.__version__ < "2.10":
        try:
            assert_fx_equal(build(key))
        except TypeError as error:
            pytest.skip(f"torch {torch.__version__}: fx cannot trace timm's own model: {error}")


def assert_fx_equal(model):
    expected = model(X)
    tracer = {"leaf_modules": get_notrace_modules(), "autowrap_functions": get_notrace_functions()}
    tracer = {name: list(values) for name, values in tracer.items()}
    _, nodes = get_graph_node_names(model, tracer_kwargs=tracer)
    last = {nodes[-1]: "y"}
    traced = create_feature_extractor(model, eval_return_nodes=last, train_return_nodes=last, tracer_kwargs=tracer)
    assert torch.allclose(traced.eval()(X)["y"], expected, atol=1e-5)


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("method", ["neutreno", "gfsa", "symmetric"])
def test_script_is_refused_with_a_sentence(method, wrapped):
    patched_model = timm_neutreno.patch(build("vit"), method)
    model = torch.nn.Sequential(patched_model) if wrapped else patched_model
    with pytest.raises(RuntimeError, match=r"torch.jit.script cannot compile a NeuTRENO model.*torch.export"):
        torch.jit.script(model)


# --- every method ---------------------------------------------------------------------------------------------------

SPECS = [spec for spec in (*SINGLE, *COMPOSED) if spec != "neutreno"]


@pytest.mark.parametrize("spec", SPECS)
def test_every_method_compiles_whole_with_checkpointing(spec):
    model, counter = patched("vit", spec, depth=3), CompileCounterWithBackend("aot_eager")
    expected = model(X)
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    with torch.no_grad():
        assert torch.allclose(compiled(X), expected, atol=1e-5)
        assert torch.allclose(compiled(X), expected, atol=1e-5)
    assert counter.frame_count == 1
    expected = gradients(model, model)
    model.set_grad_checkpointing()
    torch._dynamo.reset()
    assert close(gradients(torch.compile(model, backend="aot_eager", fullgraph=True), model), expected)


@pytest.mark.parametrize("spec", ["value_residual", "neutreno+featscale", "gfsa+neutreno"])
def test_methods_with_v0_take_a_dynamic_batch_and_do_not_compile_more_with_depth(spec):
    model, counts = patched("vit", spec), []
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=True)
    for batch in (2, 5, 3):
        assert torch.allclose(compiled(images(batch)), model(images(batch)), atol=1e-5)
    for depth in (4, 8):
        torch._dynamo.reset()
        deep, counter = patched("vit", spec, depth=depth), CompileCounterWithBackend("aot_eager")
        for block in deep.blocks:
            block.compile(backend=counter)
        with torch.no_grad():
            deep(X), deep(X)
        counts.append(counter.frame_count)
    assert counts[0] == counts[1] <= 4


@pytest.mark.parametrize("spec", SPECS)
def test_every_method_is_exported_and_traced(spec):
    model = patched("vit", spec)
    y = images(2, seed=5)
    with torch.no_grad():
        assert torch.allclose(torch.export.export(model, (X,)).module()(X), model(X), atol=1e-5)
        assert torch.allclose(torch.jit.trace(model, X)(y), model(y), atol=1e-5)


@pytest.mark.parametrize("spec", SPECS)
def test_every_method_in_fx(spec):
    for key in ("vit", "eva02"):
        skip_where_timm_cannot(key)
        if not is_refused(key, spec):
            assert_fx_equal(patched(key, spec))


def test_every_method_in_onnxruntime(tmp_path):
    import onnxruntime

    for spec in ("value_residual", "neutreno+featscale", COMPOSED[-1], "laplacian", "xsa"):
        model, path = patched("vit", spec).requires_grad_(False), tmp_path / "model.onnx"
        torch.onnx.export(model, (X,), path, dynamo=True, verbose=False)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        (got,) = session.run(None, {session.get_inputs()[0].name: X.numpy()})
        assert torch.allclose(torch.from_numpy(got), model(X), atol=1e-5), spec


def test_constant_strengths_held_in_tensors_rise_without_compiling_again():
    model, counter = timm_neutreno.patch(build("vit"), "neutreno+gfsa", fidelity=0.1, learnable_gfsa=False), None
    timm_neutreno.set_strengths(model, as_tensors=True, fidelity=0.0)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter)
    with torch.no_grad():
        for step in range(1, 4):
            timm_neutreno.set_strengths(model, fidelity=0.2 * step, gfsa=0.1 * step)
            assert torch.allclose(compiled(X), model(X), atol=1e-5)
    assert counter.frame_count == 1
    shares = timm_neutreno.patch(build("vit"), "laplacian")
    timm_neutreno.set_strengths(shares, as_tensors=True)
    assert set(map(type, timm_neutreno.strengths(shares).values())) == {float}  # a share of heads cuts, by a number
    timm_neutreno.set_strengths(model, as_tensors=False)
    assert set(map(type, timm_neutreno.strengths(model).values())) == {float}
    assert torch.allclose(model(X), compiled(X), atol=1e-5)
