"""The authors' Segmenter checkpoints (rstrudel/segmenter and NeuTRENO's fork of it) under our names.

Blocks and decoder have the same names in both; what theirs has beside them is listed here. `alpha`, the fidelity, is
not in a checkpoint but in the `variant.yml` beside it. Their LayerNorms of the encoder have eps 1e-5, timm's 1e-6.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

# pattern of an official name -> ours; None where Segmenter has no such thing: the classifier of the pretraining
NAMES: dict[str, str | None] = {
    r"(?:module\.)?encoder\.head(?:_dist)?\..*": None,
    r"(?:module\.)?encoder\.pre_logits\..*": None,
    r"(?:module\.)?(encoder|decoder)\.(.*)": r"\1.\2",
}


def from_official(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The state_dict for `Segmenter.load_state_dict`, of one that the official code saved.

    Args:
        checkpoint: The file's content, or the state_dict in it under "model".

    Raises:
        ValueError: If a name is none of theirs.
    """
    weights = checkpoint.get("model", checkpoint)
    renamed = {}
    for name, value in weights.items():
        pattern = next((pattern for pattern in NAMES if re.fullmatch(pattern, name)), None)
        if pattern is None:
            raise ValueError(f"{name!r} is no name of the official Segmenter: expected encoder.* and decoder.*.")
        if (ours := NAMES[pattern]) is not None:
            renamed[re.sub(pattern, ours, name)] = value
    return renamed
