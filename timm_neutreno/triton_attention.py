"""Attention with the fidelity term inside, as Triton kernels: (P - fidelity I) V + fidelity V0, forward and backward.

One pass writes the finished output: the weighted mean of values never goes to memory without its term, and autograd
keeps one tensor of its size fewer per layer than `scaled_dot_product_attention` and an addition. The tiling over keys
with a running maximum is FlashAttention's (Dao et al. 2022, https://arxiv.org/abs/2205.14135; the backward pass
recomputes P from the logarithm of its row sums).

Nothing here was timed on a GPU yet, so it is off unless asked for (fused.py). With TRITON_INTERPRET=1, set before
triton is imported, the same kernels run on the CPU; that is how the tests check them against float64.

Shapes: B images, H heads, N tokens, D channels per head; all four inputs are (B, H, N, D) of one dtype.
"""

from __future__ import annotations

import os

import torch
import triton
import triton.language as tl
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MAX_D = 128
_WIDEN = tl.constexpr(INTERPRETED)  # the interpreter multiplies the bits of bfloat16 as if they were integers


@triton.jit
def _dot(a, b):
    """a @ b, summed in float32; float32 is not cut to TF32."""
    if _WIDEN:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def _load(X, rows, cols, stride, N, D):
    return tl.load(
        X + rows[:, None] * stride + cols[None, :], mask=(rows[:, None] < N) & (cols[None, :] < D), other=0.0
    )


@triton.jit
def _store(X, value, rows, cols, stride, N, D):
    mask = (rows[:, None] < N) & (cols[None, :] < D)
    tl.store(X + rows[:, None] * stride + cols[None, :], value.to(X.dtype.element_ty), mask=mask)


@triton.jit
def _place(H, N, BLOCK: tl.constexpr):
    """Which image, head and block of tokens this program is for; 64 bits, as offsets may pass 2**31."""
    blocks = tl.cdiv(N, BLOCK)
    pid = tl.program_id(0)
    head = (pid // blocks).to(tl.int64)
    return head // H, head % H, pid % blocks


@triton.jit
def _forward(
    Q, K, V, V0, F, U, LSE, scale, sf, qb, qh, qn, kb, kh, kn, vb, vh, vn, zb, zh, zn, ob, oh, on,
    H, N, D, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    b, h, block = _place(H, N, BM)
    rows, cols = block * BM + tl.arange(0, BM), tl.arange(0, BD)
    K, V = K + b * kb + h * kh, V + b * vb + h * vh
    q = _load(Q + b * qb + h * qh, rows, cols, qn, N, D)
    top = tl.full([BM], float("-inf"), tl.float32)
    total = tl.zeros([BM], tl.float32)
    u = tl.zeros([BM, BD], tl.float32)
    for start in range(0, N, BN):
        keys = start + tl.arange(0, BN)
        s = _dot(q, tl.trans(_load(K, keys, cols, kn, N, D))) * scale
        s = tl.where(keys[None, :] < N, s, float("-inf"))
        new = tl.maximum(top, tl.max(s, 1))
        p, shrink = tl.exp(s - new[:, None]), tl.exp(top - new)
        v = _load(V, keys, cols, vn, N, D)
        u = u * shrink[:, None] + _dot(p.to(v.dtype), v)
        total, top = total * shrink + tl.sum(p, 1), new
    v0, v = _load(V0 + b * zb + h * zh, rows, cols, zn, N, D), _load(V, rows, cols, vn, N, D)
    u = u / total[:, None] + tl.load(F + h * sf).to(tl.float32) * (v0.to(tl.float32) - v.to(tl.float32))
    _store(U + b * ob + h * oh, u, rows, cols, on, N, D)
    tl.store(LSE + (b * H + h) * N + rows, top + tl.log(total), mask=rows < N)


@triton.jit
def _backward_rows(
    G, U, V, V0, F, DV0, DELTA, DF, sf, gb, gh, gn, ob, oh, on, vb, vh, vn, zb, zh, zn, xb, xh, xn,
    H, N, D, BD: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """Per token: delta = g . (P v), what of the fidelity's gradient it brings, and the gradient of v0."""
    b, h, block = _place(H, N, BM)
    rows, cols = block * BM + tl.arange(0, BM), tl.arange(0, BD)
    g = _load(G + b * gb + h * gh, rows, cols, gn, N, D).to(tl.float32)
    o = _load(U + b * ob + h * oh, rows, cols, on, N, D).to(tl.float32)
    v = _load(V + b * vb + h * vh, rows, cols, vn, N, D).to(tl.float32)
    away = _load(V0 + b * zb + h * zh, rows, cols, zn, N, D).to(tl.float32) - v
    fidelity = tl.load(F + h * sf).to(tl.float32)
    at = (b * H + h) * N + rows
    tl.store(DELTA + at, tl.sum(g * (o - fidelity * away), 1), mask=rows < N)
    tl.store(DF + at, tl.sum(g * away, 1), mask=rows < N)
    _store(DV0 + b * xb + h * xh, fidelity * g, rows, cols, xn, N, D)


@triton.jit
def _backward_kv(
    Q, K, V, F, G, LSE, DELTA, DK, DV, scale, sf, qb, qh, qn, kb, kh, kn, vb, vh, vn, gb, gh, gn, xb, xh, xn,
    H, N, D, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """dk and dv of a block of keys: dv = P^T g - fidelity g, since P - fidelity I multiplies v."""
    b, h, block = _place(H, N, BN)
    keys, cols = block * BN + tl.arange(0, BN), tl.arange(0, BD)
    Q, G, at = Q + b * qb + h * qh, G + b * gb + h * gh, (b * H + h) * N
    k, v = _load(K + b * kb + h * kh, keys, cols, kn, N, D), _load(V + b * vb + h * vh, keys, cols, vn, N, D)
    own = _load(G, keys, cols, gn, N, D).to(tl.float32)
    dv = -tl.load(F + h * sf).to(tl.float32) * own
    dk = tl.zeros([BN, BD], tl.float32)
    for start in range(0, N, BM):
        rows = start + tl.arange(0, BM)
        q, g = _load(Q, rows, cols, qn, N, D), _load(G, rows, cols, gn, N, D)
        lse = tl.load(LSE + at + rows, mask=rows < N, other=float("inf"))  # rows past the end get P = 0
        delta = tl.load(DELTA + at + rows, mask=rows < N, other=0.0)
        p = tl.exp(_dot(q, tl.trans(k)) * scale - lse[:, None])
        dv += _dot(tl.trans(p).to(g.dtype), g)
        ds = p * (_dot(g, tl.trans(v)) - delta[:, None])
        dk += _dot(tl.trans(ds).to(q.dtype), q)
    _store(DK + b * xb + h * xh, dk * scale, keys, cols, xn, N, D)
    _store(DV + b * xb + h * xh, dv, keys, cols, xn, N, D)


@triton.jit
def _backward_q(
    Q, K, V, G, LSE, DELTA, DQ, scale, qb, qh, qn, kb, kh, kn, vb, vh, vn, gb, gh, gn, xb, xh, xn,
    H, N, D, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    b, h, block = _place(H, N, BM)
    rows, cols = block * BM + tl.arange(0, BM), tl.arange(0, BD)
    K, V, at = K + b * kb + h * kh, V + b * vb + h * vh, (b * H + h) * N
    q, g = _load(Q + b * qb + h * qh, rows, cols, qn, N, D), _load(G + b * gb + h * gh, rows, cols, gn, N, D)
    lse = tl.load(LSE + at + rows, mask=rows < N, other=float("inf"))
    delta = tl.load(DELTA + at + rows, mask=rows < N, other=0.0)
    dq = tl.zeros([BM, BD], tl.float32)
    for start in range(0, N, BN):
        keys = start + tl.arange(0, BN)
        k, v = _load(K, keys, cols, kn, N, D), _load(V, keys, cols, vn, N, D)
        s = _dot(q, tl.trans(k)) * scale
        p = tl.where(keys[None, :] < N, tl.exp(s - lse[:, None]), 0.0)
        ds = p * (_dot(g, tl.trans(v)) - delta[:, None])
        dq += _dot(ds.to(k.dtype), k)
    _store(DQ + b * xb + h * xh, dq * scale, rows, cols, xn, N, D)


# --- the operators ----------------------------------------------------------------------------------------------------


def _dense(x: Tensor) -> Tensor:
    """The kernels step over images, heads and tokens as they lie, but channels must be neighbours."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _empty(x: Tensor) -> Tensor:
    """(B, H, N, D) with the heads of a token next to each other, so that merging them is a view."""
    B, H, N, D = x.shape
    return x.new_empty(B, N, H, D).transpose(1, 2)


def _strides(*tensors: Tensor) -> list[int]:
    return [step for x in tensors for step in x.stride()[:3]]


def _sizes(x: Tensor) -> tuple[int, dict[str, int]]:
    """Tokens per program, small where wide heads in float32 would not fit the shared memory; and D padded."""
    BD = max(16, triton.next_power_of_2(x.shape[-1]))
    stages = 2 if x.element_size() == 2 else 1  # tiles under way at a time: chosen for room, not timed
    return (32 if BD * x.element_size() > 256 else 64), {"BD": BD, "num_stages": stages}


def _check(q: Tensor, k: Tensor, v: Tensor, v0: Tensor, fidelity: Tensor) -> None:
    if not q.shape == k.shape == v.shape == v0.shape or q.ndim != 4 or not 1 <= q.shape[-1] <= MAX_D or not q.numel():
        raise ValueError(
            f"q, k, v and v0 must have one shape (B, H, N, D) with D <= {MAX_D} and nothing empty, got "
            f"{[tuple(x.shape) for x in (q, k, v, v0)]}."
        )
    if q.dtype not in DTYPES or not q.dtype == k.dtype == v.dtype == v0.dtype:
        raise ValueError(f"q, k, v and v0 must have one dtype of {DTYPES}, got {[x.dtype for x in (q, k, v, v0)]}.")
    if fidelity.shape not in ((1,), (q.shape[1],)):
        raise ValueError(f"fidelity must be (1,) or (H,) = ({q.shape[1]},), got {tuple(fidelity.shape)}.")


@torch.library.custom_op("timm_neutreno::attention", mutates_args=())
def _attention(q: Tensor, k: Tensor, v: Tensor, v0: Tensor, fidelity: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """The output (B, H, N, D), and the logarithm of every row's sum of exponentials, (B, H, N) in float32."""
    _check(q, k, v, v0, fidelity)
    q, k, v, v0 = map(_dense, (q, k, v, v0))
    B, H, N, D = q.shape
    o, lse = _empty(q), q.new_empty(B, H, N, dtype=torch.float32)
    block, sizes = _sizes(q)
    step = 0 if fidelity.numel() == 1 else fidelity.stride(0)
    _forward[(triton.cdiv(N, block) * B * H,)](
        q, k, v, v0, fidelity, o, lse, scale, step, *_strides(q, k, v, v0, o), H, N, D, BM=block, BN=block, **sizes
    )
    return o, lse


@_attention.register_fake
def _(q, k, v, v0, fidelity, scale):
    return _empty(q), q.new_empty(q.shape[:3], dtype=torch.float32)


@torch.library.custom_op("timm_neutreno::attention_backward", mutates_args=())
def _attention_backward(
    g: Tensor, q: Tensor, k: Tensor, v: Tensor, v0: Tensor, fidelity: Tensor, o: Tensor, lse: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, v0 and the fidelity, in their dtypes."""
    g, q, k, v, v0 = map(_dense, (g, q, k, v, v0))
    B, H, N, D = q.shape
    dq, dk, dv, dv0 = (_empty(x) for x in (q, k, v, v0))
    delta, df = torch.empty_like(lse), torch.empty_like(lse)
    block, sizes = _sizes(q)
    grid = (triton.cdiv(N, block) * B * H,)
    step = 0 if fidelity.numel() == 1 else fidelity.stride(0)
    _backward_rows[grid](
        g, o, v, v0, fidelity, dv0, delta, df, step, *_strides(g, o, v, v0, dv0), H, N, D, BM=block, **sizes
    )
    shape = (H, N, D)
    _backward_kv[grid](
        q, k, v, fidelity, g, lse, delta, dk, dv, scale, step, *_strides(q, k, v, g, dk), *shape,
        BM=block, BN=block, **sizes,
    )  # fmt: skip
    _backward_q[grid](q, k, v, g, lse, delta, dq, scale, *_strides(q, k, v, g, dq), *shape, BM=block, BN=block, **sizes)
    df = df.sum((0, 2)) if fidelity.numel() == H else df.sum().view(1)
    return dq, dk, dv, dv0, df.to(fidelity.dtype)


@_attention_backward.register_fake
def _(g, q, k, v, v0, fidelity, o, lse, scale):
    return _empty(q), _empty(k), _empty(v), _empty(v0), torch.empty_like(fidelity)


def _save(ctx, inputs, output) -> None:
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.set_materialize_grads(False)


def _gradients(ctx, g, g_lse):
    if g is None:
        return None, None, None, None, None, None
    return (*_attention_backward(g, *ctx.saved_tensors, ctx.scale), None)


_attention.register_autograd(_gradients, setup_context=_save)


def neutreno_attention(
    q: Tensor, k: Tensor, v: Tensor, v0: Tensor, fidelity: float | Tensor, scale: float | None = None
) -> Tensor:
    """softmax(scale q k^T) v + fidelity (v0 - v), in one kernel.

    Sums are in float32 and rounded once. Under autocast the inputs are cast as scaled_dot_product_attention's are.

    Args:
        q: Queries, (B, H, N, D), D at most 128; float32, float16 or bfloat16.
        k: Keys, likewise.
        v: Values, likewise.
        v0: Values of the first layer, likewise.
        fidelity: A number, or a tensor (1,) or (H,), which gets its gradient.
        scale: 1 / sqrt(D) if None.

    Returns:
        (B, H, N, D), the heads of a token next to each other in memory. It can be differentiated once.

    Raises:
        ValueError: If shapes or dtypes differ or are not supported.
    """
    device = q.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        q, k, v, v0 = (x.to(dtype) for x in (q, k, v, v0))
    if not isinstance(fidelity, Tensor):
        fidelity = torch.full((1,), fidelity, device=q.device, dtype=torch.float32)
    return _attention(q, k, v, v0, fidelity, q.shape[-1] ** -0.5 if scale is None else scale)[0]
