"""CausalLM: equal to its formulas, causal with every method, recomputed and compiled exactly, and scored by windows."""

import copy
import pickle
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hosts import COMPOSED, SINGLE, learned, randomize, spread
from reference import method_oracle, set_fused
from timm.layers import set_reentrant_ckpt, use_reentrant_ckpt
from torch._dynamo.testing import CompileCounterWithBackend

import timm_neutreno
from timm_neutreno import METHODS, CausalLM, UnsupportedModelError
from timm_neutreno.blocks import PostNormBlock
from timm_neutreno.causal_lm import sliding_window_losses
from timm_neutreno.smoothing import attention_maps, token_similarity, tokens

SMALL = dict(vocabulary=29, dim=24, depth=4, num_heads=3, context=40, mlp_ratio=2.0)
KINDS = {
    "pre": {},
    "post": dict(post_norm=True, act_layer="relu"),
    "adaptive": dict(post_norm=True, cutoffs=(7, 15)),
}
AVERAGING = tuple(spec for spec in (*SINGLE, *COMPOSED) if any(METHODS[name].averages for name in spec.split("+")))
CAUSAL = tuple(spec for spec in (*SINGLE, *COMPOSED) if spec not in AVERAGING)


def build(kind, spec=None, **overrides):
    lm = randomize(CausalLM(**{**SMALL, **KINDS[kind], **overrides})).eval()
    return lm if spec is None else spread(timm_neutreno.patch(lm, spec, **learned(spec)))


def ids(*shape, seed=0):
    return torch.randint(29, shape, generator=torch.Generator().manual_seed(seed))


X, Y = ids(2, 40), ids(2, 40, seed=1)


def relative(a, b):
    return ((a - b).abs().max() / b.abs().max()).item()


# --- contract 1: the formulas ----------------------------------------------------------------------------------------


def logits_by_hand(lm, x, fidelity):
    """The model for one text, token by token: weights of `lm`, nothing of its code."""
    post, w = isinstance(lm.blocks[0], PostNormBlock), dict(lm.named_parameters())
    rows = [
        w[n]
        for n in ("embed.weight", "softmax.head.weight", "softmax.tail.0.1.weight", "softmax.tail.1.1.weight")
        if n in w
    ]
    rows = rows[0] if len(rows) == 1 else torch.cat([rows[0][:7], *rows[1:]])  # the head's last two rows are clusters
    C, H, first = lm.dim, 3, None

    def linear(h, name):
        return h @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0)

    def norm(h, name):
        h = (h - h.mean(-1, keepdim=True)) / (h.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
        return h * w[f"{name}.weight"] + w[f"{name}.bias"]

    def attention(h, name):
        nonlocal first
        q, k, v = linear(h, f"{name}.qkv").view(-1, 3, H, C // H).unbind(1)
        first = v if first is None else first
        out = []
        for n in range(len(h)):
            a = torch.einsum("hd,mhd->mh", q[n], k[: n + 1] / (C // H) ** 0.5).softmax(0)
            out.append(torch.einsum("mh,mhd->hd", a, v[: n + 1]) + fidelity * (first[n] - v[n]))
        return linear(torch.stack(out).flatten(1), f"{name}.proj")

    def mlp(h, name):
        h = linear(h, f"{name}.fc1")
        return linear(h.relu() if relu else F.gelu(h), f"{name}.fc2")

    relu = type(lm.blocks[0].mlp.act).__name__ == "ReLU"
    angles = torch.arange(len(x)).double()[:, None] / 10_000 ** (torch.arange(C // 2).double() * 2 / C)
    h = rows[x] * C**0.5 + torch.cat([angles.sin(), angles.cos()], 1).float().double()
    for i in range(len(lm.blocks)):
        b = f"blocks.{i}"
        if post:
            h = norm(h + attention(h, f"{b}.attn"), f"{b}.norm1")
            h = norm(h + mlp(h, f"{b}.mlp"), f"{b}.norm2")
        else:
            h = h + attention(norm(h, f"{b}.norm1"), f"{b}.attn")
            h = h + mlp(norm(h, f"{b}.norm2"), f"{b}.mlp")
    h = h if post else norm(h, "norm")
    if lm.softmax is None:
        return h @ rows.T
    head = (h @ w["softmax.head.weight"].T).log_softmax(-1)
    tails = [
        head[:, 7 + i, None]
        + (h @ w[f"softmax.tail.{i}.0.weight"].T @ w[f"softmax.tail.{i}.1.weight"].T).log_softmax(-1)
        for i in range(2)
    ]
    return torch.cat([head[:, :7], *tails], 1)


@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_formulas_by_hand(kind):
    plain = build(kind).double()
    expected = torch.stack([logits_by_hand(plain, x, 0.4) for x in X])
    model = timm_neutreno.patch(build(kind), fidelity=0.4).double()
    for fused in (True, False):
        set_fused(model, fused)
        assert relative(model(X), expected) < 1e-12
        losses = -expected.log_softmax(-1).gather(2, Y[..., None])[..., 0]
        assert relative(model(X, Y), losses) < 1e-12
        assert relative(model(X, Y[:, -3:]), losses[:, -3:]) < 1e-12
    assert relative(plain(X), torch.stack([logits_by_hand(plain, x, 0.0) for x in X])) < 1e-12
    assert relative(plain(X), expected) > 1e-2  # else the comparison could not tell
    grads = [
        torch.autograd.grad(f, list(m.parameters()))
        for f, m in ((expected.square().sum(), plain), (model(X).square().sum(), model))
    ]
    largest = max(g.abs().max() for g in grads[0])
    assert all((a - b).abs().max() < 1e-9 * largest for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize("kind", ["pre", "post"])
@pytest.mark.parametrize("spec", CAUSAL)
def test_every_method_equals_its_explicit_matrices(kind, spec):
    plain, model = build(kind).double(), build(kind, spec).double()
    w = [{} for _ in plain.blocks]
    for name, value in timm_neutreno.strengths(model).items():
        _, layer, _, strength = name.split(".")
        w[int(layer)][strength] = value.detach().view(-1, 1, 1) if isinstance(value, torch.Tensor) else value
    set_fused(plain, True)
    with method_oracle(plain, spec, w):
        expected = plain(X)
    for fused in (True, False):
        set_fused(model, fused)
        assert relative(model(X), expected) < 1e-12
    assert relative(plain(X), expected) > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_strength_zero_and_unpatch_give_the_plain_model(kind):
    plain = build(kind)
    expected = plain(X)
    for spec, options in (("neutreno", dict(fidelity=0.0)), ("value_residual+gfsa", dict(value_residual=0.0))):
        model = timm_neutreno.patch(copy.deepcopy(plain), spec, **options)
        assert torch.equal(model(X), expected)
        assert model.first_values.begin()[0] is None  # nothing is kept
    model = timm_neutreno.unpatch(timm_neutreno.patch(copy.deepcopy(plain)))
    assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert torch.equal(model(X), expected)


def test_clones_compute_the_same():
    model = build("post", "neutreno")
    for clone in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(clone(X), model(X))
        assert clone.first_values is not model.first_values


# --- causality -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spec", [None, *CAUSAL])
def test_later_tokens_change_nothing_before_them(kind, spec):
    model = build(kind, spec)
    for fused in (True, False):
        set_fused(model, fused)
        with torch.no_grad():
            y = model(X)
            for n in (1, 17, 39):
                changed = torch.cat([X[:, :n], (X[:, n:] + 1) % 29], dim=1)
                z = model(changed)
                assert torch.equal(z[:, :n], y[:, :n])
                assert not torch.isclose(z[:, n:], y[:, n:]).all(-1).any()


@pytest.mark.parametrize("spec", AVERAGING)
def test_methods_that_average_over_tokens_are_refused_by_name(spec):
    model = build("post")
    expected, averaging = model(X), next(name for name in spec.split("+") if METHODS[name].averages)
    with pytest.raises(UnsupportedModelError, match=rf"blocks\.0\.attn .*never with {averaging}: the model is causal"):
        timm_neutreno.patch(model, spec)
    assert not timm_neutreno.is_patched(model)
    assert torch.equal(model(X), expected)
    assert [entry.supported for entry in timm_neutreno.check_support(model, spec)] == [False] * 4
    assert all(entry.supported for entry in timm_neutreno.check_support(model))


# --- contract 2: recomputed activations -----------------------------------------------------------------------------


def one(model):
    model(X, Y).sum().backward()


def two_reversed(model):
    first, second = model(X, Y).sum(), model(Y, X).sum()
    with torch.no_grad():
        model(ids(3, 11))
    second.backward()
    first.backward()


def gradients(model, scenario):
    torch.manual_seed(0)
    scenario(model.train())
    return {name: p.grad for name, p in model.named_parameters()}


@pytest.fixture(params=[False, True], ids=["nonreentrant", "reentrant"])
def reentrant(request):
    before = use_reentrant_ckpt()
    set_reentrant_ckpt(request.param)
    yield request.param
    set_reentrant_ckpt(before)


@pytest.mark.parametrize("scenario", [one, two_reversed], ids=lambda f: f.__name__)
@pytest.mark.parametrize(
    ("kind", "spec"), [*((k, "neutreno") for k in KINDS), *(("post", spec) for spec in (None, *CAUSAL))]
)
def test_checkpointing_changes_no_bit_of_a_gradient(kind, spec, scenario, reentrant):
    models = [build(kind, spec, drop_rate=0.1, attn_drop_rate=0.1) for _ in range(2)]
    models[0].set_grad_checkpointing()
    runs = []
    models[0].blocks[2].attn.qkv.register_forward_hook(lambda *_: runs.append(1))
    got, want = (gradients(model, scenario) for model in models)
    assert len(runs) == 2 * (1 if scenario is one else 2) + (scenario is not one)
    close = reentrant and spec in ("kernel", "neutreno+value_residual", COMPOSED[-1])  # another order of sums: 1e-6
    for name, gradient in want.items():
        if gradient is not None:
            bound = 1e-6 * gradient.abs().max() if close else 0
            assert (got[name] - gradient).abs().max() <= bound, name


# --- contract 3: compiled, exported ----------------------------------------------------------------------------------


@pytest.fixture
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize(("kind", "spec"), [("pre", "neutreno"), ("post", "value_residual")])
def test_compiles_whole_in_inference_and_training(kind, spec, fresh_dynamo):
    model, counter = build(kind, spec, depth=3), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    with torch.no_grad():
        assert relative(compiled(X), model(X)) < 1e-5
        assert relative(compiled(X), model(X)) < 1e-5
    assert counter.frame_count == 1
    want = gradients(copy.deepcopy(model), one)
    for checkpointing in (False, True):
        torch._dynamo.reset()
        trained = copy.deepcopy(model)
        trained.set_grad_checkpointing(checkpointing)
        whole = torch.compile(trained.train(), backend="aot_eager", fullgraph=True)
        whole(X, Y).sum().backward()
        got = {name: p.grad for name, p in trained.named_parameters()}
        assert all(g is None or relative(got[name], g) < 1e-4 for name, g in want.items())


def test_takes_batches_and_lengths_of_any_size_compiled(fresh_dynamo):
    model = build("post", "neutreno", depth=3)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=True)
    for shape in ((2, 40), (5, 40), (3, 17)):
        assert relative(compiled(ids(*shape)), model(ids(*shape))) < 1e-5


def test_is_exported_and_traced(tmp_path):
    import onnxruntime

    model, path = build("post", "gfsa+neutreno", depth=3).requires_grad_(False), tmp_path / "model.onnx"
    assert relative(torch.export.export(model, (X,)).module()(Y), model(Y)) < 1e-5
    assert relative(torch.jit.trace(model, X)(Y), model(Y)) < 1e-5
    torch.onnx.export(model, (X,), path, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {session.get_inputs()[0].name: Y.numpy()})
    assert relative(torch.from_numpy(got), model(Y)) < 1e-5


# --- head, sizes, wrong use -----------------------------------------------------------------------------------------


def test_the_paper_is_reachable():
    with torch.device("meta"):
        lm = CausalLM(267_735, post_norm=True, act_layer="relu", drop_rate=0.1, cutoffs=(20_000, 40_000, 200_000))
    assert lm.embedding().shape == (267_735, 128)
    assert lm.blocks[0].mlp.fc1.out_features == 2048
    of_layers = sum(p.numel() for p in lm.blocks.parameters())
    assert 9.4e6 < of_layers < 9.6e6  # the authors' log: 34.3 M of embeddings, 9.5 M of layers
    assert 34.2e6 < sum(p.numel() for p in lm.parameters()) - of_layers < 34.4e6
    assert len(timm_neutreno.check_support(lm)) == 16


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_probabilities_of_tied_weights_and_the_loss_falls(kind):
    lm = CausalLM(**{**SMALL, **KINDS[kind]})
    assert torch.allclose(lm(X).softmax(-1).sum(-1), torch.ones(2, 40))
    optimizer = torch.optim.Adam(lm.parameters(), 3e-3)
    for _ in range(100):
        optimizer.zero_grad()
        loss = lm(X[:, :-1], X[:, 1:]).mean()
        loss.backward()
        optimizer.step()
    assert loss < 1.5


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_takes_every_head(kind):
    model = build(kind, "neutreno")
    with torch.autocast("cpu", torch.bfloat16):
        losses = model(X, Y)
    losses.sum().backward()
    assert relative(losses.float(), model(X, Y)) < 0.1


def test_wrong_use_is_a_sentence():
    lm = build("pre")
    for bad in (ids(2, 41), ids(40), torch.zeros(2, 4)):
        with pytest.raises(ValueError, match=r"tokens must be ids \(B, N\) with N at most context=40"):
            lm(bad)
    for bad in (ids(2, 41), ids(1, 3), ids(3)):
        with pytest.raises(ValueError, match=r"targets must be \(B, K\), K at most N, for tokens \(2, 40\)"):
            lm(X, bad)
    for dim in (25, 27):
        with pytest.raises(ValueError, match="dim must be even and a multiple of num_heads=3"):
            CausalLM(9, dim, 2, 3)
    for text, stride in ((ids(1), 1), (ids(2, 3), 1), (ids(9), 0), (ids(9), 41)):
        with pytest.raises(ValueError, match="T at least 2 and stride from 1 to context=40"):
            sliding_window_losses(lm, text, stride=stride)
    lm = build("post", "neutreno")
    with pytest.raises(RuntimeError, match="block 1 was called without the first block"):
        lm.blocks[1](torch.zeros(1, 4, 24), None, True)


# --- sliding windows -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["post", "adaptive"])
@pytest.mark.parametrize("length", [2, 9, 10, 23, 50])
@pytest.mark.parametrize("stride", [1, 3, 8, 9])
def test_sliding_window_equals_a_loop_over_tokens(kind, length, stride):
    model = build(kind, "neutreno", context=9, drop_rate=0.3).double()  # no dropout is in the loop
    text, expected = ids(length, seed=3), []
    for i in range(1, length):  # token i from the window that scores it
        start = 0 if i <= 9 else min(-(-(i - 9) // stride) * stride, length - 1 - 9)
        assert start or i <= 9
        expected.append(-model(text[None, start:i])[0, -1].log_softmax(-1)[text[i]])
    got = sliding_window_losses(model.train(), text, stride=stride, batch_size=4)
    assert model.training
    assert got.dtype == torch.float32
    assert not got.requires_grad
    assert relative(got, torch.stack(expected).float()) < 1e-6
    if stride == 1:  # and literally: each token from the nine before it
        whole = [-model.eval()(text[None, max(0, i - 9) : i])[0, -1].log_softmax(-1)[text[i]] for i in range(1, length)]
        assert relative(got, torch.stack(whole).float()) < 1e-6


# --- smoothing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [None, "neutreno"])
def test_token_similarity_by_layer(spec):
    model = build("post", spec)
    seen = []
    hooks = [
        block.register_forward_hook(lambda m, i, y: seen.append(tokens.cosine_similarity(y.detach())))
        for block in model.blocks
    ]
    with torch.no_grad():
        model(X), model(Y)
    for hook in hooks:
        hook.remove()
    expected = torch.stack(seen).view(2, 4, 2).mean((0, 2))
    assert token_similarity(model, [X, (Y, None)]) == pytest.approx(expected.tolist())
    for weights in attention_maps(model, X):
        assert weights.triu(1).count_nonzero() == 0
        assert torch.allclose(weights.sum(-1), torch.ones(2, 3, 40))


def test_the_pages_example_runs():
    page = (Path(__file__).parents[1] / "docs" / "language.md").read_text()
    exec(page.partition("```python")[2].partition("```")[0], {})
