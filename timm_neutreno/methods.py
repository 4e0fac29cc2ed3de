"""Every method, beside its equation: what happens around softmax attention against over-smoothing, or for it.

A method is a function from attention to attention. `attend(p)` gives u = A v for every head, with
A = softmax(scale q k^T + bias), as a new tensor. A method calls it, as often as it needs and with whatever q, k, v it
needs, and gives the u of its own formula. Methods nest: the `attend` that one gets may be another's. A strength of 0
gives back plain attention, bit for bit.

Y stands for attend(p), A Y for attend(p with v = Y). Dropout of A is drawn anew in each call of `attend`, so what calls
it twice equals its paper at attention dropout 0.

Shapes: B images, H heads, N tokens (class and register tokens included), D channels per head, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Strength = float | Tensor  # a tensor broadcasts against what it scales
NUMBER = (int, float)  # to ask for with isinstance: torch.fx has neither numbers nor tensors for what it traces


class Projected(NamedTuple):
    """What attention needs: q, k, v as (B, H, N, D), and how to weigh and mask their products."""

    q: Tensor
    k: Tensor
    v: Tensor
    bias: Tensor | None = None  # added to the scores: relative positions
    mask: Tensor | None = None  # hides tokens, boolean or additive, as torch's SDPA takes it
    is_causal: bool = False
    scale: float | None = None  # of q k^T; None for 1 / sqrt(D)
    mlp: Tensor | None = None  # the MLP half of a parallel block's joint projection, (B, N, hidden)
    groups: int = 1  # heads of q for each head of k and v: grouped queries, which attend knows about
    cached: bool = False  # k and v begin with tokens of earlier calls, which q has not: a KV cache

    def replace(self, **changes: Any) -> Projected:
        """A copy with some fields changed. Not the tuple's own `_replace`: torch 2.6 cannot compile that."""
        fields: dict[str, Any] = dict(zip(Projected._fields, self, strict=True))
        return Projected(**{**fields, **changes})


Attend = Callable[[Projected], Tensor]


def add_scaled(x: Tensor, w: Strength, delta: Tensor) -> Tensor:
    """x + w * delta in one pass over memory; exactly x where w is 0. A tensor w takes the dtype of x, for autocast."""
    if isinstance(w, NUMBER):
        return torch.add(x, delta, alpha=w)
    return torch.addcmul(x, w.to(x.dtype), delta)


def add_scaled_(u: Tensor, w: Strength, delta: Tensor) -> Tensor:
    """add_scaled on what attend gave, to the same bits; in place where nothing is recorded: 1 % of inference."""
    recorded = torch.is_grad_enabled() or torch.jit.is_tracing() or not isinstance(u, Tensor)  # no tensor: torch.fx
    if recorded or not isinstance(w, NUMBER):
        return add_scaled(u, w, delta)
    return u.add_(delta, alpha=w)


def per_head(x: Tensor, p: Projected) -> Tensor:
    """x, (B, heads of k, N, ...), for every head of q."""
    return x if p.groups == 1 else x.repeat_interleave(p.groups, dim=1)


def own(x: Tensor, p: Projected) -> Tensor:
    """Of keys or values x those that belong to the tokens of q, one by one, for every head of q."""
    return per_head(x[:, :, x.shape[2] - p.q.shape[2] :] if p.cached else x, p)


def again(u: Tensor, p: Projected) -> Projected:
    """p with attention's own output u as the values: A u is a second pass.

    Raises:
        RuntimeError: If earlier tokens are in a KV cache, which does not hold their u.
    """
    if p.cached:
        raise RuntimeError(
            "gfsa and twicing attend to the outputs of earlier tokens, which a KV cache does not hold. Call generate() "
            "with use_cache=False, or patch the model with other methods."
        )
    return p.replace(k=per_head(p.k, p), v=u, groups=1)


def mean_over_tokens(x: Tensor, p: Projected) -> Tensor:
    """The mean of x, (..., N, D), over its tokens, (..., 1, D).

    Raises:
        RuntimeError: If tokens are hidden from each other: the mean would show them what the mask hides.
    """
    if isinstance(p.mask, Tensor) or p.is_causal is True:
        raise RuntimeError(
            "attnscale and featscale average over all tokens, which an attention mask or causal attention hides from "
            "each other. Call the model without a mask, or patch it with other methods."
        )
    return x.mean(dim=-2, keepdim=True)


# --- the methods --------------------------------------------------------------------------------------------------


def attnscale(attend: Attend, p: Projected, attnscale: Strength) -> Tensor:
    """(1 + w) (A - 1/N) v + 1/N v = Y + w (Y - mean v): the map's deviation from the uniform map is scaled up.

    AttnScale. Wang et al., "Anti-Oversmoothing in Deep Vision Transformers via the Fourier Domain Analysis", ICLR 2022,
    https://arxiv.org/abs/2203.05962; w starts at 0 and is learned per head.
    """
    u = attend(p)
    return add_scaled(u, attnscale, u - mean_over_tokens(own(p.v, p), p))


def gfsa(attend: Attend, p: Projected, gfsa: Strength) -> Tensor:
    """Y + w (Y + (K - 1) (A Y - Y)), K = 4: a graph filter of A, whose power K is replaced by its first-order Taylor.

    Choi et al., "Graph Convolutions Enrich the Self-Attention in Transformers!", NeurIPS 2024,
    https://arxiv.org/abs/2312.04234; w starts at 0 and is learned per head (w_0 = 0 and w_1 = 1 in the authors' code).
    """
    u = attend(p)
    return add_scaled(u, gfsa, 3 * attend(again(u, p)) - 2 * u)


def twicing(attend: Attend, p: Projected, twicing: Strength) -> Tensor:
    """Y + w (Y - A Y), at w = 1 the paper's (2 A - A^2) v: what A smoothed away is given back once.

    Abdullaev, Nguyen, "Transformer Meets Twicing: Harnessing Unattended Residual Information", ICLR 2025,
    https://arxiv.org/abs/2503.00687.
    """
    u = attend(p)
    return add_scaled(u, twicing, u - attend(again(u, p)))


def laplacian(attend: Attend, p: Projected, laplacian: float) -> Tensor:
    """v - Y in the first heads, Y in the others; `laplacian` is the share of the first ones, rounded to whole heads.

    Laplacian heads, 2026, https://arxiv.org/abs/2602.09297 (which heads is our choice; the output projection can undo
    any order).
    """
    u = attend(p)
    share, whole = float(laplacian).as_integer_ratio()
    heads = (2 * u.shape[1] * share + whole) // (2 * whole)  # round, in integers: torch.fx knows H as a symbol
    return torch.cat([own(p.v, p)[:, :heads] - u[:, :heads], u[:, heads:]], dim=1)


def xsa(attend: Attend, p: Projected, xsa: Strength) -> Tensor:
    """Y - w <Y, e> e with e = v / |v|, at w = 1 the paper's: a token's output is orthogonal to its own value.

    Exclusive self-attention, 2026, https://arxiv.org/abs/2603.09078.
    """
    u, e = attend(p), F.normalize(own(p.v, p), dim=-1)
    return add_scaled(u, xsa, -(u * e).sum(dim=-1, keepdim=True) * e)


def fidelity_term(v: Tensor, v0: Tensor, fidelity: Strength) -> Tensor:
    """fidelity * (v0 - v): the second summand of NeuTRENO attention.

    Args:
        v: Values of this layer, (B, H, N, D).
        v0: Values of the first layer, (B, H, N, D), with their gradient.
        fidelity: The paper's lambda-tilde; a tensor must broadcast against `v`.
    """
    return fidelity * (v0 - v)


def neutreno(attend: Attend, p: Projected, fidelity: Strength, v0: Tensor) -> Tensor:
    """Y + fidelity (v0 - v), v0 the values of the first layer, in every layer after it (Eq. 15).

    Self-attention is one gradient step on the nonlocal functional J(u), whose minimum is a constant: tokens grow alike.
    Adding lambda / 2 sum_i |u_i - f_i|^2, with f the first layer's values, keeps every token near its own first value.
    Nguyen, Nguyen, Baraniuk, "Mitigating Over-smoothing in Transformers via Regularized Nonlocal Functionals",
    NeurIPS 2023, https://arxiv.org/abs/2312.00751. The authors' code fixes fidelity = 0.6 for images and 0.4 for text,
    does not detach v0, and adds the term after attention dropout and before the heads are merged.
    """
    return add_scaled_(attend(p), fidelity, own(v0, p) - own(p.v, p))


def value_residual(attend: Attend, p: Projected, value_residual: Strength, v0: Tensor) -> Tensor:
    """A ((1 - w) v + w v0), w = 0.5: the values are mixed before attention, where NeuTRENO adds v0 after it.

    ResFormer. Zhou et al., "Value Residual Learning", ACL 2025, https://arxiv.org/abs/2410.17897.
    """
    return attend(p.replace(v=add_scaled(p.v, value_residual, v0 - p.v)))


def kernel(attend: Attend, p: Projected) -> Tensor:
    """A_ij ~ exp(-scale |q_i - k_j|^2 / 2), a Gaussian kernel; |q_i|^2 cancels in each row: a bias per key is enough.

    NeuTRENO's Table 8 uses kernel attention and does not name the kernel; the authors' supplementary code has this one.
    """
    scale = p.k.shape[-1] ** -0.5 if p.scale is None else p.scale
    bias = (p.k.square().sum(dim=-1) * (-scale / 2)).unsqueeze(-2).to(p.q.dtype)  # (B, H, 1, N)
    bias = per_head(bias, p)
    return attend(p.replace(bias=bias if p.bias is None else p.bias + bias))


def symmetric(attend: Attend, p: Projected) -> Tensor:
    """softmax(scale k k^T) v: the symmetric kernel that NeuTRENO's theorem is about (its Eq. 24, Sym-NeuTRENO)."""
    return attend(p.replace(q=own(p.k, p)))


def featscale(y: Tensor, p: Projected, featscale_low: Strength, featscale_high: Strength) -> Tensor:
    """y + low mean + high (y - mean) of the attention layer's output y after its projection, (B, N, C).

    FeatScale, same paper as AttnScale: the constant and the rest of the tokens are weighed anew, channel by channel.
    Both start at 0 and are learned. The authors' DeiT code adds each band twice: its numbers are half of ours.
    """
    mean = mean_over_tokens(y, p)
    return add_scaled(add_scaled(y, featscale_low, mean), featscale_high, y - mean)


# --- the table: its order is the order of nesting, from next to the softmax outwards --------------------------------


class Method(NamedTuple):
    """A row of METHODS.

    Attributes:
        apply: The function; its arguments after (attend, p) are the strengths by name and, if needed, v0.
        acts_on: "scores" (q, k or the bias), "map" (linear in v), "values", or "output" (after the projection).
        strengths: Name and value that `patch` starts from.
        learnable: How a strength can be learned: a number per "layer", "head" or "channel".
        learned: How the paper learns it, which is the default; None for a constant.
        needs_v0: Whether it takes the first layer's values; then it acts from the second layer on.
        averages: Whether it averages over all tokens.
    """

    apply: Callable[..., Tensor]
    acts_on: str
    strengths: dict[str, float] = {}  # noqa: RUF012 - never changed
    learnable: tuple[str, ...] = ()
    learned: str | None = None
    needs_v0: bool = False
    averages: bool = False


METHODS: dict[str, Method] = {
    "attnscale": Method(attnscale, "map", {"attnscale": 0.0}, ("layer", "head"), "head", averages=True),
    "gfsa": Method(gfsa, "map", {"gfsa": 0.0}, ("layer", "head"), "head"),
    "twicing": Method(twicing, "map", {"twicing": 1.0}, ("layer", "head")),
    "laplacian": Method(laplacian, "map", {"laplacian": 0.5}),
    "xsa": Method(xsa, "values", {"xsa": 1.0}, ("layer", "head")),
    "neutreno": Method(neutreno, "values", {"fidelity": 0.6}, ("layer", "head"), needs_v0=True),
    "value_residual": Method(value_residual, "values", {"value_residual": 0.5}, ("layer", "head"), needs_v0=True),
    "kernel": Method(kernel, "scores"),
    "symmetric": Method(symmetric, "scores"),
    "featscale": Method(
        featscale, "output", {"featscale_low": 0.0, "featscale_high": 0.0}, ("channel",), "channel", averages=True
    ),
}

STRENGTHS: dict[str, str] = {strength: name for name, row in METHODS.items() for strength in row.strengths}  # -> method


# --- options ------------------------------------------------------------------------------------------------------


def split(method: str) -> tuple[str, ...]:
    """The names in "featscale+neutreno", in the order of METHODS: ("neutreno", "featscale").

    Raises:
        ValueError: If a name is unknown, or there is none, or one twice.
    """
    if not isinstance(method, str):
        hint = f" For a fidelity of {method!r} say fidelity={method!r}." if isinstance(method, int | float) else ""
        raise ValueError(f'method must be names joined by "+", such as "neutreno+featscale", got {method!r}.{hint}')
    names = [name.strip() for name in method.split("+")]
    if unknown := [name for name in names if name not in METHODS]:
        raise ValueError(f"unknown method {unknown[0]!r} in {method!r}. Methods: {', '.join(METHODS)}.")
    if len(set(names)) < len(names):
        raise ValueError(f"{method!r} names a method twice.")
    return tuple(name for name in METHODS if name in names)


def canonical(method: str) -> str:
    """The one way to write a method: "featscale+neutreno" -> "neutreno+featscale". Errors as of `split`."""
    return "+".join(split(method))


def check_strength(name: str, value: Any) -> float:
    """Return `value` as a float.

    Raises:
        ValueError: If it is not a finite number, or for a share not in [0, 1].
    """
    start = METHODS[STRENGTHS[name]].strengths[name]
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{name} must be a finite number such as {start}, got {value!r}.") from None
    if not math.isfinite(number):
        raise ValueError(f"{name} must be a finite number such as {start}, got {number}.")
    if name == "laplacian" and not 0 <= number <= 1:
        raise ValueError(f"laplacian is a share of the heads, from 0 to 1, got {number:g}.")
    return number


def resolve(method: str, options: dict[str, Any]) -> dict[str, Any]:
    """All options of a method, checked, the given ones over the table's: strengths and `learnable_<strength>`.

    Args:
        method: Names joined by "+".
        options: `<strength>`, a number, and `learnable_<strength>`: one of the row's `learnable`, False for a constant,
            None for what the paper does.

    Raises:
        ValueError: If the method is unknown, an option does not belong to it, or a value is none of the allowed.
    """
    resolved: dict[str, Any] = {}
    for name in split(method):
        row = METHODS[name]
        for strength, start in row.strengths.items():
            resolved[strength] = check_strength(strength, options.get(strength, start))
            learnable = f"learnable_{strength}"
            resolved[learnable] = _check_learnable(learnable, options.get(learnable), row)
    if unknown := [name for name in options if name not in resolved]:
        raise ValueError(_unknown_option(unknown[0], method, resolved))
    return resolved


def _check_learnable(name: str, value: Any, row: Method) -> str | bool | None:
    if value is None:
        return row.learned
    if value is False:
        return False if row.learned else None
    if not isinstance(value, str) or value not in row.learnable:
        allowed = ", ".join(["None", "False", *map(repr, row.learnable)])
        raise ValueError(f"{name} must be one of {allowed}; got {value!r}.")
    return value


def _unknown_option(option: str, method: str, resolved: dict[str, Any]) -> str:
    owner = STRENGTHS.get(option.removeprefix("learnable_"))
    if owner:
        return f"{option} belongs to the method {owner!r}, and the method is {canonical(method)!r}."
    return f"unknown option {option!r} of method {canonical(method)!r}. Options: {', '.join(resolved) or 'none'}."
