"""Issue 3: every supported timm name, built small, against the oracle on a separate, unpatched model in float32.

The constructor's arguments are kept but for depth, width, heads and image size: what makes an architecture its own
(norms, position embeddings, gates, registers, pooling, per-layer key-value heads, windows, hybrid stems) stays.
"""

import copy
import re

import pytest
import timm
import torch
from hosts import images, randomize
from reference import oracle, set_fused
from timm.models.cait import TalkingHeadAttn
from timm.models.vision_transformer import DiffAttention, DiffParallelScalingBlock, ParallelThingsBlock
from timm.models.vision_transformer_sam import Block as SamBlock

import timm_neutreno
from timm_neutreno.support import find_vits

NAMES = timm_neutreno.supported_models()
DEPTH = 3  # first, middle and last block

# name pattern -> arguments that must follow the smaller depth or width; None: timm's own
FOLLOW = [
    (r"^samvit", dict(global_attn_indexes=(1,))),
    (r"_sapiens2$", dict(num_kv_heads=(3, 1, 3))),
    (r"^vitamin|_mci_", dict(embed_dim=None, num_heads=None)),  # the width is that of the convolution stem
    (r"^gemma4.*_enc$", dict(img_size=48)),  # pools 3 x 3 tokens
    (r"^deepseek", dict(img_size=28)),
]


def arguments(name: str) -> dict:
    patch = re.search(r"patch(\d+)|_s(\d+)_", name)
    size = int(patch[1] or patch[2]) if patch else 16
    kwargs = dict(depth=DEPTH, embed_dim=48, num_heads=3, img_size=2 * size)
    for pattern, more in FOLLOW:
        if re.search(pattern, name):
            kwargs |= more
    return {key: value for key, value in kwargs.items() if value is not None}


def build(name: str, **kwargs):
    model = timm.create_model(name, **kwargs).eval()
    stem = getattr(getattr(model, "patch_embed", None), "backbone", None)
    state = copy.deepcopy(stem.state_dict()) if stem else {}
    randomize(model)
    if stem:  # random weights make the activations of a deep ResNet overflow
        stem.load_state_dict(state)
    return model


def calls_per_layer(model) -> int:
    block = find_vits(model)[0].blocks[0]
    if isinstance(block, SamBlock) or isinstance(getattr(block, "attn", None), TalkingHeadAttn):
        return 0
    if isinstance(block, DiffParallelScalingBlock) or isinstance(getattr(block, "attn", None), DiffAttention):
        return 2
    return len(block.attns) if isinstance(block, ParallelThingsBlock) else 1


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max()).item()


@torch.no_grad()
def compare(name: str) -> tuple[float, float]:
    """The largest difference to the oracle, and, to show that the comparison can tell, that of timm's own model."""
    kwargs = arguments(name)
    plain = build(name, **kwargs)
    model = timm_neutreno.patch(copy.deepcopy(plain), fidelity=0.6)
    x = images(2, kwargs["img_size"])
    softmax = plain(x)
    set_fused(plain, True)
    with oracle(plain, 0.6, calls_per_layer(plain)):
        expected = plain(x)
    return relative(model(x), expected), relative(softmax, expected)


def test_count():
    print(f"\n{len(NAMES)} architectures of timm {timm.__version__}")
    assert len(NAMES) >= 335


@pytest.mark.parametrize("name", NAMES)
def test_equals_the_oracle(name):
    ours, timms = compare(name)
    assert ours < 1e-5
    assert timms > 1e-3
