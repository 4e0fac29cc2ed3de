"""Whether torch.compile fuses the fidelity term with its neighbours: kernels in inductor's code, and time. Inference.

    python benchmarks/fusion.py

Rows: one layer's attention and output projection for deit_tiny (3 heads, 197 tokens, 64 channels), with and without the
term: by SDPA; by SDPA with frozen weights and C++ templates for matrix products (max-autotune), which could take the
term in as a prologue; by flex-attention, whose epilogue it could be. Kernels are those beside SDPA's own. Time is the
median of paired ratios to the first row.
"""

from __future__ import annotations

import argparse
import statistics
import time

import machine
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._inductor import config
from torch._inductor.exc import InductorError
from torch._inductor.utils import run_and_get_code
from torch.nn.attention.flex_attention import flex_attention

from timm_neutreno.methods import add_scaled

HEADS, TOKENS, CHANNELS = 3, 197, 64
AUTOTUNED = {"freezing": True, "max_autotune": True, "max_autotune_gemm_backends": "CPP,ATEN"}
ROWS = {
    "SDPA": (F.scaled_dot_product_attention, {}),
    "SDPA, autotuned": (F.scaled_dot_product_attention, AUTOTUNED),
    "flex-attention": (flex_attention, {}),
}


class Layer(torch.nn.Module):
    """Attention, perhaps the term, and the output projection."""

    def __init__(self, attention, term: bool):
        super().__init__()
        torch.manual_seed(0)
        self.attention, self.term = attention, term
        self.proj = torch.nn.Linear(HEADS * CHANNELS, HEADS * CHANNELS)

    def forward(self, qkv: Tensor, v0: Tensor) -> Tensor:
        q, k, v = qkv.unflatten(2, (3, HEADS, CHANNELS)).permute(2, 0, 3, 1, 4)
        u = self.attention(q, k, v)
        u = add_scaled(u, 0.6, v0 - v) if self.term else u
        return self.proj(u.transpose(1, 2).flatten(2))


def compiled(layer: Layer, settings: dict, inputs: tuple[Tensor, Tensor]):
    """The compiled layer, and how many kernels its code calls."""
    torch._dynamo.reset()
    with config.patch(settings):
        function = torch.compile(layer.eval(), fullgraph=True)
        _, (code, *_) = run_and_get_code(function, *inputs)
    calls = [line.strip() for line in code[code.index("def call(") :].splitlines()]
    return function, sum(line.startswith("cpp_fused") or "extern_kernels." in line for line in calls)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=60)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    inputs = (
        torch.randn(args.batch, TOKENS, 3 * HEADS * CHANNELS),
        torch.randn(args.batch, TOKENS, HEADS, CHANNELS).transpose(1, 2),
    )
    layers, kernels = {}, {}
    with torch.no_grad():
        for name, (attention, settings) in ROWS.items():
            for term in (False, True):
                try:
                    layers[name, term], kernels[name, term] = compiled(Layer(attention, term), settings, inputs)
                except InductorError as error:
                    print(f"{name}{', with the term' * term}: {str(error).splitlines()[0]}")
        seconds: dict = {row: [] for row in layers}
        for _ in range(args.rounds):
            for row, layer in layers.items():
                start = time.perf_counter()
                layer(*inputs)
                seconds[row].append(time.perf_counter() - start)
    print(f"batch {args.batch}, {args.rounds} rounds, one thread, {machine.described('cpu')}")
    print("| attention | kernels | with the term | time | with the term |\n|---|---|---|---|---|")
    for name in ROWS:
        ratios = [
            ratio(seconds[name, t], seconds["SDPA", False]) if (name, t) in seconds else "-" for t in (False, True)
        ]
        print("|", " | ".join(map(str, [name, *(kernels.get((name, t), "-") for t in (False, True)), *ratios])), "|")


def ratio(values: list[float], base: list[float]) -> str:
    return f"{statistics.median(a / b for a, b in zip(values, base, strict=True)):.3f}"


if __name__ == "__main__":
    main()
