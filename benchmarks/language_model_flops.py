"""What language_model.py costs: operations of training and of the sliding window, counted by torch on one text.

    python benchmarks/language_model_flops.py

For the paper's sizes (--paper of language_model.py) and for the defaults. torch's FlopCounterMode counts matrix
products (2 for a multiplication and an addition), forward and backward; elementwise operations, among them NeuTRENO's
term, are left out. Attention is taken apart into its products (the math path), since the counter takes the CPU's fused
kernel for nothing; what the causal mask hides is counted too. Adaptive softmax costs what the words need: they are
drawn by Zipf's law, p ~ 1 / rank.
"""

from __future__ import annotations

import json

import torch
from language_model import arguments, build
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

VOCABULARY = {"--paper": 267_735, "": 8_542}  # of WikiText-103's training text, and of nine tenths of its val text
TEST = 245_569  # words of WikiText-103's test text


def main() -> None:
    torch.set_num_threads(1)
    print(json.dumps({"torch": torch.__version__, **{name or "defaults": cost(name) for name in VOCABULARY}}, indent=1))


def cost(preset: str) -> dict[str, int]:
    options = arguments([*["--train", "-", "--test", "-", "--output", "-", "--device", "cpu"], *preset.split()])
    lm = build("plain", 0, VOCABULARY[preset], options)
    ranks = 1 / torch.arange(1, lm.vocabulary + 1)
    text = torch.multinomial(ranks, lm.context + 1, True, generator=torch.Generator().manual_seed(0))[None]
    per_token = counted(lm, text, lm.context, backward=True) // lm.context
    tokens = options.steps * options.batch_size * lm.context
    windows = (TEST - lm.context) // options.stride
    return {
        "parameters_of_tokens": lm.embedding().numel(),
        "parameters_of_blocks": sum(p.numel() for p in lm.blocks.parameters()),
        "training_flops_per_token": per_token,
        "training_tokens": tokens,
        "training_flops": per_token * tokens,
        "test_flops": counted(lm.eval(), text, options.stride, backward=False) * windows,
    }


def counted(lm: nn.Module, text: torch.Tensor, scored: int, *, backward: bool) -> int:
    """Operations for one text of `context` tokens, of which the last `scored` are scored."""
    math = sdpa_kernel(SDPBackend.MATH)
    with torch.set_grad_enabled(backward), math, FlopCounterMode(display=False) as counter:
        loss = lm(text[:, :-1], text[:, 1:][:, -scored:]).mean()
        if backward:
            loss.backward()
    return counter.get_total_flops()


if __name__ == "__main__":
    main()
