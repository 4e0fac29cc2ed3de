"""The table of everything that can be measured per layer on images: name -> formula, words for plots and reports.

The name of a token measure says where, what, and of which tokens: `block_similarity`, `attention_similarity_patch`.
`block` is the residual stream after the block, `attention` the attention module's output after its projection, before
it is added to the stream (the papers' codes differ, so both are here); `_patch` leaves the prefix tokens out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from torch import Tensor

from . import heads, tokens


class Metric(NamedTuple):
    of: str  # what `compute` takes: tokens of a "block" or "attention", the "heads" of a layer, or of two: "layers"
    compute: Callable[..., Tensor]
    label: str  # for axes
    meaning: str  # one sentence for the report
    patch_only: bool = False


_TOKEN_METRICS = {
    "similarity": (
        tokens.cosine_similarity,
        "Mean cosine similarity of tokens",
        "1 means that all tokens point the same way (over-smoothing), 0 that they are unrelated on average.",
    ),
    "hfc_lfc": (
        tokens.hfc_lfc,
        "High / low frequency (HFC / LFC)",
        "Size of what differs between tokens, relative to what they share; 0 means that all tokens are equal.",
    ),
    "angle": (
        tokens.angle,
        "Mean angle to mean direction (degrees)",
        "0 means that all tokens point the same way, whatever their lengths (angle convergence).",
    ),
    "rank_one_distance": (
        tokens.rank_one_distance,
        "Relative distance to rank one",
        "0 means that every token is a multiple of one vector (rank collapse).",
    ),
    "effective_rank": (
        tokens.effective_rank,
        "Effective rank",
        "About how many directions the tokens use; 1 is rank collapse.",
    ),
}
_WHERE = {"block": "block outputs", "attention": "attention outputs"}

METRICS: dict[str, Metric] = {
    f"{of}_{name}{suffix}": Metric(of, compute, f"{label}\n({where}{words})", meaning, bool(suffix))
    for name, (compute, label, meaning) in _TOKEN_METRICS.items()
    for of, where in _WHERE.items()
    for suffix, words in (("", ""), ("_patch", ", patch tokens only"))
}

METRICS |= {
    "functional_softmax": Metric(
        "heads",
        heads.functional_softmax,
        "J(v) with softmax weights",
        "How different the values are that a token attends to; attention makes one step towards smaller J.",
    ),
    "functional_exp": Metric(
        "heads",
        heads.functional_exp,
        "J(v) with raw exponential weights",
        "The same with the kernel exp(q k / sqrt d) as in the paper's formula, before normalisation.",
    ),
    "gradient_cosine": Metric(
        "heads",
        heads.gradient_cosine,
        "Cosine of symmetric and\nasymmetric gradient of J",
        "1 means that attention with queries and keys goes the same way as the symmetric attention of the theory.",
    ),
    "head_similarity": Metric(
        "heads",
        heads.head_similarity,
        "Mean cosine similarity of\na layer's attention maps",
        "1 means that all heads of the layer attend alike.",
    ),
    "map_cosine": Metric(
        "layers",
        heads.map_cosine,
        "Cosine of attention maps,\nlayer and next layer",
        "1 means that a layer attends as the one before it did, head by head; one value fewer than layers.",
    ),
}

SIMILARITIES = tuple(name for name in METRICS if name.startswith(("block_sim", "attention_sim")))


def check_metrics(names: Iterable[str]) -> list[str]:
    """The names as a list.

    Raises:
        ValueError: If one is unknown, or there is none.
    """
    names = list(names)
    unknown = [name for name in names if name not in METRICS]
    if unknown or not names:
        asked = f"unknown metric(s): {', '.join(unknown)}" if unknown else "no metric was asked for"
        raise ValueError(f"{asked}. Choose from: {', '.join(METRICS)}.")
    return names
