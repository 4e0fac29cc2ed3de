"""Contract 4, within one process: threads on one model, and DataParallel's replicas, never see each other's values."""

import sys
import threading

import pytest
import torch
from hosts import NEED_V0, build, images, patched
from torch import nn

import timm_neutreno

FORWARDS = 100
KEYS = ["vit", "parallel_things", "parallel_scaling", "eva02", "cait", "sam"]


@pytest.fixture(autouse=True)
def switch_threads_often():
    """Two forwards of small models must interleave, block by block, or a shared carrier would go unnoticed."""
    before, threads = sys.getswitchinterval(), torch.get_num_threads()
    sys.setswitchinterval(1e-5)
    torch.set_num_threads(1)
    yield
    sys.setswitchinterval(before)
    torch.set_num_threads(threads)


def make(key, **kwargs):
    return timm_neutreno.patch(build(key), fidelity=0.6, **kwargs)


def in_threads(*runs):
    """Run the functions at the same time; returns their results. An exception in one of them is raised here."""
    results, errors, start = [None] * len(runs), [], threading.Barrier(len(runs))

    def call(i):
        try:
            start.wait()
            results[i] = runs[i]()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=call, args=(i,)) for i in range(len(runs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results


def repeat(call, expected, times=FORWARDS):
    """How many of the calls differ from what one thread alone computed."""
    return lambda: sum(not torch.equal(call(), expected) for _ in range(times))


@pytest.mark.parametrize("key", KEYS)
@torch.no_grad()
def test_two_threads_on_one_model(key):
    model = make(key)
    batches = [images(2, seed=1), images(2, seed=2)]
    expected = [model(x) for x in batches]
    assert not torch.equal(*expected)

    def forward(x):
        with torch.no_grad():  # the grad mode is each thread's own
            return model(x)

    runs = [repeat(lambda x=x: forward(x), e) for x, e in zip(batches, expected, strict=True)]
    assert in_threads(*runs) == [0, 0]


@pytest.mark.parametrize("spec", [spec for spec in NEED_V0 if spec != "neutreno"])
@torch.no_grad()
def test_two_threads_with_every_method_that_needs_v0(spec):
    model, batches = patched("vit", spec), [images(2, seed=1), images(2, seed=2)]
    expected = [model(x) for x in batches]

    def forward(x):
        with torch.no_grad():
            return model(x)

    runs = [repeat(lambda x=x: forward(x), e, times=50) for x, e in zip(batches, expected, strict=True)]
    assert in_threads(*runs) == [0, 0]


def test_two_threads_with_other_entry_points_and_batch_sizes():
    model, small, large = make("vit"), images(1, seed=1), images(5, seed=2)
    taken = model.forward_intermediates(large, indices=[1], stop_early=True, intermediates_only=True)[0]
    runs = [
        repeat(lambda: model(small), model(small)),
        repeat(
            lambda: model.forward_intermediates(large, indices=[1], stop_early=True, intermediates_only=True)[0], taken
        ),
    ]
    assert in_threads(*runs) == [0, 0]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_in_two_threads(checkpointing):
    model = make("vit", learnable_fidelity="head")
    model.set_grad_checkpointing(checkpointing)
    parameters = list(model.parameters())

    def gradient(x):
        grads = torch.autograd.grad(model(x).square().sum(), parameters)
        return torch.cat([g.flatten() for g in grads])

    batches = [images(2, seed=1), images(3, seed=2)]
    runs = [repeat(lambda x=x: gradient(x), gradient(x), times=25) for x in batches]
    assert in_threads(*runs) == [0, 0]


def test_a_failing_thread_does_not_disturb_the_other():
    model, x = make("vit"), images()
    expected = model(x)

    def fail():
        for _ in range(FORWARDS):
            with pytest.raises(RuntimeError):
                model.blocks[2](torch.randn(2, 17, 48))

    assert in_threads(fail, repeat(lambda: model(x), expected))[1] == 0


def replicate(model: nn.Module, count: int) -> list[nn.Module]:
    """torch.nn.parallel.replicate without its broadcast to GPUs: the replicas share one device, as CPU tensors."""
    modules = list(model.modules())
    index = {module: i for i, module in enumerate(modules)}
    replicas = [[module._replicate_for_data_parallel() for module in modules] for _ in range(count)]
    for copies in replicas:
        for module, copy in zip(modules, copies, strict=True):
            for name, child in module._modules.items():
                copy._modules[name] = None if child is None else copies[index[child]]
                if child is not None:
                    setattr(copy, name, copies[index[child]])
            for name, parameter in module._parameters.items():  # become plain tensors whose graph leads to the original
                if parameter is None:
                    copy._parameters[name] = None
                else:
                    setattr(copy, name, parameter.view_as(parameter))
            for name, buffer in module._buffers.items():
                copy._buffers[name] = buffer
    return [copies[0] for copies in replicas]


REPLICATED = [(key, lambda key=key, k=k: make(key, learnable_fidelity=k)) for key in KEYS for k in (None, "head")]
REPLICATED += [(spec, lambda spec=spec: patched("vit", spec)) for spec in ("value_residual", "neutreno+featscale")]


@pytest.mark.parametrize(("name", "build_model"), REPLICATED, ids=lambda x: x if isinstance(x, str) else "")
def test_data_parallel_replicas(name, build_model):
    model = build_model()
    x = images(4)
    whole = model(x)
    whole.square().sum().backward()
    expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    for _ in range(10):
        first, second = replicate(model, 2)
        outputs = torch.cat(in_threads(lambda a=first: a(x[:2]), lambda b=second: b(x[2:])))
        assert torch.allclose(outputs, whole, rtol=1e-5, atol=1e-5)
    outputs.square().sum().backward()
    got = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    largest = max(g.abs().max() for g in expected.values())
    assert set(got) == set(expected)
    for name, want in expected.items():
        assert (got[name] - want).abs().max() <= 1e-5 * want.abs().max() + 1e-6 * largest, name
