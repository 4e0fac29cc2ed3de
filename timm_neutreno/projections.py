"""How q, k and v come out of each attention class of timm, and how its output goes in again.

One row per class in `ATTENTIONS`. `attention.run_attention` runs a row as

    project(module, x, ...) -> Projected      timm's code up to q, k, v
    attend(module, p)       -> u              softmax(q k^T / sqrt(d)) v, inside the methods, which are not known here
    output(module, u, x, p) -> y              timm's code after u

The pieces follow timm 1.0.31 operation by operation, so that without a method the result is bit-equal to timm's;
tests/test_timm_drift.py names the row to look at again when timm changes one of these forwards.

Shapes: B images, N tokens, C channels, H heads, D channels per head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import Attention, AttentionRope, DiffAttention, apply_rot_embed_cat
from timm.layers.attention import maybe_add_mask, resolve_self_attn_mask
from timm.models.beit import Attention as BeitAttention
from timm.models.cait import TalkingHeadAttn
from timm.models.eva import EvaAttention
from timm.models.gemma4_vit import Gemma4Attention, apply_multidimensional_rope
from timm.models.vision_transformer import DiffParallelScalingBlock, ParallelScalingBlock
from timm.models.vision_transformer_relpos import RelPosAttention
from timm.models.vision_transformer_sam import Attention as SamAttention
from timm.models.vision_transformer_sam import get_decomposed_rel_pos_bias
from torch import Tensor, nn

from .methods import Projected

torch.fx.wrap("maybe_add_mask")  # both ask for values of their arguments, which symbolic tracing has not
torch.fx.wrap("resolve_self_attn_mask")


class AttentionSpec(NamedTuple):
    """A row of ATTENTIONS.

    Attributes:
        project: timm's code up to q, k and v.
        attend: Attention proper, (module, p) -> u, (B, H, N, D).
        output: timm's code after it.
        refuses: What cannot act here and why, by method, or by what a method acts on ("output"), or "averages".
    """

    project: Callable[..., Projected]
    attend: Callable[[nn.Module, Projected], Tensor]
    output: Callable[[nn.Module, Tensor, Tensor, Projected], Tensor]
    refuses: dict[str, str] = {}  # noqa: RUF012 - never changed


# --- project -----------------------------------------------------------------------------------------------------


def _fused_qkv(qkv: Tensor, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """(B, N, 3 * H * D) -> three (B, H, N, D) views."""
    B, N, C = qkv.shape  # no -1 below: of an empty batch it could be anything
    q, k, v = qkv.reshape(B, N, 3, num_heads, C // (3 * num_heads)).permute(2, 0, 3, 1, 4).unbind(0)
    return q, k, v


def _heads(x: Tensor, num_heads: int) -> Tensor:
    """(B, N, H * D) -> (B, H, N, D)."""
    B, N, C = x.shape
    return x.reshape(B, N, num_heads, C // num_heads).transpose(1, 2)


def _rotate(x: Tensor, rope: Tensor, num_prefix_tokens: int, half: bool, dtype: torch.dtype) -> Tensor:
    prefix, patches = x[:, :, :num_prefix_tokens, :], x[:, :, num_prefix_tokens:, :]
    return torch.cat([prefix, apply_rot_embed_cat(patches, rope, half=half)], dim=2).to(dtype)


def _normalize_and_rotate(attn, q: Tensor, k: Tensor, rope: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    q, k = attn.q_norm(q), attn.k_norm(k)
    if rope is not None:
        half = getattr(attn, "rotate_half", False)
        q = _rotate(q, rope, attn.num_prefix_tokens, half, dtype)
        k = _rotate(k, rope, attn.num_prefix_tokens, half, dtype)
    return q, k


def _qkv_with_separate_bias(attn, x: Tensor) -> Tensor:
    """BEiT's and EVA's qkv: one weight, a bias for q and v, zeros for k."""
    if attn.q_bias is None:
        return attn.qkv(x)
    bias = torch.cat((attn.q_bias, attn.k_bias, attn.v_bias))
    if attn.qkv_bias_separate:
        return attn.qkv(x) + bias
    return F.linear(x, weight=attn.qkv.weight, bias=bias)


def project_attention(attn, x, attn_mask=None, is_causal=False) -> Projected:
    q, k, v = _fused_qkv(attn.qkv(x), attn.num_heads)
    return Projected(attn.q_norm(q), attn.k_norm(k), v, mask=attn_mask, is_causal=is_causal)


def project_rope(attn, x, rope=None, attn_mask=None, is_causal=False) -> Projected:
    if attn.qkv is not None:
        q, k, v = _fused_qkv(attn.qkv(x), attn.num_heads)
    else:
        q = _heads(attn.q_proj(x), attn.num_heads)
        k, v = (_heads(proj(x), attn.num_kv_heads) for proj in (attn.k_proj, attn.v_proj))
    q, k = _normalize_and_rotate(attn, q, k, rope, v.dtype)
    if attn.num_kv_groups > 1:  # layers may differ in num_kv_heads: v is handed on with all its H heads
        k, v = (t.repeat_interleave(attn.num_kv_groups, dim=1) for t in (k, v))
    return Projected(q, k, v, mask=attn_mask, is_causal=is_causal)


def project_eva(attn, x, rope=None, attn_mask=None, is_causal=False) -> Projected:
    if attn.qkv is not None:
        q, k, v = _fused_qkv(_qkv_with_separate_bias(attn, x), attn.num_heads)
    else:
        q, k, v = (_heads(proj(x), attn.num_heads) for proj in (attn.q_proj, attn.k_proj, attn.v_proj))
    q, k = _normalize_and_rotate(attn, q, k, rope, v.dtype)
    return Projected(q, k, v, mask=attn_mask, is_causal=is_causal)


def project_beit(attn, x, shared_rel_pos_bias=None) -> Projected:
    q, k, v = _fused_qkv(_qkv_with_separate_bias(attn, x), attn.num_heads)
    bias = shared_rel_pos_bias
    if attn.relative_position_bias_table is not None:
        own = attn._get_rel_pos_bias()
        bias = own if bias is None else own + bias
    return Projected(q, k, v, bias)


def project_rel_pos(attn, x, shared_rel_pos=None) -> Projected:
    q, k, v = _fused_qkv(attn.qkv(x), attn.num_heads)
    bias = attn.rel_pos.get_bias() if attn.rel_pos is not None else shared_rel_pos
    return Projected(attn.q_norm(q), attn.k_norm(k), v, bias)


def project_talking_heads(attn, x) -> Projected:
    return Projected(*_fused_qkv(attn.qkv(x), attn.num_heads))


def project_gemma4(attn, x, rope_cos, rope_sin, attn_mask=None) -> Projected:
    B, N, _ = x.shape
    q = attn.q_norm(attn.q_proj(x).view(B, N, attn.num_heads, attn.head_dim))
    k = attn.k_norm(attn.k_proj(x).view(B, N, attn.num_kv_heads, attn.head_dim))
    v = attn.v_norm(attn.v_proj(x).view(B, N, attn.num_kv_heads, attn.head_dim)).transpose(1, 2)
    q, k = (apply_multidimensional_rope(t, rope_cos, rope_sin, ndim=2, unsqueeze_dim=2).transpose(1, 2) for t in (q, k))
    if attn.num_kv_groups > 1:
        k, v = (t.repeat_interleave(attn.num_kv_groups, dim=1) for t in (k, v))
    return Projected(q, k, v, mask=attn_mask, scale=1.0)


def _differential_heads(module, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q and k keep two half-width heads per head of v: (B, 2H, N, D), (B, 2H, N, D), (B, H, N, 2D)."""
    q, k = _heads(q, 2 * module.num_heads), _heads(k, 2 * module.num_heads)
    return module.q_norm(q), module.k_norm(k), _heads(v, module.num_heads)


def project_diff(attn, x, attn_mask=None, is_causal=False) -> Projected:
    q, k, v = attn.qkv(x).chunk(3, dim=2)
    return Projected(*_differential_heads(attn, q, k, v), mask=attn_mask, is_causal=is_causal)


def _joint_projection(block, x: Tensor) -> list[Tensor]:
    """A parallel block's MLP input, q, k and v, all (B, N, ...)."""
    mlp, q, k, v = torch.split(block.in_proj(block.in_norm(x)), block.in_split, dim=-1)
    return [mlp if block.mlp_bias is None else mlp + block.mlp_bias, q, k, v]


def project_parallel(block, x, attn_mask=None, is_causal=False) -> Projected:
    mlp, q, k, v = _joint_projection(block, x)
    B, N, _ = q.shape
    q, k, v = (t.view(B, N, block.num_heads, block.head_dim) for t in (q, k, v))
    q, k, v = block.q_norm(q).transpose(1, 2), block.k_norm(k).transpose(1, 2), v.transpose(1, 2)
    return Projected(q, k, v, mask=attn_mask, is_causal=is_causal, mlp=mlp)


def project_diff_parallel(block, x, attn_mask=None, is_causal=False) -> Projected:
    mlp, q, k, v = _joint_projection(block, x)
    return Projected(*_differential_heads(block, q, k, v), mask=attn_mask, is_causal=is_causal, mlp=mlp)


def project_sam(attn, x) -> Projected:
    """x is (B, H, W, C), an image or, in a windowed block, one window of it."""
    B, height, width, C = x.shape
    N = height * width
    q, k, v = _fused_qkv(attn.qkv(x.reshape(B, N, C)), attn.num_heads)
    q, k = attn.q_norm(q), attn.k_norm(k)
    bias = None
    if attn.use_rel_pos:
        size = (height, width)
        bias = get_decomposed_rel_pos_bias(q.flatten(0, 1), attn.rel_pos_h, attn.rel_pos_w, size, size)
        bias = bias.view(B, attn.num_heads, N, N)
    elif attn.rope is not None:
        rope = attn.rope.get_embed()
        q, k = (apply_rot_embed_cat(t, rope).type_as(v) for t in (q, k))
    return Projected(q, k, v, bias)


# --- attend ------------------------------------------------------------------------------------------------------


def merged_mask(p: Projected) -> tuple[Tensor | None, bool]:
    """One mask as SDPA takes it, and whether to mask causally beside it: torch allows one of the two."""
    if p.bias is None:
        return p.mask, p.is_causal
    return maybe_add_mask(p.bias, resolve_self_attn_mask(p.k.shape[-2], p.q, p.mask, p.is_causal)), False


def _weights(q: Tensor, k: Tensor, p: Projected, scale: float) -> Tensor:
    """softmax(scale * q k^T + bias), (B, H, N, N), tokens hidden by the mask left out."""
    scores = (q * scale) @ k.transpose(-2, -1)
    mask, is_causal = merged_mask(p)
    return maybe_add_mask(scores, resolve_self_attn_mask(scores.shape[-1], scores, mask, is_causal)).softmax(dim=-1)


def _sdpa(module, q: Tensor, k: Tensor, p: Projected) -> Tensor:
    dropout = module.attn_drop.p if module.training else 0.0
    mask, is_causal = (p.mask, p.is_causal) if p.bias is None else merged_mask(p)
    return F.scaled_dot_product_attention(
        q, k, p.v, attn_mask=mask, dropout_p=dropout, is_causal=is_causal, scale=p.scale
    )


def attend(module, p: Projected) -> Tensor:
    if module.fused_attn:
        return _sdpa(module, p.q, p.k, p)
    return module.attn_drop(_weights(p.q, p.k, p, module.scale if p.scale is None else p.scale)) @ p.v


def attend_sam(attn, p: Projected) -> Tensor:
    """timm folds the heads into the batch here, and SDPA rounds differently for three dimensions than for four."""
    B, H = p.v.shape[:2]
    flat = p.replace(q=p.q.flatten(0, 1), k=p.k.flatten(0, 1), v=p.v.flatten(0, 1))
    if p.bias is not None:
        flat = flat.replace(bias=p.bias.flatten(0, 1))
    return attend(attn, flat).unflatten(0, (B, H))


def attend_talking_heads(attn, p: Projected) -> Tensor:
    scores = (p.q * attn.scale) @ p.k.transpose(-2, -1)
    scores = attn.proj_l(scores.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    weights = attn.proj_w(scores.softmax(dim=-1).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    return attn.attn_drop(weights) @ p.v


def attend_diff(module, p: Projected) -> Tensor:
    """(softmax(q1 k1^T) - lambda softmax(q2 k2^T)) v, before sub_norm: the layer's own weighted mean of values.

    Methods act here, before sub_norm, because here u and v are on one scale. (Our choice; their papers have no
    differential attention.)
    """
    balance = module._compute_lambda().type_as(p.q)
    if module.fused_attn:
        q, k = (t.unflatten(1, (module.num_heads, 2)) for t in (p.q, p.k))
        first, second = (_sdpa(module, q[:, :, i], k[:, :, i], p) for i in (0, 1))
        return first - balance * second
    weights = module.attn_drop(_weights(p.q, p.k, p, module.scale)).unflatten(1, (module.num_heads, 2))
    return (weights[:, :, 0] - balance * weights[:, :, 1]) @ p.v


# --- output ------------------------------------------------------------------------------------------------------


def _merge_heads(u: Tensor) -> Tensor:
    """(B, H, N, D) -> (B, N, H * D)."""
    B, H, N, D = u.shape
    return u.transpose(1, 2).reshape(B, N, H * D)


def output_plain(attn, u, x, p) -> Tensor:
    return attn.proj_drop(attn.proj(_merge_heads(u)))


def output_norm_gate(attn, u, x, p) -> Tensor:
    u = attn.norm(_merge_heads(u))
    if attn.gate is not None:
        u = u * attn.gate(x).sigmoid()
    return attn.proj_drop(attn.proj(u))


def output_gemma4(attn, u, x, p) -> Tensor:
    return attn.proj_drop(attn.o_proj(_merge_heads(u)))


def output_diff(attn, u, x, p) -> Tensor:
    u = attn.sub_norm(u) * (1 - attn.lambda_init)
    return attn.proj_drop(attn.proj(attn.norm(_merge_heads(u))))


def output_sam(attn, u, x, p) -> Tensor:
    y = attn.proj_drop(attn.proj(_merge_heads(u)))
    return y.view(x.shape[0], x.shape[1], x.shape[2], y.shape[-1])  # by number: torch.fx cannot unpack a shape


def output_parallel(block, u, x, p) -> Tensor:
    u, mlp = _merge_heads(u), block.mlp_drop(block.mlp_act(p.mlp))
    if block.out_proj is not None:
        y = block.out_proj(torch.cat((u, mlp), dim=-1))
    else:
        y = block.attn_out_proj(u) + block.mlp_out_proj(mlp)
    return x + block.drop_path(block.ls(y))


def output_diff_parallel(block, u, x, p) -> Tensor:
    return output_parallel(block, block.sub_norm(u) * (1 - block.lambda_init), x, p)


# --- the table: exact timm class -> its row -------------------------------------------------------------------------

SEVERAL_MAPS = {"kernel": "mixes several softmax maps, so that a bias per key is not a kernel"}
WINDOWS = {
    "averages": "cuts its tokens into padded windows, so that a mean over tokens is one over a window's padding too"
}
JOINT_SUM = {"output": "gives attention and MLP in one sum, so that the attention's output cannot be scaled alone"}

ATTENTIONS: dict[type[nn.Module], AttentionSpec] = {
    Attention: AttentionSpec(project_attention, attend, output_norm_gate),
    AttentionRope: AttentionSpec(project_rope, attend, output_norm_gate),
    EvaAttention: AttentionSpec(project_eva, attend, output_norm_gate),
    BeitAttention: AttentionSpec(project_beit, attend, output_plain),
    RelPosAttention: AttentionSpec(project_rel_pos, attend, output_plain),
    TalkingHeadAttn: AttentionSpec(project_talking_heads, attend_talking_heads, output_plain, SEVERAL_MAPS),
    Gemma4Attention: AttentionSpec(project_gemma4, attend, output_gemma4),
    DiffAttention: AttentionSpec(project_diff, attend_diff, output_diff, SEVERAL_MAPS),
    SamAttention: AttentionSpec(project_sam, attend_sam, output_sam, WINDOWS),
    ParallelScalingBlock: AttentionSpec(project_parallel, attend, output_parallel, JOINT_SUM),
    DiffParallelScalingBlock: AttentionSpec(
        project_diff_parallel, attend_diff, output_diff_parallel, JOINT_SUM | SEVERAL_MAPS
    ),
}


QUERIES = ("q_proj", "q_norm", "query")  # the last one of BERT in transformers


def query_parameters(module: Any) -> dict[str, nn.Parameter]:
    """By name, those that only make q, which symmetric attention does not use; rows of a fused qkv are none."""
    return {name: p for name, p in module.named_parameters() if name.split(".")[0] in QUERIES}


def output_width(module: Any) -> int:
    """Channels of an attention module's output. Gemma's linear layers hold another one, whose inputs they clip."""
    proj = getattr(module, "proj", None) or module.o_proj
    return getattr(proj, "linear", proj).weight.shape[0]
