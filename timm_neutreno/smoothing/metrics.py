"""The table of everything that can be measured per layer on images: name -> formula, words for plots and reports.

A name says where, what, and of which tokens: `block_similarity`, `attention_similarity_patch`. `block` is the residual
stream after the block, `attention` the attention module's output after its projection, before it is added to the
stream (the papers' codes differ, so both are here); `_patch` leaves the prefix tokens out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from torch import Tensor

from . import tokens


class Metric(NamedTuple):
    of: str  # where it is measured: "block" or "attention"
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

SIMILARITIES = tuple(name for name in METRICS if "_similarity" in name)


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
