"""What a person should know before believing a run's figures, one sentence each."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..config import Config
from .tables import count

AVERAGED = ("state_dict_ema", "model_ema", "teacher")  # how a note on averaged weights begins


def of_run(config: Config, notes: Sequence[str], new_head: str) -> Iterator[str]:
    """Of what is about to be trained.

    Args:
        config: What was asked for.
        notes: What was found out of the checkpoint's weights.
        new_head: Why the head was initialised anew; "" if it was not.
    """
    if config.checkpoint != "demo" and config.data is None:
        yield (
            f"{config.checkpoint} is trained on the embedded digits, since --data is missing. Name a folder of images "
            "with --data for your own."
        )
    if new_head:
        yield f"the head is initialised anew: {new_head}. Until it is trained, the accuracy is that of guessing."
    if any(note.startswith(AVERAGED) for note in notes):
        yield "the weights of the file that are used are averages (EMA) over its training, as said above."


def near_chance(name: str, found: Mapping[str, Any], num_classes: int, new_head: str) -> str:
    """That a model without training guesses, or nearly so; "" if it does not, or has a new head."""
    chance = 100 / num_classes
    noise = 3 * math.sqrt(chance * (100 - chance) / found["images"])
    if new_head or found["top1"] > chance + max(noise, (100 - chance) / 20):
        return ""
    return (
        f"{name} is near chance: {found['top1']:.2f} % on {count(found['images'], 'image')}, where guessing gives "
        f"{chance:.2g} %. Are these its classes, in its order?"
    )
